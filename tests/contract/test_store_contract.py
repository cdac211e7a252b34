"""What every store promises: in memory, in files, and S3 by SeaweedFS and by moto."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

# Test folders are no packages (importlib mode): make the kit importable.
sys.path.insert(0, str(Path(__file__).parents[1]))

from s3_kit import moto_s3

from workers.errors import Fatal, Retry
from workers.storage.config import StoreConfig
from workers.storage.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    ReadOnly,
)
from workers.storage.file import FileStore
from workers.storage.memory import MemoryStore
from workers.storage.s3 import S3Store
from workers.storage.store import ObjectInfo, Role, Store, Stored


@pytest.fixture(scope="session")
def moto(home: Path) -> Iterator[StoreConfig]:
    folder = home / "moto"
    folder.mkdir()
    with moto_s3(folder) as config:
        yield config


@pytest.fixture(params=["memory", "file", "seaweed", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "file":
        return FileStore(tmp_path, "test/one")
    config: StoreConfig = request.getfixturevalue(request.param)
    return S3Store(replace(config, prefix=f"test/{secrets.token_hex(8)}"))


async def test_put_and_get(store: Store) -> None:
    etag = await store.put("a/b", b"one")
    stored = await store.get("a/b")
    assert stored.data == b"one"
    assert stored.etag == etag
    other = await store.put("a/b", b"two")
    assert other != etag
    assert (await store.get("a/b")).data == b"two"


async def test_empty_object(store: Store) -> None:
    await store.put("empty", b"")
    assert (await store.get("empty")).data == b""


async def test_missing(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.get("nothing/here")
    with pytest.raises(NotFound):
        await store.get_if_changed("nothing/here", '"x"')
    with pytest.raises(NotFound):
        await store.get_range("nothing/here", 0, 1)


async def test_get_if_changed(store: Store) -> None:
    etag = await store.put("head", b"1")
    assert await store.get_if_changed("head", etag) is None
    newer = await store.put("head", b"2")
    stored = await store.get_if_changed("head", etag)
    assert stored is not None
    assert (stored.data, stored.etag) == (b"2", newer)


async def test_ranges(store: Store) -> None:
    data = secrets.token_bytes(900_000)
    await store.put("segment", data)
    assert await store.get_range("segment", 10, 5) == data[10:15]
    assert await store.get_range("segment", 899_990, 100) == data[899_990:]
    wanted = [(800_000, 10), (0, 4), (4, 4), (100_000, 0), (0, 4), (799_000, 2000)]
    parts = await store.get_ranges("segment", wanted)
    assert parts == [data[start : start + length] for start, length in wanted]


async def test_near_ranges_share_a_request(store: Store) -> None:
    if not isinstance(store, S3Store):
        pytest.skip("reads everything at once anyway")
    await store.put("segment", bytes(3_000_000))
    before = store.stats.copy()
    await store.get_ranges("segment", [(0, 10), (5000, 10), (2_000_000, 10)])
    assert store.stats.since(before).gets == 2


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, -1), (3, 1), (10, 1)])
async def test_bad_range(store: Store, start: int, length: int) -> None:
    await store.put("short", b"abc")
    with pytest.raises(ValueError):
        await store.get_range("short", start, length)


async def test_create_only_once(store: Store) -> None:
    await store.create("head", b"first")
    with pytest.raises(AlreadyExists):
        await store.create("head", b"second")
    assert (await store.get("head")).data == b"first"


async def test_racing_creates_have_one_winner(store: Store) -> None:
    outcomes = await asyncio.gather(
        *(store.create("raced", b"%d" % n) for n in range(8)), return_exceptions=True
    )
    winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert len(winners) == 1
    assert all(isinstance(o, (str, AlreadyExists)) for o in outcomes)
    assert (await store.get("raced")).data == b"%d" % winners[0]


async def test_replace_needs_the_present_etag(store: Store) -> None:
    first = await store.create("head", b"1")
    second = await store.replace("head", b"2", first)
    with pytest.raises(PreconditionFailed):
        await store.replace("head", b"3", first)
    assert (await store.get("head")).data == b"2"
    await store.replace("head", b"4", second)


async def test_replace_of_nothing(store: Store) -> None:
    with pytest.raises(PreconditionFailed):
        await store.replace("never", b"1", '"d41d8cd98f00b204e9800998ecf8427e"')


async def test_racing_replaces_have_one_winner(store: Store) -> None:
    etag = await store.create("raced", b"0")
    outcomes = await asyncio.gather(
        *(store.replace("raced", b"%d" % n, etag) for n in range(1, 9)), return_exceptions=True
    )
    winners = [n for n, outcome in enumerate(outcomes, 1) if isinstance(outcome, str)]
    assert len(winners) == 1
    assert all(isinstance(o, (str, PreconditionFailed)) for o in outcomes)
    assert (await store.get("raced")).data == b"%d" % winners[0]


async def test_delete_many(store: Store) -> None:
    await asyncio.gather(*(store.put(f"packs/{n}", b"x") for n in range(5)))
    await store.delete(["packs/1", "packs/3", "packs/never"])
    await store.delete(["packs/never"])
    await store.delete([])
    assert sorted([info.key async for info in store.list("packs")]) == [
        "packs/0",
        "packs/2",
        "packs/4",
    ]


async def test_list_is_below_whole_segments(store: Store) -> None:
    for key in ("a/x/1", "a/x/2", "a/xy/3", "b/4"):
        await store.put(key, b"12345")
    infos = [info async for info in store.list("a/x/")]
    assert sorted(info.key for info in infos) == ["a/x/1", "a/x/2"]
    assert {info.size for info in infos} == {5}
    assert all(info.modified_ms > 1_600_000_000_000 for info in infos)
    assert len([info async for info in store.list("")]) == 4
    assert [info async for info in store.list("nothing")] == []


async def test_large_object(store: Store) -> None:
    data = secrets.token_bytes(12_000_000)
    etag = await store.put("large", data)
    stored = await store.get("large")
    assert stored.data == data
    await store.replace("large", data[:100], etag)


async def test_stats(store: Store) -> None:
    before = store.stats.copy()
    await store.put("k", b"12345")
    await store.get("k")
    await store.delete(["k"])
    spent = store.stats.since(before)
    assert (spent.gets, spent.puts, spent.deletes) == (1, 1, 1)
    assert (spent.bytes_in, spent.bytes_out) == (5, 5)


@pytest.mark.parametrize("role", ["all", "keys", "index", "query"])
async def test_check_leaves_nothing(store: Store, role: Role) -> None:
    await store.check(role)
    assert [info async for info in store.list("")] == []


async def test_check_of_who_may_only_write(store: Store) -> None:
    """It can delete nothing, so it writes the same object every time."""
    await store.check("ingest")
    await store.check("ingest")
    assert len([info async for info in store.list("")]) == 1


async def test_read_only(store: Store, request: pytest.FixtureRequest) -> None:
    await store.put("k", b"1")
    if isinstance(store, MemoryStore):
        reader: Store = store.view(read_only=True)
    elif isinstance(store, FileStore):
        reader = FileStore(store._folder, store._prefix, read_only=True)
    else:
        assert isinstance(store, S3Store)
        reader = S3Store(replace(store._config, read_only=True))
    await reader.check()
    assert (await reader.get("k")).data == b"1"
    for write in (
        reader.put("k", b"2"),
        reader.create("j", b"2"),
        reader.replace("k", b"2", '"e"'),
        reader.delete(["k"]),
    ):
        with pytest.raises(ReadOnly):
            await write
    assert reader.stats.puts == 0


async def test_unreachable_store_is_retry(seaweed: StoreConfig) -> None:
    store = S3Store(
        replace(seaweed, endpoint="http://127.0.0.1:9", max_retries=1, operation_timeout_s=5.0)
    )
    for call in (store.get("k"), store.put("k", b""), store.delete(["k"])):
        with pytest.raises(Retry):
            await call
    with pytest.raises(Retry):
        _ = [info async for info in store.list("k")]
    with pytest.raises(OutcomeUnknown):
        await store.create("k", b"")
    with pytest.raises(OutcomeUnknown):
        await store.replace("k", b"", '"e"')


@pytest.mark.parametrize("role", ["all", "keys", "ingest", "index", "query"])
async def test_wrong_credentials_are_said_at_start(seaweed: StoreConfig, role: Role) -> None:
    store = S3Store(replace(seaweed, secret_access_key="wrong"))
    with pytest.raises(Fatal, match="denies"):
        await store.check(role)


async def test_wrong_credentials_are_denied_everywhere(seaweed: StoreConfig) -> None:
    store = S3Store(replace(seaweed, secret_access_key="wrong"))
    for call in (store.get("k"), store.put("k", b""), store.delete(["k"]), store.create("k", b"")):
        with pytest.raises(AccessDenied):
            await call
    with pytest.raises(AccessDenied):
        _ = [info async for info in store.list("k")]


class Ignores(MemoryStore):
    """A server that overwrites whatever the condition says, as some do."""

    async def create(self, key: str, data: bytes) -> str:
        return await self.put(key, data)


class IgnoresMatch(MemoryStore):
    async def replace(self, key: str, data: bytes, etag: str) -> str:
        return await self.put(key, data)


class MatchesNothing(MemoryStore):
    """Takes If-Match for a key that is free."""

    async def replace(self, key: str, data: bytes, etag: str) -> str:
        try:
            await self.get(key)
        except NotFound:
            return await self.put(key, data)
        return await super().replace(key, data, etag)


class ListsNothing(MemoryStore):
    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        if prefix is None:
            yield ObjectInfo("", 0, 0)


class Denies(MemoryStore):
    """Another role's rights."""

    async def put(self, key: str, data: bytes) -> str:
        raise AccessDenied(key)

    async def get(self, key: str) -> Stored:
        raise AccessDenied(key)


class IgnoresRange(MemoryStore):
    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return (await self.get(key)).data


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (Ignores, "If-None-Match"),
        (IgnoresMatch, "If-Match"),
        (MatchesNothing, "If-Match for a new"),
        (IgnoresRange, "Range"),
        (ListsNothing, "list"),
        (Denies, "denies"),
    ],
)
@pytest.mark.parametrize("role", ["all", "keys", "index"])
async def test_check_finds_broken_servers(broken: type[MemoryStore], text: str, role: Role) -> None:
    store = broken()
    with pytest.raises(Fatal, match=text):
        await store.check(role)
    assert not store._shared.objects


@pytest.mark.parametrize("role", ["ingest", "query"])
async def test_check_finds_missing_rights(role: Role) -> None:
    with pytest.raises(Fatal, match=f"role {role}"):
        await Denies().check(role)


async def test_missing_bucket_is_no_missing_object(seaweed: StoreConfig) -> None:
    store = S3Store(replace(seaweed, bucket="nobody-made-this"))
    with pytest.raises(Retry, match="bucket"):
        await store.get("head")
