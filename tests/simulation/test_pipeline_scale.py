"""Large contents, split batches, merges and training beside the updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pipeline_kit import GROUP_A, Pipeline

from schemas.topics import INDEX_UPDATE
from workers.chain.kinds import NodeKind
from workers.crypto.derive import Purpose, centroid_token, object_id
from workers.errors import Damaged
from workers.index import vectors
from workers.index.handler import IndexHandler
from workers.index.vectors import ShardVectors
from workers.kafka.broker import TP
from workers.objects.pack import (
    Place,
    decode_pointer,
    object_request,
    open_content,
    pack_routes,
    read_sealed,
    split_pack_key,
)
from workers.objects.record import open_pack_key, open_record
from workers.vector import training
from workers.vector.store import read_ref

LARGE = 1024 * 1024 + 1


async def test_contents_of_every_size_come_back() -> None:
    world = Pipeline()
    uid = world.realm.create("i")
    sizes = {"none": None, "empty": 0, "small": 4095, "packed": 4096, "chunks": 300_000}
    async with world.ingest(), world.index():
        for doc, size in sizes.items():
            content = {} if size is None else {"content": "x" * size}
            await world.put("i", doc, **content)
        await world.applied(*await world.accepted(len(sizes)))
    snapshot = await world.snapshot("i")
    tag = world.realm.tags["i"]
    for doc, size in sizes.items():
        oid = object_id(tag, doc)
        found = (await snapshot.find_ids([oid]))[0]
        assert found is not None
        segment, row = found
        ((encoded, pack),) = await snapshot.objects(segment, np.array([row]))
        pointer = decode_pointer(encoded)
        expected = Place.NONE if size is None else Place.INLINE if size < 4096 else Place.PACK
        assert pointer.place == expected

        # What the key service does with the request.
        request = object_request(pointer, pack)
        wrapped = split_pack_key(request.pack_key)
        private = world.realm.private("i", Purpose.OBJECT)
        key = open_pack_key(
            private,
            wrapped.sealed,
            index_uid=uid,
            generation=wrapped.generation,
            pack_uid=wrapped.uid,
        )
        record = open_record(
            key,
            request.record,
            index_uid=uid,
            generation=request.generation,
            object_id=request.object_id,
            content_sha256=request.sealed_sha256,
        )
        assert record.groups == (GROUP_A,)
        (sealed,) = await read_sealed(world.store, uid, [pointer])
        if size is None:
            assert sealed == b""
            continue
        assert open_content(pointer, sealed, record.object_key, index_uid=uid) == b"x" * size
        with pytest.raises(Damaged):
            open_content(pointer, sealed, bytes(32), index_uid=uid)
    packs = [key for key in world.store.keys() if "/packs/" in key]  # noqa: SIM118
    assert packs
    for name in packs:
        created_ms, routes = pack_routes((await world.store.get(name)).data)
        assert created_ms > 0
        assert routes == [(0, 0)]


async def test_a_batch_too_large_for_a_record_is_split_in_order() -> None:
    world = Pipeline()
    world.realm.create("i")
    handler = await world.ingest_handler(record_bytes=100_000)
    await handler.start()
    rng = np.random.default_rng(5)
    words = [f"w{n}" for n in range(3000)]
    records = [
        await world.put("i", f"d{n}", content=" ".join(rng.choice(words, 200)), keywords=["k"])
        for n in range(60)
    ]
    # One operation that fits no record goes through an object.
    huge = " ".join(f"word{n}" for n in range(5000))
    records.append(await world.put("i", "huge", text={"body": huge}, keywords=["k"]))
    await handler.process(records)
    updates = world.broker.records(INDEX_UPDATE)
    assert len(updates) > 3
    assert max(len(record.value or b"") for record in updates) <= 100_000
    assert any("/bodies/" in key for key in world.store.keys())  # noqa: SIM118
    async with world.index():
        await world.until(lambda: len(world.events()) and world.events()[-1].documents == 61)
    assert await world.keyword("i", "k") == [*(f"d{n}" for n in range(60)), "huge"]
    assert world.dead(INDEX_UPDATE) == []


async def test_many_small_batches_are_merged_beside_the_updates() -> None:
    world = Pipeline()
    world.realm.create("i", dimension=8)
    ingest = await world.ingest_handler()
    await ingest.start()
    rng = np.random.default_rng(3)
    async with world.index(background=True):
        for number in range(30):
            record = await world.put(
                "i",
                f"d{number % 20}",
                content=f"text {number}",
                keywords=["k", f"k{number}"],
                vector=rng.normal(size=8).tolist(),
            )
            await ingest.process([record])
            await world.until(lambda n=number: any(e.applied.offset >= n for e in world.events()))
    snapshot = await world.snapshot("i")
    assert snapshot.segments <= 8
    assert snapshot.shard_stats.docs == 20
    assert len(await world.keyword("i", "k")) == 20
    assert await world.keyword("i", "k3") == []
    assert await world.keyword("i", "k23") == ["d3"]


@pytest.mark.parametrize("precision", ["float16", "int8"])
async def test_training_regroups_every_segment(precision: str) -> None:
    world = Pipeline()
    world.realm.create("i", dimension=8, metric="euclidean", storage_precision=precision)
    ingest = await world.ingest_handler()
    await ingest.start()
    rng = np.random.default_rng(3)
    records = [
        await world.put("i", f"d{n}", vector=rng.normal(size=8).round(3).tolist())
        for n in range(4200)
    ]
    for at in range(0, len(records), 700):
        await ingest.process(records[at : at + 700])
    async with world.index(background=True):
        await world.until(lambda: world.events() and world.events()[-1].documents == 4200)
        (shard,) = [shard for handler in world.handlers for shard in handler.shards]
        await world.until(lambda: shard.head and read_ref(shard.head.vector).epoch == 1)
    snapshot = await world.snapshot("i")
    assert set(snapshot.epochs) == {1}
    assert read_ref(snapshot.vector).trained_on == 4200


async def test_vectors_that_were_grouped_before_a_training_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A training is published while a batch is made: its segment names the epoch that it is of."""
    for module in (training, vectors):
        monkeypatch.setattr(module, "MIN_VECTORS", 50)
    world = Pipeline()
    world.realm.create("i", dimension=2)
    ingest = await world.ingest_handler()
    await ingest.start()
    documents = [await world.put("i", f"d{n}", vector=[1.0, float(n)]) for n in range(60)]
    await ingest.process(documents[:50])
    await ingest.process(documents[50:])
    before, after = world.broker.records(INDEX_UPDATE)
    handler = IndexHandler(
        TP(INDEX_UPDATE, 0), await world.services(), max_blocked_records=9, background=False
    )
    await handler.start()
    await handler.process([before])
    [shard] = handler.shards
    clusters = ShardVectors.clusters

    async def overtaken(self: Any, writer: Any, head: Any, first: Any, generation: int) -> Any:
        found = await clusters(self, writer, head, first, generation)
        assert await shard.maintain()
        return found

    monkeypatch.setattr(ShardVectors, "clusters", overtaken)
    await handler.process([after])
    await handler.stop()
    snapshot = await world.snapshot("i")
    assert snapshot.epochs == [1, 0]
    token = centroid_token(world.realm.key("i", Purpose.VECTOR), 0, 0)
    found = await snapshot.lookup([(NodeKind.CODES, token)])
    assert [segment for segment, _ in found[NodeKind.CODES, token]] == [1]
