"""The loop of a worker on a group topic: fetch, hand out, watch, drain.

One task polls the broker for those partitions that can take more (so nothing else ever waits on
the broker); one task works on each partition; one watches. What goes wrong in one partition stays
there, except what ends the process: then every task is cancelled and `run` raises.

Killing anything at any time loses nothing: see `partition.py`. A stop drains first, each step with
a deadline, then leaves the group.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import structlog

from schemas.errors import ErrorCode
from workers.errors import Fatal, Retry
from workers.kafka.broker import TP, Broker, GroupReader
from workers.runtime.health import Health
from workers.runtime.partition import Partition, Surroundings
from workers.runtime.policy import (
    BatchPolicy,
    DrainPolicy,
    Gate,
    PartitionHandler,
    RetryPolicy,
    WatchdogPolicy,
)
from workers.runtime.wait import Stopped, event_within, pause, unless
from workers.telemetry import metrics

_log = structlog.get_logger(__name__)

# A fetch that returns nothing ends after this, to look for partitions that became ready meanwhile.
_FETCH_S = 0.5
_PARTLY_READY_FETCH_S = 0.05
# Polls that keep the membership alive while nothing is ready.
_IDLE_S = 1.0

Factory = Callable[[TP], PartitionHandler]


class Pump:
    """Runs a handler on every partition that the group gives to this process.

    Args:
        broker: makes the reader.
        group: name of the consumer group.
        topics: work topics, with prefix.
        factory: makes the handler of a newly assigned partition.
        policy, retry, drain, watchdog: see `policy.py`.
        gate: every batch waits for it.
        health: told about work and errors.
        bulk, wait_ms: see `Broker.group_reader`.
        rng: jitter of the back-off (tests).
    """

    def __init__(
        self,
        broker: Broker,
        group: str,
        topics: Sequence[str],
        factory: Factory,
        *,
        policy: BatchPolicy | None = None,
        gate: Gate | None = None,
        health: Health | None = None,
        retry: RetryPolicy | None = None,
        drain: DrainPolicy | None = None,
        watchdog: WatchdogPolicy | None = None,
        bulk: bool = True,
        wait_ms: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._broker = broker
        self._group = group
        self._topics = list(topics)
        self._factory = factory
        self._policy = policy or BatchPolicy()
        self._gate = gate
        self._health = health or Health(group)
        self._retry = retry or RetryPolicy()
        self._drain = drain or DrainPolicy()
        self._watchdog = watchdog or WatchdogPolicy()
        self._bulk = bulk
        self._wait_ms = wait_ms
        self._rng = rng or random.Random()  # noqa: S311  (jitter)
        self._changed = asyncio.Event()
        self._assigned = asyncio.Event()
        self._partitions: dict[TP, tuple[Partition, asyncio.Task[None]]] = {}
        self._leaving = False

    @property
    def partitions(self) -> list[TP]:
        """The partitions that are worked on now."""
        return sorted(self._partitions)

    async def wait_assigned(self) -> None:
        """Wait for the first assignment (which may be empty)."""
        await self._assigned.wait()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, drain, leave the group.

        Raises:
            Fatal: the client died, or a partition stands still although it has records.
            Anything a handler raises that is not Retry, Fenced or PartitionLost.
        """
        reader: GroupReader | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = await self._join(tasks, stop)
                loops = [
                    tasks.create_task(self._fetch(reader)),
                    tasks.create_task(self._watch(reader)),
                ]
                await stop.wait()
                self._leaving = True
                await self._end(list(self._partitions), self._drain.finish_s)
                for loop in loops:
                    loop.cancel()
        except BaseExceptionGroup as group:
            error = _first(group)
            if not isinstance(error, Stopped):
                raise error from group
        finally:
            self._leaving = True
            metrics.PARTITIONS.forget(group=self._group)
            if reader is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._drain.close_s):
                        await reader.stop()

    async def _join(self, tasks: asyncio.TaskGroup, stop: asyncio.Event) -> GroupReader:
        """Return a started reader; the broker may be away for a while."""
        attempt = 0
        while True:
            reader = self._broker.group_reader(
                self._group, self._topics, bulk=self._bulk, wait_ms=self._wait_ms
            )

            def on_assigned(tps: Collection[TP], reader: GroupReader = reader) -> None:
                self._on_assigned(tps, reader, tasks)

            async def on_revoked(tps: Collection[TP], reader: GroupReader = reader) -> None:
                half_s = reader.rebalance_timeout_s / 2 - self._drain.close_s
                await self._end(tps, max(half_s, reader.rebalance_timeout_s / 4))

            try:
                await unless(stop, reader.start(on_assigned, on_revoked))
            except Retry as error:
                await reader.stop()
                attempt += 1
                self._health.error(f"join {self._group}", error)
                _log.warning("join_failed", group=self._group, attempt=attempt, error=str(error))
                await pause(stop, self._retry.delay_s(attempt, self._rng))
            except BaseException:
                await reader.stop()
                raise
            else:
                return reader

    def _on_assigned(
        self, tps: Collection[TP], reader: GroupReader, tasks: asyncio.TaskGroup
    ) -> None:
        if self._leaving:
            return
        shared = Surroundings(
            reader,
            self._policy,
            self._retry,
            self._drain,
            self._gate,
            self._health,
            self._rng,
            self._changed.set,
        )
        for tp in tps:
            if tp in self._partitions:
                raise RuntimeError(f"{tp} was assigned twice")
            partition = Partition(tp, self._factory(tp), shared)
            work = partition.run()
            try:
                self._partitions[tp] = partition, tasks.create_task(work)
            except RuntimeError:  # another task has failed just now: all is ending
                work.close()
                return
        metrics.REBALANCES.inc(group=self._group)
        self._report()
        self._assigned.set()

    async def _end(self, tps: Collection[TP], finish_s: float) -> None:
        """Drain partitions, all at once; what takes longer than `finish_s` is cancelled."""
        # A revocation may come while a stop drains: both wait for the same tasks.
        running = {
            task: partition
            for partition, task in (self._partitions[tp] for tp in tps if tp in self._partitions)
        }
        if not running:
            return
        for partition in running.values():
            partition.drain()
        _, late = await asyncio.wait(running, timeout=finish_s)
        for task in late:
            metrics.DRAIN_CANCELLED.inc(topic=running[task].tp.topic)
            _log.warning("drain_cut_off", partition=str(running[task].tp))
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=self._drain.close_s)
        for task, partition in running.items():
            if self._partitions.get(partition.tp) == (partition, task):
                del self._partitions[partition.tp]
        self._report()

    def _report(self) -> None:
        metrics.PARTITIONS.set(len(self._partitions), group=self._group)
        self._health.set("partitions", [f"{tp.topic}/{tp.partition}" for tp in self.partitions])

    async def _fetch(self, reader: GroupReader) -> None:
        while True:
            self._changed.clear()
            limit_bytes = self._limit_bytes()
            ready = [tp for tp, (part, _) in self._partitions.items() if part.ready(limit_bytes)]
            buffered = sum(part.buffer.bytes for part, _ in self._partitions.values())
            metrics.BUFFERED_BYTES.set(buffered, group=self._group)
            if not ready:
                # Not within the broker, where a partition that becomes ready would not be seen.
                if not await event_within(self._changed, _IDLE_S):
                    await reader.fetch((), 1, 0.0)
                continue
            timeout_s = _FETCH_S if len(ready) == len(self._partitions) else _PARTLY_READY_FETCH_S
            found = await reader.fetch(ready, self._policy.max_records, timeout_s)
            for tp, records in found.items():
                if tp in self._partitions:
                    self._partitions[tp][0].deliver(records)

    def _limit_bytes(self) -> int:
        share = self._policy.max_buffered_bytes // max(1, len(self._partitions))
        return max(self._policy.max_bytes, min(2 * self._policy.max_bytes, share))

    async def _watch(self, reader: GroupReader) -> None:
        """Export lag; end the process when a partition stands still although it has records.

        aiokafka can stop fetching silently (its issues 983, 847, 703, 625).
        """
        silent_s = self._watchdog.silent_s
        suspects: set[TP] = set()
        while True:
            await asyncio.sleep(silent_s / 4)
            now_s = asyncio.get_running_loop().time()
            limit_bytes = self._limit_bytes()
            found: set[TP] = set()
            for tp, (partition, _) in list(self._partitions.items()):
                lost_s = now_s - (partition.lost_since_s or now_s)
                if lost_s > 2 * reader.rebalance_timeout_s:
                    raise _stuck(tp, "was lost, but no rebalance followed")
                with suppress(Retry):
                    behind = await self._behind(reader, tp, partition)
                    silent = now_s - partition.silent_since_s > silent_s
                    if behind and silent and partition.ready(limit_bytes):
                        found.add(tp)
            # Twice in a row: a record may have come just now.
            for tp in suspects & found:
                raise _stuck(tp, "delivers nothing although it has records")
            suspects = found

    async def _behind(self, reader: GroupReader, tp: TP, partition: Partition) -> bool:
        end = await reader.end(tp)
        position = await reader.position(tp)
        done = partition.committed
        if tp in self._partitions and done is not None:
            labels = {"topic": tp.topic, "partition": str(tp.partition)}
            metrics.LAG.set(max(0, end - done), **labels)
        return position is not None and position < end


def _stuck(tp: TP, why: str) -> Fatal:
    return Fatal(ErrorCode.STORAGE_UNAVAILABLE, f"{tp.topic}/{tp.partition} {why}")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error that ended the process; the others were cancelled because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
