"""What every part of the client shares: broker, producer, key directory, session."""

from __future__ import annotations

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
from workers.settings import Settings

JSON_HEADERS: Final[Headers] = ((HEADER_CONTENT_TYPE, CONTENT_JSON.encode()),)
SEALED_HEADERS: Final[Headers] = ((HEADER_CONTENT_TYPE, CONTENT_SEALED.encode()),)


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

    async def headers(
        self, kind: Info, index: str, topic: str, key: bytes, value: bytes
    ) -> tuple[bytes, Headers]:
        """Protect a message as the session says.

        Args:
            kind: `Info.INGEST_VALUE` or `Info.QUERY_VALUE`.
            index: whom the message is for.
            topic: where it will be produced.
            key: of the record.
            value: the JSON message, with its credential.

        Returns:
            The value to produce, and its headers.

        Raises:
            Reject: UNKNOWN_INDEX.
        """
        headers = JSON_HEADERS
        if self.session.protection == "sealed":
            entry = await self.index(index)
            public = entry.ingest_pub if kind is Info.INGEST_VALUE else entry.query_pub
            value = seal_value(kind, public, index, value)
            auth = self.session.auth(index).sealed or ""
            headers = (*SEALED_HEADERS, (HEADER_AUTH, auth.encode()))
        if self.session.protection != "plain":
            headers = (*headers, (HEADER_SIGNATURE, self.session.sign(topic, key, value)))
        return value, headers

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
        try:
            sealed = decode(SealedValue, record.value)
            return self.session.reply_key.open(info(kind, *context), sealed.ciphertext())
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
