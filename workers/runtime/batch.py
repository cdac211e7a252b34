"""What is fetched and not yet worked on, of one partition, and how it becomes batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from workers.kafka.broker import Record
from workers.runtime.policy import BatchPolicy
from workers.runtime.wait import event_within


class Buffer:
    """A bounded queue of records. `full` is advice to the fetcher: an overshoot is kept."""

    def __init__(self, policy: BatchPolicy, stop: asyncio.Event) -> None:
        self._policy = policy
        self._stop = stop
        self._records: deque[Record] = deque()
        self._arrived = asyncio.Event()
        self._worked_s = 0.0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def full(self, limit_bytes: int) -> bool:
        """Return whether one batch is complete already, or `limit_bytes` are held."""
        return len(self._records) >= self._policy.max_records or self.bytes >= limit_bytes

    def add(self, records: Sequence[Record]) -> None:
        """Append records."""
        self._records.extend(records)
        self.bytes += sum(record.size for record in records)
        self._arrived.set()

    def clear(self) -> None:
        """Drop everything."""
        self._records.clear()
        self.bytes = 0

    def worked(self, seconds: float) -> None:
        """Take in how long the work on the last batch took."""
        self._worked_s = seconds

    def wake(self) -> None:
        """Let `take` look again."""
        self._arrived.set()

    async def take(self, idle_s: float | None) -> list[Record]:
        """Return the next batch; [] when stopped, or when nothing came for `idle_s` seconds."""
        loop = asyncio.get_running_loop()
        until_s = None if idle_s is None else loop.time() + idle_s
        while not self._records:
            if self._stop.is_set() or not await self._more(until_s):
                return []
        until_s = loop.time() + self._policy.linger(self._worked_s)
        while not self._stop.is_set() and not self._complete():
            if not await self._more(until_s):
                break
        return [] if self._stop.is_set() else self._cut()

    async def _more(self, until_s: float | None) -> bool:
        self._arrived.clear()
        if until_s is None:
            await self._arrived.wait()
            return True
        return await event_within(self._arrived, until_s - asyncio.get_running_loop().time())

    def _complete(self) -> bool:
        return (
            len(self._records) >= self._policy.max_records or self.bytes >= self._policy.max_bytes
        )

    def _cut(self) -> list[Record]:
        batch: list[Record] = []
        size = 0
        while self._records and len(batch) < self._policy.max_records:
            record = self._records[0]
            if batch and size + record.size > self._policy.max_bytes:
                break
            batch.append(self._records.popleft())
            size += record.size
        self.bytes -= size
        return batch
