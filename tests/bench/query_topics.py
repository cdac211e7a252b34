"""Queries through Kafka, beside a bare round trip: a request that an idle process echoes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from bench.children import spawn
from bench.data import abstracts
from bench.query_vectors import each, latency
from bench.report import Figure, Report
from bench.stack import progress
from schemas.topics import TopicSpec
from workers.client import Client
from workers.kafka.broker import Broker, Producer, TopicReader
from workers.kafka.open import open_broker
from workers.settings import load_settings

DOCUMENTS: Final = 2000
QUERIES: Final = 60
AT_ONCE: Final = 16
_CASES: Final = (
    ("ids and metadata", ["score", "metadata"], 2),
    ("with content", ["score", "metadata", "content"], 4),
)


async def measure_topics(report: Report, home: Path) -> None:
    """Add the figures of queries through the topics."""
    docs, settings = abstracts(), load_settings(home=home)
    count = min(DOCUMENTS, len(docs.ids))
    report.settings["documents behind the topics"] = count
    broker = open_broker(settings, client_id="sealstream-bench")
    try:
        async with Client(settings=settings, protection="sealed") as client:
            index = f"bench/{uuid4().hex[:12]}"
            await client.create_index(index, dimension=docs.doc_vectors.shape[1])
            progress(f"ingesting {count} abstracts")
            after = None
            operations = (
                {
                    "index": index,
                    "id": docs.ids[i],
                    "content": docs.texts[i],
                    "vector": docs.doc_vectors[i],
                    "metadata": {"number": i},
                }
                for i in range(count)
            )
            async for result in client.ingest_many(operations):
                after = result
            first = {"text": docs.queries[0]}
            await client.query(
                index, first, after=[after] if after else [], timeout_s=120, include=["content"]
            )
            async with asyncio.TaskGroup() as group:
                bare = await _Bare.open(home, broker, group)
                try:
                    for name, include, most in _CASES:
                        report.figures += await _case(
                            client, index, docs.queries, bare, name, include, most
                        )
                finally:
                    await bare.close()
    finally:
        await broker.aclose()


async def _case(
    client: Client,
    index: str,
    queries: list[str],
    bare: _Bare,
    name: str,
    include: list[str],
    most: int,
) -> list[Figure]:
    progress(f"through Kafka, {name}")

    async def ours(number: int) -> None:
        await client.query(
            index, {"text": queries[number % len(queries)]}, include=include, timeout_s=30
        )

    for number in range(5):
        await ours(number)
        await bare.trip()
    samples = await each({"ours": ours, "bare": lambda _: bare.trip()}, QUERIES)
    trips = samples["ours"].median / samples["bare"].median
    detail = {"bare round trips": trips, "p99_ms": samples["ours"].p99 * 1000}
    rate = await _rate(ours)
    return [
        latency(
            f"through Kafka, {name}, p50",
            samples,
            "bare",
            f"<= {most} bare round trips",
            trips <= most,
            detail,
            "bare round trip",
        ),
        Figure(f"through Kafka, {name}, {AT_ONCE} at once", rate, "queries/s"),
    ]


async def _rate(ours: Callable[[int], Awaitable[None]]) -> float:
    free = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with free:
            await ours(number)

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(4 * AT_ONCE)))
    return 4 * AT_ONCE / (time.perf_counter() - began)


class _Bare:
    """Round trips through a process that answers at once. Made by `open`."""

    def __init__(self, producer: Producer, reader: TopicReader, requests: str, child: Any) -> None:
        self._producer = producer
        self._reader = reader
        self._requests = requests
        self._child = child
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, home: Path, broker: Broker, group: asyncio.TaskGroup) -> _Bare:
        """Make the topics and start the echo."""
        requests, replies = (f"bench.{uuid4().hex[:12]}" for _ in range(2))
        await broker.ensure_topics(
            [TopicSpec(name, 4, 3_600_000, False, "broadcast") for name in (requests, replies)]
        )
        child = await spawn("echo", str(home), requests, replies)
        assert child.stdout is not None
        if await child.stdout.readline() != b"ready\n":
            raise RuntimeError("the echo did not start")
        reader = broker.topic_reader([replies], start="end")
        await reader.start()
        bare = cls(await broker.producer(), reader, requests, child)
        bare._task = group.create_task(bare._follow())
        return bare

    async def trip(self) -> None:
        """Send a request and wait for its echo."""
        key = uuid4().bytes
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        await self._producer.send_and_wait(self._requests, b"x" * 1000, key=key)
        async with asyncio.timeout(60):
            await waiting

    async def close(self) -> None:
        """End the echo."""
        if self._task is not None:
            self._task.cancel()
        self._child.kill()
        await self._child.wait()
        await self._reader.stop()

    async def _follow(self) -> None:
        while True:
            for record in await self._reader.next(1.0):
                waiting = self._waiting.pop(record.key or b"", None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
