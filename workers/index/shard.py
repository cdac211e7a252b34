"""One shard that this worker owns: what waits for it, and the order in which that is done.

Ordering rule of a micro-batch: verify and open (`receive.py`) -> dead letters of what is refused ->
segment and head, with the offset (`applying.py`) -> late results -> index-event (`telling.py`).
Whatever dies in between is repeated from the head's `applied`, which is the only truth about what
was done; and what a head says was refused is told again by who opens it, until a later head says it
no more.

A shard that cannot go on (no key, no storage, damaged data) keeps its records and is tried again
with back-off; other shards of the partition go on.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import structlog

from schemas.errors import ErrorCode
from schemas.topics import INDEX_UPDATE
from workers.chain.compact import MAX_LIVE_SEGMENTS
from workers.chain.head import Head
from workers.errors import Damaged, Reject, Retry, SealstreamError
from workers.index.applying import apply
from workers.index.leased import LeasedKeys
from workers.index.merging import merge_due, move_old
from workers.index.opening import OpenShard, open_shard
from workers.index.place import Place
from workers.index.receive import Received, Trust, receive
from workers.index.services import Services
from workers.index.sweeping import Sweeping
from workers.index.telling import Telling
from workers.index.waiting import Waiting
from workers.kafka.broker import Record
from workers.leases.directory import IndexEntry
from workers.telemetry import metrics

log = structlog.get_logger("index.shard")

_DAMAGED_WAIT_S: Final = 30.0


class Shard:
    """One shard; used by the handler of its partition, one call of `advance` at a time.

    Its background work (`maintain`, `sweep`) runs beside that, in one other task.

    Attributes:
        place: which shard.
        waiting: its records that are not applied yet.
        maintain_at: when its background work may go on, as `time.monotonic` says.
    """

    def __init__(self, entry: IndexEntry, shard: int, services: Services) -> None:
        """Prepare; nothing is read."""
        self.place = Place.of(entry, shard)
        self.waiting = Waiting()
        self.maintain_at = 0.0
        self._services = services
        self._keys = LeasedKeys(services.holder, entry.uid)
        self._telling = Telling(self.place, services)
        self._sweeping = Sweeping(self.place, services)
        self._open: OpenShard | None = None
        self._opening = asyncio.Lock()
        self._retry_at = 0.0
        self._attempts = 0
        self._because: ErrorCode | None = None
        self._rng = random.Random()  # noqa: S311 - jitter, no secret

    @property
    def head(self) -> Head | None:
        """The head as last seen; None before it was read."""
        return None if self._open is None else self._open.head

    @property
    def has_head(self) -> bool:
        """Whether anything was ever written."""
        return self.head is not None and self.head.version > 0

    @property
    def begin(self) -> int:
        """The offset to read from, once the head is known."""
        applied = 0 if self.head is None else self.head.applied
        return min([applied + 1, *self._telling.owed])

    @property
    def keeps_waiting(self) -> bool:
        """Whether it waits for something that concerns this index alone, not for the store."""
        return self._because not in (None, ErrorCode.STORAGE_UNAVAILABLE)

    @property
    def lowest(self) -> int | None:
        """The lowest offset that may not be committed yet; None if nothing waits."""
        offsets = (self.waiting.lowest, self._telling.lowest)
        return min((offset for offset in offsets if offset is not None), default=None)

    def add(self, record: Record) -> None:
        """Queue a record, unless the head contains it or those before it were put aside."""
        head = self.head
        if head is None or record.offset > head.applied or record.offset in self._telling.owed:
            self.waiting.add(record)

    def ready(self, now_s: float) -> bool:
        """Tell whether there is something to do and the time of a back-off has passed."""
        return bool(self.waiting or self._telling.unsent) and now_s >= self._retry_at

    async def open(self) -> OpenShard:
        """Read the head, if that was not done; write nothing.

        Raises:
            Retry, Reject: no keys, no storage. Damaged: the head does not authenticate, or is older
            than one that was announced.
        """
        lease = await self._keys.renew()
        self._sweeping.note_generations(lease)
        async with self._opening:
            if self._open is None:
                self._open = await open_shard(self.place, self._keys, self._services)
                self._telling.opened(self._open.head)
        self._open.use(lease, self._services.identity)
        return self._open

    async def announce(self) -> None:
        """Send one cumulative index-event, if the shard was ever written. Raises Retry."""
        if self._open is not None:
            await self._telling.announce(self._open)

    async def advance(self) -> None:
        """Apply what waits, as far as it goes; on trouble wait and try again later.

        Raises:
            Fenced: another writer owns the shard.
            Fatal: the process cannot go on.
        """
        try:
            await self._telling.tell()
            while self.waiting:
                await self._one_batch()
        except Damaged as error:
            metrics.DAMAGED.inc(what="shard")
            self._hold_back(error, _DAMAGED_WAIT_S)
        except (Retry, Reject) as error:
            self._hold_back(error, 0.0)
        else:
            self._attempts, self._because = 0, None

    async def maintain(self) -> bool:
        """Do one piece of background work: a merge or a training. Returns whether there was one.

        Raises:
            Fenced, Damaged, Retry, Reject.
        """
        if self._open is None:
            return False
        shard = await self.open()
        done = (
            await shard.vectors.train(shard.writer, shard.head, shard.reader)
            or await merge_due(shard)
            or await move_old(shard)
            or await self._telling.settle(shard)
        )
        if done:
            shard.look()
            await self._telling.announce(shard)
        return done

    async def sweep_when_due(self, now_s: float) -> None:
        """Delete garbage, if the time has come for it (`sweeping.py`).

        Raises:
            Fenced, Damaged, Retry, Reject.
        """
        if self._sweeping.take_turn(now_s) and self.has_head:
            await self._sweeping.sweep(await self.open())

    def close(self) -> None:
        """Drop the state; the shard is not used any more."""
        if self._open is not None:
            self._open.close()
            self._open = None

    async def _one_batch(self) -> None:
        try:
            shard = await self.open()
        except Damaged:
            raise
        except Reject as error:
            if error.code is not ErrorCode.UNKNOWN_INDEX:
                raise
            # Deleted: its updates can never be applied.
            await self._refuse_all(error)
            return
        head = shard.head
        await self._tell_again(shard, head)
        records = self.waiting.next_batch()
        if not records:
            return
        received = await self._receive(records, head)
        await self._dead_letter(received)
        if len(head.segments) >= MAX_LIVE_SEGMENTS:
            await merge_due(shard)
        began_s = time.monotonic()
        checked = [one for one in received if one.checked is not None]
        published, refused = await apply(
            shard, records[-1].offset, checked, self._services.dead_letters
        )
        metrics.PUBLISH_SECONDS.observe(time.monotonic() - began_s)
        metrics.INDEX_DELAY_SECONDS.observe(max(0.0, time.time() - records[0].timestamp_ms / 1000))
        self.waiting.drop(len(records))
        self._telling.published(published, refused, records[0].offset)
        await self._telling.tell()

    async def _tell_again(self, shard: OpenShard, head: Head) -> None:
        """Drop what the head contains; tell again what it says was refused of it. Raises Retry."""
        contained = self.waiting.until(head.applied)
        owed = [record for record in contained if record.offset in self._telling.owed]
        if owed:
            await self._telling.tell_again(await self._receive(owed, head))
        self.waiting.drop(len(contained))
        if self.waiting:
            self._telling.give_up()
        if owed:
            await self._telling.announce(shard)

    async def _receive(self, records: Sequence[Record], head: Head) -> list[Received]:
        directory, store = self._services.directory, self._services.store
        trust = Trust(directory.key_service.sign_pub, directory.revocations)
        lease = self._keys.lease()
        return await receive(records, lease, self.place.shard, trust, store, head.clock_ms)

    async def _dead_letter(self, received: Sequence[Received]) -> None:
        for one in received:
            if one.error is not None:
                if one.error.code is ErrorCode.DAMAGED:
                    metrics.DAMAGED.inc(what="update")
                await self._services.dead_letters.send(one.record, one.error, 1, sealed=True)

    async def _refuse_all(self, error: Reject) -> None:
        while self.waiting:
            await self._services.dead_letters.send(
                self.waiting.first, error.info(), self._attempts + 1, sealed=True
            )
            self.waiting.drop(1)

    def _hold_back(self, error: SealstreamError, least_s: float) -> None:
        self._attempts += 1
        pause_s = max(least_s, self._services.retry.delay_s(self._attempts, self._rng))
        self._retry_at = time.monotonic() + pause_s
        self._services.health.error("shard", error)
        metrics.RETRIES.inc(topic=INDEX_UPDATE, code=error.code.value)
        if self._because is not error.code:
            place = self.place
            log.warning("shard waits", index=place.index, shard=place.shard, code=error.code.value)
        self._because = error.code
