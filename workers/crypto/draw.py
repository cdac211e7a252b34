"""Random bytes for many keys and salts, drawn from the operating system a block at a time.

`os.urandom` lets the GIL go and gets it back late from another busy thread (`runtime/crunch.py`);
a batch of five hundred documents would do so two thousand times.
"""

from __future__ import annotations

import os
from typing import Final

_BLOCK_BYTES: Final = 4 * 1024


class Draw:
    """The random bytes of one piece of work: use it for that and drop it, never keep or share it.

    Every byte is handed out once. What is not handed out lies in memory, so a copy of the process
    (a fork, a snapshot of its machine) would hand out the same: hence one for each piece of work.
    """

    __slots__ = ("_at", "_block")

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def take(self, n: int) -> bytes:
        """Return `n` random bytes, at most 4 KiB."""
        if not 0 <= n <= _BLOCK_BYTES:
            raise ValueError("too many random bytes at once")
        end = self._at + n
        if end > len(self._block):
            self._block, end = os.urandom(_BLOCK_BYTES), n
        self._at = end
        return self._block[end - n : end]
