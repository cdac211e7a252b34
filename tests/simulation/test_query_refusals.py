"""Refused and failing queries: who is told what, within which time, and what is written down."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from query_kit import (
    ALL,
    INDEX,
    PATIENCE_S,
    Caller,
    Shelf,
    World,
    answer,
    body,
    client,
    dead,
    produce,
    produce_sealed,
    requests,
    result_of,
    sealed_request,
    stored,
    until,
    workers,
)

from schemas.auth import Scope
from schemas.codec import decode, encode
from schemas.errors import ErrorCode
from schemas.query import QueryResult
from schemas.sealed import SealedValue
from schemas.topics import (
    HEADER_REPLY,
    QUERY_REQUEST,
    QUERY_RESULT,
)
from workers.crypto.hpke import HpkePrivateKey
from workers.crypto.info import Info
from workers.errors import Reject, Retry
from workers.kafka.broker import TP
from workers.leases.credential import HEADER_AUTH, seal_value
from workers.leases.holder import SUITES
from workers.leases.signed import verify_record
from workers.query import worker as query_worker
from workers.query.indexes import OpenIndexes
from workers.query.worker import GROUP
from workers.storage import layout

SOON_S = 0.3


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One world with all its workers; its key service stays up."""
    world = World(Path(tmp_path_factory.mktemp("world")), allow_plain_credentials=True)
    await world.open()
    await world.create(INDEX, dimension=2)
    async with workers(world, *ALL, max_record_bytes=65_536):
        yield world
    await world.aclose()


async def one_more_letter(world: World, known: int) -> Any:
    """Wait for the dead letter after the first `known`; there must not be two."""
    await until(world, lambda: len(dead(world)) > known)
    assert len(dead(world)) == known + 1
    return dead(world)[-1]


# --- refused: one answer and one dead letter ------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"query": {"count": False}}, ErrorCode.INVALID_MESSAGE, "query.count"),
        ({"queries": [{"count": True}]}, ErrorCode.INVALID_MESSAGE, "query"),
        ({"v": 2}, ErrorCode.INVALID_MESSAGE, "v"),
        ({"surprise": 1}, ErrorCode.INVALID_MESSAGE, None),
        ({"include": ["content"]}, ErrorCode.INVALID_MESSAGE, "reply.public_key"),
        ({"include": ["score", "vector"]}, ErrorCode.INVALID_MESSAGE, "reply.public_key"),
        ({"min_position": [{"shard": 9, "offset": 0}]}, ErrorCode.INVALID_MESSAGE, None),
        ({"index": "acme/none"}, ErrorCode.UNKNOWN_INDEX, None),
        ({"auth": {"token": "nobody"}}, ErrorCode.UNAUTHENTICATED, None),
        ({"auth": {"sealed": "AAAA"}}, ErrorCode.INVALID_MESSAGE, None),
        ({"reply": {"public_key": "AAAA"}}, ErrorCode.INVALID_MESSAGE, "reply.public_key"),
    ],
)
async def test_a_refusal_is_told_and_written_down_once(world, changes, code, field):
    known = len(dead(world))
    result = await answer(world, body(world, **changes))
    assert result.status == "error"
    assert not result.hits
    assert result.error.code is code
    assert field is None or result.error.field == field
    letter = await one_more_letter(world, known)
    assert letter.error == result.error
    assert letter.source.topic == QUERY_REQUEST


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"v":1}', b'{"v":1,"request_id":7}', b"[" * 50],
)
async def test_what_cannot_be_answered_is_written_down(world, value):
    known, results = len(dead(world)), len(world.broker.records(QUERY_RESULT))
    await produce(world, value)
    letter = await one_more_letter(world, known)
    assert letter.error.code is ErrorCode.INVALID_MESSAGE
    assert len(world.broker.records(QUERY_RESULT)) == results


@pytest.mark.parametrize("topic", ["query-request", "plaintext-ingest", "query-result.dead-letter"])
async def test_a_reply_goes_to_result_topics_only(world, topic):
    known, there = len(dead(world)), len(world.broker.records(topic))
    produced = 1 if topic == QUERY_REQUEST else 0
    await produce(world, encode(body(world, reply={"topic": topic})))
    assert (await one_more_letter(world, known)).error.field == "reply.topic"
    assert len(world.broker.records(topic)) == there + produced


async def test_an_answer_goes_to_the_topic_and_partition_that_were_named(world):
    world.broker.create("query-result.mine", 2)
    plain = body(world, reply={"topic": "query-result.mine", "partition": 1})
    assert (await answer(world, plain, topic="query-result.mine")).status == "ok"
    [record] = world.broker.records("query-result.mine")
    assert record.partition == 1


@pytest.mark.parametrize("reply", [{"topic": "query-result.absent"}, {"partition": 99}])
async def test_an_answer_that_cannot_be_delivered_is_given_up(world, reply):
    def committed() -> int:
        counts = (world.broker.committed(GROUP, TP(QUERY_REQUEST, number)) for number in range(4))
        return sum(count or 0 for count in counts)

    known = requests(world)
    await produce(world, encode(body(world, reply=reply, timeout_ms=1)))
    await until(world, lambda: committed() == len(known) + 1)
    assert (await answer(world, body(world))).status == "ok"


# --- sealed requests ------------------------------------------------------------------------------


async def test_a_sealed_request_that_opens_is_answered_inside(world):
    request_id, value, headers = sealed_request(world, world.admin_caller)
    await produce_sealed(world, value, headers)
    record = await until(world, lambda: result_of(world, request_id))
    assert decode(QueryResult, record.value).status == "ok"


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("damage", ["key", "value", "form"])
async def test_a_sealed_request_that_does_not_open(world, outer, damage):
    request_id, value, headers = sealed_request(world, world.admin_caller)
    sealed = decode(SealedValue, value)
    if damage == "key":
        public = HpkePrivateKey.generate(SUITES["x25519"]).public
        value = seal_value(Info.QUERY_VALUE, public, INDEX, b"{}")
    elif damage == "value":
        broken = bytearray(sealed.ciphertext())
        broken[-1] ^= 1
        value = encode(
            SealedValue.of(
                bytes(broken), key_id=sealed.key_id_bytes(), suite=sealed.suite, index=INDEX
            )
        )
    else:
        value = b"no sealed value"
    if outer:
        headers = (*headers, (HEADER_REPLY, f"{request_id}/3".encode()))
    known = len(dead(world))
    await produce_sealed(world, value, headers)
    letter = await one_more_letter(world, known)
    assert letter.digest == "sha256"
    if not outer:
        assert result_of(world, request_id) is None
        return
    record = await until(world, lambda: result_of(world, request_id))
    assert record.partition == 3
    verify_record(
        record,
        world.directory.key_service.sign_pub,
        ("query",),
        Info.QUERY_RESULT,
        revocations=world.directory.revocations,
    )
    assert decode(QueryResult, record.value).error == letter.error


NOBODY = b"00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize("header", [b"", b"/", b"x/1", b"\xff/1", NOBODY + b"/-1", NOBODY])
async def test_a_wrong_outer_address_is_refused(world, header):
    _, value, headers = sealed_request(world, world.admin_caller)
    known = len(dead(world))
    await produce_sealed(world, value, (*headers, (HEADER_REPLY, header)))
    assert (await one_more_letter(world, known)).error.field == HEADER_REPLY


async def test_a_sealed_request_is_for_the_index_that_stands_outside(world):
    await world.create("acme/other")
    request_id, value, headers = sealed_request(world, world.admin_caller, inside="acme/other")
    await produce_sealed(world, value, headers)
    record = await until(world, lambda: result_of(world, request_id))
    assert decode(QueryResult, record.value).error.field == "index"


@pytest.mark.parametrize("signature", [None, bytes(64), b"short"])
async def test_a_copied_credential_is_worth_nothing(world, signature):
    request_id, value, _ = sealed_request(world, world.admin_caller)
    headers = () if signature is None else (("sealstream-sig", signature),)
    await produce_sealed(world, value, headers)
    record = await until(world, lambda: result_of(world, request_id))
    assert decode(QueryResult, record.value).error.code is ErrorCode.UNAUTHENTICATED


async def test_scopes_that_the_credential_leaves_out(world):
    caller = Caller(world, token=world.token)
    for scopes, fields, refused in (
        ((Scope.INDEX,), {}, False),
        ((Scope.INDEX,), {"include": ["associated_data"]}, True),
        ((Scope.INDEX,), {"include": ["groups"]}, True),
        ((Scope.DECRYPT, Scope.GET_ACCESS_GROUPS), {}, True),
    ):
        auth = caller.auth(INDEX, scopes=scopes)
        request_id, value, headers = sealed_request(
            world, ready(caller, auth), query={"count": True}, **fields
        )
        await produce_sealed(world, value, headers)
        record = await until(world, lambda name=request_id: result_of(world, name))
        result = decode(QueryResult, record.value)
        assert (result.status == "error") is refused
        assert not refused or result.error.code is ErrorCode.FORBIDDEN


def ready(caller: Caller, auth: Any) -> Any:
    """A caller whose credential is made already."""

    class Ready:
        session = caller.session

        def auth(self, index: str) -> Any:
            return auth

    return Ready()


async def test_a_client_is_told_that_no_worker_can_open_its_request(world):
    async with client(world) as c:
        await c.count(INDEX)
        entry = c._query._connection.directory.index(INDEX)
        stale = HpkePrivateKey.generate(SUITES["x25519"]).public
        fields = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
        c._query._connection.directory._indexes[INDEX] = type(entry)(
            **{**fields, "query_pub": stale}
        )
        with pytest.raises(Reject) as refused:
            await c.count(INDEX, timeout_s=PATIENCE_S)
        assert refused.value.code is ErrorCode.EXPIRED


async def test_clear_tokens_are_refused_where_they_are_not_allowed(tmp_path):
    world = World(tmp_path)
    await world.open()
    await world.create(INDEX)
    async with workers(world, "query"), client(world, protection="plain") as c:
        with pytest.raises(Reject) as refused:
            await c.count(INDEX)
        assert refused.value.code is ErrorCode.UNAUTHENTICATED
        async with client(world, protection="signed") as signed:
            assert await signed.count(INDEX) == 0
    await world.aclose()


async def test_contents_in_clear_only_where_they_are_allowed(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True, allow_plain_results=True)
    await world.open()
    await world.create(INDEX)
    async with workers(world, *ALL), client(world) as c:
        await stored(c, INDEX, "a", content="hello")
        result = await answer(world, body(world, query={"get": ["a"]}, include=["content"]))
        assert result.hits[0].content == "hello"
    await world.aclose()


# --- deadlines ------------------------------------------------------------------------------------


async def test_a_request_older_than_its_timeout(world):
    known = len(dead(world))
    clock = world.broker.clock_ms
    world.broker.clock_ms = lambda: clock() - 60_000
    try:
        result = await answer(world, body(world, timeout_ms=59_000))
    finally:
        world.broker.clock_ms = clock
    assert result.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert result.error.retryable
    assert len(dead(world)) == known


async def test_a_position_that_is_never_reached(world):
    plain = body(world, timeout_ms=50, min_position=[{"shard": 0, "offset": 10**9}])
    known = len(dead(world))
    result = await answer(world, plain)
    assert result.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert len(dead(world)) == known


async def test_the_key_service_is_away_and_comes_back(tmp_path, monkeypatch):
    # However late the worker and its answer come: all of that time is left, for the key service.
    monkeypatch.setattr("workers.query.handler._waited_s", lambda _record: 0.0)
    monkeypatch.setattr("workers.client.query._GRACE_S", PATIENCE_S)
    world = World(tmp_path)
    await world.open()
    await world.create(INDEX)
    async with workers(world, "query"), client(world) as warm, client(world) as cold:
        assert await warm.count(INDEX) == 0
        await world.running.kill()
        # The lease and the decision of a known caller are still good.
        assert await warm.count(INDEX) == 0
        with pytest.raises(Retry) as later:
            await cold.count(INDEX, timeout_s=SOON_S)
        assert later.value.code is ErrorCode.KEY_UNAVAILABLE
        assert not dead(world)
        await world.start_service("keys-2")
        assert await cold.count(INDEX, timeout_s=PATIENCE_S) == 0
    await world.aclose()


# --- results --------------------------------------------------------------------------------------


async def test_a_result_that_no_record_holds(world):
    async with client(world) as c:
        await stored(c, INDEX, "l1", "l2", "l3", content=os.urandom(20_000), keywords=["large"])
        known = len(dead(world))
        with pytest.raises(Reject) as refused:
            await c.search(INDEX, keyword="large", include=["content"])
        assert refused.value.code is ErrorCode.TOO_LARGE
        assert len((await c.get(INDEX, ["l1"], include=["content"]))[0].content.decode()) == 20_000
        assert len(dead(world)) == known


async def test_a_reply_key_that_is_none_is_told_in_clear(world):
    result = await answer(world, body(world, reply={"public_key": "A" * 44}))
    assert result.error.field == "reply.public_key"


# --- storage --------------------------------------------------------------------------------------


@pytest.fixture
async def own(tmp_path) -> Any:
    """A world of its own; its workers are for the test to start."""
    world = World(tmp_path)
    await world.open()
    await world.create(INDEX)
    yield world
    await world.aclose()


async def test_a_pack_that_was_overtaken_is_looked_for_once_more(own):
    shelf = Shelf(own.store)
    async with workers(own, *ALL, store=shelf), client(own) as c:
        await stored(c, INDEX, "a", content="hello" * 2000)
        packs = [key for key in own.stored() if key.startswith(layout.packs_prefix(uid(own)))]
        assert packs
        shelf.lose = [packs[0]]
        [hit] = await c.get(INDEX, ["a"], include=["content"])
        assert hit.content == "hello" * 2000
        assert not shelf.lose
        # Gone for good: that is damage, and the others are still found.
        await own.store.delete(packs)
        with pytest.raises(Reject) as refused:
            await c.get(INDEX, ["a"], include=["content"])
        assert refused.value.code is ErrorCode.DAMAGED
        assert not dead(own)
        assert await c.count(INDEX) == 1


def uid(world: World) -> bytes:
    return world.directory.index(INDEX).uid


class Watched(OpenIndexes):
    """Remembers the last one that was made."""

    latest: Watched

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        Watched.latest = self


async def test_what_was_readable_is_forgotten_with_the_lease(own, monkeypatch):
    monkeypatch.setattr(query_worker, "OpenIndexes", Watched)
    async with workers(own, *ALL), client(own) as c:
        await stored(c, INDEX, "a", "b", content="red apples", metadata={"n": 1}, keywords=["k"])
        condition = {"n": {"$eq": 1}}
        ask = {"filter": condition, "include": ["metadata"]}
        assert len((await c.search(INDEX, "apples", **ask)).hits) == 2
        indexes = Watched.latest
        assert len(indexes.decoded)
        opened = indexes._open[uid(own)]
        indexes.sweep()
        assert indexes._open[uid(own)] is opened
        indexes._clock = lambda: time.time() + 7200
        indexes.sweep()
        assert not indexes._open
        assert not len(indexes.decoded)
        assert not opened._states
        indexes._clock = time.time
        assert len((await c.search(INDEX, "apples", **ask)).hits) == 2
        assert indexes._open[uid(own)] is not opened


async def test_a_query_that_outlives_the_lease_leaves_nothing_behind(own, monkeypatch):
    monkeypatch.setattr(query_worker, "OpenIndexes", Watched)
    shelf = Shelf(own.store)
    async with workers(own, *ALL, store=shelf), client(own) as c:
        await stored(c, INDEX, "a", content="red apples", metadata={"n": 1})
        assert await c.count(INDEX) == 1
        indexes = Watched.latest
        indexes._clock = lambda: time.time() + 7200
        indexes.sweep()
        shelf.hold = asyncio.Event()
        condition = {"n": {"$eq": 1}}
        asked = asyncio.create_task(c.search(INDEX, "apples", filter=condition, timeout_s=60))
        await shelf.reached.wait()
        indexes.sweep()
        assert not indexes._open
        shelf.hold.set()
        assert len((await asked).hits) == 1
        assert not len(indexes.decoded)


async def test_an_index_made_anew_under_its_name_is_another_one(own):
    async with workers(own, *ALL), client(own) as c:
        await stored(c, INDEX, "old", content="x")
        assert await c.count(INDEX) == 1
        await c.delete_index(INDEX)
        await c.create_index(INDEX)
        assert await c.count(INDEX, timeout_s=PATIENCE_S) == 0
        done = await stored(c, INDEX, "new", content="y")
        assert [one async for one in c.ids(INDEX, after=done)] == ["new"]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        encode({"v": 1, "index": "a", "uid": "zz"}),
        encode(
            {
                "v": 1,
                "index": INDEX,
                "shard": 0,
                "version": 10**6,
                "applied": {"partition": 0, "offset": 10**6},
                "documents": 1,
                "segments": 1,
                "head_sha256": "0" * 64,
                "uid": "0" * 32,
            }
        ),
    ],
)
async def test_hostile_events_move_nothing(world, value):
    await world.producer.send_and_wait("index-event", value, key=b"x")
    async with client(world) as c:
        assert await c.count(INDEX) >= 0
        assert await c.ingest(INDEX, "after-hostile", content="x", wait="searchable")


async def test_a_wrong_outer_credential_is_refused(world):
    request_id, value, headers = sealed_request(world, world.admin_caller)
    known = len(dead(world))
    await produce_sealed(world, value, (*headers, (HEADER_AUTH, b"\xff")))
    assert (await one_more_letter(world, known)).error.field == HEADER_AUTH
    assert result_of(world, request_id) is None


async def test_a_cold_worker_tells_that_the_key_service_is_away(own, monkeypatch):
    """Nobody can open the request: the default deadline counts, not the one inside."""
    monkeypatch.setattr("workers.query.request._OPEN_S", SOON_S)
    async with workers(own, "query"), client(own) as c:
        await c._query.start()
        await own.running.kill()
        with pytest.raises(Retry) as later:
            await c.count(INDEX, timeout_s=PATIENCE_S)
        assert later.value.code is ErrorCode.KEY_UNAVAILABLE
        assert not dead(own)


@pytest.mark.parametrize("protection", ["sealed", "signed"])
async def test_only_the_index_key_opens_an_index_of_its_own(own, protection):
    keys = {"own": os.urandom(32), "wrong": os.urandom(32)}
    async with client(own, index_key=keys["own"], protection=protection) as owner:
        await owner.create_index("mine", kms={"provider": "none"})
        async with workers(own, *ALL):
            async with client(own, index_key=keys["wrong"], protection=protection) as stranger:
                for _ in range(2):
                    with pytest.raises(Reject) as refused:
                        await stranger.count("mine", timeout_s=PATIENCE_S)
                    assert refused.value.code is ErrorCode.WRONG_KEY
            await stored(owner, "mine", "a", content="secret")
            [hit] = await owner.get("mine", ["a"], include=["content"])
            assert hit.content == "secret"
