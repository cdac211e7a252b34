"""Refused records: where they stand and why they were refused, never what they hold.

The digest of a clear record is an HMAC, since a plain hash of a short text can be guessed; of a
sealed one it is SHA-256, which anybody can compare with the topic. The key of the dead letter is
always an HMAC of the source key, which names a document.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable

from schemas.codec import encode
from schemas.deadletter import DeadLetter, DeadLetterSource
from schemas.errors import ErrorInfo
from schemas.topics import CONTENT_JSON, HEADER_CONTENT_TYPE, dead_letter
from workers.kafka.broker import Producer, Record
from workers.telemetry import metrics

_REMEMBERED = 10_000


class DeadLetters:
    """Writes the dead-letter topics.

    Args:
        producer: writes them.
        hmac_key: 32 bytes, for digests of clear records; the same on all workers of a role, or
            operators cannot compare digests.
        clock_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        producer: Producer,
        hmac_key: bytes,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._producer = producer
        self._hmac_key = hmac_key
        self._clock_ms = clock_ms
        self._sent: OrderedDict[tuple[str, int, int], None] = OrderedDict()

    async def send(self, record: Record, error: ErrorInfo, attempts: int, *, sealed: bool) -> None:
        """Write one dead letter to `<topic>.dead-letter` and wait until it is durable.

        A record whose batch is repeated is written once; after a restart it may come again.

        Args:
            record: what was refused, as read.
            error: why; its message never quotes the record.
            attempts: how often it was tried.
            sealed: whether the value was ciphertext.

        Raises:
            Retry: it was not acknowledged; the record must not be committed.
        """
        place = (record.topic, record.partition, record.offset)
        if place in self._sent:
            return
        value = record.value or b""
        letter = DeadLetter(
            error=error,
            source=DeadLetterSource(
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                timestamp_ms=record.timestamp_ms,
            ),
            sha256=hashlib.sha256(value).hexdigest() if sealed else self._hmac(value),
            digest="sha256" if sealed else "hmac-sha256",
            size=len(value),
            attempts=attempts,
            failed_ms=self._clock_ms(),
        )
        await self._producer.send_and_wait(
            dead_letter(record.topic),
            encode(letter),
            key=self._hmac(record.key or b"").encode(),
            headers=((HEADER_CONTENT_TYPE, CONTENT_JSON.encode()),),
        )
        metrics.DEAD_LETTERS.inc(topic=record.topic, code=error.code.value)
        self._sent[place] = None
        if len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)

    def _hmac(self, data: bytes) -> str:
        return hmac.new(self._hmac_key, data, hashlib.sha256).hexdigest()
