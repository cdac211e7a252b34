"""Appending records with aiokafka, acknowledged by all in-sync replicas.

With idempotence the broker appends a batch once, however often it had to be sent. aiokafka 0.14 pays
for that with a client that one failure can spoil; the client is replaced then.

| bite | what is done | test |
|---|---|---|
| Tansu announces InitProducerId and fails it | `auto` goes on without, once for all producers | `test_idempotence_is_detected` |
| a batch that failed leaves a gap in the sequence: each later one of that partition is refused | a new client, with a new producer id | `test_a_failed_batch_spoils_no_later_one` |
| an idempotent batch never expires: nobody hears that the broker is away | a deadline, then a new client; the old one is ended | `test_an_idempotent_record_has_a_deadline` |
| "duplicate sequence" counts as success, with a wrong offset | `Retry` | `test_a_duplicate_without_a_place_is_retry` |
| the sending task can die; then each `send` fails for ever | a new client | `test_a_dead_sender_is_replaced` |
"""  # noqa: E501

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from schemas.errors import ErrorCode
from workers.errors import Fatal, Reject
from workers.kafka.aio_errors import translate, translated
from workers.kafka.broker import Delivered, Headers
from workers.kafka.config import Idempotent, KafkaConfig
from workers.kafka.errors import unavailable

_log = structlog.get_logger(__name__)

# Bytes of a batch of one partition; below every broker's default limit of 1 MiB.
_BATCH_BYTES = 512 * 1024
# How brokers say no to InitProducerId: not known, not in a version we speak, not for this user; and
# Tansu's "unknown error".
_NOT_IDEMPOTENT = (
    kafka.UnknownError,
    kafka.UnsupportedVersionError,
    kafka.IncompatibleBrokerVersion,
    kafka.ClusterAuthorizationFailedError,
    NotImplementedError,
)


class Idempotence:
    """Whether the broker's producers are idempotent; found out by the first that starts.

    Args:
        wanted: `auto`, or what it must be.
    """

    def __init__(self, wanted: Idempotent) -> None:
        self._needed = wanted is True
        self.possible = wanted is not False

    def refused(self, error: Exception) -> None:
        """Note that the broker refused.

        Raises:
            Fatal: the settings insist on it.
        """
        if self._needed:
            raise Fatal(
                ErrorCode.UNSUPPORTED,
                f"Kafka refuses an idempotent producer ({type(error).__name__}): set"
                " idempotent_producer to auto or false",
            ) from None
        if self.possible:
            self.possible = False
            _log.warning("producers_are_not_idempotent", why=type(error).__name__)


class AioProducer:
    """A `Producer` on aiokafka.

    Args:
        config: connection and limits.
        connection: keyword arguments of every aiokafka client.
        linger_ms: how long a batch waits for more records.
        idempotence: what is known of the broker; shared by its producers.
    """

    def __init__(
        self,
        config: KafkaConfig,
        connection: dict[str, Any],
        linger_ms: int,
        idempotence: Idempotence,
    ) -> None:
        self._config = config
        self._options: dict[str, Any] = {
            **connection,
            "acks": "all",
            "linger_ms": linger_ms,
            "max_batch_size": _BATCH_BYTES,
            "max_request_size": config.request_bytes,
            "request_timeout_ms": int(config.request_timeout_s * 1000),
        }
        self._idempotence = idempotence
        self._client: AIOKafkaProducer | None = None
        self._closed = False
        self._replacing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        # Of idempotent records: when they are given up, oldest first.
        self._due: deque[tuple[float, asyncio.Future[Delivered]]] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def idempotent(self) -> bool:
        """Whether records are appended once however often they had to be sent."""
        return self._idempotence.possible

    async def start(self) -> None:
        """Connect."""
        await self._connected()

    async def _connected(self) -> AIOKafkaProducer:
        async with self._replacing:
            if self._closed:
                raise unavailable("the producer was closed")
            if self._client is None:
                with translated():
                    self._client = await self._connect()
            return self._client

    async def _connect(self) -> AIOKafkaProducer:
        if self._idempotence.possible:
            try:
                return await self._open(idempotent=True)
            except _NOT_IDEMPOTENT as error:
                self._idempotence.refused(error)
        return await self._open(idempotent=False)

    async def _open(self, *, idempotent: bool) -> AIOKafkaProducer:
        client = AIOKafkaProducer(**self._options, enable_idempotence=idempotent)
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await client.start()
        except BaseException:
            await client.stop()
            raise
        sender = client._sender.sender_task  # noqa: SLF001
        sender.add_done_callback(lambda _: self._drop(client))
        return client

    def _drop(self, client: AIOKafkaProducer) -> None:
        """Send nothing more with a client; what it has may still be appended."""
        if client is self._client:
            self._client = None
            retiring = asyncio.get_running_loop().create_task(self._close(client))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

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
        client = self._client or await self._connected()
        # The hot path of a bulk producer: no context manager, no look-up that is not needed.
        try:
            if partition is not None and partition not in await client.partitions_for(topic):
                # aiokafka asserts this, and assertions may be switched off.
                raise unavailable(f"{topic} has no partition {partition}")
            raw = await client.send(
                topic, value, key=key, partition=partition, headers=list(headers)
            )
        except (kafka.KafkaError, OSError) as error:
            raise translate(error) from None
        ours: asyncio.Future[Delivered] = asyncio.get_running_loop().create_future()
        if self._idempotence.possible:
            raw.add_done_callback(partial(self._settle_once, client, ours))
            self._watch(ours)
        else:
            raw.add_done_callback(partial(_settle, ours))
        return ours

    def _settle_once(
        self,
        client: AIOKafkaProducer,
        ours: asyncio.Future[Delivered],
        raw: asyncio.Future[Any],
    ) -> None:
        if raw.cancelled() or raw.exception() is not None:
            self._drop(client)
        elif raw.result().log_start_offset == -1:
            # A duplicate, says the broker, and no longer knows of what.
            if not ours.done():
                ours.set_exception(unavailable("where the record is was not told"))
            return
        _settle(ours, raw)

    def _watch(self, ours: asyncio.Future[Delivered]) -> None:
        """Give a record up after the time that one without idempotence has."""
        while self._due and self._due[0][1].done():
            self._due.popleft()
        loop = asyncio.get_running_loop()
        self._due.append((loop.time() + self._config.request_timeout_s, ours))
        if self._alarm is None:
            self._alarm = loop.call_at(self._due[0][0], self._give_up)

    def _give_up(self) -> None:
        self._alarm = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._due and (self._due[0][1].done() or self._due[0][0] <= now):
            _, ours = self._due.popleft()
            if not ours.done():
                ours.set_exception(unavailable("no acknowledgement before the deadline"))
                if self._client is not None:
                    self._drop(self._client)
        if self._due:
            self._alarm = loop.call_at(self._due[0][0], self._give_up)

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
        client = self._client
        if client is not None:
            with translated():
                async with asyncio.timeout(2 * self._config.request_timeout_s):
                    await client.flush()
        await self._retired()

    async def stop(self) -> None:
        """Flush, within a deadline, and close."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await self._close(client)
        await self._retired()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def _retired(self) -> None:
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _close(self, client: AIOKafkaProducer) -> None:
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                await client.stop()
        except TimeoutError:
            _log.warning("producer_not_closed_in_time")
            # An idempotent one would go on sending for ever.
            client._message_accumulator.fail_all(kafka.ProducerClosed())  # noqa: SLF001
            await client.client.close()
            await client._sender.close()  # noqa: SLF001


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
