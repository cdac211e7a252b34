"""Load on the topics: prebuilt messages, produced as fast as the broker takes them.

Producing and waiting cost as little as possible, because they share the machine with what is
measured: messages are encoded beforehand, and "all of it is searchable" is read from the index
events alone (the number of documents that the shard's head counts).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple
from uuid import uuid4

import orjson

from bench.data import F32, Mails
from schemas.codec import convert, decode, encode, to_plain
from schemas.event import IndexEvent
from schemas.ingest import IngestRequest
from schemas.topics import INDEX_EVENT, INGEST_RESULT, PLAINTEXT_INGEST, TopicSpec
from schemas.values import Vector
from workers.client import connection
from workers.client.connection import Connection
from workers.client.session import Protection, Secrets, Session
from workers.crypto.info import Info
from workers.crypto.together import TOGETHER
from workers.kafka.broker import Broker, Headers, Producer, TopicReader
from workers.kafka.open import open_broker
from workers.leases.directory import KeyDirectory
from workers.settings import Settings

_STALL_S = 120.0


class Message(NamedTuple):
    """A record to produce."""

    key: bytes
    value: bytes
    headers: Headers


@dataclass(frozen=True, slots=True)
class Link:
    """An open connection to the stack's broker."""

    settings: Settings
    broker: Broker
    producer: Producer
    directory: KeyDirectory


@asynccontextmanager
async def link(settings: Settings) -> AsyncIterator[Link]:
    """Connect."""
    broker = open_broker(settings, client_id="sealstream-bench")
    directory = KeyDirectory(broker, settings)
    try:
        await directory.start()
        yield Link(settings, broker, await broker.producer(linger_ms=5), directory)
    finally:
        await directory.stop()
        await broker.aclose()


class Encoder:
    """Makes plaintext-ingest messages of one index. `protection`: as in the client."""

    def __init__(self, to: Link, index: str, protection: Protection) -> None:
        token = to.settings.token
        secrets = Secrets(token=None if token is None else token.get_secret_value())
        session = Session(secrets, to.directory, protection=protection)
        self._connection = Connection(to.settings, to.broker, to.producer, to.directory, session)
        self._index = index
        self._topic = self._connection.topic(PLAINTEXT_INGEST)

    async def encode(self, operations: Iterable[dict[str, Any]]) -> list[Message]:
        """Encode bodies without `v`, `index` and `auth`, as the client does for many."""
        messages: list[Message] = []
        waiting = iter(operations)
        while some := list(islice(waiting, TOGETHER)):
            messages += await self._some(some)
        return messages

    async def _some(self, operations: Sequence[dict[str, Any]]) -> list[Message]:
        session, index = self._connection.session, self._index
        auth = to_plain(session.auth(index))
        bodies = [{"v": 1, "index": index, "auth": auth, **one} for one in operations]
        if session.protection == "plain":
            return [
                Message(f"{index}/{one['id']}".encode(), orjson.dumps(one), ()) for one in bodies
            ]
        plain = []
        for one in bodies:
            one |= {"message_id": str(uuid4()), "issued_ms": int(time.time() * 1000)}
            value = encode(convert(IngestRequest, one))
            plain.append(connection.Message(index, session.routing_key(index, one["id"]), value))
        done = await self._connection.protect(Info.INGEST_VALUE, self._topic, plain)
        return [
            Message(one.key, value, headers)
            for one, (value, headers) in zip(plain, done, strict=True)
        ]


def mail_operations(mails: Mails) -> list[dict[str, Any]]:
    """Return upserts of mails: the content sealed, subject and body searchable."""
    return [
        {"id": name, "content": text, "text": {"subject": subject, "body": text}}
        for name, subject, text in mails.mails
    ]


def vector_operations(vectors: F32, first: int = 0) -> list[dict[str, Any]]:
    """Return upserts of vectors, ids from `first` on."""
    return [
        {"id": str(first + number), "vector": Vector.of(vector).to_json()}
        for number, vector in enumerate(vectors)
    ]


class Events:
    """The newest index-event of every index, as they come."""

    def __init__(self, to: Link) -> None:
        self._reader: TopicReader = to.broker.topic_reader([INDEX_EVENT], start="end")
        self._latest: dict[str, IndexEvent] = {}
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow."""
        await self._reader.start()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.stop()

    def version(self, index: str) -> int:
        """Return the version of an index's head: how often it was published."""
        event = self._latest.get(index)
        return 0 if event is None else event.version

    async def until(self, index: str, condition: Callable[[IndexEvent], bool]) -> IndexEvent:
        """Wait for an event of an index that satisfies a condition.

        Raises:
            TimeoutError: nothing came for two minutes.
        """
        while True:
            event = self._latest.get(index)
            if event is not None and condition(event):
                return event
            async with asyncio.timeout(_STALL_S), self._changed:
                await self._changed.wait()

    async def _follow(self) -> None:
        while True:
            for record in await self._reader.next(1.0):
                event = decode(IndexEvent, record.value)
                async with self._changed:
                    self._latest[event.index] = event
                    self._changed.notify_all()


async def produce(producer: Producer, topic: str, messages: Sequence[Message]) -> int:
    """Produce all messages, in order, and wait for their acknowledgements.

    Returns:
        The number of acknowledgements.
    """
    waiting: list[Awaitable[Any]] = []
    for number, one in enumerate(messages):
        waiting.append(await producer.send(topic, one.value, key=one.key, headers=one.headers))
        if number % 200 == 199:
            await asyncio.sleep(0)
    return len(await asyncio.gather(*waiting))


async def broker_alone(to: Link, messages: Sequence[Message]) -> float:
    """Return the seconds to produce and consume the messages with no work: the broker's limit."""
    topic = f"bench.{uuid4().hex[:12]}"
    await to.broker.ensure_topics([TopicSpec(topic, 4, 3_600_000, False, "broadcast")])
    reader = to.broker.topic_reader([topic], start="beginning", low_latency=False)
    await reader.start()
    try:
        began = time.perf_counter()
        sending = asyncio.create_task(produce(to.producer, topic, messages))
        seen = 0
        while seen < len(messages):
            seen += len(await reader.next(1.0))
        await sending
        return time.perf_counter() - began
    finally:
        await reader.stop()


async def through(
    to: Link,
    events: Events,
    index: str,
    messages: Sequence[Message],
    condition: Callable[[IndexEvent], bool],
) -> float:
    """Return the seconds from the first message to the event that satisfies the condition."""
    began = time.perf_counter()
    sending = asyncio.create_task(produce(to.producer, PLAINTEXT_INGEST, messages))
    await events.until(index, condition)
    took = time.perf_counter() - began
    await sending
    return took


async def change(to: Link, events: Events, index: str, messages: Sequence[Message]) -> float:
    """Return the seconds until changes of existing documents are searchable.

    The number of documents does not tell, so the results are read: the furthest position that one
    of them names must be applied. Messages in clear, an index of one shard.
    """
    reader = to.broker.topic_reader([INGEST_RESULT], start="end")
    await reader.start()
    try:
        began = time.perf_counter()
        sending = asyncio.create_task(produce(to.producer, PLAINTEXT_INGEST, messages))
        prefix, seen, furthest = f"{index}/".encode(), 0, -1
        async with asyncio.timeout(_STALL_S):
            while seen < len(messages):
                for record in await reader.next(1.0):
                    if (record.key or b"").startswith(prefix):
                        result = orjson.loads(record.value or b"{}")
                        furthest = max(furthest, result["position"]["offset"])
                        seen += 1
        await events.until(index, lambda event: event.applied.offset >= furthest)
        took = time.perf_counter() - began
        await sending
        return took
    finally:
        await reader.stop()
