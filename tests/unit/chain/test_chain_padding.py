from __future__ import annotations

import numpy as np
import pytest
from chain_kit import DTYPE, INDEX, Clock, Op, batch, keys, make_reader, make_writer, token
from hypothesis import given
from hypothesis import strategies as st

from workers.chain import segment, segment_file
from workers.chain.codec import Node
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.lookup import look_up
from workers.chain.padding import pad, size_class, unpad
from workers.chain.rows import Rows
from workers.chain.segment import SegmentContext, build_segment
from workers.chain.segment_file import ReadStats, SegmentFile
from workers.errors import Damaged
from workers.storage import layout
from workers.storage.cache import BlockCache
from workers.storage.memory import MemoryStore


class RecordingStore(MemoryStore):
    """A store that notes the ranges that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int]] = []

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append((start, length))
        return await super().get_range(key, start, length)


@given(st.integers(0, 1 << 31))
def test_classes_cost_what_they_promise(n: int) -> None:
    assert size_class(n, "off") == n
    assert n <= size_class(n, "standard") <= n * 1.125 + 1
    assert n <= size_class(n, "strict") <= max(1, 2 * n)


@given(st.binary(max_size=3000), st.sampled_from(["off", "standard", "strict"]))
def test_padding_comes_off(data: bytes, level: str) -> None:
    framed = pad(data, level)
    assert unpad(framed) == data
    assert len(framed) == size_class(len(framed), level)


@pytest.mark.parametrize("framed", [b"", b"\1\0\0", b"\2\0\0\0x"])
def test_a_bad_frame_is_refused(framed: bytes) -> None:
    with pytest.raises(ValueError, match="truncated"):
        unpad(framed)


def sizes(level: str) -> tuple[int, int]:
    """Return bytes and labels of a segment of 1,000 documents with words of a natural spread."""
    random = np.random.default_rng(3)
    rows = Rows.blank(1000)
    rows.object_id = random.integers(0, 256, (1000, 16), dtype=np.uint8)
    rows.ids = [f"mail-{i}" for i in range(1000)]
    rows.metadata = [bytes(60)] * 1000
    rows.objects = [bytes(120)] * 1000
    nodes = [
        Node(NodeKind.TERM, token(f"w{i}"), bytes(6 * max(1, 3000 // i))) for i in range(1, 3000)
    ]
    ctx = SegmentContext(INDEX, 0, keys(1), 1, level, 0)
    ref = build_segment(ctx, rows, nodes).ref
    return ref.size, len(nodes)


def test_standard_padding_costs_at_most_half_again() -> None:
    plain, _ = sizes("off")
    standard, _ = sizes("standard")
    strict, _ = sizes("strict")
    assert plain < standard <= 1.5 * plain
    assert standard < strict <= 2.5 * plain


@pytest.mark.parametrize(
    ("level", "word", "dummies"),
    [
        ("off", "nothing", 0),
        ("off", "small", 0),
        ("standard", "nothing", 1),
        ("standard", "small", 0),
        ("strict", "nothing", 1),
        ("strict", "small", 1),
        ("strict", "large", 0),
    ],
)
async def test_a_miss_looks_like_a_hit(level, word, dummies, monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    nodes = [Node(NodeKind.TERM, token(f"large{i}"), bytes(5000)) for i in range(4)]
    nodes += [
        Node(NodeKind.TERM, token("large"), bytes(5000)),
        Node(NodeKind.TERM, token("small"), b"x"),
    ]
    ctx = SegmentContext(INDEX, 0, keys(1), 1, level, 0)
    built = build_segment(ctx, Rows.blank(2), nodes)
    store = MemoryStore()
    file = SegmentFile(store, None, INDEX, 0, built.ref, keys)
    await store.put(file.key, built.data)
    stats = ReadStats()
    await look_up([file], None, [(NodeKind.TERM, token(word))], None, stats)
    assert stats.dummies == dummies
    large = ctx.padding == "strict" or word == "large" or (level != "off" and word == "nothing")
    # Bucket and directory, and the large node or its dummy.
    assert stats.gets == store.stats.gets == 2 + large


LARGE = ["large0", "large1"]


def two_large_and_a_small(level):
    nodes = [Node(NodeKind.TERM, token(word), bytes(5000)) for word in LARGE]
    nodes.append(Node(NodeKind.TERM, token("small"), b"x"))
    return build_segment(SegmentContext(INDEX, 0, keys(1), 1, level, 0), Rows.blank(2), nodes)


@pytest.mark.parametrize("level", ["off", "standard", "strict"])
async def test_few_large_nodes_are_read_all_at_once_whichever_is_wanted(level, monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    built = two_large_and_a_small(level)
    store = RecordingStore()
    await store.put(layout.segment(INDEX, 0, built.ref.uid), built.data)
    seen = []
    for word in (*LARGE, "small", "nothing"):
        cache = BlockCache(1 << 20)
        file = SegmentFile(store, cache, INDEX, 0, built.ref, keys)
        request = (NodeKind.TERM, token(word))
        found = await look_up([file], cache, [request], None, ReadStats())
        assert [len(payload) for _, payload in found[request]] == {
            "small": [1],
            "nothing": [],
        }.get(word, [5000])
        seen.append(sorted(store.ranges))
        store.ranges.clear()
    ref = built.ref
    buckets = int(np.frombuffer(ref.bucket_lengths, "<u4").sum())
    assert seen[0] == [
        (0, ref.buckets_at),
        (ref.buckets_at, buckets),
        (ref.directory_at, ref.directory_length),
    ]
    assert all(one == seen[0] for one in seen)


async def test_a_flipped_bit_among_few_large_nodes_is_damage(monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    nodes = [Node(NodeKind.TERM, token("large"), bytes(5000))]
    built = build_segment(SegmentContext(INDEX, 0, keys(1), 1, "off", 0), Rows.blank(2), nodes)
    store = MemoryStore()
    request = (NodeKind.TERM, token("large"))
    for damage in (
        bytes((built.data[0] ^ 1,)) + built.data[1:],
        built.data[:-1] + bytes((built.data[-1] ^ 1,)),
        built.data[: built.ref.buckets_at - 1],
    ):
        cache = BlockCache(1 << 20)
        file = SegmentFile(store, cache, INDEX, 0, built.ref, keys)
        await store.put(file.key, damage)
        with pytest.raises(Damaged):
            await look_up([file], cache, [request], None, ReadStats())
        # The bytes are back: what was wrong with them is not remembered.
        await store.put(file.key, built.data)
        found = await look_up([file], cache, [request], None, ReadStats())
        assert found[request] == [(0, bytes(5000))]


@pytest.mark.parametrize("level", ["off", "standard", "strict"])
async def test_damage_that_was_mended_since_it_was_cached_is_not_told(level, monkeypatch) -> None:
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    built = two_large_and_a_small(level)
    changed = bytes((built.data[0] ^ 1,)) + built.data[1 : built.ref.buckets_at - 1]
    damage = changed + bytes((built.data[len(changed)] ^ 1,)) + built.data[len(changed) + 1 :]
    store, cache, stats = RecordingStore(), BlockCache(1 << 20), ReadStats()
    file = SegmentFile(store, cache, INDEX, 0, built.ref, keys)
    large = [(NodeKind.TERM, token(word)) for word in LARGE]

    async def cache_damage() -> None:
        """Find what is no large node, while these are damaged: nothing tells."""
        cache.forget("")
        await store.put(file.key, damage)
        small = (NodeKind.TERM, token("small"))
        assert await look_up([file], cache, [small], None, stats) == {small: [(0, b"x")]}
        store.ranges.clear()

    await cache_damage()
    await store.put(file.key, built.data)
    found = await look_up([file], cache, large, None, stats)
    assert found == {one: [(0, bytes(5000))] for one in large}
    assert store.ranges == [(0, built.ref.buckets_at)]

    await cache_damage()
    # As long as it is damaged, that is told of what came from the store just now: read once.
    for _ in range(2):
        with pytest.raises(Damaged):
            await look_up([file], cache, large, None, stats)
        assert store.ranges == [(0, built.ref.buckets_at)]
        store.ranges.clear()


async def test_a_padded_shard_answers_as_an_unpadded_one() -> None:
    answers = []
    for level in ("off", "standard", "strict"):
        store = MemoryStore()
        writer = make_writer(store, Clock(), padding=level)
        await writer.load()
        await writer.apply(
            batch(0, [Op(RowKind.DOC, f"d{i}", ("a", f"w{i}"), 0, i) for i in range(9)])
        )
        snapshot = await make_reader(store).refresh()
        request = (NodeKind.KEYWORD, token("a"))
        [(_, payload)] = (await snapshot.lookup([request]))[request]
        answers.append(np.frombuffer(payload, DTYPE)["row"].tolist())
    assert answers == [list(range(9))] * 3
