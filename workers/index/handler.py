"""One partition of index-update: the shards that live in it.

The heads say what was applied; the committed offset only bounds how far back to read. At the start
every shard's head is read and announced; reading begins at the lowest `applied + 1`, and each shard
skips what its head contains. What a head says was refused, and perhaps never told, is read again.
While a shard has no head or no keys, reading begins at the committed offset: that never passes a
record which is not in a head, or was not told.

Records of a shard that cannot go on wait in memory, the committed offset stays below them, the
other shards go on. When too much waits, those that wait for a key (or are damaged) are put aside:
all but the first are forgotten, and when that one could be applied, the partition is read again
(`Reread`) from where the heads end. So one index never stops the others, and memory stays bounded.
Without storage nobody can go on, and the partition stops (`Retry`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import structlog

from schemas.errors import ErrorCode
from workers.errors import Damaged, Fatal, Fenced, Reject, Reread, Retry
from workers.index.background import Background
from workers.index.services import Services
from workers.index.shard import Shard
from workers.kafka.broker import TP, Record
from workers.telemetry import metrics

log = structlog.get_logger("index.handler")

MAX_BLOCKED_BYTES: Final = 64 * 1024 * 1024
_AT_ONCE: Final = 8


class IndexHandler:
    """A `PartitionHandler` of index-update. Owns the background work of its shards."""

    def __init__(
        self,
        tp: TP,
        services: Services,
        *,
        max_blocked_records: int,
        max_blocked_bytes: int = MAX_BLOCKED_BYTES,
        background: bool = True,
    ) -> None:
        """Make the handler of a partition.

        Args:
            tp: which.
            services: shared by the process.
            max_blocked_records: most records that wait for their shards.
            max_blocked_bytes: most bytes that wait.
            background: merge, train and sweep beside the updates.
        """
        self._tp = tp
        self._services = services
        self._max_records = max_blocked_records
        self._max_bytes = max_blocked_bytes
        self._shards: dict[bytes, Shard] = {}
        self._strangers: list[Record] = []
        self._next = 0
        self._background = Background(self._shards) if background else None

    @property
    def shards(self) -> list[Shard]:
        """The shards of this partition that are known now."""
        return list(self._shards.values())

    async def start(self) -> int | None:
        """Read and announce the heads; return the offset to begin at.

        Raises:
            Retry: the broker cannot be asked for events, or did not take ours.
        """
        # What other workers announced until now: a head that is older was put back.
        await self._services.announced.caught_up()
        self._shards.clear()
        self._strangers.clear()
        self._discover()
        opened = await self._each(self._open(shard) for shard in self._shards.values())
        await self._each(shard.announce() for shard in self._shards.values())
        if self._background is not None:
            self._background.start()
        complete = all(opened) and all(shard.has_head for shard in self._shards.values())
        if not complete or not self._shards:
            return None
        return min(shard.begin for shard in self._shards.values())

    async def process(self, batch: Sequence[Record]) -> int:
        """Apply `batch` and what still waits; return the offset below all that waits.

        Raises:
            Retry: too much waits already; the batch was not taken in.
            Fenced: another worker writes one of the shards.
            Reread: records that were put aside can be applied now.
        """
        if self._background is not None:
            self._background.check()
        if self._crowded():
            await self._advance_all()
            self._put_aside()
            if self._crowded():
                raise Retry(ErrorCode.STORAGE_UNAVAILABLE, "too many updates wait for storage")
        await self._take_in(batch)
        await self._advance_all()
        if any(shard.waiting.must_be_read_again for shard in self._shards.values()):
            raise Reread(ErrorCode.KEY_UNAVAILABLE, "updates that were put aside can be applied")
        if self._background is not None and batch:
            self._background.wake()
        return self._committable()

    async def stop(self) -> None:
        """End the background work and drop all state."""
        if self._background is not None:
            await self._background.stop()
        for shard in self._shards.values():
            shard.close()
        self._services.blocked.forget(self._tp)
        self._shards.clear()
        self._strangers.clear()

    def _discover(self) -> None:
        """Add the shards that the directory assigns to this partition."""
        for entry in self._services.directory.indexes():
            for number, partition in enumerate(entry.partitions):
                key = f"{entry.uid.hex()}/{number}".encode()
                if partition == self._tp.partition and key not in self._shards:
                    self._shards[key] = Shard(entry, number, self._services)

    async def _open(self, shard: Shard) -> bool:
        try:
            await shard.open()
        except Damaged as error:
            metrics.DAMAGED.inc(what="head")
            place, why = shard.place, error.message
            log.error("head damaged", index=place.index, shard=place.shard, why=why)
            return False
        except (Retry, Reject) as error:
            log.warning("shard not open", index=shard.place.index, code=error.code.value)
            return False
        return True

    def _crowded(self) -> bool:
        shards = self._shards.values()
        return (
            sum(len(shard.waiting) for shard in shards) >= self._max_records
            or sum(shard.waiting.bytes for shard in shards) >= self._max_bytes
        )

    def _put_aside(self) -> None:
        """Make room: of the shards that wait for something of their own, the largest first."""
        own = [shard for shard in self._shards.values() if shard.keeps_waiting]
        for shard in sorted(own, key=lambda one: one.waiting.bytes, reverse=True):
            if not self._crowded():
                return
            place = shard.place
            log.warning("updates put aside", index=place.index, shard=place.shard)
            shard.waiting.put_aside()

    async def _advance_all(self) -> None:
        now_s = time.monotonic()
        ready = [shard for shard in self._shards.values() if shard.ready(now_s)]
        await self._each(shard.advance() for shard in ready)
        waiting = sum(len(shard.waiting) for shard in self._shards.values())
        self._services.blocked.set(self._tp, waiting)

    async def _take_in(self, batch: Sequence[Record]) -> None:
        """Give each record to its shard; dead-letter those of no shard."""
        strangers = [*self._strangers, *(r for r in batch if r.key not in self._shards)]
        if strangers:
            # Created a moment ago, perhaps: the directory may be behind the updates.
            await self._services.directory.refresh()
            self._discover()
        for record in batch:
            shard = self._shards.get(record.key or b"")
            if shard is not None:
                shard.add(record)
        if batch:
            self._next = batch[-1].offset + 1
        self._strangers = [r for r in strangers if r.key not in self._shards]
        while self._strangers:
            error = Reject(ErrorCode.UNKNOWN_INDEX, "no shard of this partition has this key")
            await self._services.dead_letters.send(self._strangers[0], error.info(), 1, sealed=True)
            self._strangers.pop(0)

    def _committable(self) -> int:
        lowest = [shard.lowest for shard in self._shards.values()]
        return min([self._next, *(offset for offset in lowest if offset is not None)])

    async def _each(self, work: Any) -> list[Any]:
        """Run the coroutines of all shards, a few at a time; raise the gravest error."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(coroutine: Coroutine[Any, Any, Any]) -> Any:
            async with limit:
                return await coroutine

        done = await asyncio.gather(*(one(each) for each in work), return_exceptions=True)
        errors = [error for error in done if isinstance(error, BaseException)]
        for kind in (Fatal, Fenced):
            for error in errors:
                if isinstance(error, kind):
                    raise error
        if errors:
            raise errors[0]
        return done
