from __future__ import annotations

import asyncio

import pytest
from chain_kit import INDEX, Clock, Op, batch, keys, make_reader, make_writer, search, search_in

from schemas.errors import ErrorCode
from workers.chain import bitmap, segment
from workers.chain.kinds import RowKind
from workers.chain.sweep import GRACE_MS, Swept
from workers.errors import Fenced, Retry
from workers.storage import layout
from workers.storage.memory import MemoryStore

DOC = RowKind.DOC


@pytest.fixture
async def shard(monkeypatch):
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    monkeypatch.setattr(bitmap, "RECENT_ROWS", 0)
    clock = Clock()
    store = MemoryStore(clock_ms=clock)
    writer = make_writer(store, clock)
    await writer.load()
    for i in range(6):
        await writer.apply(batch(i, [Op(DOC, f"d{i % 3}", ("x",), 0, i)]))
    return store, writer, clock


def objects(store: MemoryStore) -> set[str]:
    return {key for key in set(store.keys()) if "/segments/" in key or "/deletes/" in key}


def named(writer) -> set[str]:
    head = writer.head
    return {layout.segment(INDEX, 0, ref.uid) for ref in head.segments} | {
        layout.deletes(INDEX, 0, one.base) for one in head.deletes if one.base
    }


async def test_what_was_dropped_goes_a_day_later(shard) -> None:
    store, writer, clock = shard
    reader = make_reader(store)
    before = await reader.refresh()
    await writer.compact(everything=True)
    garbage = len(objects(store) - named(writer))
    assert garbage > 6
    assert await writer.sweep() == Swept(0, garbage)
    clock.ms += GRACE_MS - 1
    assert await writer.sweep() == Swept(0, garbage)
    assert await search_in(before, "x") == ["d0", "d1", "d2"]
    clock.ms += 1
    assert await writer.sweep() == Swept(garbage, 0)
    assert objects(store) == named(writer)
    assert await search(reader, "x") == ["d0", "d1", "d2"]


async def test_what_is_named_is_never_touched(shard) -> None:
    store, writer, clock = shard
    keep = named(writer)
    for _ in range(3):
        clock.ms += GRACE_MS
        await writer.sweep()
    assert objects(store) == keep
    assert await search(make_reader(store), "x") == ["d0", "d1", "d2"]


async def test_what_was_never_named_goes_too_and_restarts_do_not_delay_it(shard) -> None:
    store, writer, clock = shard
    lost = layout.segment(INDEX, 0, b"l" * 16)
    await store.put(lost, b"orphan")
    waiting = (await writer.sweep()).waiting
    clock.ms += GRACE_MS
    again = make_writer(store, clock)
    await again.load()
    assert (await again.sweep()).deleted == waiting
    assert lost not in set(store.keys())


async def test_deleting_fences_a_stalled_writer_first(shard) -> None:
    """A writer that stored a segment long ago must not be able to name it after it was deleted."""
    store, writer, clock = shard
    zombie = make_writer(store, clock)
    await zombie.load()
    await store.put(layout.segment(INDEX, 0, b"z" * 16), b"what the zombie stored")
    await writer.sweep()
    version = writer.head.version
    clock.ms += GRACE_MS
    await writer.sweep()
    assert writer.head.version == version + 1
    with pytest.raises(Fenced):
        await zombie.apply(batch(50, []))


async def test_a_fenced_writer_deletes_nothing(shard) -> None:
    store, writer, clock = shard
    await store.put(layout.segment(INDEX, 0, b"z" * 16), b"orphan")
    await writer.sweep()
    other = make_writer(store, clock)
    await other.load()
    await other.apply(batch(50, []))
    clock.ms += GRACE_MS
    before = objects(store)
    with pytest.raises(Fenced):
        await writer.sweep()
    assert objects(store) == before


async def test_a_damaged_note_only_starts_over(shard) -> None:
    store, writer, clock = shard
    await store.put(layout.segment(INDEX, 0, b"z" * 16), b"orphan")
    waiting = (await writer.sweep()).waiting
    [note] = [key for key in set(store.keys()) if key.endswith("/garbage")]
    await store.put(note, b"nonsense")
    clock.ms += GRACE_MS
    assert await writer.sweep() == Swept(0, waiting)


async def test_what_is_noted_outlives_a_key_generation(shard) -> None:
    store, writer, clock = shard
    orphan = layout.segment(INDEX, 0, b"z" * 16)
    await store.put(orphan, b"orphan")
    waiting = (await writer.sweep()).waiting
    writer.use_generation(2)
    clock.ms += GRACE_MS - 1
    # Nothing new to note, and the note moves to the new generation all the same.
    assert await writer.sweep() == Swept(0, waiting)
    clock.ms += 1
    writer._core.keys = without_generation_1
    assert (await writer.sweep()).deleted == waiting
    assert orphan not in set(store.keys())


async def test_a_note_whose_key_generation_ended_only_starts_over(shard) -> None:
    store, writer, clock = shard
    await store.put(layout.segment(INDEX, 0, b"z" * 16), b"orphan")
    waiting = (await writer.sweep()).waiting
    writer.use_generation(2)
    writer._core.keys = without_generation_1
    clock.ms += GRACE_MS
    assert await writer.sweep() == Swept(0, waiting)
    clock.ms += GRACE_MS
    assert (await writer.sweep()).deleted == waiting


def without_generation_1(generation: int):
    if generation == 1:
        raise Retry(ErrorCode.KEY_UNAVAILABLE, "not in the lease")
    return keys(generation)


async def test_centroids_that_the_head_does_not_name_go_too(shard) -> None:
    store, writer, clock = shard
    used, old = (layout.centroids(INDEX, 0, one * 16) for one in (b"u", b"o"))
    for key in (used, old):
        await store.put(key, b"sealed")
    for _ in range(2):
        await writer.sweep()
        clock.ms += GRACE_MS
    assert {used, old} <= set(store.keys())
    for _ in range(2):
        await writer.sweep(centroids=lambda head: {b"u" * 16} if head.version else set())
        clock.ms += GRACE_MS
    assert used in set(store.keys())
    assert old not in set(store.keys())


async def test_the_output_of_a_merge_is_safe_until_it_is_named(shard, monkeypatch) -> None:
    store, writer, _ = shard
    stored, go_on, put = asyncio.Event(), asyncio.Event(), store.put

    async def slow(key: str, data: bytes) -> str:
        etag = await put(key, data)
        if "/segments/" in key:
            stored.set()
            await go_on.wait()
        return etag

    monkeypatch.setattr(store, "put", slow)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.compact(everything=True))
        await stored.wait()
        sweeping = tasks.create_task(writer.sweep(0))
        for _ in range(20):
            await asyncio.sleep(0)
        go_on.set()
    assert sweeping.result().deleted
    assert named(writer) <= set(store.keys())
    assert await search(make_reader(store), "x") == ["d0", "d1", "d2"]
