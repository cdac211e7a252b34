"""The loop of a worker that answers requests: many at once, in no order.

Each record is handed to `handle` on its own. A partition's committed offset is that of its lowest
unfinished record, so a request that was not answered when the process died is delivered again;
answers may therefore come twice, with the same request id.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import structlog

from schemas.errors import ErrorCode
from workers.errors import Retry
from workers.kafka.broker import TP, Broker, Record
from workers.runtime.health import Health
from workers.runtime.policy import (
    BatchPolicy,
    DrainPolicy,
    Gate,
    RetryPolicy,
    WatchdogPolicy,
)
from workers.runtime.pump import Pump
from workers.runtime.wait import Stopped, event_within, pause
from workers.telemetry import metrics

_log = structlog.get_logger(__name__)

_ROOM_S = 1.0

Handle = Callable[[Record], Awaitable[None]]


class EachPump(Pump):
    """Runs `handle` on every record, up to `max_concurrency` at once.

    `handle` raises Retry to be called again with the same record, after a pause that holds no
    place; everything else it raises ends the process: answering with an error is its own work.

    Args:
        broker, group, topics, gate, health, retry, drain, watchdog, rng: as for `Pump`.
        handle: answers one record.
        max_concurrency: calls of `handle` at the same time, over all partitions. A partition may
            have twice as many unfinished records, those that pause included.
    """

    def __init__(
        self,
        broker: Broker,
        group: str,
        topics: Sequence[str],
        handle: Handle,
        *,
        max_concurrency: int = 64,
        gate: Gate | None = None,
        health: Health | None = None,
        retry: RetryPolicy | None = None,
        drain: DrainPolicy | None = None,
        watchdog: WatchdogPolicy | None = None,
        bulk: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        retry = retry or RetryPolicy(max_s=2.0, pending_s=0.2)
        rng = rng or random.Random()  # noqa: S311  (jitter)
        places = asyncio.Semaphore(max_concurrency)

        health = health or Health(group)

        def factory(_tp: TP) -> _Requests:
            return _Requests(handle, places, 2 * max_concurrency, retry, health, rng)

        super().__init__(
            broker,
            group,
            topics,
            factory,
            policy=BatchPolicy(max_records=max_concurrency, linger_s=0.0),
            gate=gate,
            health=health,
            retry=retry,
            drain=drain,
            watchdog=watchdog,
            bulk=bulk,
            rng=rng,
        )


class _Requests:
    """The unfinished requests of a partition (a `DrainingHandler`).

    Invariant: `_running` has a task for every record below `_end` that is not finished.
    """

    def __init__(
        self,
        handle: Handle,
        places: asyncio.Semaphore,
        max_unfinished: int,
        retry: RetryPolicy,
        health: Health,
        rng: random.Random,
    ) -> None:
        self._handle = handle
        self._places = places
        self._max_unfinished = max_unfinished
        self._retry = retry
        self._health = health
        self._rng = rng
        self._running: dict[int, asyncio.Task[None]] = {}
        self._end = 0
        # The pump repeats the very same batch after a Retry: how much of it was taken.
        self._batch: Sequence[Record] = ()
        self._taken = 0
        self._finished = asyncio.Event()
        self._draining = asyncio.Event()

    async def start(self) -> int | None:
        self._draining.clear()
        return None

    async def process(self, batch: Sequence[Record]) -> int:
        if batch is not self._batch:
            self._batch, self._taken = batch, 0
        for record in batch[self._taken :]:
            await self._room()
            task = asyncio.create_task(self._one(record))
            task.add_done_callback(lambda _: self._finished.set())
            self._running[record.offset] = task
            self._end = record.offset + 1
            self._taken += 1
        self._reap()
        return self._lowest()

    async def _room(self) -> None:
        """Wait until another request may begin; Retry lets a drain come in between."""
        while len(self._running) >= self._max_unfinished:
            self._finished.clear()
            if not await event_within(self._finished, _ROOM_S):
                raise Retry(ErrorCode.OVERLOADED, "too many requests are unfinished")
            self._reap()

    async def drain(self) -> int:
        """Let the requests in progress end; those that pause stay uncommitted."""
        self._draining.set()
        if self._running:
            await asyncio.wait(self._running.values())
        self._reap()
        return self._lowest()

    async def stop(self) -> None:
        self._draining.set()
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._running.clear()

    def _reap(self) -> None:
        """Forget the finished requests; raise what one of them raised."""
        for offset, task in list(self._running.items()):
            if not task.done():
                continue
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Stopped):
                continue
            if error is not None:
                raise error
            del self._running[offset]

    def _lowest(self) -> int:
        return min(self._running, default=self._end)

    async def _one(self, record: Record) -> None:
        attempt = 0
        while True:
            try:
                async with self._places:
                    await self._handle(record)
            except Retry as error:
                attempt += 1
                metrics.RETRIES.inc(topic=record.topic, code=error.code.value)
                self._health.error(record.topic, error)
                _log.warning("request_retry", topic=record.topic, attempt=attempt, error=str(error))
                await pause(self._draining, self._retry.delay_s(attempt, self._rng))
            else:
                return
