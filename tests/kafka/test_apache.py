"""What Apache Kafka has and Tansu has not: times of its own, and producers that send once."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from kafka_kit import Kafka

from schemas.topics import INDEX_UPDATE, PLAINTEXT_INGEST
from workers.errors import Reject
from workers.kafka.aio import AioBroker
from workers.kafka.broker import TP
from workers.kafka.config import KafkaConfig
from workers.local.topics import apply_topics
from workers.settings import Settings

pytestmark = pytest.mark.core

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
        for topic in (INDEX_UPDATE, PLAINTEXT_INGEST):
            await producer.send_and_wait(prefix + topic, b"x", partition=0, timestamp_ms=FORGED_MS)
    judged = await broker.read(TP(prefix + INDEX_UPDATE, 0), 0)
    assert judged is not None
    assert before_ms <= judged.timestamp_ms <= time.time() * 1000
    # The positive control: elsewhere a producer's time is kept.
    control = await broker.read(TP(prefix + PLAINTEXT_INGEST, 0), 0)
    assert control is not None
    assert control.timestamp_ms == FORGED_MS


async def small_topic(bootstrap: str) -> str:
    """A topic that refuses what is larger than a kilobyte."""
    name = f"small-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        limits = {"max.message.bytes": "1000"}
        await admin.create_topics([NewTopic(name, 2, 1, topic_configs=limits)])
    finally:
        await admin.close()
    return name


async def test_a_failed_batch_spoils_no_later_one(apache_kafka: Kafka, broker: AioBroker) -> None:
    topic = await small_topic(apache_kafka.bootstrap)
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


async def test_a_record_is_appended_once(apache_kafka: Kafka, broker: AioBroker) -> None:
    """Acknowledgements are lost again and again; without idempotence some records come twice."""
    topic = f"once-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=apache_kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    producer = await broker.producer(linger_ms=0)
    futures = []
    for number in range(200):
        futures.append(await producer.send(topic, b"%d" % number, partition=0))
        if number % 10 == 9:
            # The request is on its way: its answer will find nobody.
            await asyncio.sleep(0)
            for connection in list(producer._client.client._conns.values()):
                connection.close()
    delivered = await asyncio.gather(*futures)
    assert [place.offset for place in delivered] == list(range(200))
    assert await broker.lag("nobody", [topic]) == {TP(topic, 0): 200}
