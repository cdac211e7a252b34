"""The whole pipeline in memory: all four workers' own code, the real key service, real clients."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import SecretStr

from schemas.codec import convert, decode, encode, to_plain
from schemas.deadletter import DeadLetter
from schemas.ingest import IngestResult
from schemas.position import Position
from schemas.query import QueryRequest, QueryResult
from schemas.topics import (
    CONTENT_JSON,
    CONTENT_SEALED,
    HEADER_CONTENT_TYPE,
    HEADER_SIGNATURE,
    QUERY_REQUEST,
    QUERY_RESULT,
    dead_letter,
)
from workers.client import Client
from workers.crypto.info import Info
from workers.index import worker as index_worker
from workers.ingest import worker as ingest_worker
from workers.kafka.broker import Record
from workers.leases.credential import seal_value, sign_message
from workers.query import worker as query_worker
from workers.storage.errors import NotFound
from workers.storage.memory import MemoryStore
from workers.storage.store import Stored

# The kit of the key service lies with its unit tests; test folders are no packages.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import PATIENCE_S, RunningClock
from keys_world import Caller as Caller
from keys_world import World as KeysWorld

INDEX = "acme/docs"
SERVE = {"ingest": ingest_worker.serve, "index": index_worker.serve, "query": query_worker.serve}
QUICK = {"batch_linger_ms": 5, "index_linger_ms": 5, "max_staleness_ms": 0}
ALL = ("ingest", "index", "query")


class World(KeysWorld):
    """A world in which workers and clients go by the machine's time, so its key service does."""

    def __init__(self, home: Path, **settings: Any) -> None:
        super().__init__(home, clock=RunningClock(), **settings)


class Shelf(MemoryStore):
    """Another client of the same bucket whose reads can be lost once, or held up."""

    def __init__(self, of: MemoryStore) -> None:
        super().__init__(read_only=True)
        self._shared = of._shared
        self.lose: list[str] = []
        self.hold: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def _look(self, key: str) -> None:
        if self.hold is not None:
            self.reached.set()
            await self.hold.wait()
        for part in self.lose:
            if part in key:
                self.lose.remove(part)
                raise NotFound(key)

    async def get(self, key: str) -> Stored:
        await self._look(key)
        return await super().get(key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        await self._look(key)
        return await super().get_range(key, start, length)

    async def get_ranges(self, key: str, ranges: Any) -> list[bytes]:
        await self._look(key)
        return await super().get_ranges(key, ranges)


@asynccontextmanager
async def workers(world: World, *roles: str, store: Any = None, **settings: Any) -> Any:
    """Run one worker of each role; a query worker reads from `store` if it is given."""
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(
            SERVE[role](
                world.settings.model_copy(
                    update={**QUICK, **settings, "worker_id": f"{role}-1"},
                ),
                stop,
                broker=world.broker,
                store=store if store is not None and role == "query" else world.store,
            )
        )
        for role in roles
    ]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def client(world: World, **options: Any) -> Client:
    return Client(world.settings, broker=world.broker, **options)


def by(world: World, token: str) -> Client:
    """Return a client of somebody with a token."""
    settings = world.settings.model_copy(update={"token": SecretStr(token)})
    return Client(settings, broker=world.broker)


async def until(world: World, condition: Callable[[], Any]) -> Any:
    """Wait until the broker satisfies `condition`; return what it returned."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not (found := condition()):
        # A commit wakes nobody, so look again after a moment.
        await world.broker.wait(loop.time() + 0.02)
        assert loop.time() < deadline, "it never came"
    return found


def dead(world: World) -> list[DeadLetter]:
    return [decode(DeadLetter, r.value) for r in world.broker.records(dead_letter(QUERY_REQUEST))]


def requests(world: World) -> list[Record]:
    return world.broker.records(QUERY_REQUEST)


def since(world: World, known: list[Record]) -> list[Record]:
    """Return the requests that are not among those known before."""
    return [record for record in requests(world) if record not in known]


def result_of(world: World, request_id: str, topic: str = QUERY_RESULT) -> Record | None:
    found = [r for r in world.broker.records(topic) if r.key == request_id.encode()]
    return found[0] if found else None


def body(world: World, **fields: Any) -> dict[str, Any]:
    """A query-request with the administrator's token in clear."""
    return {
        "v": 1,
        "request_id": str(uuid4()),
        "index": INDEX,
        "auth": {"token": world.token},
        "query": {"count": True},
        **fields,
    }


async def produce(
    world: World, value: bytes | None, *, kind: str = CONTENT_JSON, headers: Any = ()
) -> None:
    await world.producer.send_and_wait(
        QUERY_REQUEST,
        value,
        key=b"k",
        headers=((HEADER_CONTENT_TYPE, kind.encode()), *headers),
    )


async def answer(world: World, plain: dict[str, Any], *, topic: str = QUERY_RESULT) -> QueryResult:
    """Produce a request in clear, valid or not, and return its answer in clear."""
    await produce(world, encode(plain))
    record = await until(world, lambda: result_of(world, plain["request_id"], topic))
    return decode(QueryResult, record.value)


def sealed_request(
    world: World, caller: Caller, index: str = INDEX, *, inside: str | None = None, **fields: Any
) -> tuple[str, bytes, Any]:
    """Return request id, value and headers of a sealed and signed request."""
    plain = body(
        world,
        index=inside or index,
        auth=to_plain(caller.auth(index)),
        message_id=str(uuid4()),
        issued_ms=int(time.time() * 1000),
        **fields,
    )
    message = encode(convert(QueryRequest, plain))
    value = seal_value(Info.QUERY_VALUE, world.directory.index(index).query_pub, index, message)
    signature = sign_message(caller.session, QUERY_REQUEST, b"k", value)
    return plain["request_id"], value, ((HEADER_SIGNATURE, signature),)


async def produce_sealed(world: World, value: bytes, headers: Any = ()) -> None:
    await produce(world, value, kind=CONTENT_SEALED, headers=headers)


async def stored(client: Client, index: str, *ids: str, **fields: Any) -> list[IngestResult]:
    """Ingest documents and wait until they are searchable."""
    operations = ({"op": "upsert", "index": index, "id": name, **fields} for name in ids)
    return [r async for r in client.ingest_many(operations, wait="searchable")]


def applied(changed: dict[str, Any]) -> list[IngestResult]:
    """Return what a query waits for, for a changed list to count."""
    return [
        IngestResult(
            index="i",
            id="x",
            op="upsert",
            status="accepted",
            position=Position(**changed["position"]),
        )
    ]
