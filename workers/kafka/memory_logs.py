"""What the memory broker keeps: the records of every partition, and the failures ordered of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

from aiokafka.partitioner import murmur2

from workers.kafka.broker import TP, Delivered, Record
from workers.kafka.errors import unavailable


class MemoryLogs:
    """Partitions by topic and number; whoever waits is woken when something changes.

    Args:
        topics: partitions of the topics that exist at the start.
    """

    def __init__(self, topics: Mapping[str, int]) -> None:
        self.logs: dict[TP, Log] = {}
        self.counts: dict[str, int] = {}
        self._faults: list[Fault] = []
        self._round_robin: dict[str, int] = defaultdict(int)
        self._changed = asyncio.Event()
        for name, partitions in topics.items():
            self.create(name, partitions)

    def create(self, name: str, partitions: int) -> None:
        """Make a topic."""
        self.counts[name] = partitions
        for number in range(partitions):
            self.logs[TP(name, number)] = Log()

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

    def order(self, what: str, times: int, *, after: bool = False) -> None:
        """Order a failure of the next `times` steps `what`; `after`: when the step is done."""
        self._faults.append(Fault(what, times, after))

    def fault(self, what: str) -> Fault | None:
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
        count = self.counts[topic]
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
            elif topic in self.counts:
                partitions += [TP(topic, number) for number in range(self.counts[topic])]
            else:
                raise unavailable(f"the topic {topic} does not exist")
        return partitions


class Fault:
    """A failure that was ordered: at which step, how often, and whether it is done first."""

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
