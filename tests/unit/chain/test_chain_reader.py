from __future__ import annotations

import asyncio

import pytest
from chain_kit import (
    INDEX,
    Clock,
    Op,
    batch,
    keys,
    make_reader,
    make_writer,
    oid,
    search,
    search_in,
    token,
    verify,
)

from schemas.errors import ErrorCode
from workers.chain import segment, segment_file
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.reader import ShardReader
from workers.errors import Damaged, Reject
from workers.storage import layout
from workers.storage.cache import BlockCache
from workers.storage.memory import MemoryStore

DOC = RowKind.DOC


@pytest.fixture
async def shard(monkeypatch):
    """A writer whose segments are objects read by ranges."""
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
    store = MemoryStore()
    writer = make_writer(store, Clock(), padding="off")
    await writer.load()
    return store, writer


async def fill(writer, batches: int, words: tuple[str, ...] = ("x",)) -> None:
    for i in range(batches):
        await writer.apply(batch(writer.head.applied + 1, [Op(DOC, f"d{i}", words, 0, i)]))


async def test_a_shard_that_was_never_written_is_empty() -> None:
    reader = make_reader(MemoryStore())
    assert await search(reader, "x") == []
    assert reader.snapshot.version == 0
    assert reader.snapshot.applied == -1
    assert await reader.snapshot.find_ids([oid("a")]) == [None]


async def test_a_cold_search_takes_two_round_trips(shard) -> None:
    store, writer = shard
    await fill(writer, 5)
    reader = make_reader(store)
    snapshot = (await reader.refresh()).measured()
    request = (NodeKind.KEYWORD, token("x"))
    assert len((await snapshot.lookup([request]))[request]) == 5
    # One bucket and one directory per segment, all at once.
    assert snapshot.stats.gets == 10
    assert (await reader.refresh()).stats.gets == 0


async def test_only_says_where_to_look(shard) -> None:
    store, writer = shard
    await fill(writer, 3)
    snapshot = await make_reader(store).refresh()
    request = (NodeKind.KEYWORD, token("x"))
    found = await snapshot.lookup([request], only={request: [1]})
    assert [segment for segment, _ in found[request]] == [1]


async def test_heads_are_checked_again_when_too_old(shard) -> None:
    store, writer = shard
    clock = [0.0]
    reader = ShardReader(store, None, INDEX, 0, keys, verify, clock_s=lambda: clock[0])
    await fill(writer, 1)
    first = await reader.refresh(1000)
    await fill(writer, 1, ("y",))
    clock[0] = 0.9
    assert await reader.refresh(1000) is first
    clock[0] = 1.1
    second = await reader.refresh(1000)
    assert second.version == 2
    gets = store.stats.gets
    clock[0] = 9
    assert await reader.refresh(1000) is second
    assert store.stats.gets == gets + 1


async def test_many_who_ask_share_one_check(shard) -> None:
    store, writer = shard
    await fill(writer, 1)
    clock = [0.0]
    reader = ShardReader(store.view(), None, INDEX, 0, keys, verify, clock_s=lambda: clock[0])
    await asyncio.gather(*(reader.refresh(1000) for _ in range(20)))
    assert reader._store.stats.gets == 1


async def test_a_snapshot_stays_as_it_was(shard) -> None:
    store, writer = shard
    await fill(writer, 6)
    reader = make_reader(store, BlockCache(1 << 20))
    before = await reader.refresh()
    await writer.apply(batch(50, [Op(RowKind.TOMBSTONE, "d0", (), 0, 90)]))
    await writer.compact(everything=True)
    assert await search_in(before, "x") == [f"d{i}" for i in range(6)]
    assert await search(reader, "x") == [f"d{i}" for i in range(1, 6)]


async def test_a_missing_segment_that_is_named_is_damage(shard) -> None:
    store, writer = shard
    await fill(writer, 1)
    snapshot = await make_reader(store).refresh()
    await store.delete([layout.segment(INDEX, 0, writer.head.segments[0].uid)])
    with pytest.raises(Damaged):
        await search_in(snapshot, "x")


async def test_a_snapshot_whose_segments_were_swept_is_expired(shard) -> None:
    store, writer = shard
    await fill(writer, 7)
    reader = make_reader(store)
    old = await reader.refresh()
    uids = [ref.uid for ref in writer.head.segments]
    await writer.compact(everything=True)
    await store.delete([layout.segment(INDEX, 0, uid) for uid in uids])
    with pytest.raises(Reject) as caught:
        await search_in(old, "x")
    assert caught.value.code == ErrorCode.EXPIRED
    assert len(await search(reader, "x")) == 7


async def test_a_rolled_back_head_is_damage(shard) -> None:
    store, writer = shard
    await fill(writer, 1)
    old = (await store.get(layout.head(INDEX, 0))).data
    await fill(writer, 1)
    reader = make_reader(store)
    await reader.refresh()
    await store.put(layout.head(INDEX, 0), old)
    with pytest.raises(Damaged, match="rolled back"):
        await reader.refresh()
    fresh = make_reader(store)
    assert (await fresh.refresh()).version == 1
    fresh.expect(2)
    with pytest.raises(Damaged, match="older"):
        await fresh.refresh(10_000)


async def test_a_version_announced_while_an_older_one_is_read_is_no_damage(
    shard, monkeypatch
) -> None:
    store, writer = shard
    await fill(writer, 1)
    reader = make_reader(store)
    real = reader._store.get

    async def overtaken(key: str):
        stored = await real(key)
        if writer.head.version == 1:
            await fill(writer, 1)
            reader.expect(2)
        return stored

    monkeypatch.setattr(reader._store, "get", overtaken)
    assert (await reader.refresh()).version == 2


async def test_a_head_that_vanished_is_damage(shard) -> None:
    store, writer = shard
    await fill(writer, 1)
    reader = make_reader(store)
    await reader.refresh()
    await store.delete([layout.head(INDEX, 0)])
    with pytest.raises(Damaged, match="gone"):
        await reader.refresh()


async def test_the_head_of_another_shard_in_its_place_is_damage(shard) -> None:
    store, writer = shard
    await fill(writer, 1)
    data = (await store.get(layout.head(INDEX, 0))).data
    await store.put(layout.head(INDEX, 1), data)
    with pytest.raises(Damaged):
        await ShardReader(store, None, INDEX, 1, keys, verify).refresh()


async def test_pairs_need_no_document(shard) -> None:
    store, writer = shard
    await writer.apply(
        batch(0, [Op(RowKind.PAIRS, "p", ("x", "y"), 0, 1), Op(DOC, "d", ("x",), 0, 2)])
    )
    await writer.apply(batch(1, [Op(RowKind.REMOVALS, "d", ("x",), 0, 3)]))
    reader = make_reader(store)
    assert await search(reader, "x") == ["p"]
    assert await search(reader, "y") == ["p"]
    snapshot = await reader.refresh()
    assert await snapshot.find_ids([oid("p"), oid("d")]) == [None, (0, 1)]
    assert snapshot.shard_stats.pairs == 2


async def test_the_cache_is_bounded(shard) -> None:
    store, writer = shard
    await fill(writer, 6)
    cache = BlockCache(4096)
    reader = make_reader(store, cache)
    for _ in range(3):
        assert len(await search(reader, "x")) == 6
    assert cache.stats.bytes <= 4096
