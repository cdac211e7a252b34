"""Keep decoded columns and vectors in memory, bounded by bytes.

Segments are immutable, so an entry never goes stale; it goes when others need the room, or with
its index when the lease of the keys ends (`forget`): what it holds is plaintext.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

Key = tuple[Hashable, ...]
"""Index uid first, then whatever names the entry."""


class DecodedCache:
    """An LRU of decoded values. For one event loop; not safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Key, tuple[Any, int]] = OrderedDict()

    def get(self, key: Key) -> Any:
        """Return the value of `key`, or None."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def peek(self, key: Key) -> bool:
        """Say whether `key` is there, without counting or moving it."""
        return key in self._entries

    def put(self, key: Key, value: Any, size_bytes: int) -> None:
        """Store `value`; what does not fit at all is not stored."""
        old = self._entries.pop(key, None)
        if old is not None:
            self.size_bytes -= old[1]
        if size_bytes > self.max_bytes:
            return
        self._entries[key] = (value, size_bytes)
        self.size_bytes += size_bytes
        while self.size_bytes > self.max_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.size_bytes -= freed

    def forget(self, index_uid: bytes) -> None:
        """Drop everything of one index."""
        for key in [key for key in self._entries if key[0] == index_uid]:
            self.size_bytes -= self._entries.pop(key)[1]

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)
