"""Appending records with aiokafka, acknowledged by all in-sync replicas."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from schemas.errors import ErrorCode
from workers.errors import Reject
from workers.kafka.aio_errors import translate, translated
from workers.kafka.broker import Delivered, Headers
from workers.kafka.config import KafkaConfig
from workers.kafka.errors import unavailable

_log = structlog.get_logger(__name__)

# Bytes of a batch of one partition; below every broker's default limit of 1 MiB.
_BATCH_BYTES = 512 * 1024


class AioProducer:
    """A `Producer` on aiokafka.

    Args:
        config: connection and limits.
        connection: keyword arguments of every aiokafka client.
        linger_ms: how long a batch waits for more records.
    """

    def __init__(self, config: KafkaConfig, connection: dict[str, Any], linger_ms: int) -> None:
        self._config = config
        self._producer = AIOKafkaProducer(
            **connection,
            acks="all",
            enable_idempotence=config.idempotent,
            linger_ms=linger_ms,
            max_batch_size=_BATCH_BYTES,
            max_request_size=config.request_bytes,
            request_timeout_ms=int(config.request_timeout_s * 1000),
        )

    async def start(self) -> None:
        """Connect."""
        try:
            with translated():
                async with asyncio.timeout(self._config.request_timeout_s):
                    await self._producer.start()
        except BaseException:
            await self._producer.stop()
            raise

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> asyncio.Future[Delivered]:
        """Queue a record and return the future of its acknowledgement."""
        if value is not None and len(value) > self._config.max_record_bytes:
            raise Reject(ErrorCode.TOO_LARGE, "the record is larger than max_record_bytes")
        if value is None and key is None:
            raise ValueError("a record has a key or a value")
        # The hot path of a bulk producer: no context manager, no look-up that is not needed.
        try:
            if partition is not None and partition not in await self._producer.partitions_for(
                topic
            ):
                # aiokafka asserts this, and assertions may be switched off.
                raise unavailable(f"{topic} has no partition {partition}")
            raw = await self._producer.send(
                topic, value, key=key, partition=partition, headers=list(headers)
            )
        except (kafka.KafkaError, OSError) as error:
            raise translate(error) from None
        ours: asyncio.Future[Delivered] = asyncio.get_running_loop().create_future()
        raw.add_done_callback(lambda done: _settle(ours, done))
        return ours

    async def send_and_wait(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Delivered:
        """Append one record and wait for its acknowledgement."""
        return await (await self.send(topic, value, key=key, partition=partition, headers=headers))

    async def flush(self) -> None:
        """Wait until nothing is queued."""
        with translated():
            await self._producer.flush()

    async def stop(self) -> None:
        """Flush, within a deadline, and close."""
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await self._producer.stop()
        except TimeoutError:
            _log.warning("producer_not_closed_in_time")


def _settle(ours: asyncio.Future[Delivered], raw: asyncio.Future[Any]) -> None:
    """Pass the outcome of aiokafka's future on, looking at its exception in any case."""
    error = None if raw.cancelled() else raw.exception()
    if ours.done():
        return
    if raw.cancelled():
        ours.set_exception(unavailable("the producer was closed"))
    elif error is not None:
        ours.set_exception(translate(error))
    else:
        meta = raw.result()
        ours.set_result(Delivered(meta.partition, meta.offset))
