"""How a client streams operations, and what becomes of calls when something ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from query_kit import ALL, INDEX, PATIENCE_S, World, client, requests, until, workers

from schemas.errors import ErrorCode
from schemas.topics import INGEST_RESULT, PLAINTEXT_INGEST
from workers.errors import Retry


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    world = World(Path(tmp_path_factory.mktemp("world")), allow_plain_credentials=True)
    await world.open()
    await world.create(INDEX)
    async with workers(world, *ALL):
        yield world
    await world.aclose()


@pytest.fixture
async def own(tmp_path) -> Any:
    """A world of its own; its workers are for the test to start."""
    world = World(tmp_path)
    await world.open()
    await world.create(INDEX)
    yield world
    await world.aclose()


def operation(doc: str, **fields: Any) -> dict[str, Any]:
    return {"op": "upsert", "index": INDEX, "id": doc, "content": "x", **fields}


@pytest.mark.parametrize("wait", ["accepted", "searchable"])
@pytest.mark.parametrize("in_flight", [1, 3, 2000])
async def test_results_come_in_the_order_of_the_operations(world, wait, in_flight):
    names = [f"{wait}-{in_flight}-{number}" for number in range(12)]
    operations: list[dict[str, Any]] = [operation(name) for name in names]
    # Wrong in itself, too large for the service, refused by it: results like others.
    operations[3] = operation(names[3], surprise=1)
    operations[5] = operation(names[5], content=b"x" * 2_000_000)
    operations[7] = operation(names[7], vector=[1.0])
    async with client(world) as c:
        results = [r async for r in c.ingest_many(operations, wait=wait, in_flight=in_flight)]
        assert c._ingest._waiting == {}
    assert [r.id for r in results] == names
    refused = {number: r.error.code for number, r in enumerate(results) if r.error}
    assert refused.keys() == {3, 5, 7}
    assert refused[3] is ErrorCode.INVALID_MESSAGE
    assert refused[5] is ErrorCode.TOO_LARGE


async def test_no_more_than_the_window_is_under_way(own):
    taken: list[str] = []

    def source() -> Any:
        for number in range(8):
            taken.append(f"doc-{number}")
            yield operation(taken[-1])

    async def collect() -> list[str]:
        return [r.id async for r in c.ingest_many(source(), in_flight=3)]

    async with client(own) as c:
        results = asyncio.create_task(collect())
        await until(own, lambda: len(own.broker.records(PLAINTEXT_INGEST)) == 3)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(taken) == 3
        async with workers(own, "ingest"):
            assert await results == [f"doc-{number}" for number in range(8)]


@pytest.mark.parametrize("wait", ["accepted", "searchable"])
async def test_a_source_may_wait_for_the_results_of_what_it_gave(world, wait):
    """Each operation is made from the result of the one before."""
    known: asyncio.Queue[str] = asyncio.Queue()

    async def source() -> Any:
        yield operation(f"chain-{wait}-0")
        for number in range(1, 4):
            before = await known.get()
            yield operation(f"chain-{wait}-{number}", keywords=[before])

    seen = []
    async with client(world) as c:
        async for result in c.ingest_many(source(), wait=wait, timeout_s=PATIENCE_S):
            seen.append(result.id)
            known.put_nowait(result.id)
    assert seen == [f"chain-{wait}-{number}" for number in range(4)]


async def test_a_stream_that_is_left_leaves_nothing_behind(world):
    ended = asyncio.Event()

    async def source() -> Any:
        try:
            yield operation("left")
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with client(world) as c:
        stream = c.ingest_many(source())
        assert (await anext(stream)).id == "left"
        await stream.aclose()
        assert ended.is_set()
        assert c._ingest._waiting == {}


@pytest.mark.parametrize("wait", ["accepted", "searchable"])
async def test_the_deadline_counts_while_the_source_gives_nothing(own, wait):
    async def source() -> Any:
        yield operation("alone")
        await asyncio.Event().wait()

    async with client(own) as c:
        with pytest.raises(Retry) as later:
            [r async for r in c.ingest_many(source(), wait=wait, timeout_s=0.05)]
        assert later.value.code is ErrorCode.DEADLINE_EXCEEDED


async def test_what_the_source_raises_is_raised(world):
    def source() -> Any:
        yield operation("before")
        raise LookupError("the source broke")

    async def slow() -> Any:
        for one in source():
            yield one

    async with client(world) as c:
        for broken in (source(), slow()):
            with pytest.raises(LookupError):
                [r async for r in c.ingest_many(broken)]
        assert c._ingest._waiting == {}


@pytest.mark.parametrize("in_flight", [0, -1])
async def test_a_window_without_room_is_refused(world, in_flight):
    async with client(world) as c:
        with pytest.raises(ValueError, match="in_flight"):
            [r async for r in c.ingest_many([operation("x")], in_flight=in_flight)]
        assert [r async for r in c.ingest_many([])] == []


async def test_a_record_the_broker_did_not_take(world):
    async with client(world) as c:
        world.broker.drop_next(PLAINTEXT_INGEST)
        with pytest.raises(Retry):
            await c.ingest(INDEX, "dropped", content="x")
        world.broker.drop_next(PLAINTEXT_INGEST, times=3)
        with pytest.raises(Retry):
            [r async for r in c.ingest_many(operation(f"dropped-{n}") for n in range(5))]
        # How many were sent before the first failure was seen, nobody promises.
        world.broker._faults.clear()
        assert c._ingest._waiting == {}
        assert (await c.ingest(INDEX, "dropped", content="x")).status == "accepted"


async def test_without_an_answer_the_deadline_counts(own):
    async with client(own) as c:
        with pytest.raises(Retry) as later:
            await c.ingest(INDEX, "a", content="x", timeout_s=0.05)
        assert later.value.code is ErrorCode.DEADLINE_EXCEEDED
        async with workers(own, "ingest"):
            await until(own, lambda: own.broker.records(INGEST_RESULT))
            # Accepted, but nobody applies it.
            with pytest.raises(Retry) as later:
                await c.ingest(INDEX, "a", content="x", wait="searchable", timeout_s=0.3)
            assert later.value.code is ErrorCode.DEADLINE_EXCEEDED
        assert c._ingest._waiting == {}


@pytest.mark.parametrize("protection", ["sealed", "signed"])
async def test_calls_of_every_kind_end_with_the_client(own, protection):
    c = client(own, protection=protection)
    await c.__aenter__()
    known = len(requests(own))
    stream = c.ingest_many([operation("s")])
    calls = [
        asyncio.create_task(c.count(INDEX, timeout_s=60)),
        asyncio.create_task(c.ingest(INDEX, "i", content="x")),
        asyncio.create_task(anext(stream)),  # type: ignore[arg-type]
    ]
    await until(
        own,
        lambda: len(requests(own)) > known and len(own.broker.records(PLAINTEXT_INGEST)) == 2,
    )
    await c.aclose()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in ended] == [asyncio.CancelledError] * 3
    with pytest.raises(RuntimeError):
        await c.count(INDEX)


async def test_a_call_that_begins_while_the_client_closes_does_not_wait(own):
    c = client(own)
    await c.__aenter__()
    querier, ingestor, administrator = c._query, c._ingest, c._admin
    await asyncio.gather(querier.start(), c.aclose())
    for call in (
        querier.query(INDEX, {"count": True}),
        ingestor.submit(operation("late")),
        administrator.run("index.list", {}),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            await call
    assert not requests(own)


async def test_a_listener_that_ended_says_why(own, monkeypatch):
    async with workers(own, "query"), client(own) as c:
        assert await c.count(INDEX) == 0
        assert c._query._listener is not None

        def broken(_record: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(c._query._listener, "_receive", broken)
        monkeypatch.setattr("workers.client.query._GRACE_S", 0.5)
        with pytest.raises(Retry):
            await c.count(INDEX, timeout_s=0.05)
        # The answer may come later than its caller waits.
        await asyncio.wait({c._query._listener._task})
        with pytest.raises(ZeroDivisionError):
            await c.count(INDEX)
