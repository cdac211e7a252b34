"""What every broker promises: the memory one, and a real one (Tansu, or Apache Kafka)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import Literal

import pytest

from schemas.topics import TopicSpec
from workers.errors import Reject, Retry
from workers.kafka.aio import AioBroker
from workers.kafka.broker import TP, Broker, GroupReader, Record, TopicReader
from workers.kafka.errors import PartitionLost
from workers.kafka.memory import MemoryBroker

pytestmark = pytest.mark.core

DEADLINE_S = 60.0


@pytest.fixture(params=["memory", "real"])
def broker(request: pytest.FixtureRequest) -> Broker:
    if request.param == "memory":
        return MemoryBroker()
    found: Broker = request.getfixturevalue("aio_broker")
    return found


async def topic(broker: Broker, partitions: int = 1) -> str:
    name = f"t-{secrets.token_hex(6)}"
    spec = TopicSpec(name, partitions, 3_600_000, compacted=False, mode="group")
    assert await broker.ensure_topics([spec]) == [name]
    return name


async def produce(broker: Broker, tp: TP, count: int, start: int = 0) -> None:
    producer = await broker.producer()
    futures = [
        await producer.send(tp.topic, b"%d" % n, partition=tp.partition)
        for n in range(start, start + count)
    ]
    delivered = await asyncio.gather(*futures)
    assert [d.offset for d in delivered] == list(range(start, start + count))
    await producer.stop()


class Member:
    """A group reader that notes what happens to it and begins where the group committed."""

    def __init__(self, reader: GroupReader) -> None:
        self.reader = reader
        self.assigned: list[TP] = []
        self.revoked: list[TP] = []
        self.assignments = 0
        self.changed = asyncio.Event()
        self.on_revoke: Callable[[Collection[TP]], Awaitable[None]] | None = None

    async def start(self) -> Member:
        await self.reader.start(self._on_assigned, self._on_revoked)
        return self

    def _on_assigned(self, tps: Collection[TP]) -> None:
        self.assigned = list(tps)
        self.assignments += 1
        self.changed.set()

    async def _on_revoked(self, tps: Collection[TP]) -> None:
        if self.on_revoke is not None:
            await self.on_revoke(tps)
        self.revoked += tps
        self.assigned = []

    async def until(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.assigned) != count:
                self.changed.clear()
                await self.changed.wait()

    async def begin(self) -> None:
        for tp in self.assigned:
            offset = await self.reader.committed(tp)
            if offset is None:
                offset = await self.reader.beginning(tp)
            await self.reader.seek(tp, offset)

    async def read(self, count: int, ready: Collection[TP] | None = None) -> list[Record]:
        records: list[Record] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(records) < count:
                wanted = self.assigned if ready is None else ready
                found = await self.reader.fetch(wanted, count - len(records), 0.2)
                records += [record for batch in found.values() for record in batch]
        return records


async def member(broker: Broker, group: str, name: str) -> Member:
    return await Member(broker.group_reader(group, [name], bulk=False)).start()


async def drain(reader: TopicReader, count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(records) < count:
            records += await reader.next(0.2)
    return records


async def test_ensure_topics(broker: Broker) -> None:
    name = await topic(broker, 3)
    assert await broker.partitions(name) == 3
    assert await broker.partitions("never-made") == 0
    again = TopicSpec(name, 5, None, compacted=True, mode="broadcast")
    assert await broker.ensure_topics([again]) == []
    assert await broker.partitions(name) == 3


async def test_produce_and_read_back(broker: Broker) -> None:
    name = await topic(broker)
    producer = await broker.producer()
    headers = (("traceparent", b"00-x"), ("content-type", b"application/json"))
    sent = await producer.send_and_wait(name, b"value", key=b"key", headers=headers)
    assert sent == (0, 0)
    record = await broker.read(TP(name, 0), 0)
    assert record is not None
    assert (record.key, record.value, record.headers) == (b"key", b"value", headers)
    assert record.timestamp_ms > 1_600_000_000_000
    assert record.header("content-type") == b"application/json"
    assert record.header("other") is None
    assert await broker.read(TP(name, 0), 1) is None


async def test_equal_keys_share_a_partition(broker: Broker) -> None:
    name = await topic(broker, 4)
    producer = await broker.producer()
    places = [
        (await producer.send_and_wait(name, b"", key=b"key-%d" % (n % 8))).partition
        for n in range(16)
    ]
    assert places[:8] == places[8:]
    # Kafka's murmur2, as every other client's default partitioner.
    assert places[:4] == [MemoryBroker({"x": 4}).choose("x", b"key-%d" % n) for n in range(4)]


async def test_large_records(broker: Broker) -> None:
    name = await topic(broker)
    producer = await broker.producer()
    values = [secrets.token_bytes(900_000) for _ in range(5)]
    futures = [await producer.send(name, value, key=b"k") for value in values]
    await asyncio.gather(*futures)
    with pytest.raises(Reject, match="TOO_LARGE"):
        await producer.send(name, bytes(900_001))
    reader = broker.topic_reader([name], start="beginning")
    await reader.start()
    assert [record.value for record in await drain(reader, 5)] == values
    await reader.stop()


async def test_unknown_partition_is_retry(broker: Broker) -> None:
    name = await topic(broker)
    producer = await broker.producer()
    with pytest.raises(Retry):
        await producer.send_and_wait(name, b"v", partition=7)


async def test_tombstones(broker: Broker) -> None:
    name = await topic(broker)
    producer = await broker.producer()
    await producer.send_and_wait(name, None, key=b"k")
    record = await broker.read(TP(name, 0), 0)
    assert record is not None
    assert record.value is None
    with pytest.raises(ValueError):
        await producer.send(name, None)


async def test_reader_from_the_beginning_catches_up(broker: Broker) -> None:
    name = await topic(broker, 2)
    await produce(broker, TP(name, 1), 10)
    reader = broker.topic_reader([name], start="beginning")
    await reader.start()
    seen: list[Record] = []

    async def follow() -> None:
        while True:
            seen.extend(await reader.next(0.2))

    following = asyncio.create_task(follow())
    async with asyncio.timeout(DEADLINE_S):
        await reader.caught_up()
    assert [record.offset for record in seen] == list(range(10))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await reader.stop()


async def test_empty_topic_is_caught_up(broker: Broker) -> None:
    name = await topic(broker)
    reader = broker.topic_reader([name], start="beginning")
    await reader.start()
    async with asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(reader.caught_up())
        while not waiting.done():
            assert await reader.next(0.1) == []
    await reader.stop()


async def test_caught_up_means_worked_in(broker: Broker) -> None:
    name = await topic(broker)
    await produce(broker, TP(name, 0), 3)
    reader = broker.topic_reader([name], start="beginning")
    await reader.start()
    waiting = asyncio.create_task(reader.caught_up())
    await drain(reader, 3)
    await asyncio.sleep(0)
    assert not waiting.done()
    async with asyncio.timeout(DEADLINE_S):
        while not waiting.done():
            await reader.next(0.1)
    await reader.stop()


@pytest.mark.parametrize("start", ["beginning", "end"])
async def test_caught_up_asks_anew_each_time(
    broker: Broker, start: Literal["beginning", "end"]
) -> None:
    name = await topic(broker, 2)
    reader = broker.topic_reader([name], start=start)
    await reader.start()
    seen: list[Record] = []

    async def follow() -> None:
        while True:
            seen.extend(await reader.next(30.0))

    following = asyncio.create_task(follow())
    async with asyncio.timeout(DEADLINE_S):
        for count in range(0, 2000, 400):
            await reader.caught_up()
            assert len(seen) == count
            await produce(broker, TP(name, 1), 400, start=count)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await reader.stop()


async def test_reader_at_the_end_misses_nothing_after_start(broker: Broker) -> None:
    """Request and reply: the reply may be produced before the first fetch."""
    name = await topic(broker, 2)
    await produce(broker, TP(name, 1), 5)
    reader = broker.topic_reader([TP(name, 1)], start="end")
    await reader.start()
    await produce(broker, TP(name, 1), 2, start=5)
    assert [record.offset for record in await drain(reader, 2)] == [5, 6]
    await reader.stop()


async def test_a_paused_reader_misses_nothing(broker: Broker) -> None:
    name = await topic(broker, 2)
    reader = broker.topic_reader([name], start="end")
    await reader.start()
    for turn in range(2):
        reader.pause()
        reader.pause()
        await produce(broker, TP(name, 0), 3, start=3 * turn)
        await produce(broker, TP(name, 1), 2, start=2 * turn)
        assert await reader.next(0.1) == []
        reader.resume()
        reader.resume()
        assert len(await drain(reader, 5)) == 5
    await reader.stop()


async def test_topic_reader_of_a_missing_topic(broker: Broker) -> None:
    reader = broker.topic_reader(["never-made"], start="end")
    with pytest.raises(Retry):
        await reader.start()


async def test_nothing_is_delivered_before_the_first_seek(broker: Broker) -> None:
    name = await topic(broker)
    await produce(broker, TP(name, 0), 3)
    one = await member(broker, secrets.token_hex(4), name)
    await one.until(1)
    for _ in range(3):
        assert await one.reader.fetch(one.assigned, 10, 0.1) == {}
    await one.reader.seek(TP(name, 0), 1)
    assert [record.offset for record in await one.read(2)] == [1, 2]
    assert await one.reader.position(TP(name, 0)) == 3
    await one.reader.stop()


async def test_empty_ready_returns_nothing(broker: Broker) -> None:
    """aiokafka: an empty getmany() means all partitions."""
    name = await topic(broker, 2)
    await produce(broker, TP(name, 0), 3)
    await produce(broker, TP(name, 1), 3)
    one = await member(broker, secrets.token_hex(4), name)
    await one.until(2)
    await one.begin()
    for _ in range(3):
        assert await one.reader.fetch([], 10, 0.1) == {}
    records = await one.read(3, ready=[TP(name, 1)])
    assert {record.partition for record in records} == {1}
    assert len(await one.read(3, ready=[TP(name, 0)])) == 3
    await one.reader.stop()


async def test_max_records(broker: Broker) -> None:
    name = await topic(broker)
    await produce(broker, TP(name, 0), 10)
    one = await member(broker, secrets.token_hex(4), name)
    await one.until(1)
    await one.begin()
    seen: list[int] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) < 10:
            found = await one.reader.fetch(one.assigned, 4, 0.2)
            offsets = [record.offset for batch in found.values() for record in batch]
            assert len(offsets) <= 4
            seen += offsets
    assert seen == list(range(10))
    await one.reader.stop()


async def test_seek_back(broker: Broker) -> None:
    name = await topic(broker)
    await produce(broker, TP(name, 0), 5)
    one = await member(broker, secrets.token_hex(4), name)
    await one.until(1)
    await one.begin()
    assert len(await one.read(5)) == 5
    await one.reader.seek(TP(name, 0), 2)
    assert [record.offset for record in await one.read(3)] == [2, 3, 4]
    await one.reader.stop()


async def test_commit_and_resume(broker: Broker) -> None:
    name, group = await topic(broker), secrets.token_hex(4)
    await produce(broker, TP(name, 0), 5)
    one = await member(broker, group, name)
    await one.until(1)
    await one.begin()
    await one.read(5)
    assert await one.reader.committed(TP(name, 0)) is None
    await one.reader.commit({TP(name, 0): 3})
    assert await one.reader.committed(TP(name, 0)) == 3
    assert await broker.lag(group, [name]) == {TP(name, 0): 2}
    await one.reader.stop()
    two = await member(broker, group, name)
    await two.until(1)
    await two.begin()
    assert [record.offset for record in await two.read(2)] == [3, 4]
    await two.reader.stop()


async def test_commit_needs_offsets(broker: Broker) -> None:
    name = await topic(broker)
    one = await member(broker, secrets.token_hex(4), name)
    await one.until(1)
    with pytest.raises(ValueError):
        await one.reader.commit({})
    await one.reader.stop()


async def test_offsets(broker: Broker) -> None:
    name = await topic(broker)
    await produce(broker, TP(name, 0), 4)
    one = await member(broker, secrets.token_hex(4), name)
    await one.until(1)
    await one.begin()
    await one.read(4)
    assert await one.reader.beginning(TP(name, 0)) == 0
    assert await one.reader.end(TP(name, 0)) == 4
    assert await one.reader.position(TP(name, 9)) is None
    with pytest.raises(PartitionLost):
        await one.reader.seek(TP(name, 9), 0)
    await one.reader.stop()


async def poll(members: list[Member], until: Callable[[], bool]) -> None:
    """Keep the members' clients going until a rebalance has happened."""
    async with asyncio.timeout(DEADLINE_S):
        while not until():
            for one in members:
                await one.reader.fetch([], 1, 0.05)


async def test_second_member_takes_over_after_the_drain(broker: Broker) -> None:
    name, group = await topic(broker, 4), secrets.token_hex(4)
    for number in range(4):
        await produce(broker, TP(name, number), 2)
    one = await member(broker, group, name)
    await one.until(4)
    await one.begin()
    await one.read(8)

    async def commit_all(tps: Collection[TP]) -> None:
        await one.reader.commit(dict.fromkeys(tps, 2))

    one.on_revoke = commit_all
    two = await member(broker, group, name)
    await poll([one, two], lambda: len(one.assigned) == 2 and len(two.assigned) == 2)
    assert sorted(one.assigned + two.assigned) == [TP(name, n) for n in range(4)]
    assert sorted(set(one.revoked)) == [TP(name, n) for n in range(4)]
    # What was committed inside the revocation counts.
    assert await broker.lag(group, [name]) == {TP(name, n): 0 for n in range(4)}
    lost = next(iter(two.assigned))
    with pytest.raises(PartitionLost):
        await one.reader.commit({lost: 1})
    assert await two.reader.committed(lost) == 2
    await two.reader.stop()
    await poll([one], lambda: len(one.assigned) == 4)
    await one.reader.stop()


async def test_stop_does_not_revoke(broker: Broker) -> None:
    name = await topic(broker)
    one = await member(broker, secrets.token_hex(4), name)
    await one.until(1)
    await one.reader.stop()
    assert one.revoked == []


async def test_groups_are_independent(broker: Broker) -> None:
    name = await topic(broker)
    await produce(broker, TP(name, 0), 2)
    members = [await member(broker, secrets.token_hex(4), name) for _ in range(2)]
    for one in members:
        await one.until(1)
        await one.begin()
        assert len(await one.read(2)) == 2
    for one in members:
        await one.reader.stop()


async def test_lag_of_an_unknown_group(broker: Broker) -> None:
    name = await topic(broker)
    await produce(broker, TP(name, 0), 3)
    assert await broker.lag("nobody", [name]) == {TP(name, 0): 3}


async def test_end_offsets_of_batches(broker: Broker) -> None:
    """Tansu tells the first offset of the last batch, plus one, for the end of a partition."""
    name, group = await topic(broker, 2), secrets.token_hex(4)
    tp = TP(name, 0)
    await produce(broker, tp, 1)
    await produce(broker, tp, 20, start=1)
    assert await broker.lag(group, [name]) == {tp: 21, TP(name, 1): 0}
    last = await broker.read(tp, 20)
    assert last is not None
    assert last.value == b"20"
    one = await member(broker, group, name)
    await one.until(2)
    await one.begin()
    await one.read(21)
    assert await one.reader.end(tp) == 21
    await one.reader.stop()


async def test_partitions_are_free_after_stop(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in the group's first generation, which is 0 on Tansu."""
    name, group = await topic(broker), secrets.token_hex(4)
    one = await member(broker, group, name)
    await one.until(1)
    with caplog.at_level(logging.INFO, "aiokafka"):
        await one.reader.stop()
    if not isinstance(broker, MemoryBroker):
        assert "LeaveGroup request succeeded" in caplog.text
    two = await member(broker, group, name)
    await two.until(1)
    await two.reader.stop()


async def test_idempotence_is_detected(aio_broker: AioBroker, pytestconfig: pytest.Config) -> None:
    """Tansu announces InitProducerId and fails it; Apache Kafka has it."""
    name = await topic(aio_broker)
    for _ in range(2):
        producer = await aio_broker.producer()
        assert producer.idempotent == (pytestconfig.getoption("broker") == "kafka")
        await producer.send_and_wait(name, b"x")
    assert await aio_broker.lag("nobody", [name]) == {TP(name, 0): 2}
