"""Requests: many at once, the commit below the lowest unfinished one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from schemas.errors import ErrorCode
from workers.errors import Retry
from workers.kafka.broker import TP, Record
from workers.kafka.memory import MemoryBroker
from workers.runtime.each import EachPump
from workers.runtime.health import Health
from workers.runtime.policy import DrainPolicy, RetryPolicy

FAST = RetryPolicy(first_s=0.001, max_s=0.01, pending_s=0.005)


class Desk:
    """Answers requests when told to."""

    def __init__(self, partitions: int = 1) -> None:
        self.broker = MemoryBroker({"asks": partitions}, rebalance_timeout_s=240.0)
        self.begun: list[int] = []
        self.answered: list[int] = []
        self.held: dict[int, asyncio.Event] = {}
        self.running = self.most = 0

    async def ask(self, count: int, partition: int = 0) -> None:
        producer = await self.broker.producer()
        for _ in range(count):
            await producer.send("asks", b"?", partition=partition)

    async def handle(self, record: Record) -> None:
        self.begun.append(record.offset)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if record.offset in self.held:
                await self.held[record.offset].wait()
            self.answered.append(record.offset)
        finally:
            self.running -= 1

    def committed(self, partition: int = 0) -> int | None:
        return self.broker.committed("g", TP("asks", partition))

    def pump(self, **options: object) -> EachPump:
        settings = {
            "retry": FAST,
            "drain": DrainPolicy(finish_s=60.0, close_s=60.0),
            "rng": random.Random(1),
        } | options
        return EachPump(self.broker, "g", ["asks"], self.handle, **settings)  # type: ignore[arg-type]


async def until(what: object) -> None:
    assert callable(what)
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def running(pump: EachPump) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(pump.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await asyncio.gather(task, return_exceptions=True)
    task.result()


async def test_everything_is_answered() -> None:
    desk = Desk(3)
    for partition in range(3):
        await desk.ask(40, partition)
    async with running(desk.pump(max_concurrency=8)):
        await until(lambda: all(desk.committed(n) == 40 for n in range(3)))
    assert sorted(desk.answered) == sorted(list(range(40)) * 3)
    assert desk.most <= 8


async def test_commit_stays_below_the_lowest_unfinished() -> None:
    desk = Desk()
    desk.held[2] = asyncio.Event()
    await desk.ask(6)
    async with running(desk.pump()):
        await until(lambda: len(desk.answered) == 5)
        await until(lambda: desk.committed() == 2)
        desk.held[2].set()
        await until(lambda: desk.committed() == 6)
    assert desk.answered[-1] == 2


async def test_one_slow_request_does_not_stop_others() -> None:
    desk = Desk()
    desk.held[0] = asyncio.Event()
    await desk.ask(50)
    async with running(desk.pump(max_concurrency=60)):
        await until(lambda: len(desk.answered) == 49)
        desk.held[0].set()


async def test_unfinished_requests_are_bounded() -> None:
    desk = Desk()
    desk.held = {n: asyncio.Event() for n in range(100)}
    await desk.ask(100)
    async with running(desk.pump(max_concurrency=4)):
        await until(lambda: len(desk.begun) == 4)
        await asyncio.sleep(0.01)
        assert len(desk.begun) == 4
        for event in desk.held.values():
            event.set()
        await until(lambda: desk.committed() == 100)


async def test_retry_repeats_one_request_without_holding_a_place() -> None:
    desk = Desk()
    failures = [Retry(ErrorCode.KEY_UNAVAILABLE, "injected")] * 3
    answer = desk.handle

    async def handle(record: Record) -> None:
        if record.offset == 0 and failures:
            raise failures.pop()
        await answer(record)

    desk.handle = handle  # type: ignore[method-assign]
    await desk.ask(5)
    health = Health("keys-1")
    async with running(desk.pump(max_concurrency=1, health=health)):
        await until(lambda: desk.committed() == 5)
    assert sorted(desk.answered) == [0, 1, 2, 3, 4]
    [told] = health.status()["errors"]
    assert (told["where"], told["count"]) == ("asks", 3)


async def test_stop_lets_running_requests_end_and_commits() -> None:
    desk = Desk()
    desk.held = {0: asyncio.Event(), 1: asyncio.Event()}
    await desk.ask(2)
    stop = asyncio.Event()
    task = asyncio.create_task(desk.pump().run(stop))
    await until(lambda: len(desk.begun) == 2)
    stop.set()
    await asyncio.sleep(0.01)
    assert not task.done()
    for event in desk.held.values():
        event.set()
    async with asyncio.timeout(60):
        await task
    assert desk.committed() == 2


async def test_stop_does_not_wait_for_a_pause() -> None:
    desk = Desk()

    async def handle(record: Record) -> None:
        desk.begun.append(record.offset)
        if record.offset == 1:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "injected")

    desk.handle = handle  # type: ignore[method-assign]
    await desk.ask(3)
    retry = RetryPolicy(first_s=3600.0, max_s=3600.0, pending_s=0.005)
    async with running(desk.pump(retry=retry)):
        await until(lambda: len(desk.begun) == 3)
    assert desk.committed() == 1


async def test_unknown_error_ends_the_pump() -> None:
    desk = Desk()

    async def handle(_record: Record) -> None:
        raise KeyError("bug")

    desk.handle = handle  # type: ignore[method-assign]
    await desk.ask(1)
    with pytest.raises(KeyError):
        async with asyncio.timeout(60):
            await desk.pump().run(asyncio.Event())
    assert desk.committed() is None


async def test_rebalance_answers_everything_at_least_once() -> None:
    desk = Desk(4)
    for partition in range(4):
        await desk.ask(50, partition)
    one, two = desk.pump(max_concurrency=4), desk.pump(max_concurrency=4)
    async with running(one):
        await until(lambda: len(desk.answered) > 10)
        async with running(two):
            await until(lambda: bool(two.partitions))
            await until(lambda: all(desk.committed(n) == 50 for n in range(4)))
    # A drain lets requests end and commits them: none twice.
    assert sorted(desk.answered) == sorted(list(range(50)) * 4)
