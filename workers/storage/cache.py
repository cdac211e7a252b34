"""A bounded cache of immutable byte ranges.

Only for objects that are never replaced (segments, packs, centroids): a block is never checked
again. Blocks hold what their readers put in: ciphertext as the store returned it, or (segments)
what was opened from it, so an index's blocks go with its keys (`forget`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from workers.telemetry import metrics

BlockId = tuple[str, int, int]

# What an entry costs besides its bytes: key, tuple, dictionary slots, bytes object.
_ENTRY_BYTES = 300


class CacheStats(NamedTuple):
    """Counts since the start, and what is held now."""

    hits: int
    misses: int
    evictions: int
    bytes: int


class BlockCache:
    """Least recently used blocks, up to a number of bytes; one load at a time for each.

    Args:
        max_bytes: held at most; a block above a quarter of it is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError("max_bytes is not negative")
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[BlockId, bytes] = OrderedDict()
        self._loading: dict[BlockId, asyncio.Future[bytes | None]] = {}
        self._bytes = self._hits = self._misses = self._evictions = 0

    @property
    def stats(self) -> CacheStats:
        """Counts of this moment."""
        return CacheStats(self._hits, self._misses, self._evictions, self._bytes)

    def __contains__(self, block: BlockId) -> bool:
        """Say whether a block is here; counts nothing."""
        return block in self._blocks

    def peek(self, block: BlockId) -> bytes | None:
        """Return a block if it is here, counting a hit; a miss is not counted."""
        data = self._blocks.get(block)
        if data is not None:
            self._hit()
            self._blocks.move_to_end(block)
        return data

    async def get(self, block: BlockId, loader: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return a block, loading it if it is not here.

        Several callers that miss the same block share one load. If the loading caller is cancelled
        or fails, another takes over, so nobody gets an error that was not its own.

        Args:
            block: `(key, start, length)`.
            loader: reads it from the store.

        Raises:
            whatever `loader` raises.
        """
        while True:
            if (data := self.peek(block)) is not None:
                return data
            running = self._loading.get(block)
            if running is None:
                return await self._load(block, loader)
            if (data := await asyncio.shield(running)) is not None:
                self._hit()
                return data

    def put(self, block: BlockId, data: bytes) -> None:
        """Keep a block that was read otherwise."""
        cost = len(data) + _ENTRY_BYTES
        if cost > self._max_bytes // 4 or block in self._blocks:
            return
        self._blocks[block] = data
        self._grow(cost)
        while self._bytes > self._max_bytes:
            _, evicted = self._blocks.popitem(last=False)
            self._grow(-len(evicted) - _ENTRY_BYTES)
            self._evictions += 1

    def drop(self, key: str) -> None:
        """Forget all blocks of an object. Looks at every block: for errors, not for each read."""
        for block in [block for block in self._blocks if block[0] == key]:
            self._grow(-len(self._blocks.pop(block)) - _ENTRY_BYTES)

    def forget(self, prefix: str) -> None:
        """Forget all blocks of the objects under a prefix. Looks at every block."""
        for block in [block for block in self._blocks if block[0].startswith(prefix)]:
            self._grow(-len(self._blocks.pop(block)) - _ENTRY_BYTES)

    async def _load(self, block: BlockId, loader: Callable[[], Awaitable[bytes]]) -> bytes:
        self._misses += 1
        metrics.CACHE_LOOKUPS.inc(outcome="miss")
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._loading[block] = future
        try:
            data = await loader()
            self.put(block, data)
            future.set_result(data)
            return data
        finally:
            del self._loading[block]
            if not future.done():
                future.set_result(None)

    def _hit(self) -> None:
        self._hits += 1
        metrics.CACHE_LOOKUPS.inc(outcome="hit")

    def _grow(self, size: int) -> None:
        self._bytes += size
        metrics.CACHE_BYTES.add(size)
