"""What a client gets from the query worker, whatever the protection, and whom it believes."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from query_kit import (
    ALL,
    INDEX,
    World,
    client,
    requests,
    since,
    stored,
    until,
    workers,
)

from schemas.auth import Scope
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo
from schemas.query import Hit, QueryResult, Reply
from schemas.topics import (
    CONTENT_JSON,
    CONTENT_SEALED,
    HEADER_CONTENT_TYPE,
    HEADER_REPLY,
    PLAINTEXT_INGEST,
    QUERY_RESULT,
)
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey
from workers.errors import Reject, Retry
from workers.leases.certificate import WorkerIdentity, issue_certificate
from workers.leases.signed import verify_record
from workers.query.results import encode_result

SECRET = "canary-nightingale"
PROTECTIONS = ("sealed", "signed", "plain")


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One world with all its workers; tests use documents or indexes of their own."""
    world = World(Path(tmp_path_factory.mktemp("world")), allow_plain_credentials=True)
    await world.open()
    await world.create(INDEX, dimension=2)
    async with workers(world, *ALL):
        yield world
    await world.aclose()


@pytest.mark.parametrize("protection", PROTECTIONS)
async def test_every_protection_finds_and_shows_no_more_than_it_says(world, protection):
    doc = f"doc-{protection}"
    sent = requests(world)
    async with client(world, protection=protection) as c:
        done = await c.ingest(
            INDEX,
            doc,
            content=f"{SECRET} sings",
            keywords=[f"robin-{protection}"],
            metadata={"bird": SECRET},
            vector=[1.0, 0.0],
            wait="searchable",
        )
        found = await c.search(
            INDEX,
            keyword=f"robin-{protection}",
            include=["metadata", "content", "vector", "groups"],
            after=[done],
        )
    [hit] = found.hits
    assert (hit.id, hit.content, hit.metadata) == (doc, f"{SECRET} sings", {"bird": SECRET})
    assert len(hit.groups) == 1
    [request] = since(world, sent)
    in_clear = protection != "sealed"
    assert (b"robin" in request.value) is in_clear
    assert (world.token.encode() in request.value) is (protection == "plain")
    assert (
        request.header(HEADER_CONTENT_TYPE)
        == (CONTENT_JSON if in_clear else CONTENT_SEALED).encode()
    )
    for record in world.broker.records(QUERY_RESULT):
        assert SECRET.encode() not in record.value
        assert record.header(HEADER_CONTENT_TYPE) == CONTENT_SEALED.encode()
        verify_record(
            record,
            world.directory.key_service.sign_pub,
            ("query",),
            Info.QUERY_RESULT,
            revocations=world.directory.revocations,
        )


async def test_batches_keep_their_order(world):
    async with client(world) as c:
        done = await stored(c, INDEX, "b1", "b2", keywords=["batch"], vector=np.array([0, 1], "f4"))
        found = await c.query(
            INDEX,
            [{"keyword": "batch"}, {"keyword": "nothing"}, {"get": ["b2"]}, {"count": True}],
            after=done,
        )
        assert found.hits == []
        ids = [sorted(hit.id for hit in one.hits) for one in found.results]
        assert ids == [["b1", "b2"], [], ["b2"], []]
        assert found.results[3].count >= 2
        # Arrays are taken wherever the contract has a vector.
        vector = np.array([0, 1], "f4")
        found = (
            await c.query(
                INDEX,
                [
                    {"hybrid": {"text": "none", "vector": vector}},
                    {"vector": vector},
                    {"vector": (0.0, 1.0)},
                ],
                after=done,
            )
        ).results
        assert all(one.hits for one in found)


async def test_a_refusal_of_one_scope_names_it(world):
    async with client(world, scopes=[Scope.INDEX]) as c:
        assert await c.count(INDEX) >= 0
        for include, scope in (("content", "Decrypt"), ("groups", "GetAccessGroups")):
            with pytest.raises(Reject) as refused:
                await c.query(INDEX, {"count": True}, include=[include])
            assert refused.value.code is ErrorCode.FORBIDDEN, scope
    async with client(world, scopes=[Scope.DECRYPT]) as c:
        with pytest.raises(Reject) as refused:
            await c.count(INDEX)
        assert refused.value.code is ErrorCode.FORBIDDEN


async def test_late_refusals_reach_those_who_wait_for_searchable(world):
    operations = [
        {"op": "upsert", "index": INDEX, "id": "late", "if_version": version, "content": "x"}
        for version in (0, 0, 1, 7)
    ]
    async with client(world) as c:
        results = [r async for r in c.ingest_many(operations, wait="searchable")]
        assert [r.status for r in results] == ["accepted", "rejected", "accepted", "rejected"]
        assert {r.error.code for r in results if r.error} == {ErrorCode.CONFLICT}
        with pytest.raises(Reject) as refused:
            await c.ingest(INDEX, "late", if_version=0, content="y", wait="searchable")
        assert refused.value.code is ErrorCode.CONFLICT
        accepted = await c.ingest(INDEX, "late", if_version=0, content="y")
        assert accepted.status == "accepted"


async def test_routing_keys_are_stable_and_tell_nothing(world):
    def keys() -> list[bytes]:
        return [r.key for r in world.broker.records(PLAINTEXT_INGEST)]

    known = set(keys())
    for _ in range(2):
        async with client(world) as c:
            await stored(c, INDEX, "routing-1", "routing-2", content="x")
    new = [key for key in keys() if key not in known]
    # Two documents, two keys, the same from both clients; no name in them.
    assert len(new) == 4
    assert len(set(new)) == 2
    assert not any(b"routing" in key for key in new)
    for key in set(new):
        assert (
            len({r.partition for r in world.broker.records(PLAINTEXT_INGEST) if r.key == key}) == 1
        )


def stranger(role: str = "query", *indexes: str, issuer: SigningKey | None = None) -> Any:
    key = SigningKey.generate()
    certificate = issue_certificate(
        issuer or SigningKey.generate(),
        worker_id="stranger",
        role=role,
        indexes=indexes or ("*",),
        sign_pub=key.public.raw,
    )
    return WorkerIdentity(certificate, key)


@pytest.mark.parametrize("protection", ["sealed", "signed"])
async def test_nothing_but_the_right_answer_is_taken(tmp_path, protection):
    world = World(tmp_path)
    await world.open()
    await world.create(INDEX)
    try:
        async with workers(world, "ingest", "index"), client(world, protection=protection) as c:
            await stored(c, INDEX, "true", keywords=["k"])
            asked = asyncio.create_task(c.search(INDEX, keyword="k", timeout_s=60))
            [request] = await until(world, lambda: requests(world))
            request_id, partition, reply_key = seen(request, c)
            await forge(world, request_id, partition, Reply(public_key=reply_key))
            assert not asked.done()
            async with workers(world, "query"):
                assert [hit.id for hit in (await asked).hits] == ["true"]
                known = requests(world)
                # Once more, under a new id: the old answer is no answer to it.
                old = result_records(world, request_id)[-1]
                again = asyncio.create_task(c.search(INDEX, keyword="k", timeout_s=60))
                [second] = await until(world, lambda: since(world, known))
                new_id, new_partition, _ = seen(second, c)
                for key in (request_id, new_id):
                    await world.producer.send_and_wait(
                        QUERY_RESULT,
                        old.value,
                        key=key.encode(),
                        partition=new_partition,
                        headers=old.headers,
                    )
                assert (await again).request_id == new_id
    finally:
        await world.aclose()


def seen(request: Any, c: Any) -> tuple[str, int, str]:
    """What an attacker knows of a request; of a sealed one only what stands outside."""
    public = c._query._connection.session.reply_public
    outer = request.header(HEADER_REPLY)
    if outer is not None:
        request_id, _, partition = outer.decode().partition("/")
        return request_id, int(partition), public
    plain = json.loads(request.value)
    return plain["request_id"], plain["reply"]["partition"], plain["reply"]["public_key"]


def result_records(world: World, request_id: str) -> list[Any]:
    return [r for r in world.broker.records(QUERY_RESULT) if r.key == request_id.encode()]


async def forge(world: World, request_id: str, partition: int, reply: Reply) -> None:
    """Put every false answer in place of the right one."""
    false = QueryResult(request_id=request_id, status="ok", hits=[Hit(id="false")])
    refusal = QueryResult(
        request_id=request_id,
        status="error",
        error=ErrorInfo(code=ErrorCode.FORBIDDEN, message="no"),
    )
    other = QueryResult(request_id=request_id[::-1], status="ok")
    real = world.identity("query-1")
    outs = [
        encode_result(one, to, who, max_bytes=900_000)
        for one, to, who in (
            # Signed by a worker of another role, by nobody's worker.
            (false, reply, world.identity("index-1")),
            (false, reply, world.identity("ingest-1")),
            (refusal, reply, world.identity("index-1")),
            (false, reply, stranger()),
            (refusal, Reply(), stranger()),
            (refusal, Reply(), world.identity("index-1")),
            # Even a query worker answers sealed, unless it refuses.
            (false, Reply(), real),
        )
    ]
    good = encode_result(false, reply, real, max_bytes=900_000)
    swapped = encode_result(refusal, reply, real, max_bytes=900_000)
    moved = encode_result(other, reply, real, max_bytes=900_000)
    key = request_id.encode()
    forged: list[tuple[Any, Any]] = [
        *((out.value, out.headers) for out in outs),
        (good.value, good.headers[:1]),
        (good.value, good.headers[:2]),
        (good.value, swapped.headers),
        (moved.value, moved.headers),
        (encode(false), ()),
        (b"\xff{", good.headers),
        (os.urandom(200), ()),
        (None, ()),
        (None, good.headers),
        (good.value, tuple((name, b"") for name, _ in good.headers)),
        (good.value, tuple((name, os.urandom(64)) for name, _ in good.headers)),
    ]
    for value, headers in forged:
        await world.producer.send_and_wait(
            QUERY_RESULT, value, key=key, partition=partition, headers=headers
        )


async def test_a_second_answer_does_no_harm(world):
    async with client(world) as c:
        sent = requests(world)
        await c.count(INDEX)
        [request] = since(world, sent)
        known = len(result_records(world, seen(request, c)[0]))
        # Delivered again, as after a crash of the worker.
        await world.producer.send_and_wait(
            request.topic, request.value, key=request.key, headers=request.headers
        )
        await until(world, lambda: len(result_records(world, seen(request, c)[0])) > known)
        await c.count(INDEX)


async def test_calls_under_way_end_when_the_client_closes(world):
    c = client(world, protection="sealed")
    await c.__aenter__()
    late = await stored(c, INDEX, "closing", content="x")
    far = [r.__class__(**{**as_fields(r), "position": beyond(r)}) for r in late]
    known = len(requests(world))
    calls = [
        asyncio.create_task(c.count(INDEX, after=far, timeout_s=1)),
        asyncio.create_task(c.query(INDEX, {"ids": True}, after=far, timeout_s=1)),
    ]
    await until(world, lambda: len(requests(world)) == known + 2)
    await c.aclose()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError | Retry) for one in ended)
    with pytest.raises(RuntimeError):
        await c.count(INDEX)
    await c.aclose()


def as_fields(result: Any) -> dict[str, Any]:
    return {name: getattr(result, name) for name in result.__struct_fields__}


def beyond(result: Any) -> Any:
    place = result.position
    return place.__class__(shard=place.shard, partition=place.partition, offset=10**6)
