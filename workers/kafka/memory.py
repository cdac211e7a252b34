"""A broker in memory, with the same answers as Kafka and failures on demand.

Deterministic: partitions are assigned and records ordered without clock or chance; members drain
one after the other, in the order in which they joined. Eager rebalancing, as aiokafka has it: every
member loses all its partitions, then gets its new ones. Compaction is not imitated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from schemas.errors import ErrorCode
from workers.errors import Reject
from workers.kafka.broker import TP, Delivered, Headers, Record
from workers.kafka.errors import unavailable
from workers.kafka.memory_group import MemoryGroup, MemoryGroupReader
from workers.kafka.memory_logs import MemoryLogs

if TYPE_CHECKING:
    from schemas.topics import TopicSpec

_MAX_RECORDS = 1000
_PROBE_S = 0.001


class MemoryBroker(MemoryLogs):
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
        super().__init__(topics or {})
        self.clock_ms = clock_ms
        self.max_record_bytes = max_record_bytes
        self.rebalance_timeout_s = rebalance_timeout_s
        self._groups: dict[str, MemoryGroup] = {}

    # What tests do to it.

    def drop_next(self, topic: str, *, times: int = 1, appended: bool = False) -> None:
        """Let the next sends to `topic` fail; with `appended` only the acknowledgement is lost."""
        self.order(f"send {topic}", times, after=appended)

    def fail_commits(self, group: str, *, times: int = 1) -> None:
        """Let the next commits of `group` fail with Retry; nothing is committed."""
        self.order(f"commit {group}", times)

    def fail_fetches(self, group: str, *, times: int = 1) -> None:
        """Let the next fetches of `group` return nothing, as after a lost connection."""
        self.order(f"fetch {group}", times)

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
        return MemoryGroupReader(
            self, self._group(group), topics, rebalance_timeout_s=self.rebalance_timeout_s
        )

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
        return self.counts.get(topic, 0)

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create the missing topics; return their names."""
        missing = [spec for spec in specs if spec.name not in self.counts]
        for spec in missing:
            self.create(spec.name, spec.partitions)
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

    def _group(self, name: str) -> MemoryGroup:
        return self._groups.setdefault(name, MemoryGroup(self, name))


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
