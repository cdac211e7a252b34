"""The broker over aiokafka: connections, topics, lag. Readers and producers are in `aio_*.py`.

Each workaround for aiokafka stands in these files, with its reason and the name of its test:

| bite | what is done | test |
|---|---|---|
| it logs keys and values at level DEBUG | its logger never goes below INFO | `test_records_stay_out_of_logs` |
| `create_topics` does not raise when a topic was refused | the response is read | `test_refused_topic_is_raised` |
| end offsets may be too low (Tansu) | the high watermark of a fetch counts: `aio_ends.py` | `test_end_offsets_of_batches` |
| `NewTopic` refuses -1, the broker's default replication | it is set afterwards | `test_ensure_topics` |
"""  # noqa: E501

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.errors import ErrorCode
from schemas.index import MAX_MESSAGE_BYTES
from workers.errors import Fatal
from workers.kafka.aio_ends import seek_to_ends
from workers.kafka.aio_errors import keep_records_out_of_logs, translated
from workers.kafka.aio_group import AioGroupReader, Patience, fetch_options, to_record
from workers.kafka.aio_producer import AioProducer, Idempotence
from workers.kafka.aio_reader import AioTopicReader
from workers.kafka.broker import TP, Record
from workers.kafka.config import KafkaConfig
from workers.kafka.errors import unavailable

if TYPE_CHECKING:
    from schemas.topics import TopicSpec

# Topics take more than a message may have, which is Kafka's default: who exceeds it is told by us.
_RECORD_BYTES = MAX_MESSAGE_BYTES + 128 * 1024


class _Closeable(Protocol):
    async def stop(self) -> None: ...


class AioBroker:
    """A `Broker` on aiokafka. Nothing connects before its first reader or producer.

    Args:
        config: connection and limits.
    """

    def __init__(self, config: KafkaConfig) -> None:
        keep_records_out_of_logs()
        self._config = config
        self._made: list[_Closeable] = []
        self._idempotence = Idempotence(config.idempotent)
        self._connection: dict[str, Any] = {
            "bootstrap_servers": config.bootstrap,
            "client_id": config.client_id,
            "security_protocol": config.security_protocol,
            "ssl_context": config.ssl_context(),
        }
        if config.security_protocol.startswith("SASL"):
            self._connection |= {
                "sasl_mechanism": config.sasl_mechanism,
                "sasl_plain_username": config.sasl_username,
                "sasl_plain_password": config.sasl_password,
            }

    async def producer(self, *, linger_ms: int = 2) -> AioProducer:
        """Return a started producer."""
        producer = AioProducer(self._config, self._connection, linger_ms, self._idempotence)
        await producer.start()
        self._made.append(producer)
        return producer

    def group_reader(
        self, group: str, topics: Sequence[str], *, bulk: bool, wait_ms: int | None = None
    ) -> AioGroupReader:
        """Return a member of `group`, not started."""
        reader = AioGroupReader(
            self._config, self._connection, group, topics, bulk=bulk, wait_ms=wait_ms
        )
        self._made.append(reader)
        return reader

    def topic_reader(
        self,
        topics: Sequence[str | TP],
        *,
        start: Literal["beginning", "end"],
        low_latency: bool = True,
    ) -> AioTopicReader:
        """Return a reader, not started, of whole topics or of single partitions."""
        reader = AioTopicReader(
            self._config,
            self._connection,
            topics,
            self.partitions,
            start=start,
            low_latency=low_latency,
        )
        self._made.append(reader)
        return reader

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions, 0 if the topic does not exist."""
        async with self._admin() as admin:
            return (await self._counts(admin)).get(topic, 0)

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create the missing topics; return their names."""
        async with self._admin() as admin:
            present = await self._counts(admin)
            missing = [spec for spec in specs if spec.name not in present]
            if not missing:
                return []
            response = await admin.create_topics([self._new_topic(spec) for spec in missing])
            return [name for name, code in _topic_errors(response) if _was_created(name, code)]

    async def lag(self, group: str, topics: Sequence[str]) -> dict[TP, int]:
        """Return, per partition, how many records the group has not committed."""
        async with self._admin() as admin:
            counts = await self._counts(admin)
        wanted = [TopicPartition(t, number) for t in topics for number in range(counts.get(t, 0))]
        # With partitions assigned by hand it never joins the group: it only asks for offsets.
        async with self._consumer(group_id=group) as consumer:
            consumer.assign(wanted)
            begins = await consumer.beginning_offsets(wanted)
            ends = await seek_to_ends(consumer, wanted, Patience(consumer, bulk=False))
            lag: dict[TP, int] = {}
            for partition in wanted:
                committed = await consumer.committed(partition)
                done = begins[partition] if committed is None else committed
                lag[TP(*partition)] = max(0, ends[partition] - done)
            return lag

    async def read(self, tp: TP, offset: int) -> Record | None:
        """Return the one record at `offset`, or None if it is not kept."""
        partition = TopicPartition(*tp)
        async with self._consumer(group_id=None) as consumer:
            consumer.assign([partition])
            begins = await consumer.beginning_offsets([partition])
            patience = Patience(consumer, bulk=False)
            ends = await seek_to_ends(consumer, [partition], patience)
            if not begins[partition] <= offset < ends[partition]:
                return None
            consumer.seek(partition, offset)
            patience.most()
            raw = await consumer.getone(partition)
            return to_record(raw) if raw.offset == offset else None

    async def aclose(self) -> None:
        """Stop everything that was made and is still open."""
        made, self._made = self._made, []
        await asyncio.gather(*(closeable.stop() for closeable in reversed(made)))

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(
            **self._connection, request_timeout_ms=int(self._config.request_timeout_s * 1000)
        )
        with translated():
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    await admin.start()
                    yield admin
            finally:
                await admin.close()

    @asynccontextmanager
    async def _consumer(self, *, group_id: str | None) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            **self._connection,
            **fetch_options(self._config, bulk=False),
            group_id=group_id,
            request_timeout_ms=int(self._config.request_timeout_s * 1000),
        )
        with translated():
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    await consumer.start()
                    yield consumer
            finally:
                await consumer.stop()

    async def _counts(self, admin: AIOKafkaAdminClient) -> dict[str, int]:
        # All topics, not one by name: asking for a name creates it on some brokers.
        topics = await admin.describe_topics()
        return {
            topic["topic"]: len(topic["partitions"]) for topic in topics if not topic["error_code"]
        }

    def _new_topic(self, spec: TopicSpec) -> NewTopic:
        configs = {"cleanup.policy": "compact" if spec.compacted else "delete"}
        if spec.retention_ms is not None:
            configs["retention.ms"] = str(spec.retention_ms)
        if spec.broker_time:
            configs["message.timestamp.type"] = "LogAppendTime"
        configs["max.message.bytes"] = str(max(self._config.request_bytes, _RECORD_BYTES))
        topic = NewTopic(spec.name, spec.partitions, 1, topic_configs=configs)
        topic.replication_factor = self._config.replication_factor
        return topic


def _topic_errors(response: Any) -> list[tuple[str, int]]:
    return [(entry[0], entry[1]) for entry in response.topic_errors]


def _was_created(name: str, code: int) -> bool:
    error = kafka.for_code(code)
    if error is kafka.NoError:
        return True
    if error is kafka.TopicAlreadyExistsError:
        return False
    if error.retriable:
        raise unavailable(f"topic {name}: {error.__name__}")
    raise Fatal(ErrorCode.UNSUPPORTED, f"Kafka refused the topic {name} ({error.__name__})")
