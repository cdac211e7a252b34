"""A broker in memory, with the same answers as Kafka and failures on demand.

Deterministic: partitions are assigned and records ordered without clock or chance; members drain
one after the other, in the order in which they joined. Eager rebalancing, as aiokafka has it: every
member loses all its partitions, then gets its new ones. Compaction is not imitated.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from aiokafka.partitioner import murmur2

from schemas.errors import ErrorCode
from workers.errors import Reject
from workers.kafka.broker import TP, Delivered, Headers, Record
from workers.kafka.errors import unavailable
from workers.kafka.memory_group import MemoryGroup, MemoryGroupReader

if TYPE_CHECKING:
    from schemas.topics import TopicSpec

_MAX_RECORDS = 1000
_PROBE_S = 0.001


class MemoryBroker:
    """A `Broker` in memory. See `broker.Broker` for the verbs.

    Args:
        topics: partitions of the topics that exist at the start.
        clock_ms: milliseconds since 1970, for timestamps.
        max_record_bytes: refuse larger values.
        rebalance_timeout_s: what the readers say; nothing is timed.
    """

    def __init__(
        self,
        topics: Mapping[str, int] | None = None,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        max_record_bytes: int = 900_000,
        rebalance_timeout_s: float = 10.0,
    ) -> None:
        self.clock_ms = clock_ms
        self.max_record_bytes = max_record_bytes
        self.rebalance_timeout_s = rebalance_timeout_s
        self.logs: dict[TP, Log] = {}
        self._counts: dict[str, int] = {}
        self._groups: dict[str, MemoryGroup] = {}
        self._faults: list[_Fault] = []
        self._round_robin: dict[str, int] = defaultdict(int)
        self._changed = asyncio.Event()
        for name, partitions in (topics or {}).items():
            self._create(name, partitions)

    # What tests do to it.

    def drop_next(self, topic: str, *, times: int = 1, appended: bool = False) -> None:
        """Let the next sends to `topic` fail; with `appended` only the acknowledgement is lost."""
        self._faults.append(_Fault(f"send {topic}", times, appended))

    def fail_commits(self, group: str, *, times: int = 1) -> None:
        """Let the next commits of `group` fail with Retry; nothing is committed."""
        self._faults.append(_Fault(f"commit {group}", times, after=False))

    def fail_fetches(self, group: str, *, times: int = 1) -> None:
        """Let the next fetches of `group` return nothing, as after a lost connection."""
        self._faults.append(_Fault(f"fetch {group}", times, after=False))

    async def rebalance(self, group: str) -> None:
        """Revoke and assign all partitions of a group, as when a member comes or goes."""
        await self._group(group).rebalance()

    def expel(self, group: str, member: int = 0) -> None:
        """Give a member's partitions to the others without telling it: it is a zombie now."""
        self._group(group).expel(member)

    async def rejoin(self, group: str) -> None:
        """Let the expelled members learn of it and join again, as their heartbeats would."""
        await self._group(group).rejoin()

    def records(self, topic: str) -> list[Record]:
        """Return all records of a topic, by partition and offset."""
        return [
            record
            for tp, log in sorted(self.logs.items())
            if tp.topic == topic
            for record in log.records
        ]

    def committed(self, group: str, tp: TP) -> int | None:
        """Return a group's committed offset."""
        return self._group(group).committed.get(tp)

    def trim(self, tp: TP, offset: int) -> None:
        """Drop the records below `offset`, as retention does."""
        log = self.logs[tp]
        log.records = [record for record in log.records if record.offset >= offset]
        log.begin = max(log.begin, min(offset, log.end))

    # The protocol.

    async def producer(self, *, linger_ms: int = 2) -> MemoryProducer:
        """Return a producer."""
        return MemoryProducer(self)

    def group_reader(
        self, group: str, topics: Sequence[str], *, bulk: bool, wait_ms: int | None = None
    ) -> MemoryGroupReader:
        """Return a member of `group`, not started."""
        return MemoryGroupReader(self, self._group(group), topics)

    def topic_reader(
        self,
        topics: Sequence[str | TP],
        *,
        start: Literal["beginning", "end"],
        low_latency: bool = True,
    ) -> MemoryTopicReader:
        """Return a reader, not started, of whole topics or of single partitions."""
        return MemoryTopicReader(self, topics, start)

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions, 0 if the topic does not exist."""
        return self._counts.get(topic, 0)

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create the missing topics; return their names."""
        missing = [spec for spec in specs if spec.name not in self._counts]
        for spec in missing:
            self._create(spec.name, spec.partitions)
        return [spec.name for spec in missing]

    async def lag(self, group: str, topics: Sequence[str]) -> dict[TP, int]:
        """Return, per partition, how many records the group has not committed."""
        committed = self._group(group).committed
        return {
            tp: log.end - committed.get(tp, log.begin)
            for tp, log in sorted(self.logs.items())
            if tp.topic in topics
        }

    async def read(self, tp: TP, offset: int) -> Record | None:
        """Return the one record at `offset`, or None if it is not kept."""
        found = self.logs[tp].read(offset, 1) if tp in self.logs else []
        return found[0] if found and found[0].offset == offset else None

    async def aclose(self) -> None:
        """Nothing to release."""

    # For the readers and producers below.

    def append(self, record: Record) -> Delivered:
        """Append a record, whatever its offset says, and wake who waits."""
        delivered = self.logs[record.tp].append(record)
        self.wake()
        return delivered

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, until_s: float) -> bool:
        """Wait for `wake`; return False at the time `until_s` of the event loop."""
        changed = self._changed
        try:
            async with asyncio.timeout_at(until_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    def fault(self, what: str) -> _Fault | None:
        """Return the failure that was ordered for this step, once."""
        for fault in self._faults:
            if fault.what == what:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                return fault
        return None

    def choose(self, topic: str, key: bytes | None) -> int:
        """Return a partition as Kafka's default partitioner does; without key in turns."""
        count = self._counts[topic]
        if key is not None:
            return int(murmur2(key) & 0x7FFFFFFF) % count
        self._round_robin[topic] += 1
        return (self._round_robin[topic] - 1) % count

    def resolve(self, topics: Sequence[str | TP]) -> list[TP]:
        """Return the partitions of topics; raises Retry if one does not exist."""
        partitions: list[TP] = []
        for topic in topics:
            if isinstance(topic, TP):
                partitions.append(topic)
            elif topic in self._counts:
                partitions += [TP(topic, number) for number in range(self._counts[topic])]
            else:
                raise unavailable(f"the topic {topic} does not exist")
        return partitions

    def _create(self, name: str, partitions: int) -> None:
        self._counts[name] = partitions
        for number in range(partitions):
            self.logs[TP(name, number)] = Log()

    def _group(self, name: str) -> MemoryGroup:
        return self._groups.setdefault(name, MemoryGroup(self, name))


class _Fault:
    __slots__ = ("after", "times", "what")

    def __init__(self, what: str, times: int, after: bool) -> None:
        self.what, self.times, self.after = what, times, after


class Log:
    """The records of a partition; `begin` and `end` are offsets."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.begin = self.end = 0

    def append(self, record: Record) -> Delivered:
        """Give the record the next offset and keep it."""
        offset, self.end = self.end, self.end + 1
        self.records.append(
            Record(
                record.topic,
                record.partition,
                offset,
                record.timestamp_ms,
                record.key,
                record.value,
                record.headers,
            )
        )
        return Delivered(record.partition, offset)

    def read(self, offset: int, limit: int) -> list[Record]:
        """Return up to `limit` records from `offset`; out of range begins at the oldest."""
        if not self.begin <= offset <= self.end:
            offset = self.begin
        skip = max(0, offset - self.begin)
        return self.records[skip : skip + limit]


class MemoryProducer:
    """A `Producer` of a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> asyncio.Future[Delivered]:
        """Append a record and return the future of its acknowledgement."""
        broker = self._broker
        if value is not None and len(value) > broker.max_record_bytes:
            raise Reject(ErrorCode.TOO_LARGE, "the record is larger than max_record_bytes")
        if value is None and key is None:
            raise ValueError("a record has a key or a value")
        await asyncio.sleep(0)
        broker.resolve([topic])
        number = broker.choose(topic, key) if partition is None else partition
        if TP(topic, number) not in broker.logs:
            raise unavailable(f"{topic} has no partition {number}")
        future: asyncio.Future[Delivered] = asyncio.get_running_loop().create_future()
        fault = broker.fault(f"send {topic}")
        if fault is None or fault.after:
            record = Record(topic, number, -1, broker.clock_ms(), key, value, headers)
            delivered = broker.append(record)
            if fault is None:
                future.set_result(delivered)
                return future
        future.set_exception(unavailable("injected"))
        return future

    async def send_and_wait(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Delivered:
        """Append one record and wait for its acknowledgement."""
        return await (await self.send(topic, value, key=key, partition=partition, headers=headers))

    async def flush(self) -> None:
        """Nothing is ever queued."""

    async def stop(self) -> None:
        """Nothing to release."""


class MemoryTopicReader:
    """A `TopicReader` of a `MemoryBroker`."""

    def __init__(
        self,
        broker: MemoryBroker,
        topics: Sequence[str | TP],
        start: Literal["beginning", "end"],
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._begin = start
        self._positions: dict[TP, int] = {}
        # Somebody waits in `next`: what was returned before is worked in.
        self._idle = False
        self._paused = False

    async def start(self) -> None:
        """Fix the positions."""
        logs = {tp: self._broker.logs[tp] for tp in self._broker.resolve(self._topics)}
        if self._begin == "end":
            self._positions = {tp: log.end for tp, log in logs.items()}
        else:
            self._positions = {tp: log.begin for tp, log in logs.items()}

    async def next(self, timeout_s: float) -> list[Record]:
        """Return the next records, [] after `timeout_s`."""
        until_s = asyncio.get_running_loop().time() + timeout_s
        self._idle = True
        try:
            return await self._next(until_s)
        finally:
            self._idle = False

    async def _next(self, until_s: float) -> list[Record]:
        await asyncio.sleep(0)
        while True:
            found: list[Record] = []
            for tp in () if self._paused else sorted(self._positions):
                batch = self._broker.logs[tp].read(self._positions[tp], _MAX_RECORDS)
                if batch:
                    self._positions[tp] = batch[-1].offset + 1
                    found += batch
            if found or not await self._broker.wait(until_s):
                return found

    def pause(self) -> None:
        """Return nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Return records again."""
        self._paused = False
        self._broker.wake()

    async def caught_up(self) -> None:
        """Wait until the caller of `next` has worked in all that exists now."""
        ends = {tp: self._broker.logs[tp].end for tp in self._positions}
        while not self._idle or any(  # noqa: ASYNC110  (as the real one)
            self._positions[tp] < end for tp, end in ends.items()
        ):
            await asyncio.sleep(_PROBE_S)

    async def stop(self) -> None:
        """Nothing to release."""
