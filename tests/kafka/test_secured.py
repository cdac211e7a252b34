"""SCRAM over TLS, every part under its own user: all of them can work, and do nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient
from kafka_kit import need
from secured_kit import START_S, STRANGER, TABLE, Secured, secured_stack
from stack_kit import QUERY_S, ids

from schemas.topics import ALL_TOPICS, INDEX_UPDATE, KEY_REQUEST, QUERY_RESULT, TopicSpec
from workers.errors import Fatal, Retry
from workers.kafka.open import open_broker

TOPICS = {spec.name for spec in ALL_TOPICS}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    need(own=True, jdk=True)
    with secured_stack(tmp_path_factory.mktemp("secured")) as running:
        yield running


def writes(role: str) -> set[str]:
    row = TABLE[role]
    return {*row.get("write", ()), *row.get("write_prefixed", ())}


def reads(role: str) -> set[str]:
    return set(TABLE[role].get("read", ()))


@pytest.mark.core
async def test_the_main_flow(secured: Secured) -> None:
    index = "secured/docs"
    async with secured.client("admin") as admin:
        await admin.create_index(index)
    async with secured.client("producer") as producer:
        done = await producer.ingest(
            index, "doc", content="the tide comes in at noon", keywords=["tide"], wait="searchable"
        )
    async with secured.client("consumer") as consumer:
        found = await consumer.search(
            index, "noon", include=["content"], after=[done], timeout_s=QUERY_S
        )
        assert [(hit.id, hit.content) for hit in found.hits] == [
            ("doc", "the tide comes in at noon")
        ]
        assert ids((await consumer.search(index, keyword="tide", timeout_s=QUERY_S)).hits) == [
            "doc"
        ]
    # Rights to write topics are all that an idempotent producer needs.
    for role in ("keys", "ingest", "index", "query"):
        assert "producers_are_not_idempotent" not in secured.log(f"sealstream-{role}"), role


async def visible(secured: Secured, user: str) -> set[str]:
    admin = AIOKafkaAdminClient(**secured.broker(user)._connection)
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


@pytest.mark.core
async def test_the_query_worker_cannot_write_updates(secured: Secured) -> None:
    broker = secured.broker("sealstream-query")
    producer = await broker.producer()
    with pytest.raises(Fatal, match="ACL"):
        await producer.send_and_wait(INDEX_UPDATE, b"forged", partition=0)
    await broker.aclose()


@pytest.mark.parametrize("role", TABLE)
async def test_nobody_does_more(secured: Secured, role: str) -> None:
    """Topics without rights are not even seen; seen ones take or give only what they should."""
    user = f"sealstream-{role}"
    seen = await visible(secured, user)
    everything = TOPICS if TABLE[role].get("create") else reads(role) | writes(role)
    assert seen == everything
    connection = secured.broker(user)._connection
    async with AIOKafkaProducer(**connection) as producer:
        for topic in sorted(seen - writes(role)):
            with pytest.raises(kafka.TopicAuthorizationFailedError):
                await producer.send_and_wait(topic, b"not mine", b"key", partition=0)
    for topic in sorted(seen - reads(role)):
        consumer = AIOKafkaConsumer(**connection, enable_auto_commit=False)
        await consumer.start()
        try:
            place = TopicPartition(topic, 0)
            consumer.assign([place])
            consumer.seek(place, 0)
            with pytest.raises(kafka.TopicAuthorizationFailedError):
                await consumer.getone(place)
        finally:
            await consumer.stop()


async def test_reply_topics_of_ones_own(secured: Secured) -> None:
    """The contract lets callers name a topic like query-result.*, which query workers may write."""
    name = f"{QUERY_RESULT}.team-1"
    admin, query = secured.broker("kafka-admin"), secured.broker("sealstream-query")
    await admin.ensure_topics([TopicSpec(name, 1, 60_000, compacted=False, mode="broadcast")])
    producer = await query.producer()
    assert (await producer.send_and_wait(name, b"{}", key=b"k")).offset == 0
    await query.aclose()
    await admin.aclose()


@pytest.mark.parametrize("role", ["ingest", "producer"])
async def test_nobody_joins_a_group_of_others(secured: Secured, role: str) -> None:
    consumer = AIOKafkaConsumer(
        **secured.broker(f"sealstream-{role}")._connection, group_id="sealstream-keys"
    )
    await consumer.start()
    try:
        with pytest.raises(kafka.GroupAuthorizationFailedError):
            await consumer.committed(TopicPartition(KEY_REQUEST, 0))
    finally:
        await consumer.stop()


async def test_strangers_see_nothing(secured: Secured) -> None:
    assert await visible(secured, STRANGER) == set()


@pytest.mark.core
async def test_no_password_no_entry(secured: Secured) -> None:
    wrong = {"SEALSTREAM_KAFKA_SASL_PASSWORD": "not it"}
    settings = secured.settings("sealstream-query", **wrong)
    broker = open_broker(settings)
    with pytest.raises(Retry, match="password"):
        await broker.producer()
    await broker.aclose()
    plain = open_broker(
        settings.model_copy(update={"kafka_security_protocol": "PLAINTEXT"}), client_id="plain"
    )
    with pytest.raises(Retry):
        await plain.producer()
    await plain.aclose()


def test_a_worker_under_the_wrong_user_says_so(secured: Secured) -> None:
    """It ends, with a line that names the ACLs, rather than trying for ever."""
    user = "sealstream-ingest"
    process = secured.start(user, "worker", "query", "--id", "query-1")
    try:
        assert process.wait(START_S) == 3
    finally:
        process.kill()
        process.wait()
    assert "ACL" in secured.log(user)
