"""A child process that cannot outlive its parent.

On Linux the kernel kills a child when the thread that forked it dies (PR_SET_PDEATHSIG), even if
the supervisor was killed with SIGKILL. The signal is SIGKILL, too: a hung child must not survive.
So children are spawned from the main thread only. Each child leads a session of its own: Ctrl-C in
a terminal reaches the supervisor alone, which then stops the children in order.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.local.files import tail

_PR_SET_PDEATHSIG = 1
_ROTATE_BYTES = 32 * 1024 * 1024
# Bound before any fork: between fork and exec nothing may be imported or looked up.
_LIBC = ctypes.CDLL(None, use_errno=True)
_PRCTL = _LIBC.prctl


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a process.

    `grace_s`: seconds between SIGTERM and SIGKILL when it is stopped. `fresh`: files that are
    removed before it starts. The log gets both standard output and standard error.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    grace_s: float = 10.0
    fresh: tuple[Path, ...] = ()


def die_with_parent() -> Callable[[], None]:
    """Return a `preexec_fn`: the kernel shall kill this process when its parent's thread ends."""
    parent = os.getpid()

    def apply() -> None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return apply


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it does not run.

    With the pid it names a process for good: pids are reused, the pair is not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The command name in parentheses may contain anything, even ") ".
    state, *rest = fields.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])


class Child:
    """A running child process. Spawning is synchronous: no cancellation can lose the process."""

    def __init__(self, command: Command) -> None:
        self.command = command
        command.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _rotate(command.log)
        for path in command.fresh:
            path.unlink(missing_ok=True)
        with command.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own argument lists
                command.argv,
                env=dict(command.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._exited = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._on_exit, loop)
        self.ticks = start_ticks(self._process.pid)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit status, minus the signal's number if one ended it; None while it runs."""
        return self._process.returncode

    def _on_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self._exited.set()

    async def wait(self) -> int:
        """Wait for the end and return the exit code."""
        await self._exited.wait()
        code = self.exit_code
        assert code is not None
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process has ended."""
        self._process.send_signal(number)

    async def stop(self, force: asyncio.Event) -> None:
        """Ask the process to end and wait; kill it after its grace time or when `force` is set."""
        self.signal(signal.SIGTERM)
        ended = asyncio.ensure_future(self._exited.wait())
        forced = asyncio.ensure_future(force.wait())
        try:
            await asyncio.wait(
                {ended, forced},
                timeout=self.command.grace_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            forced.cancel()
            ended.cancel()
            await asyncio.gather(ended, forced, return_exceptions=True)
        if not self._exited.is_set():
            self.signal(signal.SIGKILL)
        await self._exited.wait()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines this run wrote to its log."""
        return tail(self.command.log, lines, start=self._log_start)


def describe_exit(code: int) -> str:
    """Return an exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _rotate(log: Path) -> None:
    try:
        if log.stat().st_size > _ROTATE_BYTES:
            log.replace(log.with_name(log.name + ".1"))
    except FileNotFoundError:
        pass
