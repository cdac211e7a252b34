"""Requests on which the query worker fails, or that would keep it from all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from query_kit import (
    ALL,
    INDEX,
    World,
    answer,
    body,
    client,
    dead,
    produce,
    result_of,
    stored,
    until,
    workers,
)

from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.topics import INDEX_EVENT, QUERY_REQUEST
from workers.crypto.errors import KeyWiped
from workers.query import handler
from workers.runtime import announced
from workers.telemetry import metrics


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One world whose query worker works on two queries at a time."""
    world = World(Path(tmp_path_factory.mktemp("world")), allow_plain_credentials=True)
    await world.open()
    await world.create(INDEX, dimension=2)
    async with workers(world, *ALL, query_concurrency=2, drain_s=1):
        yield world
    await world.aclose()


@pytest.mark.parametrize("where", ["search", "encode_result", "authorise", "read"])
async def test_a_request_on_which_the_worker_fails_is_refused_once(world, monkeypatch, where):
    known, before = len(dead(world)), metrics.UNEXPECTED.value(topic=QUERY_REQUEST)
    meant = getattr(handler, where)
    failed: list[int] = []

    def once(*args: Any, **options: Any) -> Any:
        if not failed:
            failed.append(1)
            raise RuntimeError("nobody foresaw this")
        return meant(*args, **options)

    monkeypatch.setattr(handler, where, once)
    plain = body(world)
    if where == "read":
        # Nobody is known to be told.
        await produce(world, encode(plain))
    else:
        result = await answer(world, plain)
        assert result.error.code is ErrorCode.UNSUPPORTED
        assert result.error.message == "the worker failed on this record: see its log"
    await until(world, lambda: len(dead(world)) > known)
    assert (await answer(world, body(world))).status == "ok"
    assert len(dead(world)) == known + 1
    assert dead(world)[-1].error.code is ErrorCode.UNSUPPORTED
    assert metrics.UNEXPECTED.value(topic=QUERY_REQUEST) == before + 1


async def test_an_event_on_which_the_worker_fails_is_passed_over(world, monkeypatch):
    def fail(*_: Any) -> Any:
        raise RuntimeError("nobody foresaw this")

    before = metrics.UNEXPECTED.value(topic=INDEX_EVENT)
    with monkeypatch.context() as patch:
        patch.setattr(announced, "decode", fail)
        await world.producer.send_and_wait(INDEX_EVENT, b"{}", key=b"k")
        # Both the index and the query worker read it.
        await until(world, lambda: metrics.UNEXPECTED.value(topic=INDEX_EVENT) == before + 2)
    assert (await answer(world, body(world))).status == "ok"


async def test_a_query_whose_key_is_wiped_meanwhile_is_repeated(world, monkeypatch):
    known, meant, wiped = len(dead(world)), handler.search, []

    async def once(*args: Any, **options: Any) -> Any:
        if not wiped:
            wiped.append(1)
            raise KeyWiped("this secret was wiped")
        return await meant(*args, **options)

    monkeypatch.setattr(handler, "search", once)
    assert (await answer(world, body(world))).status == "ok"
    assert wiped
    assert len(dead(world)) == known


async def test_requests_for_a_position_that_never_comes_hold_up_nobody(world):
    async with client(world) as c:
        [done] = await stored(c, INDEX, "a", content="hello")
    never = [{"shard": 0, "offset": 10**9}]
    waiting = [body(world, timeout_ms=300_000, min_position=never) for _ in range(2)]
    for plain in waiting:
        await produce(world, encode(plain))
    await until(world, lambda: metrics.QUERIES_WAITING.value() == 2)
    for _ in range(8):
        assert (await answer(world, body(world))).status == "ok"
    # No more than those may wait: the next ones are told at once to come again.
    refused = await answer(world, body(world, timeout_ms=300_000, min_position=never))
    assert refused.error.code is ErrorCode.OVERLOADED
    assert refused.error.retryable
    # A position that is reached needs no such place.
    reached = [{"shard": 0, "offset": done.position.offset}]
    assert (await answer(world, body(world, min_position=reached))).status == "ok"
    assert metrics.QUERIES_WAITING.value() == 2
    assert all(result_of(world, plain["request_id"]) is None for plain in waiting)
