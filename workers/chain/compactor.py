"""Compaction of a live shard: merges beside the updates, publishes under the same lock.

1. Under the lock: take the tables (they are never changed in place).
2. Without it: read the inputs, merge in a thread, store the output.
3. Under the lock: if the inputs are still live, kill in the output what was killed in them
   meanwhile, and publish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from workers.chain.bitmap import DeadRows
from workers.chain.codec import Codec, Regroup
from workers.chain.compact import Merged, choose, choose_old, merge_segments
from workers.chain.core import ShardCore
from workers.chain.fresh import Source
from workers.chain.head import Deletes
from workers.chain.kinds import NodeKind
from workers.chain.merge import MergedRows, merge_rows
from workers.chain.retain import retain
from workers.chain.rows import Rows
from workers.chain.segment_file import SegmentFile, SegmentGone, gather_all
from workers.chain.state import SegmentTable, count_live
from workers.chain.whole import WholeSegment

Reseal = Callable[[Rows, int], Awaitable[None]]
"""Brings what is sealed inside of rows (access records, words) to a key generation, in place."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did: segments merged, rows and bytes before and after."""

    inputs: int
    rows_in: int
    rows_out: int
    bytes_in: int
    bytes_out: int


class Compactor:
    """Compacts the shard of `core`, one compaction at a time.

    Args:
        codecs: merge the nodes of each kind.
        retention_ms: see `retain.py`.
        max_segment_bytes: see `compact.py`.
        reseal: brings what is sealed inside of rows to a key generation; None: there is nothing.
    """

    def __init__(
        self,
        core: ShardCore,
        codecs: Mapping[NodeKind, Codec],
        *,
        retention_ms: int,
        max_segment_bytes: int,
        reseal: Reseal | None = None,
    ) -> None:
        self._core = core
        self._codecs = codecs
        self._retention_ms = retention_ms
        self._max_segment_bytes = max_segment_bytes
        self._reseal = reseal
        # Held from the choice of the inputs until the output is named, or given up.
        self.lock = asyncio.Lock()

    @property
    def due(self) -> bool:
        """Whether there is something to merge."""
        return bool(choose(self._core.known_tables, self._max_segment_bytes))

    async def run(
        self,
        *,
        everything: bool = False,
        old: bool = False,
        regroup: Regroup | None = None,
        epoch: int | None = None,
        vector: bytes | None = None,
        generation: int | None = None,
    ) -> Compaction | None:
        """Merge once; see `ShardWriter.compact`."""
        core = self._core
        async with self.lock:
            async with core.lock:
                tables = list(await core.tables())
                head = core.head
            if everything:
                chosen = list(range(len(tables)))
            elif old:
                now = core.generation if generation is None else generation
                chosen = choose_old(tables, head.deletes, now, self._max_segment_bytes)
            else:
                chosen = choose(tables, self._max_segment_bytes)
            if not chosen:
                return None
            inputs = [tables[i] for i in chosen]
            merged = await self._merge(tables, chosen, head.clock_ms, regroup, epoch, generation)
            if merged.built is not None:
                await core.store_parts(core.parts(merged.built, [], [], []))
            async with core.lock:
                if not await self._publish(inputs, merged, vector):
                    return None
        return Compaction(
            inputs=len(inputs),
            rows_in=sum(table.ref.rows for table in inputs),
            rows_out=len(merged.rows),
            bytes_in=sum(table.ref.size for table in inputs),
            bytes_out=merged.built.ref.size if merged.built else 0,
        )

    async def _merge(
        self,
        tables: Sequence[SegmentTable],
        chosen: Sequence[int],
        clock_ms: int,
        regroup: Regroup | None,
        epoch: int | None,
        generation: int | None,
    ) -> Merged:
        core = self._core
        fresh = {i: found for i in chosen if (found := core.fresh.get(tables[i].ref.uid))}
        files = [
            SegmentFile(core.store, None, core.index_uid, core.shard, tables[i].ref, core.keys)
            for i in chosen
            if i not in fresh
        ]
        try:
            whole = await gather_all([file.load_whole() for file in files])
        except SegmentGone as gone:
            async with core.lock:
                raise await core.missing() from gone
        highest = max(tables[i].ref.epoch for i in chosen)
        oldest = min(tables[i].ref.generation for i in chosen)
        # Tokens of vectors, and what is sealed inside of rows, may be as old as that: nobody who
        # says another generation has made them anew.
        if generation is None:
            generation = oldest
        ctx = core.context(highest if epoch is None else epoch, generation)

        def merge() -> tuple[list[Source], MergedRows]:
            retained = [
                retain(tables, i, now_ms=clock_ms, retention_ms=self._retention_ms) for i in chosen
            ]
            read = (WholeSegment(file.ref, file.data, file.seals()) for file in whole)
            found: list[Source] = [fresh[i] if i in fresh else next(read) for i in chosen]
            return found, merge_rows([segment.rows() for segment in found], retained)

        segments, rows = await asyncio.to_thread(merge)
        if self._reseal is not None and oldest < generation:
            await self._reseal(rows.rows, generation)
        return await asyncio.to_thread(merge_segments, ctx, segments, rows, self._codecs, regroup)

    async def _publish(
        self, inputs: Sequence[SegmentTable], merged: Merged, vector: bytes | None
    ) -> bool:
        """Replace the inputs by the output; return False, and drop it, if they are not live now.

        Only a compaction removes segments, and there is one at a time here: so that happens only if
        the shard was fenced and loaded anew meanwhile.
        """
        core = self._core
        head = core.head
        now = {table.ref.uid: table for table in await core.tables()}
        gone = {table.ref.uid for table in inputs}
        if not gone <= now.keys():
            return False
        dead = _dead_now(inputs, now, merged)
        # The output takes the place of its inputs, which are neighbours: segments stay in order.
        place = next(i for i, uid in enumerate(now) if uid in gone)
        tables = [table for uid, table in now.items() if uid not in gone]
        entries = dict(zip((ref.uid for ref in head.segments), head.deletes, strict=True))
        before = [entries[table.ref.uid] for table in tables]
        killed = [np.zeros(0, np.int64) for _ in tables]
        output: list[SegmentTable] = []
        if merged.built is not None:
            output.append(SegmentTable.of_rows(merged.built.ref, merged.rows, dead))
            tables.insert(place, output[0])
            before.insert(place, Deletes())
            killed.insert(place, dead.astype(np.int64))
        parts = core.parts(None, tables, before, killed)
        await core.store_parts(parts)
        # Live documents stay; only removals that hide nothing any more go, and they count as pairs.
        dropped = count_live([now[uid] for uid in gone]).pairs - count_live(output).pairs
        stats = msgspec.structs.replace(
            head.stats,
            rows=sum(table.ref.rows for table in tables),
            pairs=head.stats.pairs - dropped,
        )
        access = head.access
        if access is not None and access.uid and access.generation != core.generation:
            access = await core.store_access(await core.access())
        head = msgspec.structs.replace(
            head,
            access=access,
            segments=[table.ref for table in tables],
            deletes=parts.deletes,
            stats=stats,
            vector=head.vector if vector is None else vector,
        )
        await core.publish(head, tables)
        core.fresh.drop(gone)
        if merged.built is not None:
            core.keep(merged.built, merged.rows)
        return True


def _dead_now(
    inputs: Sequence[SegmentTable], now: Mapping[bytes, SegmentTable], merged: Merged
) -> DeadRows:
    """Return the dead rows of the output, with those killed since the merge began."""
    parts = [merged.dead.astype(np.int64)]
    for table, table_map in zip(inputs, merged.table_maps, strict=True):
        since = np.setdiff1d(now[table.ref.uid].dead, table.dead)
        new = table_map[since]
        parts.append(new[new >= 0])
    return np.unique(np.concatenate(parts)).astype(np.uint32)
