"""The data key of an index with 20,000 documents is changed while it is searched and written.

Every answer is known beforehand and must be exactly right; none may fail or be missing. At the end
nothing that is stored is under the old key: neither by what the heads say, nor by a walk over the
bucket with a copy of it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from chaos_kit import DEADLINE_S, QUERY_S, assert_verified, eventually
from stack_kit import connect, new_name

from schemas.ingest import IngestResult
from workers.chain.head import Head, open_head
from workers.chain.reader import ShardReader
from workers.chain.rows import Rows
from workers.chain.segment_file import SegmentFile
from workers.chain.whole import WholeSegment
from workers.client import Client
from workers.crypto.derive import Purpose
from workers.crypto.seal import read_header
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged
from workers.kafka.open import open_broker
from workers.leases.certificate import WorkerIdentity
from workers.leases.directory import KeyDirectory
from workers.leases.heads import head_verifier
from workers.leases.holder import LeaseHolder
from workers.leases.lease import Lease
from workers.objects.pack import decode_pointer
from workers.storage import layout
from workers.storage.open import open_store
from workers.storage.store import Store
from workers.vector.store import read_ref

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]

DOCUMENTS = 20_000
WORDS = 200
DIMENSION = 8
SHARDS = 2
# The shortest life there is: keys end and are renewed all the time, and steps come soon.
ENVIRON = {"SEALSTREAM_LEASE_S": "10"}


@pytest.fixture(scope="module")
def short_leases(start_stack: Callable[..., Any], tmp_path_factory: Any) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("rotation")
    with start_stack(home, environ=ENVIRON) as running:
        yield running


def vector(number: int) -> list[float]:
    """Return a direction that no other document has."""
    found = np.random.default_rng(number).standard_normal(DIMENSION)
    return [round(float(one), 4) for one in found / np.linalg.norm(found)]


def document(index: str, number: int, batch: str = "old") -> dict[str, Any]:
    return {
        "op": "upsert",
        "index": index,
        "id": f"{batch}-{number}",
        "content": content(number),
        "keywords": [f"{batch}{number % WORDS}"],
        "vector": vector(number),
        "metadata": {"batch": batch, "n": number},
    }


def content(number: int) -> str:
    return f"short text {number} about word{number % WORDS}"


def of_word(number: int) -> set[str]:
    """Return the ids of the old documents that have a word or keyword."""
    return {f"old-{n}" for n in range(number, DOCUMENTS, WORDS)}


@dataclass
class Searchers:
    """One loop of queries for each kind, and one that writes; all of them until `stop`."""

    client: Client
    index: str
    asked: Counter[str] = field(default_factory=Counter)
    written: list[IngestResult] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def keyword(self, n: int) -> None:
        found = await self.query({"keyword": f"old{n % WORDS}"})
        assert len(found.hits) == DOCUMENTS // WORDS
        assert {hit.id for hit in found.hits} == of_word(n % WORDS)

    async def text(self, n: int) -> None:
        found = await self.query({"text": f"word{n % WORDS}"}, top_k=1000, filter={"batch": "old"})
        assert len(found.hits) == DOCUMENTS // WORDS
        assert {hit.id for hit in found.hits} == of_word(n % WORDS)

    async def count(self, n: int) -> None:
        assert (await self.query({"count": True}, filter={"batch": "old"})).count == DOCUMENTS
        some = {"$and": [{"batch": "old"}, {"n": {"$lt": n % DOCUMENTS}}]}
        assert (await self.query({"count": True}, filter=some)).count == n % DOCUMENTS

    async def get(self, n: int) -> None:
        numbers = [(n * 7919 + step) % DOCUMENTS for step in range(0, 5000, 1000)]
        ids = [f"old-{number}" for number in numbers]
        found = await self.query({"get": ids}, include=["content", "metadata"])
        assert [(hit.id, hit.content) for hit in found.hits] == [
            (f"old-{number}", content(number)) for number in numbers
        ]
        assert [hit.metadata for hit in found.hits] == [
            {"batch": "old", "n": number} for number in numbers
        ]

    async def vector(self, n: int) -> None:
        number = n * 104_729 % DOCUMENTS
        # All clusters: then the answer is exact, trained or not.
        asked = {"vector": vector(number), "nprobe": 10_000}
        found = await self.query(asked, top_k=1, filter={"batch": "old"})
        assert [hit.id for hit in found.hits] == [f"old-{number}"]

    async def query(self, query: dict[str, Any], **options: Any) -> Any:
        return await self.client.query(self.index, query, timeout_s=QUERY_S, **options)

    async def write(self, n: int) -> None:
        one = document(self.index, n, "new")
        async for result in self.client.ingest_many([one], timeout_s=DEADLINE_S):
            assert result.status == "accepted", result
            self.written.append(result)
        # Not all the time: the others are to be answered too.
        await asyncio.wait({asyncio.ensure_future(self._stop.wait())}, timeout=0.5)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._stop.clear()
        async with asyncio.TaskGroup() as tasks:
            for one in (self.keyword, self.text, self.count, self.get, self.vector, self.write):
                tasks.create_task(self._loop(one))
            try:
                yield
            finally:
                self._stop.set()

    async def _loop(self, one: Callable[[int], Any]) -> None:
        # Which it begins with differs: caches have to be left.
        for n in itertools.count(self.asked[one.__name__]):
            if self._stop.is_set():
                return
            await one(n)
            self.asked[one.__name__] += 1


@dataclass
class Inside:
    """What an index worker sees: its leased keys, and the bucket."""

    store: Store
    holder: LeaseHolder
    directory: KeyDirectory
    index: str

    async def lease(self) -> Lease:
        return await self.holder.lease(self.index)

    async def head(self, shard: int, key: Callable[[int], SecretBytes]) -> Head:
        uid = self.directory.index(self.index).uid
        data = (await self.store.get(layout.head(uid, shard))).data
        return open_head(data, uid, shard, key, head_verifier(self.directory, self.index)).head

    async def left_over(self) -> list[str]:
        """Return what is stored in the shards and no head names."""
        lease, stored, named = await self.lease(), set(), set()
        for shard in range(SHARDS):
            # First what there is: what is named only afterwards is not missed.
            prefix = layout.shard_prefix(lease.uid, shard)
            stored |= {entry.key async for entry in self.store.list(prefix)}
            head = await self.head(shard, lambda g: lease.keys(g, Purpose.SEGMENT))
            named |= {layout.head(lease.uid, shard), f"{prefix}garbage"}
            named |= {layout.segment(lease.uid, shard, ref.uid) for ref in head.segments}
            named |= {layout.deletes(lease.uid, shard, d.base) for d in head.deletes if d.base}
            if uid := read_ref(head.vector).uid:
                named.add(layout.centroids(lease.uid, shard, uid))
            if head.access is not None and head.access.uid:
                named.add(layout.access(lease.uid, shard, head.access.uid))
        return sorted(stored - named)

    def reader(self, shard: int, key: Callable[[int], SecretBytes]) -> ShardReader:
        uid = self.directory.index(self.index).uid
        return ShardReader(
            self.store, None, uid, shard, key, head_verifier(self.directory, self.index)
        )


@asynccontextmanager
async def inside(stack: Any, index: str) -> AsyncIterator[Inside]:
    settings = stack.settings
    async with AsyncExitStack() as parts:
        broker = open_broker(settings, client_id="rotation-inside")
        parts.push_async_callback(broker.aclose)
        store = open_store(settings, read_only=True)
        parts.push_async_callback(store.aclose)
        directory = KeyDirectory(broker, settings)
        parts.push_async_callback(directory.stop)
        await directory.start()
        identity = WorkerIdentity.load(settings.identity_dir("index-1"))
        holder = LeaseHolder(broker, identity, directory, settings)
        parts.push_async_callback(holder.stop)
        await holder.start()
        yield Inside(store, holder, directory, index)


async def rotate(stack: Any, index: str) -> dict[str, Any]:
    """`sealstream key rotate --wait`; return what it says at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.cli.main", "key", "rotate", index),
        *("--level", "dek", "--wait", "--json", "--home", str(stack.home)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()
    done: dict[str, Any] = json.loads(said)
    return done


async def test_a_data_key_is_changed_under_twenty_thousand_documents(short_leases: Any) -> None:
    stack, index = short_leases, new_name("rotation")
    async with connect(stack) as client, inside(stack, index) as worker:
        await client.create_index(index, dimension=DIMENSION, shards=SHARDS)
        operations = (document(index, number) for number in range(DOCUMENTS))
        done = [r async for r in client.ingest_many(operations, timeout_s=DEADLINE_S)]
        assert Counter(one.status for one in done) == {"accepted": DOCUMENTS}
        count = await client.count(index, after=done, timeout_s=DEADLINE_S)
        assert count == DOCUMENTS
        await worker.directory.refresh()
        lease = await worker.lease()
        uid = lease.uid
        # As who took an index worker would have them: the lease ends, copies do not.
        stolen = SecretBytes(bytes(lease.keys(1, Purpose.SEGMENT).view()))
        assert (await worker.head(0, lambda _: stolen)).generations() == {1}

        searchers = Searchers(client, index)
        async with searchers.running():
            changed = await rotate(stack, index)

            async def swept() -> bool:
                return not await worker.left_over()

            await eventually(swept, "what the old generation left is deleted")
        # What `pytest -rP` shows.
        print(f"asked: {dict(searchers.asked)}")
        assert min(searchers.asked.values()) > 10
        assert (changed["generation"], changed["generations"]) == (2, [2])
        assert changed["rotation"] is None

        new = [f"new-{n}" for n in range(len(searchers.written))]
        total = await client.count(index, after=searchers.written, timeout_s=QUERY_S)
        assert total == DOCUMENTS + len(new)
        found = await client.get(index, new, include=["content"], timeout_s=QUERY_S)
        assert [hit.content for hit in found] == [content(n) for n in range(len(new))]
        await assert_gone(worker, uid, stolen, total)
    await assert_verified(stack, index)


async def assert_gone(worker: Inside, uid: bytes, stolen: SecretBytes, documents: int) -> None:
    """Nothing that is stored is under generation 1, and no key of it is."""
    lease = await worker.lease()
    assert lease.generations == (2,)
    deks = [entry.key async for entry in worker.store.list(layout.deks_prefix(uid))]
    assert deks == [layout.dek(uid, 2)]
    async for entry in worker.store.list(f"{uid.hex()}/"):
        data = (await worker.store.get(entry.key)).data
        if data.startswith(b"SST1"):
            assert read_header(data).generation != 1, entry.key
    pointers = []
    for shard in range(SHARDS):
        head = await worker.head(shard, lambda g: lease.keys(g, Purpose.SEGMENT))
        assert head.generations() == {2}
        assert {ref.generation for ref in head.segments} == {2}
        assert read_ref(head.vector).generation == 2
        with pytest.raises(Damaged):
            await worker.head(shard, lambda _: stolen)
        for ref in head.segments:
            file = SegmentFile(worker.store, None, uid, shard, ref, lambda _: stolen)
            with pytest.raises(Damaged):
                await read_rows(file)
        snapshot = await worker.reader(shard, lambda g: lease.keys(g, Purpose.SEGMENT)).refresh()
        for segment in range(snapshot.segments):
            rows = np.flatnonzero(snapshot.live(segment))
            pointers += [
                decode_pointer(found) for found, _ in await snapshot.objects(segment, rows) if found
            ]
    assert len(pointers) == documents
    assert {one.generation for one in pointers} == {2}


async def read_rows(file: SegmentFile) -> Rows:
    whole = await file.load_whole()
    return WholeSegment(whole.ref, whole.data, whole.seals()).rows()
