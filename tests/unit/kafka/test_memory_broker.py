"""What tests can do to the memory broker."""

from __future__ import annotations

import asyncio

import pytest

from workers.errors import Retry
from workers.kafka.broker import TP
from workers.kafka.errors import PartitionLost
from workers.kafka.memory import MemoryBroker

T0 = TP("t", 0)


async def nothing(_tps: object) -> None: ...


async def test_dropped_sends_are_not_appended_lost_acknowledgements_are() -> None:
    broker = MemoryBroker({"t": 1}, clock_ms=lambda: 5)
    producer = await broker.producer()
    broker.drop_next("t", times=2)
    for _ in range(2):
        with pytest.raises(Retry):
            await producer.send_and_wait("t", b"lost")
    broker.drop_next("t", appended=True)
    with pytest.raises(Retry):
        await producer.send_and_wait("t", b"there")
    await producer.send_and_wait("t", b"fine")
    assert [(r.offset, r.value, r.timestamp_ms) for r in broker.records("t")] == [
        (0, b"there", 5),
        (1, b"fine", 5),
    ]


async def test_failed_commits() -> None:
    broker = MemoryBroker({"t": 1})
    reader = broker.group_reader("g", ["t"], bulk=True)
    await reader.start(lambda _: None, nothing)
    broker.fail_commits("g")
    with pytest.raises(Retry):
        await reader.commit({T0: 0})
    assert broker.committed("g", T0) is None
    await reader.commit({T0: 0})
    assert broker.committed("g", T0) == 0


async def test_zombie_reads_on_but_cannot_commit() -> None:
    broker = MemoryBroker({"t": 1})
    await (await broker.producer()).send_and_wait("t", b"1")
    one = broker.group_reader("g", ["t"], bulk=True)
    two = broker.group_reader("g", ["t"], bulk=True)
    got: list[str] = []
    await one.start(lambda _: got.append("one"), nothing)
    await two.start(lambda _: got.append("two"), nothing)
    await one.seek(T0, 0)
    broker.expel("g", 0)
    assert got == ["one", "one", "two", "two"]
    assert len(await one.fetch([T0], 1, 0.1)) == 1
    with pytest.raises(PartitionLost):
        await one.commit({T0: 1})
    await broker.rejoin("g")
    with pytest.raises(PartitionLost):
        await one.commit({T0: 1})


async def test_trimmed_log_begins_later() -> None:
    broker = MemoryBroker({"t": 1})
    producer = await broker.producer()
    for _ in range(5):
        await producer.send_and_wait("t", b"x")
    broker.trim(T0, 3)
    reader = broker.topic_reader(["t"], start="beginning")
    await reader.start()
    assert [record.offset for record in await reader.next(0.1)] == [3, 4]
    assert await broker.read(T0, 2) is None


async def test_same_steps_give_the_same_result() -> None:
    async def run() -> list[tuple[int, int, bytes | None]]:
        broker = MemoryBroker({"t": 3}, clock_ms=lambda: 0)
        producer = await broker.producer()
        futures = [await producer.send("t", b"%d" % n) for n in range(10)]
        await asyncio.gather(*futures)
        return [(r.partition, r.offset, r.value) for r in broker.records("t")]

    assert await run() == await run()
