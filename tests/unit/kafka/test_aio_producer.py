"""What `AioProducer` does about idempotent clients that fail; its module's table names it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors as kafka

from workers.errors import Fatal, Reject, Retry
from workers.kafka import aio_producer
from workers.kafka.aio_producer import AioProducer, Idempotence
from workers.kafka.config import Idempotent, KafkaConfig

DEADLINE_S = 60.0


class FakeClient:
    """What `AioProducer` uses of AIOKafkaProducer; every send waits for `outcome`."""

    made: list[FakeClient] = []
    refuses: Exception | None = None

    def __init__(self, *, enable_idempotence: bool, **_options: Any) -> None:
        self.idempotent = enable_idempotence
        self.sent: list[asyncio.Future[Any]] = []
        self.stopped = asyncio.Event()
        self.hangs = False
        self.ended: list[str] = []
        loop = asyncio.get_running_loop()
        self._sender = SimpleNamespace(sender_task=loop.create_future(), close=self._end("sender"))
        self._message_accumulator = SimpleNamespace(fail_all=lambda _: self.ended.append("records"))
        self.client = SimpleNamespace(close=self._end("connections"))
        FakeClient.made.append(self)

    def _end(self, what: str) -> Any:
        async def end() -> None:
            self.ended.append(what)

        return end

    async def start(self) -> None:
        if self.idempotent and FakeClient.refuses is not None:
            raise FakeClient.refuses

    async def send(self, *_record: Any, **_options: Any) -> asyncio.Future[Any]:
        raw: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent.append(raw)
        return raw

    async def flush(self) -> None:
        if self.sent:
            await asyncio.wait(self.sent)

    async def stop(self) -> None:
        self.stopped.set()
        if self.hangs:
            await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeClient.made, FakeClient.refuses = [], None
    monkeypatch.setattr(aio_producer, "AIOKafkaProducer", FakeClient)


async def started(idempotent: Idempotent = "auto", deadline_s: float = DEADLINE_S) -> AioProducer:
    config = KafkaConfig(bootstrap="nowhere:1", request_timeout_s=deadline_s)
    producer = AioProducer(config, {}, 0, Idempotence(idempotent))
    await producer.start()
    return producer


def acknowledged(offset: int, log_start: int = 0) -> Any:
    return SimpleNamespace(partition=0, offset=offset, log_start_offset=log_start)


async def test_without_idempotence_nobody_asks() -> None:
    producer = await started(False)
    assert [client.idempotent for client in FakeClient.made] == [False]
    assert not producer.idempotent
    await producer.stop()


@pytest.mark.parametrize(
    "refusal",
    [
        kafka.UnknownError(),
        kafka.UnsupportedVersionError(),
        kafka.ClusterAuthorizationFailedError(),
        NotImplementedError("no such version"),
    ],
)
async def test_a_broker_without_it_is_asked_once(refusal: Exception) -> None:
    FakeClient.refuses = refusal
    config = KafkaConfig(bootstrap="nowhere:1")
    shared = Idempotence("auto")
    producers = [AioProducer(config, {}, 0, shared) for _ in range(2)]
    for producer in producers:
        await producer.start()
        assert not producer.idempotent
    assert [client.idempotent for client in FakeClient.made] == [True, False, False]
    assert FakeClient.made[0].stopped.is_set()
    for producer in producers:
        await producer.stop()


async def test_who_insists_is_told() -> None:
    FakeClient.refuses = kafka.UnknownError()
    with pytest.raises(Fatal, match="idempotent_producer"):
        await started(True)
    assert FakeClient.made[0].stopped.is_set()


async def test_a_failed_record_retires_its_client() -> None:
    producer = await started()
    [first] = FakeClient.made
    failed = await producer.send("t", b"1")
    waiting = await producer.send("t", b"2")
    first.sent[0].set_exception(kafka.MessageSizeTooLargeError())
    with pytest.raises(Reject):
        await failed
    later = await producer.send("t", b"3")
    assert len(FakeClient.made) == 2
    # What the first client still has may succeed.
    first.sent[1].set_result(acknowledged(1))
    assert await waiting == (0, 1)
    FakeClient.made[1].sent[0].set_result(acknowledged(2))
    assert await later == (0, 2)
    await first.stopped.wait()
    await producer.stop()
    assert FakeClient.made[1].stopped.is_set()


async def test_an_idempotent_record_has_a_deadline() -> None:
    producer = await started(deadline_s=0.05)
    [first] = FakeClient.made
    first.hangs = True
    with pytest.raises(Retry):
        await producer.send_and_wait("t", b"1")
    again = await producer.send("t", b"1")
    FakeClient.made[1].sent[0].set_result(acknowledged(0))
    assert await again == (0, 0)
    await producer.stop()
    assert first.ended == ["records", "connections", "sender"]


async def test_a_dead_sender_is_replaced() -> None:
    producer = await started(False)
    FakeClient.made[0]._sender.sender_task.set_exception(kafka.KafkaError("it died"))
    await FakeClient.made[0].stopped.wait()
    sent = await producer.send("t", b"1")
    FakeClient.made[1].sent[0].set_result(acknowledged(0))
    assert await sent == (0, 0)
    await producer.stop()


async def test_a_duplicate_without_a_place_is_retry() -> None:
    producer = await started()
    sent = await producer.send("t", b"1")
    FakeClient.made[0].sent[0].set_result(acknowledged(4, log_start=-1))
    with pytest.raises(Retry):
        await sent
    assert len(FakeClient.made) == 1
    await producer.stop()


async def test_a_closed_producer_stays_closed() -> None:
    producer = await started()
    await producer.stop()
    with pytest.raises(Retry):
        await producer.send("t", b"1")
    assert len(FakeClient.made) == 1
