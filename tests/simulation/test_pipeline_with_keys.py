"""Ingest and index workers as processes run them, with the real key service between them."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from query_kit import World, until

from schemas.codec import decode, encode
from schemas.event import IndexEvent
from schemas.ingest import IngestRequest, IngestResult
from schemas.topics import (
    CONTENT_SEALED,
    INDEX_EVENT,
    INGEST_RESULT,
    PLAINTEXT_INGEST,
    dead_letter,
)
from workers.crypto.info import Info
from workers.index import worker as index_worker
from workers.ingest import worker as ingest_worker
from workers.leases.credential import seal_value, sign_message
from workers.leases.signed import verify_record


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


@asynccontextmanager
async def workers(world: World) -> Any:
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(
            serve(
                world.settings.model_copy(update={"worker_id": name}),
                stop,
                broker=world.broker,
                store=world.store,
            )
        )
        for name, serve in (
            ("ingest-1", ingest_worker.serve),
            ("index-1", index_worker.serve),
        )
    ]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def results(world: World) -> list[IngestResult]:
    return [decode(IngestResult, r.value) for r in world.broker.records(INGEST_RESULT)]


def documents(world: World, index: str) -> int:
    events = [decode(IndexEvent, r.value) for r in world.broker.records(INDEX_EVENT)]
    return max((event.documents for event in events if event.index == index), default=0)


async def test_clear_and_sealed_messages_become_searchable(world: World) -> None:
    await world.create("acme/docs")
    async with workers(world):
        plain = {"v": 1, "index": "acme/docs", "id": "a", "auth": {"token": world.token}}
        value = json.dumps({**plain, "content": "clear"}).encode()
        await world.producer.send_and_wait(PLAINTEXT_INGEST, value, key=b"acme/docs/a")
        await until(world, lambda: documents(world, "acme/docs") == 1)

        # Sealed: the credential inside, the value too, and a signature over what is produced.
        caller = world.admin_caller
        message = decode(
            IngestRequest,
            json.dumps(
                {
                    "v": 1,
                    "index": "acme/docs",
                    "id": "b",
                    "auth": {"sealed": caller.auth("acme/docs").sealed},
                    "message_id": str(uuid4()),
                    "issued_ms": int(world.clock() * 1000),
                    "content": "sealed",
                }
            ).encode(),
        )
        entry = world.directory.index("acme/docs")
        sealed = seal_value(Info.INGEST_VALUE, entry.ingest_pub, "acme/docs", encode(message))
        key = b"acme/docs/" + b"0" * 32
        for headers in ((), (("sealstream-sig", bytes(64)),)):
            await world.producer.send_and_wait(
                PLAINTEXT_INGEST,
                sealed,
                key=key,
                headers=(("content-type", CONTENT_SEALED.encode()), *headers),
            )
        await world.producer.send_and_wait(
            PLAINTEXT_INGEST,
            sealed,
            key=key,
            headers=(
                ("content-type", CONTENT_SEALED.encode()),
                ("sealstream-sig", sign_message(caller.session, PLAINTEXT_INGEST, key, sealed)),
            ),
        )
        await until(world, lambda: documents(world, "acme/docs") == 2)
    assert [r.status for r in results(world)].count("accepted") == 2
    assert len(world.broker.records(dead_letter(PLAINTEXT_INGEST))) == 2
    service = world.directory.key_service.sign_pub
    revocations = world.directory.revocations
    for record in world.broker.records(INGEST_RESULT):
        verify_record(record, service, ("ingest",), Info.INGEST_RESULT, revocations=revocations)
    for record in world.broker.records(INDEX_EVENT):
        verify_record(record, service, ("index",), Info.INDEX_EVENT, revocations=revocations)


async def test_an_index_created_while_the_workers_run_works_at_once(world: World) -> None:
    async with workers(world):
        body = {"v": 1, "index": "late", "id": "a", "auth": {"token": world.token}, "content": "x"}
        value = json.dumps(body).encode()
        await world.producer.send_and_wait(PLAINTEXT_INGEST, value, key=b"late/a")
        await until(world, lambda: any(r.status == "rejected" for r in results(world)))
        await world.create("late", shards=2, dimension=2)
        for name in "abcdef":
            more = json.dumps({**body, "id": name, "vector": [1, 0]}).encode()
            await world.producer.send_and_wait(PLAINTEXT_INGEST, more, key=f"late/{name}".encode())
        await until(world, lambda: [r.status for r in results(world)].count("accepted") == 6)
        events = lambda: {  # noqa: E731
            event.shard: event.documents
            for r in world.broker.records(INDEX_EVENT)
            for event in [decode(IndexEvent, r.value)]
        }
        await until(world, lambda: sum(events().values()) == 6)
