from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from chain_kit import INDEX, Clock, Op, batch, keys, make_reader, make_writer, search, token

from workers.chain.fresh import FreshSegment, FreshSegments
from workers.chain.head import SegmentRef
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.ops import PendingBatch
from workers.chain.rows import FIXED, Rows
from workers.chain.segment_file import SegmentFile
from workers.chain.whole import WholeSegment
from workers.chain.writer import ShardWriter
from workers.errors import Damaged
from workers.storage.memory import MemoryStore


def document(number: int, **options: object) -> Op:
    words = ("all", f"only{number}", f"some{number % 3}")
    payload = {
        "metadata": b"m%d" % number,
        "object": b"o" * 100,
        "pack": b"p%d" % (number % 2),
        "lengths": {"body": number + 1, "title": number % 2},
        "vector": np.full(4, number, np.float16),
    }
    return Op(RowKind.DOC, f"d{number}", words, offset=number, options=payload | options)


def batch_of(number: int) -> PendingBatch:
    ops = [document(2 * number), document(2 * number + 1)]
    # Kills a row of an earlier segment, and one of its own.
    again = dataclasses.replace(document(max(0, 2 * number - 1)), offset=100 + number)
    twice = dataclasses.replace(document(2 * number), offset=200 + number)
    return batch(number, [*ops, again, twice], vocabulary=[b"v%d" % number])


async def written(store: MemoryStore, fresh: FreshSegments | None, batches: int) -> ShardWriter:
    writer = make_writer(store, Clock(), fresh=fresh)
    await writer.load()
    for number in range(batches):
        await writer.apply(batch_of(number))
    return writer


async def whole(store: MemoryStore, ref: SegmentRef) -> WholeSegment:
    file = await SegmentFile(store, None, INDEX, 0, ref, keys).load_whole()
    return WholeSegment(ref, file.data, file.seals())


def same(left: Rows, right: Rows) -> bool:
    for field in dataclasses.fields(Rows):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name in (*FIXED, "vector_rows", "vectors"):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, field.name)
        elif field.name == "lengths":
            assert a.keys() == b.keys()
            assert all((a[name] == b[name]).all() for name in a)
        else:
            assert a == b, field.name
    return True


async def test_what_is_kept_is_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.chain.segment.INLINE_SEGMENT_BYTES", 0)
    store, fresh = MemoryStore(), FreshSegments(10_000_000)
    writer = await written(store, fresh, 3)
    assert await writer.compact(everything=True)
    await writer.apply(batch_of(3))
    for ref in writer.head.segments:
        kept, stored = fresh.get(ref.uid), await whole(store, ref)
        assert kept is not None
        assert same(kept.rows(), stored.rows())
        entries = list(stored.dictionary())
        assert list(kept.dictionary()) == entries
        for entry in entries:
            name = NodeKind(entry[0]), entry[1:]
            assert kept.node(*name) == stored.node(*name)


@pytest.mark.parametrize("room", [0, 3000, 10_000_000])
async def test_a_merge_gives_the_same_whatever_was_kept(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.chain.segment.INLINE_SEGMENT_BYTES", 0)
    results = []
    for fresh in (None, FreshSegments(room)):
        store = MemoryStore()
        writer = await written(store, fresh, 7)
        read = store.stats.gets
        done = await writer.compact()
        assert done is not None
        assert done.inputs == 7
        read = store.stats.gets - read
        [ref] = writer.head.segments
        merged = await whole(store, ref)
        nodes = {entry: merged.node(NodeKind(entry[0]), entry[1:]) for entry in merged.dictionary()}
        reader = make_reader(store)
        found = [await search(reader, word) for word in ("all", "some1", "only5")]
        results.append((merged.rows(), nodes, found, writer.head.stats, done.rows_out))
    assert same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    assert (read == 0) is (room == 10_000_000)


async def test_merged_segments_are_forgotten_and_their_output_kept() -> None:
    store, fresh = MemoryStore(), FreshSegments(10_000_000)
    writer = await written(store, fresh, 2)
    before = [ref.uid for ref in writer.head.segments]
    await writer.compact(everything=True)
    [after] = writer.head.segments
    assert [fresh.get(uid) for uid in before] == [None, None]
    assert fresh.get(after.uid) is not None


async def test_the_oldest_go_first() -> None:
    store, fresh = MemoryStore(), FreshSegments(10_000_000)
    writer = await written(store, fresh, 3)
    refs = writer.head.segments
    kept = [fresh.get(ref.uid) for ref in refs]
    assert all(kept)
    small = FreshSegments(max(one.bytes for one in kept if one) * 2)
    for ref, one in zip(refs, kept, strict=True):
        assert one is not None
        small.keep(ref, one.rows(), one._nodes)
    assert [small.get(ref.uid) is None for ref in refs] == [True, False, False]
    small.drop([refs[1].uid, refs[1].uid])
    assert small.get(refs[1].uid) is None
    assert isinstance(small.get(refs[2].uid), FreshSegment)


def test_a_node_that_is_not_there_is_damage() -> None:
    ref = SegmentRef(b"u" * 16, 1, 0, 1, b"", 0, 0, "off", 0, 0, b"", 0, 0)
    with pytest.raises(Damaged):
        FreshSegment(ref, Rows.blank(0), {}).node(NodeKind.TERM, token("x"))
