"""The main flow on other stores: all four workers, a client, and moto as the bucket, or a folder.

The integration tests do the same, and more, on SeaweedFS.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from query_kit import ALL, INDEX, World, client, stored, workers

# Test folders are no packages (importlib mode): make the kit importable.
sys.path.insert(0, str(Path(__file__).parents[1]))

from s3_kit import moto_s3

from schemas.errors import ErrorCode
from workers.client import Client
from workers.errors import Reject
from workers.settings import Settings
from workers.storage.open import open_store
from workers.storage.s3 import S3Store
from workers.storage.store import Store

PAIRS = {
    "id1": ["keyword1", "keyword2", "keyword4"],
    "id2": ["keyword2", "keyword3", "keyword4"],
    "id3": ["keyword4"],
}


@contextmanager
def stores(kind: str, folder: Path) -> Iterator[tuple[Store, Store]]:
    """Yield a store and the same for reading."""
    if kind == "moto":
        with moto_s3(folder) as config:
            yield S3Store(config), S3Store(replace(config, read_only=True))
    else:
        settings = Settings(store_folder=folder / "objects", s3_prefix="library")
        (folder / "objects").mkdir()
        yield open_store(settings), open_store(settings, read_only=True)


@pytest.fixture(params=["moto", "file"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    with stores(request.param, tmp_path) as (store, reader):
        world: Any = World(tmp_path)
        world.store, world.reader = store, reader
        for role in ("all", "keys", "ingest", "index"):
            await world.store.check(role)
        await world.reader.check()
        await world.open()
        yield world
        await world.aclose()


async def ids(c: Client, **query: Any) -> list[str]:
    return [hit.id for hit in (await c.search(INDEX, **query)).hits]


async def test_the_main_flow(world: Any) -> None:
    await world.create(INDEX, dimension=4)
    async with client(world) as c:
        async with workers(world, *ALL, store=world.reader):
            done = [await c.add_keywords(INDEX, id_, words) for id_, words in PAIRS.items()]
            assert await ids(c, keyword="keyword4", after=done) == ["id1", "id2", "id3"]
            gone = await c.remove_keywords(INDEX, "id1", ["keyword4"])
            assert await ids(c, keyword="keyword4", after=[gone]) == ["id2", "id3"]

            # Larger than what travels inside an update: a pack and a segment of their own.
            content = "the tide comes in at noon " * 4000
            await stored(c, INDEX, "tide", content=content, vector=[1.0, 0.0, 0.0, 0.0])
            await stored(c, INDEX, "fog", content="fog by morning", vector=[0.0, 1.0, 0.0, 0.0])

        # Other workers find it all in the bucket.
        async with workers(world, *ALL, store=world.reader):
            assert await ids(c, text="tide") == ["tide"]
            assert await ids(c, vector=[0.0, 1.0, 0.0, 0.1], top_k=1) == ["fog"]
            [hit] = await c.get(INDEX, ["tide"], include=["content"])
            assert hit.content == content
            gone = await c.delete(INDEX, "tide")
            assert await ids(c, text="tide", after=[gone]) == []
            assert await ids(c, keyword="keyword4") == ["id2", "id3"]
            assert [i async for i in c.ids(INDEX)] == ["fog"]


async def test_a_wrong_key_is_refused(world: Any) -> None:
    key = bytes(range(32))
    async with workers(world, *ALL, store=world.reader), client(world, index_key=key) as c:
        await c.create_index(INDEX, kms={"provider": "none"})
        await stored(c, INDEX, "doc", content="the tide comes in at noon")
        async with client(world, index_key=key[::-1]) as other:
            with pytest.raises(Reject) as refused:
                await other.search(INDEX, text="tide")
        assert refused.value.code is ErrorCode.WRONG_KEY
