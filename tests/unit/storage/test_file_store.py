from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.errors import Retry
from workers.storage.errors import (
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StorageError,
)
from workers.storage.file import FileStore

WRITERS, ROUNDS = 4, 50

# Adds one, again and again, as heads are written: read, replace, and once more if somebody was
# faster. Begins when all are there, so that they meet.
COUNTER = """
import asyncio, sys
from pathlib import Path
from workers.storage.errors import PreconditionFailed
from workers.storage.file import FileStore

async def main():
    store = FileStore(Path(sys.argv[1]))
    print("here", flush=True)
    sys.stdin.readline()
    for _ in range(int(sys.argv[2])):
        while True:
            seen = await store.get("a/count")
            try:
                await store.replace("a/count", b"%d" % (int(seen.data) + 1), seen.etag)
                break
            except PreconditionFailed:
                pass

asyncio.run(main())
"""


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_processes_that_race_lose_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    await store.create("a/count", b"0")
    racers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", COUNTER, str(tmp_path), str(ROUNDS)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(WRITERS)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert await racer.stdout.readline() == b"here\n"
    await asyncio.gather(*(racer.communicate(b"go\n") for racer in racers))
    assert [racer.returncode for racer in racers] == [0] * WRITERS
    assert (await store.get("a/count")).data == b"%d" % (WRITERS * ROUNDS)


async def test_an_etag_never_comes_back(tmp_path: Path) -> None:
    """Though inodes do, at once, and the kernel's time stands still for milliseconds."""
    store = FileStore(tmp_path)
    etags = [await store.put("head", b"same size") for _ in range(200)]
    assert len(set(etags)) == len(etags)
    with pytest.raises(PreconditionFailed):
        await store.replace("head", b"x", etags[0])


async def test_a_folder_that_is_not_there_is_no_empty_store(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "not mounted")
    for call in (store.get("k"), store.get_range("k", 0, 1), store.put("k", b"")):
        with pytest.raises(Retry, match="folder does not exist"):
            await call
    with pytest.raises(OutcomeUnknown):
        await store.create("k", b"")
    with pytest.raises(Retry):
        _ = [info async for info in store.list("")]
    with pytest.raises(Retry):
        await store.check()


@pytest.mark.parametrize(
    "key", ["../k", "a/../../k", "/etc/passwd", "a//b", ".locks/00", "a/.x", "", "a\0b", "a/"]
)
async def test_no_key_leads_out(tmp_path: Path, key: str) -> None:
    (tmp_path / "in").mkdir()
    store = FileStore(tmp_path / "in")
    for call in (store.get(key), store.put(key, b"x"), store.delete([key])):
        with pytest.raises(StorageError):
            await call
    assert names(tmp_path) == ["in"]


async def test_keys_below_keys(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    await store.put("a/b", b"1")
    with pytest.raises(NotFound):
        await store.get("a")
    with pytest.raises(StorageError):
        await store.put("a/b/c", b"2")
    with pytest.raises(StorageError):
        await store.get("a/b/c")
    assert [info.key async for info in store.list("a/b")] == []


async def test_prefixes_are_apart(tmp_path: Path) -> None:
    one, other = FileStore(tmp_path, "one"), FileStore(tmp_path, "other/deep")
    await one.put("k", b"1")
    await other.put("k", b"2")
    assert (await one.get("k")).data == b"1"
    assert [info.key async for info in other.list("")] == ["k"]
    with pytest.raises(StorageError):
        FileStore(tmp_path, "../elsewhere")


async def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    await store.put("a/b", b"1")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o600


async def test_folders_go_with_their_last_object(tmp_path: Path) -> None:
    store = FileStore(tmp_path, "p")
    await store.put("uid/shards/0/head", b"1")
    await store.put("uid/packs/x", b"1")
    await store.delete(["uid/shards/0/head"])
    assert names(tmp_path / "p/uid") == ["packs"]
    await store.delete(["uid/packs/x", "uid/packs/never"])
    assert names(tmp_path / "p") == []


async def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    await store.put("k", b"1")
    writing = tmp_path / ".writing"
    (writing / "old").write_bytes(b"half")
    (writing / "new").write_bytes(b"half")
    long_ago_s = time.time() - 7200
    os.utime(writing / "old", (long_ago_s, long_ago_s))
    assert [info.key async for info in store.list("")] == ["k"]
    await store.check("query")
    assert names(writing) == ["new"]
