"""Loading the writer's tables: a few parallel requests per live segment, nothing written."""

from __future__ import annotations

import asyncio

import numpy as np

from workers.chain.columns import ORIGIN_DTYPE, ROWS_DTYPE, decode_group_sets, decode_lengths
from workers.chain.faults import damaged
from workers.chain.head import Deletes, Head, SegmentRef
from workers.chain.kinds import BlockKind, SegmentKeys
from workers.chain.reader import load_dead
from workers.chain.rows import Rows
from workers.chain.segment_file import ReadStats, SegmentFile, gather_all
from workers.chain.state import SegmentTable
from workers.storage.store import Store


async def load_tables(store: Store, head: Head, keys: SegmentKeys) -> list[SegmentTable]:
    """Return a table per live segment.

    Raises:
        Damaged: a part does not authenticate.
        SegmentGone, NotFound: an object is missing; check whether the head is still current.
        Retry: the store or a key is unavailable.
    """
    pairs = zip(head.segments, head.deletes, strict=True)
    return await gather_all([_load(store, head, ref, deletes, keys) for ref, deletes in pairs])


async def _load(
    store: Store, head: Head, ref: SegmentRef, deletes: Deletes, keys: SegmentKeys
) -> SegmentTable:
    file = SegmentFile(store, None, head.index_uid, head.shard, ref, keys)
    stats = ReadStats()
    directory = await file.directory(stats)
    table, origin, lengths, groups = await gather_all(
        [
            file.whole_column(kind, stats)
            for kind in (BlockKind.ROWS, BlockKind.ORIGIN, BlockKind.LENGTHS, BlockKind.GROUPS)
        ]
    )
    dead = await load_dead(store, head.index_uid, head.shard, ref, deletes, keys)

    def build() -> SegmentTable:
        rows = Rows.blank(ref.rows)
        for dtype, blocks in ((ROWS_DTYPE, table), (ORIGIN_DTYPE, origin)):
            records = np.frombuffer(b"".join(blocks), dtype)
            if len(records) != ref.rows:
                raise damaged("a document table has another size than its head says")
            for name in dtype.names or ():
                setattr(rows, name, np.ascontiguousarray(records[name]))
        parts = [decode_lengths(block, directory.fields) for block in lengths]
        rows.lengths = {
            name: np.concatenate([part[name] for part in parts]) for name in directory.fields
        }
        rows.group_sets = decode_group_sets(groups[0]) if groups else []
        return SegmentTable.of_rows(ref, rows, dead)

    return await asyncio.to_thread(build)
