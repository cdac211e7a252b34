"""One partition from its assignment to its revocation: one task, one handler.

Invariant: an offset is committed only after `process` returned it, so whatever is killed at any
moment, everything not durably done is delivered again. Order: process -> commit -> next batch; a
commit that got no answer does not stop the work, since the next one covers it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from workers.errors import Fenced, Reread, Retry, SealstreamError
from workers.kafka.broker import TP, GroupReader, Record
from workers.kafka.errors import PartitionLost
from workers.runtime.batch import Buffer
from workers.runtime.health import Health
from workers.runtime.policy import (
    BatchPolicy,
    DrainingHandler,
    DrainPolicy,
    Gate,
    PartitionHandler,
    RetryPolicy,
)
from workers.runtime.wait import Stopped, pause, unless
from workers.telemetry import metrics

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all partitions of a pump share."""

    reader: GroupReader
    policy: BatchPolicy
    retry: RetryPolicy
    drain: DrainPolicy
    gate: Gate | None
    health: Health
    rng: random.Random
    changed: Callable[[], None]


class Partition:
    """The work on one partition. `run` is its task; everything else is called from outside.

    Args:
        tp: which.
        handler: does the work; owned from now on.
        shared: what it has in common with the others.
    """

    def __init__(self, tp: TP, handler: PartitionHandler, shared: Surroundings) -> None:
        self.tp = tp
        self._handler = handler
        self._shared = shared
        self._draining = asyncio.Event()
        self.buffer = Buffer(shared.policy, self._draining)
        self._labels = {"topic": tp.topic, "partition": str(tp.partition)}
        self._accepting = False
        # Next offsets: of the next record delivered, of the end of the work, of commits.
        self._expected = self._end = self._committed = 0
        self._wanted: int | None = None
        self._pending = False
        self.lost_since_s: float | None = None
        self.silent_since_s = _now_s()

    def ready(self, limit_bytes: int) -> bool:
        """Return whether it takes more records."""
        return self._accepting and not self._draining.is_set() and not self.buffer.full(limit_bytes)

    def deliver(self, records: Sequence[Record]) -> None:
        """Take fetched records; drops them while the handler is not started."""
        if not self._accepting or not records:
            return
        self.silent_since_s = _now_s()
        first = records[0].offset
        if first > self._expected:
            metrics.OFFSET_GAPS.inc(float(first - self._expected), **self._labels)
        elif first < self._expected:
            metrics.OFFSET_RESETS.inc(**self._labels)
            _log.error("offset_reset", **self._labels, expected=self._expected, offset=first)
        self._expected = records[-1].offset + 1
        self.buffer.add(records)

    @property
    def committed(self) -> int | None:
        """The last committed offset; None before the start."""
        return self._committed if self._accepting else None

    def drain(self) -> None:
        """End after the batch in progress."""
        self._draining.set()
        self.buffer.wake()

    async def run(self) -> None:
        """Start, work, stop. Ends when drained or lost; raises what ends the process."""
        try:
            while not self._draining.is_set():
                await self._one_life()
        except Stopped:
            pass
        except PartitionLost:
            self.lost_since_s = _now_s()
            metrics.PARTITIONS_LOST.inc(**self._labels)
            _log.warning("partition_lost", **self._labels)
        finally:
            metrics.LAG.forget(**self._labels)

    async def _one_life(self) -> None:
        """Begin, and work until drained, lost, fenced or to be read again."""
        await self._begin()
        try:
            await self._batches()
            await self._finish()
        except Fenced as error:
            metrics.FENCES.inc(topic=self.tp.topic)
            self._shared.health.error(f"{self.tp.topic}/{self.tp.partition}", error)
            _log.warning("fenced", **self._labels)
        except Reread:
            _log.info("reread", **self._labels)
        finally:
            await self._stop_handler()
        # Two writers that fence each other would else spin, and so would endless reading again.
        await pause(self._draining, self._shared.retry.delay_s(1, self._shared.rng))

    async def _begin(self) -> None:
        """Start the handler and seek; on Retry both again."""
        attempt = 0
        while True:
            try:
                await self._gate()
                offset = await unless(self._draining, self._handler.start())
                offset = await self._locate(offset)
                self._expected = self._end = offset
                self._wanted, self._pending = None, False
                # Work that was durable before a crash, but not committed any more.
                self._note(offset)
                # Before `seek`, which lets records in: none may be dropped.
                self._accepting = True
                self.silent_since_s = _now_s()
                await self._shared.reader.seek(self.tp, offset)
            except (Retry, Fenced) as error:
                await self._stop_handler()
                attempt += 1
                await self._back_off(attempt, error)
            except BaseException:
                await self._stop_handler()
                raise
            else:
                self._shared.changed()
                return

    async def _locate(self, offset: int | None) -> int:
        """Return where to begin, given what the handler wants; note what is committed."""
        reader = self._shared.reader
        oldest = await reader.beginning(self.tp)
        committed = await reader.committed(self.tp)
        self._committed = oldest if committed is None else committed
        if offset is None:
            offset = self._committed
        if offset < oldest:
            metrics.OFFSET_GAPS.inc(oldest - offset, **self._labels)
            _log.error("records_deleted_unread", **self._labels, count=oldest - offset)
            return oldest
        return offset

    async def _batches(self) -> None:
        while not self._draining.is_set():
            unsettled = self._pending or self._wanted is not None
            idle_s = self._shared.retry.pending_s if unsettled else None
            batch = await self.buffer.take(idle_s)
            if self._draining.is_set():
                return
            self.silent_since_s = _now_s()
            self._shared.changed()
            if batch or self._pending:
                await self._process(batch)
            await self._commit()

    async def _finish(self) -> None:
        """Let work in the background end; what is unavailable now is left to the next owner."""
        if isinstance(self._handler, DrainingHandler):
            try:
                self._note(await self._handler.drain())
            except Retry as error:
                self._shared.health.error(f"{self.tp.topic}/{self.tp.partition}", error)
        await self._commit()

    async def _process(self, batch: Sequence[Record]) -> None:
        """Do one batch, however often it takes; raises Stopped when drained while waiting."""
        attempt = 0
        while True:
            await self._gate()
            began_s = _now_s()
            try:
                offset = await self._handler.process(batch)
            except Retry as error:
                attempt += 1
                await self._back_off(attempt, error)
                continue
            break
        self._shared.health.beat()
        if batch:
            self.buffer.worked(_now_s() - began_s)
            metrics.BATCH_SECONDS.observe(_now_s() - began_s, topic=self.tp.topic)
            metrics.BATCH_RECORDS.observe(len(batch), topic=self.tp.topic)
            metrics.RECORDS.inc(len(batch), **self._labels)
            metrics.RECORD_BYTES.inc(sum(record.size for record in batch), **self._labels)
            self._end = batch[-1].offset + 1
        self._note(offset)

    def _note(self, offset: int) -> None:
        """Remember what may be committed."""
        if offset > self._end:
            raise RuntimeError(f"the handler of {self.tp} returned an offset it was never given")
        self._pending = offset < self._end
        if offset > self._committed:
            self._wanted = offset

    async def _commit(self) -> None:
        """Commit what may be; without an answer, later."""
        if self._wanted is None:
            return
        try:
            await self._shared.reader.commit({self.tp: self._wanted})
        except Retry as error:
            metrics.COMMIT_FAILURES.inc(**self._labels)
            self._shared.health.error(f"commit {self.tp.topic}/{self.tp.partition}", error)
        else:
            self._committed, self._wanted = self._wanted, None

    async def _gate(self) -> None:
        if self._shared.gate is not None:
            await unless(self._draining, self._shared.gate.wait(self.tp))

    async def _back_off(self, attempt: int, error: SealstreamError) -> None:
        metrics.RETRIES.inc(topic=self.tp.topic, code=error.code.value)
        self._shared.health.error(f"{self.tp.topic}/{self.tp.partition}", error)
        delay_s = self._shared.retry.delay_s(attempt, self._shared.rng)
        _log.warning(
            "retry", **self._labels, attempt=attempt, delay_s=round(delay_s, 3), error=str(error)
        )
        await pause(self._draining, delay_s)

    async def _stop_handler(self) -> None:
        self._accepting = False
        self.buffer.clear()
        try:
            async with asyncio.timeout(self._shared.drain.close_s):
                await self._handler.stop()
        except TimeoutError:
            _log.error("handler_not_stopped_in_time", **self._labels)
        except Exception as error:
            # It only drops state; what it hides (a loss, a fence, a bug) matters more.
            _log.exception("handler_stop_failed", **self._labels)
            self._shared.health.error(f"{self.tp.topic}/{self.tp.partition}", error)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
