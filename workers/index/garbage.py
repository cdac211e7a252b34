"""Packs and update bodies of an index that nothing refers to any more.

The worker that owns shard 0 looks after them, for all shards: a pack is shared. An update may refer
to a pack or a body until index-update has forgotten it, and later updates are refused
(`workers.chain.retain`); so what is older, and named by no segment in two rounds, is garbage. The
second round gives readers of older snapshots the time between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from workers.chain.reader import ShardReader
from workers.chain.retain import RETENTION_MS
from workers.objects.pack import packs_by_uid
from workers.storage import layout
from workers.storage.store import Store

_DAY_MS = 86_400_000
MIN_AGE_MS = RETENTION_MS + _DAY_MS
"""Younger objects stay: an update that names them may still be applied."""


class SharedGarbage:
    """Finds and deletes the packs and bodies of one index.

    Args:
        store: read and write credentials.
        index_uid: the index.
        clock_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        index_uid: bytes,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store = store
        self._index_uid = index_uid
        self._clock_ms = clock_ms
        self._unnamed_before: set[str] = set()

    async def sweep(self, readers: Sequence[ShardReader]) -> int:
        """Delete what is garbage; return how many objects.

        Args:
            readers: of all shards; each must refuse a head that was put back or is gone.

        Raises:
            Damaged: a head or a segment does not authenticate; nothing was deleted.
            Retry: the store or a key is unavailable.
        """
        bodies = await self._old(layout.bodies_prefix(self._index_uid))
        # Listed before the heads are read: what an old update names by then is in a segment.
        packs = await self._old(layout.packs_prefix(self._index_uid))
        named = await _named(readers) if packs else set()
        unnamed = {key for key in packs if layout.last_uid(key) not in named}
        due = [*bodies, *(unnamed & self._unnamed_before)]
        await self._store.delete(due)
        self._unnamed_before = unnamed.difference(due)
        return len(due)

    async def _old(self, prefix: str) -> list[str]:
        newest_ms = self._clock_ms() - MIN_AGE_MS
        return [
            entry.key async for entry in self._store.list(prefix) if entry.modified_ms <= newest_ms
        ]


async def _named(readers: Sequence[ShardReader]) -> set[bytes]:
    named: set[bytes] = set()
    for reader in readers:
        snapshot = await reader.refresh()
        for segment in range(snapshot.segments):
            named.update(packs_by_uid(await snapshot.packs(segment)))
    return named
