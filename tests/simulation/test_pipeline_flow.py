"""Ingest and index workers together, over a broker and a store in memory."""

from __future__ import annotations

import numpy as np
from pipeline_kit import GROUP_B, Caller, Pipeline

from schemas.auth import Scope
from schemas.errors import ErrorCode
from schemas.topics import INDEX_UPDATE, PLAINTEXT_INGEST

D1 = {
    "id1": ["keyword1", "keyword2", "keyword4"],
    "id2": ["keyword2", "keyword3", "keyword4"],
    "id3": ["keyword4"],
}


async def test_the_worked_example_of_d1_with_pairs() -> None:
    world = Pipeline()
    world.realm.create("acme/docs")
    async with world.ingest(), world.index():
        for doc, keywords in D1.items():
            await world.put("acme/docs", doc, op="add_keywords", keywords=keywords)
        await world.applied(*await world.accepted(3))
        assert await world.keyword("acme/docs", "keyword4") == ["id1", "id2", "id3"]
        assert await world.keyword("acme/docs", "keyword2") == ["id1", "id2"]
        assert await world.keyword("acme/docs", "keyword5") == []

        await world.put("acme/docs", "id1", op="remove_keywords", keywords=["keyword4"])
        await world.applied(*await world.accepted(4))
        assert await world.keyword("acme/docs", "keyword4") == ["id2", "id3"]
        assert await world.keyword("acme/docs", "keyword1") == ["id1"]
    assert world.dead() == []


async def test_the_worked_example_of_d1_with_documents() -> None:
    world = Pipeline()
    world.realm.create("acme/docs")
    async with world.ingest(), world.index():
        for doc, keywords in D1.items():
            await world.put("acme/docs", doc, content=f"text of {doc}", keywords=keywords)
        await world.applied(*await world.accepted(3))
        assert await world.keyword("acme/docs", "keyword4") == ["id1", "id2", "id3"]

        await world.put("acme/docs", "id1", op="remove_keywords", keywords=["keyword4"])
        await world.applied(*await world.accepted(4))
        assert await world.keyword("acme/docs", "keyword4") == ["id2", "id3"]

        await world.put("acme/docs", "id2", op="delete")
        await world.applied(*await world.accepted(5))
        assert await world.keyword("acme/docs", "keyword4") == ["id3"]
        snapshot = await world.snapshot("acme/docs")
        assert snapshot.shard_stats.docs == 2


async def test_results_name_the_object_and_its_position() -> None:
    world = Pipeline()
    uid = world.realm.create("acme/docs", partitions=(1, 0))
    async with world.ingest(), world.index():
        for number in range(20):
            await world.put("acme/docs", f"doc-{number}", content="words", keywords=["k"])
        results = await world.accepted(20)
        await world.applied(*results)
    assert {r.id for r in results} == {f"doc-{number}" for number in range(20)}
    assert all(r.position and r.position.partition == (1, 0)[r.position.shard] for r in results)
    assert {r.position.shard for r in results if r.position} == {0, 1}
    found = await world.keyword("acme/docs", "k", 0) + await world.keyword("acme/docs", "k", 1)
    assert len(found) == 20
    assert all(r.source and r.source.topic == PLAINTEXT_INGEST for r in results)
    keys = {record.key for record in world.broker.records(INDEX_UPDATE)}
    assert keys == {f"{uid.hex()}/0".encode(), f"{uid.hex()}/1".encode()}


async def test_vectors_metadata_and_text_reach_the_segment() -> None:
    world = Pipeline()
    world.realm.create("acme/docs", dimension=4)
    async with world.ingest(), world.index():
        await world.put(
            "acme/docs",
            "a",
            text={"title": "Running dogs", "body": "The dog ran and ran"},
            vector=[3.0, 0.0, 4.0, 0.0],
            metadata={"year": 1999, "tags": ["x", "y"]},
        )
        await world.applied(*await world.accepted(1))
    snapshot = await world.snapshot("acme/docs")
    stats = snapshot.shard_stats
    assert stats.docs == 1
    assert {name: one.total_length for name, one in stats.fields.items()} == {"title": 2, "body": 3}
    rows, vectors = await snapshot.vectors(0)
    assert rows.tolist() == [0]
    np.testing.assert_allclose(vectors, [[0.6, 0.0, 0.8, 0.0]], atol=1e-3)
    assert snapshot.vector
    assert (await snapshot.metadata(0))[0]


async def test_overwriting_takes_a_group_of_the_document() -> None:
    world = Pipeline()
    world.realm.create("acme/docs")
    world.realm.callers["bob"] = Caller(groups=(GROUP_B,))
    world.realm.callers["creator"] = Caller(scopes=frozenset({Scope.ENCRYPT, Scope.INDEX}))
    async with world.ingest(), world.index():
        await world.put("acme/docs", "a", content="hers", keywords=["alice"])
        await world.applied(*await world.accepted(1))
        await world.put("acme/docs", "a", content="his", keywords=["bob"], auth={"token": "bob"})
        await world.put("acme/docs", "a", op="delete", auth={"token": "bob"})
        # In the group, without the scope Update: may create, not replace.
        await world.put("acme/docs", "a", content="new", auth={"token": "creator"})
        await world.put("acme/docs", "b", content="new", auth={"token": "creator"})
        rejected = await world.until(
            lambda: (
                found
                if len(found := [r for r in world.results() if r.status == "rejected"]) == 3
                else None
            )
        )
        await world.applied(*await world.accepted(5))
    assert {r.error.code for r in rejected if r.error} == {ErrorCode.FORBIDDEN}
    assert await world.keyword("acme/docs", "alice") == ["a"]
    assert await world.keyword("acme/docs", "bob") == []
    assert (await world.snapshot("acme/docs")).shard_stats.docs == 2


async def test_a_compare_and_set_that_loses_is_told() -> None:
    world = Pipeline()
    world.realm.create("acme/docs")
    async with world.ingest(), world.index():
        await world.put("acme/docs", "a", content="1", if_version=0)
        await world.put("acme/docs", "a", content="2", if_version=1)
        await world.put("acme/docs", "a", content="3", if_version=1)
        await world.until(lambda: any(r.status == "rejected" for r in world.results()))
    (lost,) = [r for r in world.results() if r.status == "rejected"]
    assert lost.error
    assert lost.error.code is ErrorCode.CONFLICT
    assert lost.source
    assert lost.source.offset == 2


async def test_an_idle_tenant_costs_little_and_a_backlog_makes_one_segment() -> None:
    world = Pipeline()
    world.realm.create("acme/docs")
    async with world.ingest():
        for number in range(600):
            await world.put("acme/docs", f"doc-{number}", content=f"word{number} common words")
        results = await world.accepted(600)
    async with world.index():
        await world.applied(*results)
    snapshot = await world.snapshot("acme/docs")
    assert snapshot.segments == 1
    assert snapshot.rows_in(0) == 600
