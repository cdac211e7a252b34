"""Changing the keys of an index while it is written and searched; what is gone at the end."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from pathlib import Path

import pytest

from schemas.errors import ErrorCode
from schemas.topics import INDEX_UPDATE, dead_letter
from workers.chain.head import open_head
from workers.crypto.derive import Purpose
from workers.errors import Damaged
from workers.leases.heads import head_verifier
from workers.storage import layout
from workers.vector.store import read_ref

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import World
from query_kit import ALL, INDEX, client, workers

DIMENSION = 4
LEASE_S = 2


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


@pytest.fixture
async def quick(tmp_path, monkeypatch):
    """A world in real time whose leases live for two seconds."""
    monkeypatch.setattr("workers.keys.lifecycle.CLOCK_SKEW_S", 0)
    monkeypatch.setattr("workers.keys.worker._ADVANCE_S", 0.0)
    monkeypatch.setattr("workers.index.background.ROUND_S", 0.2)
    monkeypatch.setattr("workers.index.shard.ENDED_GRACE_MS", 0)
    world = World(tmp_path, allow_plain_credentials=True)
    world.clock = time.time
    world.settings = world.settings.model_copy(update={"lease_s": LEASE_S})
    await world.open()
    yield world
    await world.aclose()


async def status(world, index=INDEX):
    result = await world.admin("key.status", {"index": index})
    assert result.error is None, result.error
    return result.result


async def rotate(world, level, index=INDEX, **changes):
    return await world.admin("key.rotate", {"index": index, "level": level}, **changes)


def around(number):
    angle = number % 100 * 0.06
    return [math.cos(angle), math.sin(angle), 0.0, 0.0]


def document(number):
    return {
        "op": "upsert",
        "index": INDEX,
        "id": f"d{number}",
        "content": f"content of number {number}",
        "keywords": [f"k{number % 7}"],
        "vector": around(number),
        "metadata": {"n": number},
    }


async def ingest(client, numbers):
    operations = (document(number) for number in numbers)
    return [r async for r in client.ingest_many(operations, wait="searchable")]


async def everything(client, count):
    """Ask in every way; return whether all answers are right."""
    assert await client.count(INDEX) == count
    found = await client.search(INDEX, keyword="k3", include=["content"])
    assert {hit.id for hit in found.hits} == {f"d{n}" for n in range(count) if n % 7 == 3}
    assert all(hit.content.startswith("content of number") for hit in found.hits)
    near = await client.search(INDEX, vector=around(10), top_k=3)
    assert near.hits[0].id == "d10"
    text = await client.search(INDEX, text="number", top_k=count)
    assert len(text.hits) == count
    prefix = await client.query(INDEX, {"text": "numb*", "syntax": True}, top_k=count)
    assert len(prefix.hits) == count
    some = await client.search(INDEX, text="content", filter={"n": {"$lt": 5}}, top_k=count)
    assert len(some.hits) == 5


async def test_a_data_key_is_changed_while_the_index_is_written_and_searched(quick):
    world = quick
    await world.create(INDEX, dimension=DIMENSION, shards=2)
    uid = world.directory.index(INDEX).uid
    async with workers(world, *ALL, lease_s=LEASE_S), client(world) as c:
        for start in range(0, 60, 20):
            await ingest(c, range(start, start + 20))
        await everything(c, 60)
        before = await status(world)
        assert before["generations"] == [1]
        old = await _subkeys(world, uid)
        begun = await rotate(world, "dek")
        assert begun.result["generations"] == [1, 2]
        assert begun.result["generation"] == 1
        again = await rotate(world, "dek")
        assert again.error.code is ErrorCode.CONFLICT
        stages, rounds, count = [], 0, 60
        async with asyncio.timeout(60):
            while (now := await status(world))["rotation"] is not None:
                stages.append(now["rotation"]["stage"])
                # Searched and written to all the time.
                await everything(c, count)
                await ingest(c, [count])
                count += 1
                rounds += 1
        assert [s for s, after in zip(stages, [*stages[1:], ""], strict=True) if s != after][
            :2
        ] == ["prepare", "switch"]
        assert rounds > 3
        assert now["generations"] == [2]
        await everything(c, count)
        # The old key is destroyed, and nothing that the heads name is of its time.
        assert [k for k in world.stored() if k.startswith(layout.deks_prefix(uid))] == [
            layout.dek(uid, 2)
        ]
        for shard in range(2):
            head = await _head(world, uid, shard)
            assert head.generations() == {2}
            assert read_ref(head.vector).generation == 2
            assert all(ref.generation == 2 for ref in head.segments)
        # Nor anything else that is stored, once what nobody names is swept.
        async with asyncio.timeout(60):
            while left := await _old_segments(world, uid):
                assert left
                await asyncio.sleep(0.1)
        with pytest.raises(Damaged):
            await _head(world, uid, 0, keys=lambda generation: old)
    # A worker that begins now reads it all.
    async with workers(world, *ALL), client(world) as c:
        await everything(c, count)
        await ingest(c, [count])
    assert not world.broker.records(dead_letter(INDEX_UPDATE))
    assert not [k for k in world.stored() if k.startswith(layout.bodies_prefix(uid))]
    assert world.audited("rotate.end") == 1


async def _subkeys(world, uid):
    service = await world.service()
    record = await service._indexes.record(INDEX)
    ring = await service._indexes.open(record)
    return ring.subkey(1, Purpose.SEGMENT)


async def _head(world, uid, shard, keys=None):
    service = await world.service()
    record = await service._indexes.record(INDEX)
    ring = await service._indexes.open(record)
    data = (await world.store.get(layout.head(uid, shard))).data
    verifier = head_verifier(world.directory, INDEX)
    read = keys or (lambda generation: ring.subkey(generation, Purpose.SEGMENT))
    return open_head(data, uid, shard, read, verifier).head


async def _old_segments(world, uid):
    """Return the stored segments and bitmaps that no head names."""
    left = []
    for shard in range(2):
        head = await _head(world, uid, shard)
        named = {layout.segment(uid, shard, ref.uid) for ref in head.segments}
        named |= {layout.deletes(uid, shard, d.base) for d in head.deletes if d.base}
        prefix = layout.shard_prefix(uid, shard)
        left += [
            key
            for key in world.stored()
            if key.startswith((f"{prefix}segments/", f"{prefix}deletes/")) and key not in named
        ]
    return left
