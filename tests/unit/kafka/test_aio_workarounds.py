"""One test for each workaround of aiokafka that needs no server; the others are in the contract.

The tables in `workers/kafka/aio*.py` name them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka import errors as kafka
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from schemas.topics import TopicSpec
from workers.errors import Fatal, Reject, Retry
from workers.kafka.aio import AioBroker, _was_created
from workers.kafka.aio_errors import translate
from workers.kafka.aio_group import _NOBODY, AioGroupReader, _Listener
from workers.kafka.aio_producer import _settle
from workers.kafka.broker import TP, Delivered
from workers.kafka.config import KafkaConfig
from workers.kafka.errors import PartitionLost

CONFIG = KafkaConfig(bootstrap="127.0.0.1:9", request_timeout_s=0.05)


class FakeConsumer:
    """What `AioGroupReader` uses of AIOKafkaConsumer."""

    def __init__(self) -> None:
        self.asked: list[tuple[TopicPartition, ...]] = []
        self.raises: BaseException | None = None
        self.hangs = False
        self._fetcher = self
        self._coordinator = None
        self.error_future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def _answer(self) -> Any:
        if self.hangs:
            await asyncio.Event().wait()
        if self.raises is not None:
            raise self.raises
        return {}

    async def getmany(self, *partitions: TopicPartition, **_options: Any) -> Any:
        self.asked.append(partitions)
        return await self._answer()

    async def commit(self, _offsets: Any) -> Any:
        return await self._answer()

    async def committed(self, _partition: Any) -> Any:
        return await self._answer()

    async def beginning_offsets(self, _partitions: Any) -> Any:
        return await self._answer()

    async def end_offsets(self, _partitions: Any) -> Any:
        return await self._answer()


@pytest.fixture
async def broker() -> AsyncIterator[AioBroker]:
    opened = AioBroker(CONFIG)
    yield opened
    await opened.aclose()


@pytest.fixture
async def reader(broker: AioBroker) -> AsyncIterator[AioGroupReader]:
    made = broker.group_reader("g", ["t"], bulk=True)
    real, made._consumer = made._consumer, FakeConsumer()
    yield made
    made._consumer = real


def fake(reader: AioGroupReader) -> FakeConsumer:
    found = reader._consumer
    assert isinstance(found, FakeConsumer)
    return found


def listener(reader: AioGroupReader, calls: list[str]) -> _Listener:
    def on_assigned(_tps: Any) -> None:
        calls.append("assigned")
        raise KeyError("ours")

    async def on_revoked(_tps: Any) -> None:
        raise KeyError("ours")

    def pause(*_partitions: TopicPartition) -> None:
        calls.append("pause")

    return _Listener(pause, reader._fail, on_assigned, on_revoked)


async def test_listener_failure_is_raised_by_fetch(reader: AioGroupReader) -> None:
    """aiokafka logs and swallows what a listener raises."""
    listener(reader, []).on_partitions_assigned([TopicPartition("t", 0)])
    with pytest.raises(Fatal, match="KeyError"):
        await reader.fetch([], 1, 0.0)
    reader._failure = None
    await listener(reader, []).on_partitions_revoked([TopicPartition("t", 0)])
    with pytest.raises(Fatal):
        await reader.fetch([], 1, 0.0)


async def test_pause_is_the_first_synchronous_step(reader: AioGroupReader) -> None:
    calls: list[str] = []
    result = listener(reader, calls).on_partitions_assigned([TopicPartition("t", 0)])
    assert result is None  # nothing that aiokafka could await
    assert calls == ["pause", "assigned"]


async def test_empty_ready_counts_as_polling(reader: AioGroupReader) -> None:
    """Not polling for max_poll_interval_ms leaves the group; polling () would ask for all."""
    assert await reader.fetch([], 1, 0.0) == {}
    assert fake(reader).asked == [(_NOBODY,)]


async def test_dead_fetch_task_is_fatal(reader: AioGroupReader) -> None:
    """https://github.com/aio-libs/aiokafka/issues/983: it would return {} for ever."""
    fake(reader).error_future.set_result(None)
    with pytest.raises(Fatal, match="fetch task"):
        await reader.fetch([TP("t", 0)], 1, 0.0)


@pytest.mark.parametrize(
    "error",
    [
        kafka.CommitFailedError(),
        kafka.IllegalStateError(),
        kafka.IllegalGenerationError(),
        kafka.UnknownMemberIdError(),
        kafka.RebalanceInProgressError(),
    ],
)
async def test_commit_after_loss_is_partition_lost(
    reader: AioGroupReader, error: BaseException
) -> None:
    fake(reader).raises = error
    with pytest.raises(PartitionLost):
        await reader.commit({TP("t", 0): 1})


async def test_deadlines(reader: AioGroupReader) -> None:
    """aiokafka repeats these for ever while the broker is away."""
    fake(reader).hangs = True
    tp = TP("t", 0)
    for call in (
        reader.commit({tp: 1}),
        reader.committed(tp),
        reader.beginning(tp),
        reader.end(tp),
    ):
        with pytest.raises(Retry, match="deadline"):
            await call


async def test_transient_fetch_error_is_survived(reader: AioGroupReader) -> None:
    fake(reader).raises = kafka.KafkaConnectionError()
    assert await reader.fetch([TP("t", 0)], 1, 0.001) == {}


async def test_skipped_record_is_fatal(reader: AioGroupReader) -> None:
    """aiokafka steps over a record that is too large, then raises: it would be lost."""
    fake(reader).raises = kafka.RecordTooLargeError()
    with pytest.raises(Fatal):
        await reader.fetch([TP("t", 0)], 1, 0.0)


async def test_sticky_state_is_not_shared(broker: AioBroker) -> None:
    one = broker.group_reader("g1", ["t"], bulk=True)
    two = broker.group_reader("g2", ["t"], bulk=True)
    [first] = one._consumer._partition_assignment_strategy
    [second] = two._consumer._partition_assignment_strategy
    assert first is not second
    assert issubclass(first, StickyPartitionAssignor)
    assert first.name == "sticky"
    first.member_assignment = [TopicPartition("t", 0)]
    assert second.member_assignment is None
    assert StickyPartitionAssignor.member_assignment is None


async def test_requests_outlast_a_drain(broker: AioBroker) -> None:
    """A JoinGroup waits for members that drain for up to half of the rebalance timeout."""
    made = broker.group_reader("g", ["t"], bulk=True)
    assert made._consumer._request_timeout_ms > CONFIG.rebalance_timeout_s / 2 * 1000
    assert made._consumer._rebalance_timeout_ms == CONFIG.rebalance_timeout_s * 1000
    assert not made._consumer._enable_auto_commit


def test_records_stay_out_of_logs(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("aiokafka").setLevel(logging.DEBUG)
    try:
        AioBroker(CONFIG)
        assert logging.getLogger("aiokafka.producer.producer").getEffectiveLevel() >= logging.INFO
    finally:
        logging.getLogger("aiokafka").setLevel(logging.NOTSET)


def test_passwords_stay_out_of_reprs() -> None:
    config = KafkaConfig(bootstrap="b:1", sasl_password="hunter2", tls_key_password="hunter2")
    assert "hunter2" not in repr(config)


def test_refused_topic_is_raised() -> None:
    """`create_topics` answers with codes; it does not raise."""
    assert _was_created("t", kafka.NoError.errno)
    assert not _was_created("t", kafka.TopicAlreadyExistsError.errno)
    with pytest.raises(Fatal):
        _was_created("t", kafka.TopicAuthorizationFailedError.errno)
    with pytest.raises(Retry):
        _was_created("t", kafka.NotControllerError.errno)


def test_replication_factor_of_the_broker_is_accepted() -> None:
    spec = TopicSpec("t", 2, None, compacted=True, mode="broadcast")
    topic = AioBroker(CONFIG)._new_topic(spec)
    assert (topic.num_partitions, topic.replication_factor) == (2, -1)
    assert topic.topic_configs["cleanup.policy"] == "compact"


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (kafka.MessageSizeTooLargeError(), Reject),
        (kafka.KafkaTimeoutError(), Retry),
        (TimeoutError(), Retry),
        (ConnectionResetError("with a secret in it"), Retry),
        (kafka.GroupAuthorizationFailedError(), Fatal),
        (kafka.SaslAuthenticationFailed(), Fatal),
    ],
)
def test_translation(error: BaseException, meaning: type[Exception]) -> None:
    translated = translate(error)
    assert isinstance(translated, meaning)
    assert "secret" not in str(translated)


async def test_acknowledgements_are_passed_on() -> None:
    loop = asyncio.get_running_loop()

    class Meta:
        partition, offset = 3, 7

    for outcome in (Meta(), kafka.NotEnoughReplicasError(), None):
        raw: asyncio.Future[Any] = loop.create_future()
        ours: asyncio.Future[Delivered] = loop.create_future()
        if outcome is None:
            raw.cancel()
        elif isinstance(outcome, Exception):
            raw.set_exception(outcome)
        else:
            raw.set_result(outcome)
        _settle(ours, raw)
        if isinstance(outcome, Meta):
            assert await ours == (3, 7)
        else:
            with pytest.raises(Retry):
                await ours
    # A caller that gave up does not make aiokafka's exception a warning.
    raw, ours = loop.create_future(), loop.create_future()
    raw.set_exception(kafka.RequestTimedOutError())
    ours.cancel()
    _settle(ours, raw)


async def test_unreachable_broker_is_retry() -> None:
    broker = AioBroker(KafkaConfig(bootstrap="127.0.0.1:9", request_timeout_s=1.0))
    with pytest.raises(Retry):
        await broker.producer()
    with pytest.raises(Retry):
        await broker.partitions("t")
    with pytest.raises(Retry):
        await broker.group_reader(secrets.token_hex(2), ["t"], bulk=True).start(
            lambda _: None, lambda _: asyncio.sleep(0)
        )
    with pytest.raises(Retry):
        await broker.topic_reader(["t"], start="end").start()
    await broker.aclose()
