from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest
from chain_kit import (
    CODECS,
    DTYPE,
    INDEX,
    SIGNER,
    Clock,
    Op,
    batch,
    keys,
    make_reader,
    make_writer,
    search,
    token,
    verify,
)

from workers.chain import compactor as compactor_module
from workers.chain import segment
from workers.chain.codec import Node
from workers.chain.compact import MAX_LIVE_SEGMENTS, choose
from workers.chain.head import SegmentRef
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.ops import OpStatus, PendingBatch
from workers.chain.retain import too_old
from workers.chain.rows import Rows
from workers.chain.state import SegmentTable
from workers.chain.writer import ShardWriter
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged, Fatal, Retry
from workers.storage import layout
from workers.storage.memory import MemoryStore

DOC, TOMBSTONE, PAIRS, REMOVALS = RowKind


def sized(size: int, rows: int = 1, dead: int = 0) -> SegmentTable:
    ref = SegmentRef(b"", 1, 0, size, b"", rows, 0, "off", 0, 0, b"", 0, 0)
    return SegmentTable.of_rows(ref, Rows.blank(rows), np.arange(dead, dtype=np.uint32))


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([], []),
        ([1] * 6, []),
        ([1] * 7, [0, 1, 2, 3, 4, 5, 6]),
        ([1000, 900, 800, 1, 1, 1, 1], [3, 4, 5, 6]),
        ([1000, 1, 900, 800, 1, 1, 1], [4, 5, 6]),
        # Above the limit of a segment's size: left alone while there is room.
        ([5000, 5000, 5000, 5000, 5000, 5000, 1], []),
        ([5000, 5000, 5000, 5000, 5000, 1, 1], [5, 6]),
        ([5000] * 7 + [1], list(range(8))),
    ],
)
def test_what_is_merged(sizes: list[int], chosen: list[int]) -> None:
    assert choose([sized(size) for size in sizes], 4000) == chosen


def test_a_mostly_dead_segment_is_rewritten() -> None:
    tables = [sized(100), sized(100, rows=4000, dead=2001), sized(100, rows=4000, dead=1999)]
    assert choose(tables) == [1]


def test_write_amplification_stays_low() -> None:
    sizes: list[int] = []
    written = 0
    for _ in range(300):
        sizes.append(100)
        chosen = choose([sized(size) for size in sizes])
        if chosen:
            total = sum(sizes[i] for i in chosen)
            written += total
            sizes[chosen[0] :] = [total]
        assert len(sizes) <= MAX_LIVE_SEGMENTS
    assert written / 30_000 < 4


class Shard:
    def __init__(self, **options) -> None:
        self.store, self.clock, self.offset = MemoryStore(), Clock(), -1
        self.options = options
        self.writer = make_writer(self.store, self.clock, **options)
        self.reader = make_reader(self.store)

    async def __call__(self, *ops: Op):
        if self.offset < 0:
            await self.writer.load()
        self.offset += 1
        published = await self.writer.apply(batch(self.offset, ops, created_ms=self.clock.ms))
        return [one.status for one in published.outcomes]

    async def wait(self, ms: int) -> None:
        """Let time pass, and something come in."""
        self.clock.ms += ms
        await self()


async def test_there_are_never_more_than_eight_live_segments() -> None:
    shard = Shard()
    for i in range(30):
        await shard(Op(DOC, f"d{i}", ("x",), 0, i))
        assert len(shard.writer.head.segments) <= MAX_LIVE_SEGMENTS
    assert await search(shard.reader, "x") == [f"d{i}" for i in range(30)]


async def test_rows_killed_during_a_merge_are_dead_in_its_output(monkeypatch) -> None:
    shard = Shard()
    for i in range(4):
        await shard(Op(DOC, f"d{i}", ("x",), 0, i), Op(DOC, f"e{i}", ("x",), 0, 10 + i))
    merge, reached, go_on = compactor_module.merge_segments, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(*args):
        merged = merge(*args)
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        return merged

    monkeypatch.setattr(compactor_module, "merge_segments", slow)
    running = asyncio.ensure_future(shard.writer.compact(everything=True))
    await reached.wait()
    # Updates go on meanwhile, and readers see them.
    await shard(Op(TOMBSTONE, "d1", (), 0, 20), Op(DOC, "d2", ("x",), 0, 21))
    assert "d1" not in await search(shard.reader, "x")
    go_on.set()
    done = await running
    assert done.inputs == 4
    assert await search(shard.reader, "x") == ["d0", "e0", "e1", "e2", "d3", "e3", "d2"]
    assert shard.writer.head.stats.docs == 7
    assert await shard(Op(DOC, "d1", ("x",), 0, 1)) == [OpStatus.IGNORED]


async def test_a_merge_that_outlasts_its_lease_is_repeated_with_the_next_one(monkeypatch) -> None:
    held: list[SecretBytes] = []

    def leased(generation: int) -> SecretBytes:
        held.append(keys(generation))
        return held[-1]

    store, clock = MemoryStore(), Clock()
    writer = ShardWriter(store, INDEX, 0, leased, SIGNER, verify, CODECS, clock_ms=clock)
    await writer.load()
    for i in range(3):
        await writer.apply(batch(i, [Op(DOC, f"d{i}", ("x",), 0, i)]))
    merge = compactor_module.merge_segments

    def outlasted(*args):
        for key in held:
            key.wipe()
        return merge(*args)

    with monkeypatch.context() as patch:
        patch.setattr(compactor_module, "merge_segments", outlasted)
        with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
            await writer.compact(everything=True)
    assert len(writer.head.segments) == 3
    await writer.compact(everything=True)
    assert len(writer.head.segments) == 1
    assert await search(make_reader(store), "x") == ["d0", "d1", "d2"]


async def test_compaction_gives_new_labels_and_the_generation_that_it_is_told() -> None:
    shard = Shard()
    for i in range(3):
        await shard(Op(DOC, f"d{i}", ("x",), 0, i))
    before = {ref.uid for ref in shard.writer.head.segments}
    shard.writer.use_generation(2)
    await shard(Op(DOC, "d3", ("x",), 0, 3))
    assert shard.writer.head.generations() == {1, 2}
    assert len(await search(shard.reader, "x")) == 4
    # Tokens and what is sealed in rows are as old as the oldest input, if nobody says otherwise.
    await shard.writer.compact(everything=True)
    [ref] = shard.writer.head.segments
    assert ref.uid not in before
    assert ref.generation == 1
    await shard.writer.compact(old=True, generation=2)
    assert shard.writer.head.generations() == {2}
    assert shard.writer.head.segments[0].uid != ref.uid
    assert await shard.writer.compact(old=True, generation=2) is None
    assert await search(shard.reader, "x") == ["d0", "d1", "d2", "d3"]


async def test_rows_are_resealed_only_for_a_later_generation() -> None:
    asked: list[int] = []

    async def reseal(rows: Rows, generation: int) -> None:
        asked.append(generation)
        rows.objects = [b"new" if one else one for one in rows.objects]

    shard = Shard(reseal=reseal)
    for i in range(3):
        await shard(Op(DOC, f"d{i}", ("x",), 0, i))
    await shard.writer.compact(everything=True)
    assert not asked
    shard.writer.use_generation(2)
    await shard.writer.compact(old=True, generation=2)
    assert asked == [2]
    await shard.writer.compact(everything=True, generation=2)
    assert asked == [2]


async def test_a_fully_dead_shard_becomes_empty() -> None:
    shard = Shard(retention_ms=1000)
    await shard(Op(DOC, "a", ("x",), 0, 1))
    await shard(Op(TOMBSTONE, "a", (), 0, 2))
    await shard.wait(1000)
    done = await shard.writer.compact(everything=True)
    assert (done.rows_in, done.rows_out, done.bytes_out) == (2, 0, 0)
    assert shard.writer.head.segments == []
    assert await search(shard.reader, "x") == []
    assert await shard(Op(DOC, "a", ("x",), 0, 3)) == [OpStatus.APPLIED]


@pytest.mark.parametrize("everything_else", [False, True])
async def test_floors_survive_until_the_retention_has_passed(everything_else: bool) -> None:
    """A late duplicate from a source whose row another source's upsert killed."""
    shard = Shard(retention_ms=1000)
    await shard(Op(DOC, "a", ("x",), 0, 5), Op(PAIRS, "b", ("x",), 0, 6))
    await shard(Op(DOC, "a", ("y",), 1, 1), Op(DOC, "b", ("y",), 1, 2))
    late = (Op(DOC, "a", ("x",), 0, 5), Op(PAIRS, "b", ("x",), 0, 6))
    for _ in range(3):
        await shard.writer.compact(everything=True)
        assert await shard(*late) == [OpStatus.IGNORED] * 2
    # They guard, but nothing else of them is left.
    snapshot = await shard.reader.refresh()
    request = (NodeKind.KEYWORD, token("x"))
    assert (await snapshot.lookup([request]))[request] == []
    assert sorted(await snapshot.ids(0)) == ["", "", "a", "b"]
    if everything_else:
        await shard.wait(1000)
        await shard.writer.compact(everything=True)
        assert shard.writer.head.stats.rows == 2


async def test_dead_rows_that_a_newer_one_covers_go_at_once() -> None:
    shard = Shard()
    for i in range(5):
        await shard(Op(DOC, "a", ("x",), 0, i))
    await shard.writer.compact(everything=True)
    assert shard.writer.head.stats.rows == 1


async def test_tombstones_stay_as_long_as_late_duplicates_may_come() -> None:
    shard = Shard(retention_ms=1000)
    await shard(Op(DOC, "a", ("x",), 0, 1))
    await shard(Op(TOMBSTONE, "a", (), 0, 2))
    await shard.wait(999)
    await shard.writer.compact(everything=True)
    assert await shard(Op(DOC, "a", ("x",), 0, 1)) == [OpStatus.IGNORED]
    await shard.wait(1)
    await shard.writer.compact(everything=True)
    assert shard.writer.head.stats.rows == 0


async def test_floors_stay_while_nothing_newer_is_applied() -> None:
    """The clock of the batches counts: with it, the index worker refuses what is too old."""
    shard = Shard(retention_ms=1000)
    await shard(Op(DOC, "a", ("x",), 0, 1))
    await shard(Op(TOMBSTONE, "a", (), 0, 2))
    made_ms = shard.clock.ms
    shard.clock.ms += 5000
    await shard.writer.compact(everything=True)
    assert await shard(Op(DOC, "a", ("x",), 0, 1)) == [OpStatus.IGNORED]
    assert too_old(made_ms, shard.writer.head.clock_ms, 1000)


async def test_a_batch_from_the_future_does_not_move_the_clock_ahead() -> None:
    shard = Shard()
    await shard.writer.load()
    await shard.writer.apply(batch(0, [Op(DOC, "a", ("x",), 0, 1)], created_ms=10**15))
    assert shard.writer.head.clock_ms == shard.clock.ms
    await shard.writer.apply(batch(1, [Op(DOC, "b", ("x",), 0, 2)], created_ms=5))
    assert shard.writer.head.clock_ms == shard.clock.ms


async def test_removals_stay_while_they_hide_something() -> None:
    shard = Shard(retention_ms=1000)
    await shard(Op(DOC, "a", ("x",), 0, 1), Op(REMOVALS, "b", ("x",), 0, 2))
    await shard(Op(REMOVALS, "a", ("x",), 0, 3))
    await shard.wait(1000)
    await shard.writer.compact(everything=True)
    # The one of "b" hides nothing, the one of "a" still does.
    assert shard.writer.head.stats.rows == 2
    assert shard.writer.head.stats.pairs == 1
    assert await search(shard.reader, "x") == []
    # A new document makes it superfluous: it kills it.
    await shard(Op(DOC, "a", ("x",), 0, 4))
    await shard.writer.compact(everything=True)
    assert shard.writer.head.stats.rows == 1
    assert await search(shard.reader, "x") == ["a"]


async def test_payloads_follow_their_rows() -> None:
    shard = Shard()
    for i in range(3):
        options = {
            "metadata": b"m%d" % i,
            "object": b"o%d" % i,
            "pack": b"pack%d" % (i // 2),
            "groups": (b"g" * 16, bytes([i]) * 16),
            "vector": np.full(2, i, np.float16),
            "lengths": {"body": i, f"f{i}": 1},
        }
        await shard(Op(DOC, f"d{i}", ("x",), 0, i, options), Op(DOC, f"e{i}", (), 0, 10 + i))
    await shard(Op(DOC, "d1", (), 0, 30))
    fields = shard.writer.head.stats.fields
    await shard.writer.compact(everything=True)
    assert shard.writer.head.stats.fields == fields
    snapshot = await shard.reader.refresh()
    assert await snapshot.ids(0) == ["d0", "e0", "e1", "d2", "e2", "d1"]
    assert await snapshot.metadata(0) == [b"m0", b"", b"", b"m2", b"", b""]
    rows = np.arange(6)
    none = (b"", b"")
    assert await snapshot.objects(0, rows) == [
        (b"o0", b"pack0"),
        none,
        none,
        (b"o2", b"pack1"),
        none,
        none,
    ]
    groups = await snapshot.groups(0, np.array([0, 3, 1]))
    assert groups == [(bytes(16), b"g" * 16), (bytes([2]) * 16, b"g" * 16), (b"g" * 16,)]
    having, vectors = await snapshot.vectors(0)
    assert having.tolist() == [0, 3]
    assert vectors.tolist() == [[0, 0], [2, 2]]
    assert (await snapshot.lengths(0, rows))["body"].tolist() == [0, 0, 0, 2, 0, 0]


async def test_vocabulary_is_kept() -> None:
    writer = make_writer(store := MemoryStore(), Clock())
    await writer.load()
    for i in range(2):
        await writer.apply(batch(i, [Op(DOC, f"d{i}", (), 0, i)], vocabulary=[b"v%d" % i]))
    await writer.compact(everything=True)
    assert await (await make_reader(store).refresh()).vocabulary(0) == [b"v0", b"v1"]


class Codes:
    """Moves all codes into one chain of the new epoch."""

    kind = NodeKind.CODES

    def regroup(self, parts):
        rows = [rowmap[row] for _, payload, rowmap in parts for row in payload]
        yield token("new"), bytes(sorted(int(row) for row in rows if row >= 0))


async def test_codes_are_regrouped_and_published_with_their_state() -> None:
    def build(accepted):
        rows = accepted.row_of_op[accepted.row_of_op >= 0]
        for i, row in enumerate(rows.tolist()):
            yield Node(NodeKind.CODES, token(f"old{i}"), bytes([row]))

    store = MemoryStore()
    writer = make_writer(store, Clock())
    await writer.load()
    for i in range(3):
        ops = [Op(DOC, f"d{i}{j}", (), 0, 2 * i + j).pending() for j in range(2)]
        await writer.apply(PendingBatch(i, ops, build, epoch=i % 2))
    reader = make_reader(store)
    assert (await reader.refresh()).epochs == [0, 1, 0]
    await writer.apply(batch(3, [Op(TOMBSTONE, "d10", (), 0, 90)]))
    with pytest.raises(Fatal, match="several epochs"):
        await writer.compact(everything=True)
    await writer.compact(everything=True, regroup=Codes(), epoch=2, vector=b"centroids 2")
    snapshot = await reader.refresh()
    request = (NodeKind.CODES, token("new"))
    [(_, payload)] = (await snapshot.lookup([request]))[request]
    ids = await snapshot.ids(0)
    assert [ids[row] for row in payload] == ["d00", "d01", "d11", "d20", "d21"]
    assert (snapshot.epochs, snapshot.vector) == ([2], b"centroids 2")


async def test_a_kind_without_codec_stops_the_process() -> None:
    writer = ShardWriter(MemoryStore(), INDEX, 0, keys, SIGNER, verify, {})
    await writer.load()
    await writer.apply(batch(0, [Op(DOC, "a", ("x",), 0, 1)]))
    with pytest.raises(Fatal):
        await writer.compact(everything=True)


async def test_damage_is_not_compacted_away(monkeypatch) -> None:
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    key = layout.segment(INDEX, 0, shard.writer.head.segments[0].uid)
    data = bytearray((await shard.store.get(key)).data)
    data[40] ^= 1
    await shard.store.put(key, bytes(data))
    with pytest.raises(Damaged):
        await shard.writer.compact(everything=True)
    await shard.store.delete([key])
    with pytest.raises(Damaged):
        await shard.writer.compact(everything=True)


async def test_segments_stay_in_the_order_of_arrival() -> None:
    shard = Shard()
    for i in range(7):
        await shard(*(Op(DOC, f"d{i}-{j}", ("x",), 0, 100 * i + j) for j in range(1 + i % 3)))
    await shard.writer.compact()
    for i in range(7, 9):
        await shard(Op(DOC, f"d{i}-0", ("x",), 0, 100 * i))
    tables = await shard.writer._core.tables()
    seqs = np.concatenate([table.seq for table in tables])
    assert (np.diff(seqs.astype(np.int64)) > 0).all()


async def test_merged_nodes_are_what_the_codec_makes_of_them() -> None:
    assert CODECS[NodeKind.KEYWORD].kind == NodeKind.KEYWORD
    shard = Shard()
    for i in range(3):
        await shard(Op(DOC, f"d{i}", ("x",), 0, i))
    await shard(Op(TOMBSTONE, "d1", (), 0, 9))
    await shard.writer.compact(everything=True)
    request = (NodeKind.KEYWORD, token("x"))
    snapshot = await shard.reader.refresh()
    [(_, payload)] = (await snapshot.lookup([request]))[request]
    # d0, d2, and the tombstone of d1 (d1 itself is covered by it).
    assert np.frombuffer(payload, DTYPE)["row"].tolist() == [0, 1]
    assert snapshot.rows_in(0) == 3


def test_a_ref_is_small() -> None:
    """The head is written with every batch, so what it says about a segment must be short."""
    assert len(msgspec.msgpack.encode(sized(1).ref)) < 100
