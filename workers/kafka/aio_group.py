"""A member of a consumer group on aiokafka 0.14, with what is known to bite worked around.

| bite | what is done | test |
|---|---|---|
| records can arrive while `on_partitions_assigned` runs | it is synchronous and pauses first; a partition delivers after its first `seek` | `test_nothing_is_delivered_before_the_first_seek` |
| exceptions of a rebalance listener are logged and swallowed | kept, raised by `fetch` | `test_listener_failure_is_raised_by_fetch` |
| an empty `getmany()` means all partitions | a partition that nobody has is asked instead | `test_empty_ready_returns_nothing` |
| without `getmany` for `max_poll_interval_ms` the member leaves its group | the same: we poll also when nothing is ready | `test_empty_ready_counts_as_polling` |
| a dead fetch task returns {} for ever, https://github.com/aio-libs/aiokafka/issues/983 | its task is looked at; and the pump's watchdog | `test_dead_fetch_task_is_fatal` |
| the sticky assignor keeps its state in its class: two groups in one process mix | a class of its own for every reader | `test_sticky_state_is_not_shared` |
| a commit after losing the partition raises one of five errors | all mean `PartitionLost` | `test_commit_after_loss_is_partition_lost` |
| `commit()` without offsets commits what was fetched | offsets are always given | `test_commit_needs_offsets` |
| `commit`, `committed`, `beginning_offsets` repeat for ever while the broker is away | a deadline: `Retry` | `test_deadlines` |
| JoinGroup waits for all members but has the deadline of any request | requests may take longer than a drain | `test_requests_outlast_a_drain` |
| only eager rebalancing, https://github.com/aio-libs/aiokafka/issues/1126 | every rebalance drains all partitions; sticky assignor | - |
| it leaves a group only if its generation is above 0; Tansu counts from 0: its partitions would wait for the session timeout | the generation is raised before | `test_partitions_are_free_after_stop` |
| `stop()` does not call the revocation listener | the pump drains first | `test_stop_does_not_revoke` |
"""  # noqa: E501

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.structs import ConsumerRecord

from schemas.errors import ErrorCode
from workers.errors import Fatal
from workers.kafka.aio_errors import translate, translated
from workers.kafka.broker import TP, OnAssigned, OnRevoked, Record
from workers.kafka.config import KafkaConfig
from workers.kafka.errors import PartitionLost

_log = structlog.get_logger(__name__)

_NOBODY = TopicPartition("", 0)
_MOST_PATIENCE_MS = 2000
_QUICK_MS = 20
_BULK_MS = 500
_ERROR_PAUSE_S = 0.2


def fetch_options(config: KafkaConfig, *, bulk: bool, wait_ms: int | None = None) -> dict[str, Any]:
    """Return the fetch settings: request/reply readers wait 20 ms for data, bulk readers 500.

    With the default of 500 a message that comes while a fetch of *another* partition waits is seen
    half a second late (253 ms measured for two hops, 12-22 ms with 20).
    """
    return {
        "fetch_max_wait_ms": fetch_wait_ms(bulk=bulk, wait_ms=wait_ms),
        "max_partition_fetch_bytes": max(config.request_bytes, 1024 * 1024),
        "fetch_max_bytes": (16 if bulk else 4) * max(config.request_bytes, 1024 * 1024),
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "metadata_max_age_ms": 30_000,
    }


def fetch_wait_ms(*, bulk: bool, wait_ms: int | None = None) -> int:
    """Return how long the broker waits for data when there is none, in milliseconds."""
    if wait_ms is None:
        return _BULK_MS if bulk else _QUICK_MS
    return min(max(wait_ms, _QUICK_MS), _BULK_MS)


class Patience:
    """How long the broker may take over a fetch: as little as asked, more while it starves us.

    Tansu 0.6 gives a fetch up when its maximum wait is over, also when records are due and only
    their object was not read yet; then it answers with nothing. On a busy machine 20 ms are never
    enough, and a reader that is behind would stay there for ever.
    """

    def __init__(
        self, consumer: AIOKafkaConsumer, *, bulk: bool, wait_ms: int | None = None
    ) -> None:
        self._consumer = consumer
        self._least_ms = self._now_ms = fetch_wait_ms(bulk=bulk, wait_ms=wait_ms)

    def note(self, asked: Iterable[TopicPartition], *, found: bool) -> None:
        """Take in whether the last look at the fetched records of `asked` gave any."""
        if found:
            return
        behind = self._behind(asked)
        wait_ms = min(2 * self._now_ms, _MOST_PATIENCE_MS) if behind else self._least_ms
        self._set(wait_ms)

    def most(self) -> None:
        """Wait as long as it takes: for a record that is known to be there."""
        self._set(_MOST_PATIENCE_MS)

    def _set(self, wait_ms: int) -> None:
        if wait_ms != self._now_ms:
            self._now_ms = wait_ms
            self._consumer._fetcher._fetch_max_wait_ms = wait_ms  # noqa: SLF001

    def _behind(self, asked: Iterable[TopicPartition]) -> bool:
        mine = self._consumer.assignment().intersection(asked)
        if not mine:
            return False
        assigned = self._consumer._subscription.subscription.assignment  # noqa: SLF001
        states = [assigned.state_value(partition) for partition in mine]
        return any(
            state.has_valid_position
            and state.highwater is not None
            and state.position < state.highwater
            for state in states
            if state is not None
        )


def check_alive(consumer: AIOKafkaConsumer) -> None:
    """Raise Fatal if the client's fetch task has ended: it would return nothing for ever.

    https://github.com/aio-libs/aiokafka/issues/983
    """
    if consumer._fetcher is not None and consumer._fetcher.error_future.done():  # noqa: SLF001
        raise Fatal(ErrorCode.STORAGE_UNAVAILABLE, "the Kafka client's fetch task has died")


def to_record(raw: ConsumerRecord[bytes | None, bytes | None]) -> Record:
    """Return aiokafka's record as ours."""
    headers = tuple((name, bytes(value or b"")) for name, value in raw.headers)
    stamp = raw.timestamp if raw.timestamp is not None else -1
    return Record(raw.topic, raw.partition, raw.offset, stamp, raw.key, raw.value, headers)


class AioGroupReader:
    """A `GroupReader` on aiokafka.

    Args:
        config: connection and limits.
        connection: keyword arguments of every aiokafka client.
        group: name of the consumer group.
        topics: what it reads.
        bulk: prefer large fetches to latency.
        wait_ms: see `Broker.group_reader`.
    """

    def __init__(
        self,
        config: KafkaConfig,
        connection: dict[str, Any],
        group: str,
        topics: Sequence[str],
        *,
        bulk: bool,
        wait_ms: int | None = None,
    ) -> None:
        self.rebalance_timeout_s = config.rebalance_timeout_s
        self._deadline_s = config.request_timeout_s
        self._topics = list(topics)
        self._failure: Exception | None = None
        sticky = type(
            "StickyOfOneReader",
            (StickyPartitionAssignor,),
            {"member_assignment": None, "generation": -1},
        )
        self._consumer = AIOKafkaConsumer(
            **connection,
            **fetch_options(config, bulk=bulk, wait_ms=wait_ms),
            group_id=group,
            partition_assignment_strategy=(sticky,),
            session_timeout_ms=int(config.session_timeout_s * 1000),
            heartbeat_interval_ms=int(min(3.0, config.session_timeout_s / 4) * 1000),
            rebalance_timeout_ms=int(config.rebalance_timeout_s * 1000),
            request_timeout_ms=int(_group_request_timeout_s(config) * 1000),
        )
        self._patience = Patience(self._consumer, bulk=bulk, wait_ms=wait_ms)

    async def start(self, on_assigned: OnAssigned, on_revoked: OnRevoked) -> None:
        """Join the group; returns before the first assignment."""
        with translated():
            async with asyncio.timeout(self._deadline_s):
                await self._consumer.start()
        self._consumer.subscribe(
            topics=self._topics,
            listener=_Listener(self._consumer.pause, self._fail, on_assigned, on_revoked),
        )

    async def fetch(
        self, ready: Collection[TP], max_records: int, timeout_s: float
    ) -> dict[TP, list[Record]]:
        """Return records of the `ready` partitions only."""
        if self._failure is not None:
            raise Fatal(
                ErrorCode.STORAGE_UNAVAILABLE,
                f"a rebalance callback failed ({type(self._failure).__name__})",
            ) from self._failure
        check_alive(self._consumer)
        wanted = [TopicPartition(*tp) for tp in ready] or [_NOBODY]
        try:
            found = await self._consumer.getmany(
                *wanted, timeout_ms=int(timeout_s * 1000), max_records=max_records
            )
        except kafka.ConsumerStoppedError:
            return {}
        except kafka.KafkaError as error:
            meaning = translate(error)
            if isinstance(meaning, Fatal):
                raise meaning from None
            _log.warning("fetch_failed", error=type(error).__name__)
            await asyncio.sleep(min(timeout_s, _ERROR_PAUSE_S))
            return {}
        self._patience.note(wanted, found=bool(found))
        return {TP(*tp): [to_record(raw) for raw in batch] for tp, batch in found.items()}

    async def seek(self, tp: TP, offset: int) -> None:
        """Read `tp` from `offset` on, and begin to deliver it."""
        partition = TopicPartition(*tp)
        with translated():
            if partition not in self._consumer.assignment():
                raise PartitionLost("not assigned")
            self._consumer.seek(partition, offset)
            if partition in self._consumer.paused():
                self._consumer.resume(partition)

    async def committed(self, tp: TP) -> int | None:
        """Return the group's committed offset, or None."""
        with translated():
            async with asyncio.timeout(self._deadline_s):
                offset: int | None = await self._consumer.committed(TopicPartition(*tp))
                return offset

    async def commit(self, offsets: Mapping[TP, int]) -> None:
        """Commit the next offsets to read."""
        if not offsets:
            raise ValueError("commit needs offsets")
        with translated():
            async with asyncio.timeout(self._deadline_s):
                await self._consumer.commit(
                    {TopicPartition(*tp): offset for tp, offset in offsets.items()}
                )

    async def beginning(self, tp: TP) -> int:
        """Return the offset of the oldest record kept."""
        partition = TopicPartition(*tp)
        with translated():
            async with asyncio.timeout(self._deadline_s):
                offset: int = (await self._consumer.beginning_offsets([partition]))[partition]
                return offset

    async def end(self, tp: TP) -> int:
        """Return the offset after the newest record."""
        partition = TopicPartition(*tp)
        with translated():
            async with asyncio.timeout(self._deadline_s):
                offset: int = (await self._consumer.end_offsets([partition]))[partition]
        # End offsets may be too low: aio_ends.py.
        mark = (
            self._consumer.highwater(partition)
            if partition in self._consumer.assignment()
            else None
        )
        return max(offset, mark or 0)

    async def position(self, tp: TP) -> int | None:
        """Return the offset that the next fetch begins at, or None if it is not assigned."""
        partition = TopicPartition(*tp)
        if partition not in self._consumer.assignment():
            return None
        with translated():
            async with asyncio.timeout(self._deadline_s):
                offset: int = await self._consumer.position(partition)
                return offset

    async def stop(self) -> None:
        """Leave the group."""
        coordinator = self._consumer._coordinator  # noqa: SLF001
        if coordinator is not None and coordinator.generation == 0:
            coordinator.generation = 1
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._consumer.stop()
        except TimeoutError:
            _log.warning("group_reader_not_closed_in_time")

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Calls ours. Both methods run inside aiokafka's coordination task."""

    def __init__(
        self,
        pause: Callable[..., None],
        fail: Callable[[Exception], None],
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
    ) -> None:
        self._pause = pause
        self._fail = fail
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._pause(*assigned)
        try:
            self._on_assigned([TP(*tp) for tp in sorted(assigned)])
        except Exception as error:  # aiokafka would only log it
            self._fail(error)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        if not revoked:
            return
        try:
            await self._on_revoked([TP(*tp) for tp in sorted(revoked)])
        except Exception as error:  # aiokafka would only log it
            self._fail(error)


def _group_request_timeout_s(config: KafkaConfig) -> float:
    """Return a deadline that a JoinGroup keeps which waits for another member's drain."""
    return max(config.request_timeout_s, config.rebalance_timeout_s / 2 + 10.0)
