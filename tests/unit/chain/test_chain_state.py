from __future__ import annotations

import msgspec
import numpy as np
import pytest
from chain_kit import INDEX, Clock, Op, batch, keys, make_writer, token

from workers.chain import segment, segment_file
from workers.chain.buckets import Bucket
from workers.chain.codec import Node
from workers.chain.head import SegmentRef
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.padding import size_class
from workers.chain.rows import Rows, split_ids
from workers.chain.segment import SegmentContext, build_segment
from workers.chain.segment_file import ReadStats, SegmentFile
from workers.chain.state import SegmentTable, match_ids
from workers.errors import Damaged, Fenced
from workers.storage import layout
from workers.storage.memory import MemoryStore


def test_ids_that_share_their_first_half_are_told_apart() -> None:
    rows = Rows.blank(3)
    rows.object_id = np.array([[1] * 8 + [last] * 8 for last in (3, 2, 3)], np.uint8)
    ref = SegmentRef(b"", 1, 0, 1, b"", 3, 0, "off", 0, 0, b"", 0, 0)
    table = SegmentTable.of_rows(ref, rows, np.zeros(0, np.uint32))
    asked = np.array([[1] * 8 + [last] * 8 for last in (3, 9, 2)], np.uint8)
    matches = match_ids([table, table], *split_ids(asked))
    found = sorted(zip(*(column.tolist() for column in matches), strict=True))
    assert found == [(0, 0, 0), (0, 0, 2), (0, 1, 0), (0, 1, 2), (2, 0, 1), (2, 1, 1)]


@pytest.mark.parametrize("level", ["off", "standard", "strict"])
async def test_the_number_of_labels_is_padded(level: str) -> None:
    nodes = [Node(NodeKind.TERM, token(f"w{i}"), b"x") for i in range(301)]
    ctx = SegmentContext(INDEX, 0, keys(1), 1, level, 0)
    built = build_segment(ctx, Rows.blank(1), nodes)
    file = SegmentFile(MemoryStore(), None, INDEX, 0, built.ref, keys, built.data or None)
    buckets = [Bucket(await file.bucket(i, ReadStats())) for i in range(1 << built.ref.bucket_bits)]
    assert sum(bucket._n for bucket in buckets) == size_class(301, level)
    assert size_class(301, level) == {"off": 301, "standard": 320, "strict": 512}[level]


@pytest.fixture
async def store(monkeypatch) -> MemoryStore:
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    store = MemoryStore()
    writer = make_writer(store, Clock())
    await writer.load()
    await writer.apply(batch(0, [Op(RowKind.DOC, "a", ("x",), 0, 1)]))
    return store


async def test_loading_a_shard_whose_segment_is_missing_is_damage(store: MemoryStore) -> None:
    writer = make_writer(store, Clock())
    await writer.load()
    await store.delete([layout.segment(INDEX, 0, writer.head.segments[0].uid)])
    for _ in range(2):
        with pytest.raises(Damaged):
            await writer.apply(batch(1, []))


async def test_loading_a_shard_that_moved_on_is_fenced(store: MemoryStore) -> None:
    late, other = make_writer(store, Clock()), make_writer(store, Clock())
    await late.load()
    await other.load()
    uid = late.head.segments[0].uid
    await other.apply(batch(1, []))
    await other.compact(everything=True)
    await store.delete([layout.segment(INDEX, 0, uid)])
    for _ in range(2):
        with pytest.raises(Fenced):
            await late.apply(batch(1, []))
    assert await late.load() == 1
    assert (await late.apply(batch(2, []))).documents == 1


def test_a_head_stays_small_with_full_tables() -> None:
    """4096 buckets are the most: 16 KiB of lengths for a segment of any size."""
    ref = SegmentRef(b"u" * 16, 1, 0, 1 << 30, b"h" * 32, 1, 0, "off", 12, 0, bytes(4 * 4096), 0, 0)
    assert len(msgspec.msgpack.encode(ref)) < 16_600
