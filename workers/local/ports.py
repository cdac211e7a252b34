"""Free ports on 127.0.0.1, the same ones again at the next start.

They are drawn from below the kernel's ephemeral range (32768 and up on Linux), so that no outgoing
connection takes one while the stack is down. Nobody reserves them: a remembered port that another
program has taken meanwhile is replaced.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection, Iterable, Mapping

from workers.local.errors import StackError

LOOPBACK = "127.0.0.1"
_FIRST, _LAST = 20_000, 32_000
_ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Return whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection of the last run in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(names: Iterable[str], remembered: Mapping[str, int]) -> dict[str, int]:
    """Return a free port for every name; remembered ones are kept where they are free.

    Raises:
        StackError: no free port was found.
    """
    chosen: dict[str, int] = {}
    for name in names:
        port = remembered.get(name)
        if port is None or port in chosen.values() or not is_free(port):
            port = draw(set(chosen.values()) | set(remembered.values()))
        chosen[name] = port
    return chosen


def draw(taken: Collection[int] = ()) -> int:
    """Return a free port that is none of `taken`. Raises StackError if none was found."""
    for _ in range(_ATTEMPTS):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if port not in taken and is_free(port):
            return port
    raise StackError(f"no free port between {_FIRST} and {_LAST} on {LOOPBACK}")
