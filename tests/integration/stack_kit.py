"""What the tests on the running stack share: clients, bare Kafka, and waiting for what is due."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from pydantic import SecretStr

from workers.client import Client
from workers.client.session import Protection
from workers.errors import Retry
from workers.settings import Settings

T = TypeVar("T")

# On a machine that may be busy with anything else.
DEADLINE_S = 240.0
QUERY_S = 60.0
WORKERS = ("keys-1", "ingest-1", "index-1", "query-1")


class Connectable(Protocol):
    """A stack that runs."""

    @property
    def settings(self) -> Settings: ...


class Stack(Connectable, Protocol):
    """The fixture `stack` as it is used here."""

    home: Path

    def pid(self, name: str) -> int | None: ...


def new_name(kind: str) -> str:
    """An index name that no other test has."""
    return f"{kind}/{uuid.uuid4().hex[:12]}"


def connect(stack: Connectable, protection: Protection = "sealed", **options: Any) -> Client:
    return Client(stack.settings, protection=protection, **options)


def of_token(stack: Connectable, token: str) -> Client:
    """Return a client of somebody with a token."""
    return Client(stack.settings.model_copy(update={"token": SecretStr(token)}))


def worker_pids(stack: Stack) -> dict[str, int | None]:
    return {name: stack.pid(name) for name in WORKERS}


def ids(hits: Iterable[Any]) -> list[str]:
    return [hit.id for hit in hits]


async def eventually(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while the answer is that it may go well later; return what it is then."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await ask()
            except Retry:
                await asyncio.sleep(0.1)


class Shell:
    """The command line against a stack, as the administrator or as a user."""

    def __init__(self, stack: Stack, token: str | None = None) -> None:
        self._home = stack.home
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("SEALSTREAM_")}
        if token is not None:
            self._env["SEALSTREAM_TOKEN"] = token

    def run(self, *arguments: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "workers.cli.main", *arguments, "--home", str(self._home)],
            input=stdin,
            capture_output=True,
            text=True,
            env=self._env,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    def json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(self.run(*arguments, "--json", stdin=stdin))


class Bare:
    """A producer and consumers as anybody has them: aiokafka and `json`, nothing of ours."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        # 1 MiB is what brokers take by default; aiokafka counts the whole request.
        self.producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=1_100_000)

    async def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | dict[str, Any] | None,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> TopicPartition:
        """Produce one record; return (topic, partition, offset)."""
        data = json.dumps(value).encode() if isinstance(value, dict) else value
        sent = await self.producer.send_and_wait(
            topic, data, key=key, headers=list(headers), partition=partition
        )
        return sent.topic, sent.partition, sent.offset

    @asynccontextmanager
    async def listen(self, *topics: str) -> AsyncIterator[Listening]:
        """Read topics without a group, from their end: what comes after this has been entered."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            enable_auto_commit=False,
            fetch_max_wait_ms=500,
            fetch_max_bytes=8_000_000,
            max_partition_fetch_bytes=2_000_000,
        )
        await consumer.start()
        try:
            places = []
            for topic in topics:
                partitions = await self.producer.partitions_for(topic)
                places += [TopicPartition(topic, number) for number in sorted(partitions)]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            for place in places:
                consumer.seek(place, ends[place])
            # Tansu's end offsets may be too low, the high watermark of a fetch is right.
            for place in places:
                while (mark := consumer.highwater(place)) is None or (
                    await consumer.position(place) < mark
                ):
                    await consumer.getmany(timeout_ms=200)
            yield Listening(consumer)
        finally:
            await consumer.stop()


class Listening:
    """Records that were seen so far, by topic."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.records: list[ConsumerRecord] = []

    async def poll(self) -> None:
        for records in (await self._consumer.getmany(timeout_ms=200)).values():
            self.records += records

    async def positions(self) -> dict[TopicPartition, int]:
        """Return where reading goes on; right after `Bare.listen`, the ends of the topics."""
        places = self._consumer.assignment()
        return {place: await self._consumer.position(place) for place in places}

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Read on until `condition` gives something true; return that."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not (found := condition()):
                    await self.poll()
        except TimeoutError:
            raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None
        return found

    def forget(self, topic: str) -> None:
        """Drop the records of a topic seen so far."""
        self.records = [one for one in self.records if one.topic != topic]

    def values(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(r.value) for r in self.records if r.topic == topic and r.value]


@asynccontextmanager
async def bare(stack: Stack) -> AsyncIterator[Bare]:
    one = Bare(stack.settings.kafka_bootstrap)
    await one.producer.start()
    try:
        yield one
    finally:
        await one.producer.stop()
