"""What Apache Kafka has and Tansu has not: its own times, producers that send once, compaction."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import AIOKafkaConnection
from kafka_kit import Kafka

from schemas.topics import INDEX_UPDATE, PLAINTEXT_INGEST, QUERY_REQUEST
from workers.errors import Reject
from workers.kafka.aio import AioBroker
from workers.kafka.broker import TP, Record
from workers.kafka.config import KafkaConfig
from workers.local.topics import apply_topics
from workers.settings import Settings

pytestmark = pytest.mark.core

DEADLINE_S = 240.0
PRODUCE = 0
# 2001: a certificate that was valid then would let anybody write.
FORGED_MS = 1_000_000_000_000


@pytest.fixture
async def broker(apache_kafka: Kafka) -> AsyncIterator[AioBroker]:
    opened = AioBroker(KafkaConfig(bootstrap=apache_kafka.bootstrap))
    yield opened
    await opened.aclose()


async def test_a_forged_time_does_not_survive(apache_kafka: Kafka, broker: AioBroker) -> None:
    prefix = f"{secrets.token_hex(4)}."
    settings = Settings(kafka_bootstrap=apache_kafka.bootstrap, topic_prefix=prefix)
    await apply_topics(settings)
    async with AIOKafkaProducer(bootstrap_servers=apache_kafka.bootstrap) as producer:
        before_ms = int(time.time() * 1000)
        for topic in (INDEX_UPDATE, QUERY_REQUEST, PLAINTEXT_INGEST):
            await producer.send_and_wait(prefix + topic, b"x", partition=0, timestamp_ms=FORGED_MS)
    for topic in (INDEX_UPDATE, QUERY_REQUEST):
        judged = await broker.read(TP(prefix + topic, 0), 0)
        assert judged is not None
        assert before_ms <= judged.timestamp_ms <= time.time() * 1000
    # The positive control: elsewhere a producer's time is kept.
    control = await broker.read(TP(prefix + PLAINTEXT_INGEST, 0), 0)
    assert control is not None
    assert control.timestamp_ms == FORGED_MS


async def make_topic(kafka: Kafka, partitions: int, **config: str) -> str:
    name = f"apache-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        settings = {option.replace("_", "."): value for option, value in config.items()}
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
    finally:
        await admin.close()
    return name


async def test_a_failed_batch_spoils_no_later_one(apache_kafka: Kafka, broker: AioBroker) -> None:
    """The sequence numbers of an idempotent producer have a gap after it."""
    topic = await make_topic(apache_kafka, 2, max_message_bytes="1000")
    producer = await broker.producer()
    assert producer.idempotent
    assert (await producer.send_and_wait(topic, b"0", partition=0)).offset == 0
    for offset in range(1, 4):
        too_large = await producer.send(topic, bytes(5000), partition=0)
        elsewhere = await producer.send(topic, b"x", partition=1)
        with pytest.raises(Reject):
            await too_large
        assert (await elsewhere).offset == offset - 1
        assert (await producer.send_and_wait(topic, b"1", partition=0)).offset == offset


@pytest.fixture
def lost_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third answer to a produce request is lost together with its connection."""
    handle, count = AIOKafkaConnection._handle_frame, itertools.count(1)

    def lossy(self: AIOKafkaConnection, frame: bytes) -> None:
        _, request, _ = self._requests[0]
        if request is not None and request.API_KEY == PRODUCE and next(count) % 3 == 0:
            self.close()
        else:
            handle(self, frame)

    monkeypatch.setattr(AIOKafkaConnection, "_handle_frame", lossy)


@pytest.mark.usefixtures("lost_answers")
@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_record_is_appended_once(apache_kafka: Kafka, idempotent: bool) -> None:
    broker = AioBroker(KafkaConfig(bootstrap=apache_kafka.bootstrap, idempotent=idempotent))
    topic = await make_topic(apache_kafka, 1)
    producer = await broker.producer(linger_ms=0)
    offsets = [(await producer.send_and_wait(topic, b"x", partition=0)).offset for _ in range(30)]
    appended = (await broker.lag("nobody", [topic]))[TP(topic, 0)]
    await broker.aclose()
    if idempotent:
        assert offsets == list(range(30))
        assert appended == 30
    else:
        # The positive control: what was sent again is there again.
        assert appended > 30


async def read_all(broker: AioBroker, topic: str) -> list[Record]:
    """What a worker gets of a topic that it reads before it is ready."""
    reader = broker.topic_reader([topic], start="beginning")
    await reader.start()
    caught_up = asyncio.create_task(reader.caught_up())
    found: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while not caught_up.done():
            found += await reader.next(0.2)
    await caught_up
    await reader.stop()
    return found


async def test_a_compacted_topic_is_read_to_its_end(apache_kafka: Kafka, broker: AioBroker) -> None:
    """Compaction leaves gaps, inside batches and at their ends, and nothing of whole segments."""
    topic = await make_topic(
        apache_kafka,
        1,
        cleanup_policy="compact",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.01",
        delete_retention_ms="0",
    )
    producer = await broker.producer()
    produced = 0

    async def produce(*keys: bytes) -> None:
        nonlocal produced
        futures = []
        for key in keys:
            # The one that is deleted at last has no value.
            value = None if key == b"gone" and produced > 100 else b"%d" % produced
            futures.append(await producer.send(topic, value, key=key, partition=0))
            produced += 1
        await asyncio.gather(*futures)

    async def compacted() -> list[Record]:
        """Append until the log was rolled and cleaned: both wait for what comes later."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await produce(b"a", b"b", b"gone", b"a")
                found = await read_all(broker, topic)
                if produced > 120 and len(found) < produced / 2:
                    return found

    await produce(b"first", *[b"a", b"b", b"gone"] * 10)
    found = await compacted()
    newest = {record.key: record.value for record in found}
    assert newest[b"first"] == b"0"
    assert newest[b"a"] == b"%d" % (produced - 1)
    assert newest[b"b"] == b"%d" % (produced - 3)
    assert newest.get(b"gone") is None
    assert [record.offset for record in found] == sorted(record.offset for record in found)
