"""One partition of plaintext-ingest: read, decide, prepare, publish, answer.

Every index has a *lane*: the records that wait for it, in order. A lane that cannot go on (no key,
no storage) keeps its records in memory and is tried again with back-off, while the other lanes of
the partition go on; the committed offset stays below its oldest record. When too much waits, the
lanes that wait for a key are put aside: all but the first record are forgotten, and when that one
is through, the partition is read again (`Reread`), this time without the records that were worked
on. So one index never stops the others, and memory stays bounded. Without storage nobody can go on,
and the partition stops (`Retry`).

Ordering rule, per lane: packs -> updates -> their acknowledgements -> results and dead letters ->
(by the runtime) the commit. Whatever is repeated after a failure repeats its `order`, so the index
worker drops it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from schemas.errors import ErrorCode
from schemas.topics import PLAINTEXT_INGEST
from workers.errors import Reject, Reread, Retry
from workers.ingest.batches import Authorised
from workers.ingest.decide import Decider
from workers.ingest.incoming import Incoming, Refused, SealedIncoming, read
from workers.ingest.publish import Publisher
from workers.kafka.broker import Record
from workers.runtime.crunch import crunch
from workers.runtime.health import Health
from workers.runtime.policy import RetryPolicy
from workers.telemetry import metrics

log = structlog.get_logger("ingest.handler")

MAX_BLOCKED_BYTES: Final = 64 * 1024 * 1024


@dataclass(slots=True)
class _Lane:
    """What waits for one index, oldest first."""

    items: list[Incoming | SealedIncoming] = field(default_factory=list)
    attempts: int = 0
    retry_at: float = 0.0
    because: Retry | None = None
    behind: int | None = None
    """Offset of the first record that was put aside: it and what follows must be read again."""

    @property
    def lowest(self) -> int | None:
        """The offset of the first record that is not worked on; None if there is none."""
        return self.items[0].record.offset if self.items else self.behind


@dataclass(frozen=True, slots=True)
class _Seen:
    """What need not be worked on again when the partition is read again.

    Everything before `end`, except the records of `lanes` from an offset on, and those in
    `refused`, whose dead letters are still to be sent.
    """

    end: int = 0
    lanes: Mapping[str, int] = field(default_factory=dict)
    refused: Collection[int] = ()

    def __contains__(self, item: Incoming | SealedIncoming | Refused) -> bool:
        offset = item.record.offset
        if offset >= self.end:
            return False
        if isinstance(item, Refused):
            return offset not in self.refused
        return offset < self.lanes.get(item.index, self.end)


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
        self._seen = _Seen()

    async def start(self) -> int | None:
        """Begin at the committed offset with nothing waiting."""
        self._lanes.clear()
        self._refused.clear()
        self._next = 0
        return None

    async def process(self, batch: Sequence[Record]) -> int:
        """Work on `batch` and on what still waits; return the offset below all that waits.

        Raises:
            Retry: too much waits already; the batch was not taken in.
            Reread: records that were put aside can be worked on now.
        """
        if self._crowded():
            await self._advance_all()
            self._put_aside()
            if self._crowded():
                raise Retry(ErrorCode.STORAGE_UNAVAILABLE, "too many records wait for storage")
        if batch:
            await self._take_in(batch)
        await self._advance_all()
        if any(not lane.items for lane in self._lanes.values()):
            self._remember()
            raise Reread(ErrorCode.KEY_UNAVAILABLE, "records that were put aside can be worked on")
        return self._committable()

    async def stop(self) -> None:
        """Forget what waits: the next owner reads it again."""
        self._publisher.waiting(self, 0)
        self._lanes.clear()
        self._refused.clear()

    def _crowded(self) -> bool:
        items = [item for lane in self._lanes.values() for item in lane.items]
        return len(items) >= self._max_records or sum(i.size for i in items) >= self._max_bytes

    def _put_aside(self) -> None:
        """Make room: of the lanes that wait for keys, the largest first."""
        held = [(name, lane) for name, lane in self._lanes.items() if _waits_for_keys(lane)]
        for name, lane in sorted(held, key=lambda one: len(one[1].items), reverse=True):
            if not self._crowded():
                return
            if len(lane.items) > 1:
                log.warning("records put aside", index=name)
                lane.behind = lane.items[1].record.offset
                del lane.items[1:]

    def _remember(self) -> None:
        """Note what is done, for when the partition is read again (and again)."""
        before, end = self._seen, max(self._next, self._seen.end)
        lowest = {name: max(offset, self._next) for name, offset in before.lanes.items()}
        for name, lane in self._lanes.items():
            if lane.lowest is not None:
                lowest[name] = lane.lowest
        refused = {offset for offset in before.refused if offset >= self._next}
        refused |= {one.record.offset for one in self._refused}
        self._seen = _Seen(end, {n: at for n, at in lowest.items() if at < end}, refused)

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
        for item in await crunch(lambda: [read(record) for record in batch]):
            if item in self._seen:
                continue
            if isinstance(item, Refused):
                self._refused.append(item)
                continue
            lane = self._lanes.setdefault(item.index, _Lane())
            if lane.behind is None:
                lane.items.append(item)
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
            metrics.RETRIES.inc(topic=PLAINTEXT_INGEST, code=error.code.value)
            if lane.because is None or lane.because.code is not error.code:
                log.warning("index waits", index=index, code=error.code.value)
            lane.because = error
            return
        lane.items.clear()
        if lane.behind is None:
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
        lowest = [lane.lowest for lane in self._lanes.values()]
        waiting = [offset for offset in lowest if offset is not None]
        waiting += [refused.record.offset for refused in self._refused]
        return min([self._next, *waiting])


def _waits_for_keys(lane: _Lane) -> bool:
    return lane.because is not None and lane.because.code is not ErrorCode.STORAGE_UNAVAILABLE
