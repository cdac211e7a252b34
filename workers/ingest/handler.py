"""One partition of plaintext-ingest: read, decide, prepare, publish, answer.

Every index has a *lane*: the records that wait for it, in order. A lane that cannot go on (no key,
no storage) keeps its records in memory and is tried again with back-off, while the other lanes of
the partition go on; the committed offset stays below its oldest record. When too much waits, the
partition stops (`Retry`).

Ordering rule, per lane: packs -> updates -> their acknowledgements -> results and dead letters ->
(by the runtime) the commit. Whatever is repeated after a failure repeats its `order`, so the index
worker drops it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from schemas.errors import ErrorCode
from workers.errors import Reject, Retry
from workers.ingest.batches import Authorised
from workers.ingest.decide import Decider
from workers.ingest.incoming import Incoming, Refused, SealedIncoming, read
from workers.ingest.publish import Publisher
from workers.kafka.broker import Record
from workers.runtime.health import Health
from workers.runtime.policy import RetryPolicy

log = structlog.get_logger("ingest.handler")

MAX_BLOCKED_BYTES: Final = 64 * 1024 * 1024


@dataclass(slots=True)
class _Lane:
    """What waits for one index, oldest first."""

    items: list[Incoming | SealedIncoming] = field(default_factory=list)
    attempts: int = 0
    retry_at: float = 0.0
    because: Retry | None = None


class IngestHandler:
    """A `PartitionHandler` of plaintext-ingest."""

    def __init__(
        self,
        decider: Decider,
        publisher: Publisher,
        health: Health,
        *,
        max_blocked_records: int,
        max_blocked_bytes: int = MAX_BLOCKED_BYTES,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Make a handler; the arguments are shared by all partitions.

        Args:
            decider: who may do what.
            publisher: where it goes.
            health: told what keeps a lane waiting.
            max_blocked_records: most records that wait in this partition's lanes.
            max_blocked_bytes: most bytes that wait there.
            retry: back-off of a lane.
        """
        self._decider = decider
        self._publisher = publisher
        self._health = health
        self._max_records = max_blocked_records
        self._max_bytes = max_blocked_bytes
        self._retry = retry or RetryPolicy()
        self._rng = random.Random()  # noqa: S311 - jitter, no secret
        self._lanes: dict[str, _Lane] = {}
        self._refused: list[Refused] = []
        self._next = 0

    async def start(self) -> int | None:
        """Begin at the committed offset with nothing waiting."""
        self._lanes.clear()
        self._refused.clear()
        return None

    async def process(self, batch: Sequence[Record]) -> int:
        """Work on `batch` and on what still waits; return the offset below all that waits.

        Raises:
            Retry: too much waits already; the batch was not taken in.
        """
        if self._crowded():
            await self._advance_all()
            if self._crowded():
                raise Retry(ErrorCode.KEY_UNAVAILABLE, "too many records wait for keys or storage")
        if batch:
            await self._take_in(batch)
        await self._advance_all()
        return self._committable()

    async def stop(self) -> None:
        """Forget what waits: the next owner reads it again."""
        self._publisher.waiting(self, 0)
        self._lanes.clear()
        self._refused.clear()

    def _crowded(self) -> bool:
        items = [item for lane in self._lanes.values() for item in lane.items]
        return len(items) >= self._max_records or sum(i.size for i in items) >= self._max_bytes

    async def _advance_all(self) -> None:
        now_s = time.monotonic()
        ready = [name for name, lane in self._lanes.items() if lane.retry_at <= now_s]
        results = await asyncio.gather(
            self._report(), *(self._work(name) for name in ready), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._publisher.waiting(self, sum(len(lane.items) for lane in self._lanes.values()))

    async def _take_in(self, batch: Sequence[Record]) -> None:
        for item in await asyncio.to_thread(lambda: [read(record) for record in batch]):
            if isinstance(item, Refused):
                self._refused.append(item)
            else:
                self._lanes.setdefault(item.index, _Lane()).items.append(item)
        self._next = batch[-1].offset + 1

    async def _work(self, index: str) -> None:
        """Bring one lane to its end, or leave it as it was for a later attempt."""
        lane = self._lanes[index]
        try:
            await self._advance(index, lane.items)
        except Retry as error:
            lane.attempts += 1
            lane.retry_at = time.monotonic() + self._retry.delay_s(lane.attempts, self._rng)
            self._health.error("lane", error)
            if lane.because is None or lane.because.code is not error.code:
                log.warning("index waits", index=index, code=error.code.value)
            lane.because = error
        else:
            del self._lanes[index]

    async def _advance(self, index: str, items: list[Incoming | SealedIncoming]) -> None:
        opened, refused = await self._decider.open(index, items)
        authorised, more = await self._decider.authorise(index, opened)
        refused += more
        if authorised:
            refused += await self._publish(index, authorised)
        await self._publisher.refuse(refused)

    async def _publish(self, index: str, items: list[Authorised]) -> list[Refused]:
        try:
            lease = await self._decider.lease(index, items)
            return await self._publisher.publish(lease, items)
        except Reject as error:
            return [
                Refused(i.incoming.record, error.info(), i.incoming.request, i.incoming.sealed)
                for i in items
            ]

    async def _report(self) -> None:
        """Dead-letter what could not be read; keep it for later if that fails."""
        try:
            await self._publisher.refuse(self._refused)
        except Retry as error:
            self._health.error("dead letters", error)
            log.warning("dead letters wait", code=error.code.value)
        else:
            self._refused.clear()

    def _committable(self) -> int:
        waiting = [lane.items[0].record.offset for lane in self._lanes.values() if lane.items]
        waiting += [refused.record.offset for refused in self._refused]
        return min([self._next, *waiting])
