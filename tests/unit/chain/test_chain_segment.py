from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from chain_kit import DTYPE, GROUP, INDEX, Clock, Keywords, keys, token

from workers.chain import segment, segment_file
from workers.chain.codec import Node
from workers.chain.kinds import BlockKind, NodeKind, RowKind
from workers.chain.lookup import look_up
from workers.chain.rows import Rows
from workers.chain.segment import SegmentContext, build_segment
from workers.chain.segment_file import ReadStats, SegmentFile, SegmentGone
from workers.chain.table import Table
from workers.chain.whole import WholeSegment
from workers.errors import Damaged
from workers.storage import layout
from workers.storage.cache import BlockCache
from workers.storage.memory import MemoryStore

N = 3000


def table(n: int = N) -> Rows:
    random = np.random.default_rng(1)
    rows = Rows.blank(n)
    rows.object_id = random.integers(0, 256, (n, 16), dtype=np.uint8)
    rows.seq = np.arange(n, dtype=np.uint64)
    rows.kind = np.where(np.arange(n) % 7 == 0, RowKind.PAIRS, RowKind.DOC).astype(np.uint8)
    rows.offset = np.arange(n, dtype=np.int64) * 3
    rows.version = np.ones(n, np.uint32)
    rows.ids = [f"doc-{i}-é" for i in range(n)]
    rows.metadata = [b"m" * (i % 90) for i in range(n)]
    rows.objects = [b"o%d" % i for i in range(n)]
    rows.group_sets = [(GROUP,), (GROUP, b"h" * 16)]
    rows.group_set = (np.arange(n) % 3 - 1).astype(np.int32)
    rows.packs = [b"pack"]
    rows.pack = (np.arange(n) % 2 - 1).astype(np.int32)
    rows.lengths = {"body": np.arange(n, dtype=np.uint32), "title": np.ones(n, np.uint32)}
    rows.vector_rows = np.arange(0, n, 2, dtype=np.uint32)
    rows.vectors = random.random((len(rows.vector_rows), 8)).astype(np.float16)
    rows.vocabulary = [b"words", b"more words"]
    return rows


def nodes(n: int = N) -> list[Node]:
    small = [Node(NodeKind.KEYWORD, token(f"w{i}"), b"payload %d" % i) for i in range(400)]
    large = np.zeros(n, DTYPE)
    large["row"] = np.arange(n)
    return [
        *small,
        Node(NodeKind.KEYWORD, token("all"), large.tobytes()),
        # The same token under another kind is another chain.
        Node(NodeKind.TERM, token("w1"), b"term"),
        Node(NodeKind.CODES, token("codes"), bytes(20_000)),
        Node(NodeKind.META, token("empty"), b""),
    ]


def context(**changes) -> SegmentContext:
    ctx = SegmentContext(INDEX, 0, keys(1), 1, "off", Clock()())
    return dataclasses.replace(ctx, **changes)


async def stored(built, cache=None) -> tuple[MemoryStore, SegmentFile]:
    store = MemoryStore()
    await store.put(layout.segment(INDEX, 0, built.uid), built.data)
    return store, SegmentFile(store, cache, INDEX, 0, built.ref, keys)


@pytest.fixture(params=["off", "standard", "strict"])
def built(request, monkeypatch):
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    return build_segment(context(padding=request.param), table(), nodes())


async def look(file: SegmentFile, *requests, cache=None, stats=None):
    return await look_up([file], cache, list(requests), None, stats or ReadStats())


async def test_every_node_is_found_and_nothing_else(built) -> None:
    _, file = await stored(built)
    wanted = nodes()
    found = await look(file, *((n.kind, n.token) for n in wanted), (NodeKind.TERM, token("no")))
    assert found.pop((NodeKind.TERM, token("no"))) == []
    assert found == {(n.kind, n.token): [(0, n.payload)] for n in wanted}


async def test_columns_come_back_as_they_were(built) -> None:
    _, file = await stored(built)
    rows, stats = table(), ReadStats()
    read = Table(file, stats)
    some = np.array([2999, 0, 17, 17, 1024])
    assert await read.ids(None) == rows.ids
    assert await read.ids(some) == [rows.ids[i] for i in some]
    assert await read.metadata(some) == [rows.metadata[i] for i in some]
    assert await read.objects(some) == [
        (rows.objects[i], b"pack" if rows.pack[i] == 0 else b"") for i in some
    ]
    assert await read.groups(some) == [
        rows.group_sets[rows.group_set[i]] if rows.group_set[i] >= 0 else () for i in some
    ]
    assert (await read.records(BlockKind.ORIGIN, some))["offset"].tolist() == [
        8997,
        0,
        51,
        51,
        3072,
    ]
    assert len(await read.records(BlockKind.ORIGIN, some[:0])) == 0
    assert (await read.lengths(some))["body"].tolist() == some.tolist()
    having, vectors = await read.vectors(some)
    assert having.tolist() == [0, 1024]
    np.testing.assert_array_equal(vectors, rows.vectors[[0, 512]])
    assert await read.vocabulary() == rows.vocabulary
    assert await read.packs() == rows.packs


async def test_ids_are_found_in_one_bucket(built) -> None:
    _, file = await stored(built)
    rows, read = table(), Table(file, ReadStats())
    ids = [rows.object_id[5].tobytes(), bytes(16), rows.object_id[2000].tobytes()]
    assert await read.find(ids) == [(0, 5, RowKind.DOC), (2, 2000, RowKind.DOC)]


def test_a_whole_segment_reads_the_same(built) -> None:
    file = SegmentFile(MemoryStore(), None, INDEX, 0, built.ref, keys)
    whole = WholeSegment(built.ref, built.data, file.seals())
    rows, again = table(), whole.rows()
    for name in ("ids", "metadata", "objects", "group_sets", "packs", "vocabulary"):
        assert getattr(again, name) == getattr(rows, name)
    for name in ("object_id", "seq", "kind", "offset", "group_set", "pack", "vector_rows"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rows, name))
    np.testing.assert_array_equal(again.vectors, rows.vectors)
    entries = sorted(bytes([n.kind]) + n.token for n in nodes())
    assert list(whole.dictionary()) == entries
    assert all(whole.node(n.kind, n.token) == n.payload for n in nodes())


def test_float32_vectors_of_all_rows_need_no_row_numbers() -> None:
    rows = Rows.blank(3)
    rows.vector_rows = np.arange(3, dtype=np.uint32)
    rows.vectors = np.ones((3, 2), np.float32)
    built = build_segment(context(), rows, [])
    file = SegmentFile(MemoryStore(), None, INDEX, 0, built.ref, keys)
    whole = WholeSegment(built.ref, built.ref.inline, file.seals())
    assert BlockKind.VECTOR_ROWS not in whole.directory.columns
    assert whole.rows().vectors.dtype == np.float32


def test_two_nodes_of_one_chain_are_refused() -> None:
    node = Node(NodeKind.TERM, token("w"), b"x")
    with pytest.raises(ValueError, match="more than one node"):
        build_segment(context(), table(3), [node, node])


def test_every_attempt_has_a_new_uid_and_new_bytes() -> None:
    first, second = (build_segment(context(), table(3), []) for _ in range(2))
    assert first.uid != second.uid
    assert first.ref.inline != second.ref.inline


def test_no_plaintext_and_no_token_stands_in_a_segment() -> None:
    built = build_segment(context(), table(), nodes())
    for secret in (b"payload 7", b"doc-17", token("w7"), token("w7")[:16], b"more words"):
        assert secret not in built.data


def parts_of(built) -> list[tuple[int, int]]:
    """Return (place, length) of every sealed part."""
    file = SegmentFile(MemoryStore(), None, INDEX, 0, built.ref, keys)
    directory = WholeSegment(built.ref, built.data, file.seals()).directory
    parts, at = [], 0
    for length in np.frombuffer(directory.large, "<u4").tolist():
        parts.append((at, length))
        at += length
    for length in np.frombuffer(built.ref.bucket_lengths, "<u4").tolist():
        parts.append((at, length))
        at += length
    for _, place, lengths in directory.columns.values():
        at = place
        for length in np.frombuffer(lengths, "<u4").tolist():
            parts.append((at, length))
            at += length
    return [*parts, (built.ref.directory_at, built.ref.directory_length)]


async def read_everything(file: SegmentFile) -> None:
    read, stats = Table(file, ReadStats()), ReadStats()
    await look(file, *((n.kind, n.token) for n in nodes()))
    for kind in (BlockKind.KINDS, BlockKind.OBJECT_IDS, BlockKind.ROWS, BlockKind.ORIGIN):
        await read.records(kind, None)
    await read.ids(None)
    await read.metadata(None)
    await read.objects(np.arange(N))
    await read.groups(np.arange(N))
    await read.lengths(None)
    await read.vectors(None)
    await read.vocabulary()
    await read.find([row.tobytes() for row in table().object_id])
    for kind in (BlockKind.DICTIONARY,):
        await file.whole_column(kind, stats)


async def test_the_parts_cover_the_segment(built) -> None:
    parts = sorted(parts_of(built))
    assert parts[0][0] == 0
    ends = [place + length for place, length in parts]
    assert ends[:-1] == [place for place, _ in parts[1:]]
    assert ends[-1] == built.ref.size == len(built.data)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
async def test_a_flipped_bit_in_any_part_is_damage_never_a_miss(where, monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    built = build_segment(context(), table(), nodes())
    await read_everything((await stored(built))[1])
    for place, length in parts_of(built):
        at = place + {"first": 0, "middle": length // 2, "last": length - 1}[where]
        data = bytearray(built.data)
        data[at] ^= 1
        _, file = await stored(built._replace(data=bytes(data)))
        with pytest.raises(Damaged):
            await read_everything(file)


async def test_a_truncated_segment_is_damage(built) -> None:
    for size in (0, built.ref.buckets_at + 10, built.ref.size - 1):
        _, file = await stored(built._replace(data=built.data[:size]))
        with pytest.raises(Damaged):
            await read_everything(file)


async def test_blocks_do_not_open_in_each_others_place(monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    built = build_segment(context(padding="strict"), table(), nodes())
    lengths = np.frombuffer(built.ref.bucket_lengths, "<u4").tolist()
    starts = (built.ref.buckets_at + np.cumsum(lengths) - lengths).tolist()
    i, j = next(
        (a, b)
        for a in range(len(lengths))
        for b in range(a + 1, len(lengths))
        if lengths[a] == lengths[b]
    )
    data = bytearray(built.data)
    one = data[starts[i] : starts[i] + lengths[i]]
    data[starts[i] : starts[i] + lengths[i]] = data[starts[j] : starts[j] + lengths[j]]
    data[starts[j] : starts[j] + lengths[j]] = one
    _, file = await stored(built._replace(data=bytes(data)))
    with pytest.raises(Damaged):
        await file.bucket(i, ReadStats())


@pytest.mark.parametrize(
    "other",
    [
        {"index_uid": b"x" * 16},
        {"shard": 1},
        {"segment_key": keys(2)},
        {},
    ],
    ids=["index", "shard", "key", "segment"],
)
async def test_another_segment_in_its_place_is_damage(other, monkeypatch) -> None:
    """Same content, other place: with the ref's uid copied over, only the derived keys differ."""
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    mine = build_segment(context(), table(), nodes())
    theirs = build_segment(context(**other), table(), nodes())
    ref = theirs.ref if other else msgspec.structs.replace(theirs.ref, uid=mine.uid)
    store = MemoryStore()
    file = SegmentFile(store, None, INDEX, 0, ref, keys)
    await store.put(file.key, theirs.data)
    with pytest.raises(Damaged):
        await file.directory(ReadStats())
    with pytest.raises(Damaged):
        await file.bucket(0, ReadStats())


async def test_a_small_segment_is_read_whole_and_checked(monkeypatch) -> None:
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    built = build_segment(context(), table(50), [])
    store, file = await stored(built, BlockCache(1 << 20))
    await Table(file, ReadStats()).ids(None)
    assert store.stats.gets == 1
    swapped = build_segment(context(), table(50), [])
    _, file = await stored(built._replace(data=swapped.data), BlockCache(1 << 20))
    with pytest.raises(Damaged):
        await Table(file, ReadStats()).ids(None)


async def test_an_inline_segment_costs_no_request() -> None:
    built = build_segment(context(), table(50), [])
    assert built.data == b""
    store = MemoryStore()
    file = SegmentFile(store, None, INDEX, 0, built.ref, keys)
    assert await Table(file, ReadStats()).ids(None) == table(50).ids
    assert store.stats.gets == 0


async def test_a_missing_segment_is_told_apart_from_damage(built) -> None:
    file = SegmentFile(MemoryStore(), None, INDEX, 0, built.ref, keys)
    with pytest.raises(SegmentGone):
        await file.directory(ReadStats())


async def test_what_was_read_is_cached_also_that_there_was_nothing(monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    cache = BlockCache(1 << 24)
    store, file = await stored(build_segment(context(), table(), nodes()), cache)
    requests = [(NodeKind.KEYWORD, token(word)) for word in ("all", "w3", "nothing")]
    first = await look(file, *requests, cache=cache)
    await Table(file, ReadStats()).ids(None)
    gets = store.stats.gets
    stats = ReadStats()
    assert await look(file, *requests, cache=cache, stats=stats) == first
    await Table(file, stats).ids(np.array([1, 2000]))
    assert store.stats.gets == gets
    assert stats.gets == 0
    assert stats.cache_hits >= 5


async def test_a_lapsed_lease_stops_cached_reads_too(monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    cache = BlockCache(1 << 24)
    built = build_segment(context(), table(), nodes())
    store, file = await stored(built, cache)
    await Table(file, ReadStats()).ids(None)

    def lapsed(generation: int):
        raise LookupError("no lease")

    late = SegmentFile(store, cache, INDEX, 0, built.ref, lapsed)
    with pytest.raises(LookupError):
        await Table(late, ReadStats()).ids(None)
    with pytest.raises(LookupError):
        await look(late, (NodeKind.KEYWORD, token("all")), cache=cache)


async def test_a_scan_takes_few_requests(monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    store, file = await stored(build_segment(context(), table(), nodes()))
    await file.directory(ReadStats())
    before = store.stats.gets
    stats = ReadStats()
    await Table(file, stats).ids(None)
    assert (await file.run_of(BlockKind.IDS, stats))[1] > 2
    assert store.stats.gets - before == stats.gets == 1


def test_the_kit_codec_is_a_codec() -> None:
    part = (np.array([(1, 1)], DTYPE).tobytes(), np.array([-1, 4]))
    [merged] = Keywords().merge_many([[part]])
    assert np.frombuffer(merged, DTYPE)["row"].tolist() == [4]
