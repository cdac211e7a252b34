"""The whole life of an index with the rights that each role has in the bucket: enough, and no more.

Every worker has a store of its own that asks the role's policy (`workers.local.rights`) before each
call. What the policy does not allow is refused and recorded; what it allows and nobody ever needed
is found at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import pytest
from query_kit import INDEX, PATIENCE_S, SERVE, World, client, workers
from quick_kit import change_key, quick_world

from schemas.errors import ErrorCode
from schemas.values import encode_base64
from workers.errors import Reject
from workers.local.rights import role_policy
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.memory import MemoryStore
from workers.storage.store import ObjectInfo, Stored

ROLES = ("keys", *SERVE)
ARN = "arn:aws:s3:::bucket"


class Denied(Exception):
    """The policy does not allow it."""


class Entitled(MemoryStore):
    """Another client of the same bucket, with the rights of a role."""

    def __init__(self, of: MemoryStore, role: str) -> None:
        super().__init__()
        self._shared = of._shared
        self._role = role
        statements = role_policy(role, "bucket")["Statement"]
        self.unused = {(s["Action"][0], pattern) for s in statements for pattern in s["Resource"]}
        self._allowed = set(self.unused)
        self.denied: set[tuple[str, str]] = set()

    def _use(self, action: str, key: str | None = None) -> None:
        name = ARN if key is None else f"{ARN}/{key}"
        used = {
            (one, pattern)
            for one, pattern in self._allowed
            if one == action and fnmatchcase(name, pattern)
        }
        self.unused -= used
        if not used:
            self.denied.add((action, key or ""))
            raise Denied(self._role, action, key)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        self._use("s3:GetObject", key)
        try:
            yield
        except NotFound:
            # Who may not list is told "denied" about what is not there.
            self._use("s3:ListBucket")
            raise

    async def get(self, key: str) -> Stored:
        with self._reading(key):
            return await super().get(key)

    async def get_if_changed(self, key: str, etag: str) -> Stored | None:
        with self._reading(key):
            return await super().get_if_changed(key, etag)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._reading(key):
            return await super().get_range(key, start, length)

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        with self._reading(key):
            return await super().get_ranges(key, ranges)

    async def put(self, key: str, data: bytes) -> str:
        self._use("s3:PutObject", key)
        return await super().put(key, data)

    async def create(self, key: str, data: bytes) -> str:
        self._use("s3:PutObject", key)
        return await super().create(key, data)

    async def replace(self, key: str, data: bytes, etag: str) -> str:
        # S3 wants both for If-Match.
        self._use("s3:PutObject", key)
        self._use("s3:GetObject", key)
        return await super().replace(key, data, etag)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._use("s3:DeleteObject", key)
        await super().delete(keys)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self._use("s3:ListBucket")
        async for entry in super().list(prefix):
            yield entry


@pytest.fixture
async def world(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A quick world whose key service has its own rights."""
    async with quick_world(tmp_path, monkeypatch, lambda store: Entitled(store, "keys")) as world:
        yield world


def documents(numbers: range) -> Iterator[dict[str, Any]]:
    for number in numbers:
        yield {
            "op": "upsert",
            "index": INDEX,
            "id": f"d{number}",
            # The larger ones lie in packs.
            "content": f"text {number} " * (1 if number % 2 else 1000),
            "keywords": ["k"],
            "vector": [1.0, float(number)],
            "metadata": {"n": number},
        }


async def fill(c: Any, numbers: range) -> None:
    done = [r async for r in c.ingest_many(documents(numbers), wait="searchable")]
    assert {one.status for one in done} == {"accepted"}


async def search(c: Any, count: int) -> None:
    assert await c.count(INDEX) == count
    found = await c.search(INDEX, keyword="k", include=["content"])
    assert len(found.hits) == count
    assert all(hit.content.startswith("text") for hit in found.hits)
    assert (await c.search(INDEX, vector=[1.0, 3.0], top_k=1)).hits[0].id == "d3"
    assert len((await c.search(INDEX, text="text", top_k=count)).hits) == count


async def test_every_role_may_what_it_needs_in_the_life_of_an_index_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {"keys": world.store} | {role: Entitled(world.store, role) for role in SERVE}
    await world.create(INDEX, shards=2, dimension=2)
    uid = world.directory.index(INDEX).uid
    async with AsyncExitStack() as running, client(world) as c:
        for role, serve in SERVE.items():
            monkeypatch.setitem(SERVE, role, _with(serve, stores[role]))
            # Small records in the one topic that documents go through.
            limits = {"max_record_bytes": 100_000} if role == "ingest" else {}
            await running.enter_async_context(workers(world, role, **limits))
        # No head is there yet.
        assert await c.count(INDEX) == 0
        for start in range(0, 40, 10):
            await fill(c, range(start, start + 10))
        # One operation that is larger than a record: its body is an object.
        words = " ".join(f"w{number:x}" for number in range(5000))
        await c.ingest(INDEX, "large", text={"body": words}, wait="searchable")
        await c.delete(INDEX, "large", wait="searchable")
        await search(c, 40)
        # Access lists, users, user keys, tokens.
        group = await c.create_group(["Index", "Decrypt"])
        await c.add_access(INDEX, "d1", [group])
        assert group in (await c.get_access(INDEX, "d1"))["groups"]
        await c.remove_access(INDEX, "d1", [group])
        user = await c.create_user(["Index"])
        await c.add_members(group, [user["user_id"]])
        await c.log_in(user["user_id"], user["password"])
        await c.create_user_key(INDEX, "u", ["read"])
        await c.delete_user_key(INDEX, "u")
        await c.delete_user(user["user_id"])
        # Keys.
        await change_key(world, "kms")
        await change_key(world, "kek")
        await search(c, 40)
        await change_key(world, "dek")
        await fill(c, range(40, 50))
        await search(c, 50)
        # Documents, shredded: deleted, their segments merged, their packs gone once nobody needs
        # them.
        gone = ({"op": "delete", "index": INDEX, "id": f"d{number}"} for number in range(50))
        assert len([r async for r in c.ingest_many(gone, wait="searchable")]) == 50
        monkeypatch.setattr("workers.index.garbage.MIN_AGE_MS", 0)
        packs = layout.packs_prefix(uid)
        await change_key(world, "dek")
        async with asyncio.timeout(PATIENCE_S):
            while any(key.startswith(packs) for key in world.stored()):
                await asyncio.sleep(0.1)
        assert await c.count(INDEX) == 0
        # Callers that keep the key.
        mine = {"token": world.token, "index_key": encode_base64(bytes(32))}
        await world.create("mine", auth=mine, kms={"provider": "none"})
        new = {"index": "mine", "level": "kek", "new_index_key": encode_base64(bytes([1] * 32))}
        assert (await world.admin("key.rotate", new, auth=mine)).error is None
        # The index, shredded.
        done = await c.shred_index(INDEX)
        assert done["objects_left"] == 0
        with pytest.raises(Reject, match=ErrorCode.UNKNOWN_INDEX.value):
            await c.count(INDEX)
    assert {role: store.denied for role, store in stores.items()} == {role: set() for role in ROLES}
    assert {role: store.unused for role, store in stores.items()} == {role: set() for role in ROLES}


def _with(serve: Any, store: Entitled) -> Any:
    async def run(settings: Any, stop: asyncio.Event, *, broker: Any, store: Any = store) -> None:
        await serve(settings, stop, broker=broker, store=store)

    def start(settings: Any, stop: asyncio.Event, *, broker: Any, **_: Any) -> Any:
        return run(settings, stop, broker=broker)

    return start
