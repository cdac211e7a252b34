"""Packs that no document names any more are deleted, and no others."""

from __future__ import annotations

import pytest
from pipeline_kit import Pipeline

from workers.chain.reader import ShardReader
from workers.crypto.derive import Purpose
from workers.errors import Damaged
from workers.index.garbage import MIN_AGE_MS, SharedGarbage
from workers.leases.heads import head_verifier
from workers.storage import layout
from workers.storage.memory import MemoryStore

SHARDS = (0, 1)


class Clock:
    ms = 10**12

    def __call__(self) -> int:
        return self.ms


def readers(world: Pipeline, uid: bytes) -> list[ShardReader]:
    return [
        ShardReader(
            world.store,
            None,
            uid,
            shard,
            lambda _generation: world.realm.key("i", Purpose.SEGMENT),
            head_verifier(world.realm, "i"),
        )
        for shard in range(len(SHARDS))
    ]


async def packs(world: Pipeline, uid: bytes) -> set[str]:
    return {entry.key async for entry in world.store.list(layout.packs_prefix(uid))}


async def ingest(world: Pipeline, *documents: dict[str, str]) -> None:
    handler = await world.ingest_handler()
    await handler.start()
    first = len(world.results())
    await handler.process([await world.put("i", **one) for one in documents])
    await world.until(lambda: len(world.results()) == first + len(documents))
    await world.applied(*world.results())


async def test_only_what_no_shard_names_is_deleted_and_only_when_it_is_old() -> None:
    clock = Clock()
    world = Pipeline(store=MemoryStore(clock_ms=clock))
    uid = world.realm.create("i", SHARDS)
    large = "x" * 10_000
    garbage = SharedGarbage(world.store, uid, clock_ms=clock)
    async with world.index():
        await ingest(world, *({"doc": f"d{n}", "content": large} for n in range(8)))
        first = await packs(world, uid)
        await ingest(world, *({"doc": f"d{n}", "content": large} for n in range(8)))
        # Until they are merged, segments hold what is dead: its packs stay.
        for handler in world.handlers:
            for shard in handler.shards:
                await (await shard.open()).writer.compact(everything=True)
    second = await packs(world, uid) - first
    await world.store.put(layout.body(uid, b"b" * 16), b"a body")
    assert first
    assert second
    assert await garbage.sweep(readers(world, uid)) == 0
    clock.ms += MIN_AGE_MS
    young = layout.pack(uid, b"y" * 16)
    await world.store.put(young, b"its update waits")
    assert await garbage.sweep(readers(world, uid)) == 1  # the body
    assert await garbage.sweep(readers(world, uid)) == len(first)
    assert await packs(world, uid) == second | {young}
    assert await garbage.sweep(readers(world, uid)) == 0


async def test_nothing_is_deleted_by_the_word_of_a_head_that_is_gone() -> None:
    clock = Clock()
    world = Pipeline(store=MemoryStore(clock_ms=clock))
    uid = world.realm.create("i", SHARDS)
    async with world.index():
        await ingest(world, *({"doc": f"d{n}", "content": "x" * 10_000} for n in range(8)))
    stored = await packs(world, uid)
    clock.ms += MIN_AGE_MS
    garbage = SharedGarbage(world.store, uid, clock_ms=clock)
    await world.store.delete([layout.head(uid, 1)])
    for _ in range(2):
        again = readers(world, uid)
        again[1].expect(1)
        with pytest.raises(Damaged):
            await garbage.sweep(again)
    assert await packs(world, uid) == stored
