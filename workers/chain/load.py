"""Loading the writer's tables: a few parallel requests per live segment, nothing written."""

from __future__ import annotations

import asyncio

import numpy as np

from workers.chain.columns import RECORDS, decode_group_sets, decode_lengths, read_records
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
    kinds = (*RECORDS, BlockKind.LENGTHS, BlockKind.GROUPS)
    columns = await gather_all([file.whole_column(kind, stats) for kind in kinds])
    by_kind = dict(zip(kinds, columns, strict=True))
    dead = await load_dead(store, head.index_uid, head.shard, ref, deletes, keys)

    def build() -> SegmentTable:
        rows = Rows.blank(ref.rows)
        for kind in RECORDS:
            read_records(rows, kind, by_kind[kind])
        parts = [decode_lengths(block, directory.fields) for block in by_kind[BlockKind.LENGTHS]]
        rows.lengths = {
            name: np.concatenate([part[name] for part in parts]) for name in directory.fields
        }
        for block in by_kind[BlockKind.GROUPS]:
            rows.group_sets = decode_group_sets(block)
        return SegmentTable.of_rows(ref, rows, dead)

    return await asyncio.to_thread(build)
