"""What every part of the client shares: broker, producer, key directory, session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import numpy as np

from schemas.codec import decode, to_plain
from schemas.errors import ErrorCode, InvalidMessage
from schemas.sealed import SealedValue
from schemas.topics import (
    CONTENT_JSON,
    CONTENT_SEALED,
    HEADER_CONTENT_TYPE,
    HEADER_SIGNATURE,
    with_prefix,
)
from schemas.values import Binary, Vector
from workers.client.session import Session
from workers.crypto.errors import CryptoError
from workers.crypto.info import Info, info
from workers.crypto.lp import Part
from workers.errors import Reject, Retry
from workers.kafka.broker import Broker, Delivered, Headers, Producer, Record
from workers.leases.credential import HEADER_AUTH, seal_value
from workers.leases.directory import IndexEntry, KeyDirectory
from workers.objects.results import open_result
from workers.settings import Settings

JSON_HEADERS: Final[Headers] = ((HEADER_CONTENT_TYPE, CONTENT_JSON.encode()),)
SEALED_HEADERS: Final[Headers] = ((HEADER_CONTENT_TYPE, CONTENT_SEALED.encode()),)


@dataclass(frozen=True, slots=True)
class Message:
    """A message before it is protected: for which index, its record's key, its JSON."""

    index: str
    key: bytes
    value: bytes


class Connection:
    """An open connection of one caller. Made and closed by `Client`."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        producer: Producer,
        directory: KeyDirectory,
        session: Session,
    ) -> None:
        self.settings = settings
        self.broker = broker
        self.producer = producer
        self.directory = directory
        self.session = session

    def topic(self, name: str) -> str:
        """Return a topic's name in this deployment."""
        return with_prefix(self.settings.topic_prefix, name)

    async def index(self, name: str) -> IndexEntry:
        """Return an index's directory entry, looking again if it was made a moment ago.

        Raises:
            Reject: UNKNOWN_INDEX.
        """
        entry = self.directory.find(name)
        if entry is None:
            await self.directory.refresh()
            entry = self.directory.index(name)
        return entry

    async def protect(
        self, kind: Info, topic: str, messages: Sequence[Message]
    ) -> list[tuple[bytes, Headers]]:
        """Protect messages as the session says; several at once cost much less each.

        Args:
            kind: `Info.INGEST_VALUE` or `Info.QUERY_VALUE`.
            topic: where they will be produced.
            messages: any number.

        Returns:
            The value to produce, and its headers, for each.

        Raises:
            Reject: UNKNOWN_INDEX.
        """
        protection = self.session.protection
        if protection == "plain":
            return [(one.value, JSON_HEADERS) for one in messages]
        values = [one.value for one in messages]
        headers = [JSON_HEADERS] * len(messages)
        if protection == "sealed":
            values = [await self._seal(kind, one) for one in messages]
            headers = [self._sealed_headers(one.index) for one in messages]
        records = [(one.key, value) for one, value in zip(messages, values, strict=True)]
        signatures = self.session.sign(topic, records)
        return [
            (value, (*head, (HEADER_SIGNATURE, signature)))
            for value, head, signature in zip(values, headers, signatures, strict=True)
        ]

    async def _seal(self, kind: Info, message: Message) -> bytes:
        entry = await self.index(message.index)
        if kind is Info.INGEST_VALUE:
            return self.session.seal_ingest(entry.ingest_pub, message.index, message.value)
        return seal_value(kind, entry.query_pub, message.index, message.value)

    def _sealed_headers(self, index: str) -> Headers:
        if not self.session.holds_key:
            return SEALED_HEADERS
        auth = self.session.auth(index).sealed or ""
        return (*SEALED_HEADERS, (HEADER_AUTH, auth.encode()))

    async def send(self, topic: str, key: bytes, value: bytes, headers: Headers) -> Delivered:
        """Produce one record and wait until it is durable. Raises Retry, Reject."""
        return await self.producer.send_and_wait(topic, value, key=key, headers=headers)

    def open_reply(self, record: Record, kind: Info, *context: Part) -> bytes:
        """Return the JSON of a result. Every request asks for a sealed one.

        Raises:
            Reject: INVALID_MESSAGE, it is not sealed to this session, or for another request.
        """
        if not is_sealed(record):
            raise Reject(ErrorCode.INVALID_MESSAGE, "a result is in clear that should be sealed")
        reply = self.session.reply_key
        try:
            sealed = decode(SealedValue, record.value)
            if sealed.shared is not None and kind is Info.INGEST_RESULT:
                return open_result(reply, sealed, *map(str, context))
            return reply.open(info(kind, *context), sealed.ciphertext())
        except (InvalidMessage, CryptoError) as error:
            raise Reject(
                ErrorCode.INVALID_MESSAGE, "a result does not open with this session's reply key"
            ) from error


def is_sealed(record: Record) -> bool:
    """Tell whether a result says that it is sealed."""
    return record.header(HEADER_CONTENT_TYPE) == CONTENT_SEALED.encode()


def check_open(*, closed: bool) -> None:
    """Let no call begin to wait on a client that is closed. Raises RuntimeError."""
    if closed:
        raise RuntimeError("the client is closed")


def new_id() -> str:
    """Return a fresh UUID for a request or message."""
    return str(uuid4())


def timed_out(what: str, timeout_s: float) -> Retry:
    """Return the error of a wait that ended without an answer."""
    return Retry(
        ErrorCode.DEADLINE_EXCEEDED,
        f"no {what} within {timeout_s:g} s: are the workers running? (sealstream status)",
    )


def plain_json(message: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON form: bytes and arrays as the contract has them, None left out.

    Raises:
        InvalidMessage: an array is no vector.
    """
    plain: dict[str, Any] = {}
    for name, value in message.items():
        if value is None:
            continue
        if name == "vector" and isinstance(value, Vector):
            plain[name] = value.to_json()
        elif name == "vector" and isinstance(value, np.ndarray | tuple):
            plain[name] = Vector.of(value).to_json()
        elif name == "hybrid" and isinstance(value, dict):
            plain[name] = plain_json(value)
        elif isinstance(value, bytes):
            plain[name] = to_plain(Binary.of(value))
        else:
            plain[name] = value
    return plain
