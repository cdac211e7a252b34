from __future__ import annotations

import pytest
from chain_kit import INDEX, Clock, Op, batch, make_reader, make_writer, search, search_in

from workers.chain import bitmap, segment
from workers.chain.kinds import RowKind
from workers.chain.sweep import GRACE_MS, Swept
from workers.errors import Fenced
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
