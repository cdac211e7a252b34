"""An index with every kind of stored object, made by real workers over a broker and a store in
memory, and query workers and key services that start cold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from chaos_kit import eventually
from keys_world import World

from schemas.codec import to_plain
from schemas.topics import QUERY_REQUEST
from schemas.values import Vector
from workers.chain import bitmap, segment, segment_file
from workers.chain.head import OpenedHead, open_head
from workers.chain.kinds import BlockKind
from workers.chain.segment_file import ReadStats, SegmentFile
from workers.client import Client
from workers.crypto.derive import Purpose
from workers.errors import SealstreamError
from workers.index import vectors
from workers.index import worker as index_worker
from workers.ingest import worker as ingest_worker
from workers.leases.heads import head_verifier
from workers.leases.lease import Lease
from workers.query import worker as query_worker
from workers.storage import layout
from workers.vector import store as vector_store
from workers.vector import training
from workers.vector.store import read_ref

INDEX, OTHER = "acme/damaged", "acme/other"
DIMENSION = 16
TIMEOUT_S = 60.0
SERVE = {"ingest": ingest_worker.serve, "index": index_worker.serve, "query": query_worker.serve}
WORDS = ("red", "fox", "hill", "blue", "lake", "sky", "green", "tree", "dark", "moon")
EVERYTHING = ["score", "distance", "metadata", "content", "associated_data", "vector", "groups"]
ASKED = to_plain(Vector.of(np.random.default_rng(1).normal(size=DIMENSION).astype(np.float32)))


def small_thresholds(patch: Any) -> None:
    """Let a few hundred documents take the paths that otherwise only large indexes take."""
    patch.setattr(segment, "INLINE_SEGMENT_BYTES", 1024)
    patch.setattr(segment, "INLINE_NODE_BYTES", 96)
    patch.setattr(segment_file, "WHOLE_BYTES", 200 * 1024)
    patch.setattr(bitmap, "RECENT_ROWS", 4)
    patch.setattr(vector_store, "_INLINE_BYTES", 64)
    patch.setattr(training, "TARGET_NODE_BYTES", 100 * (DIMENSION + 12))
    for module in (training, vectors):
        patch.setattr(module, "MIN_VECTORS", 400)


def operation(index: str, number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    text = " ".join(random.choice(WORDS, 12))
    # From 4 KiB on contents lie in packs.
    content = text if number % 4 else (text + "\n") * 100
    return {
        "op": "upsert",
        "index": index,
        "id": f"doc-{number:04d}",
        "content": content,
        "text": {"body": text, "title": f"title{number}"},
        "associated_data": b"about it",
        "keywords": ["even" if number % 2 == 0 else "odd", f"only{number}"],
        "metadata": {"year": 1900 + number % 100, "lang": ("en", "de", "fr")[number % 3]},
        "vector": random.normal(size=DIMENSION).astype(np.float32),
    }


PROBES: dict[str, tuple[Any, dict[str, Any]]] = {
    "keyword": ({"keyword": "even"}, {"top_k": 1000}),
    "one keyword": ({"keyword": "only7"}, {}),
    "text": ({"text": "red lake"}, {"top_k": 1000, "include": ["score"]}),
    "phrase": ({"text": '"red lake"', "syntax": True}, {"top_k": 1000, "include": ["score"]}),
    "prefix": ({"text": "title4*", "syntax": True}, {"top_k": 1000}),
    "vector": ({"vector": ASKED, "nprobe": 1000}, {"top_k": 50, "include": ["score"]}),
    "hybrid": ({"hybrid": {"text": "moon", "vector": ASKED}}, {"include": ["score"]}),
    "filter": ({"filter_only": True}, {"filter": {"year": {"$lt": 1910}}, "top_k": 1000}),
    "ordered": ({"filter_only": True, "order_by": "year"}, {"top_k": 1000}),
    "get": (
        {"get": [f"doc-{n:04d}" for n in range(0, 500, 7)]},
        {"include": ["metadata", "vector"]},
    ),
    "contents": (
        {"get": [f"doc-{n:04d}" for n in range(0, 500, 8)]},
        {"include": ["content", "associated_data", "groups"]},
    ),
    "deleted": ({"get": [f"doc-{n:04d}" for n in range(40)]}, {}),
    "ids": ({"ids": True}, {"top_k": 1000}),
    "count": ({"count": True}, {}),
    "counted filter": ({"count": True}, {"filter": {"lang": "de"}}),
}


class Scene:
    """The index, what its answers are, and its objects by kind."""

    def __init__(self, home: Path) -> None:
        self.world = World(home, lease_s=3600)
        self.world.clock = time.time
        self.client: Client
        self.lease: Lease
        self.baseline: dict[str, Any]
        self.early_head: bytes
        self.early_packs: list[str]
        self.opened: OpenedHead

    # -- making it -------------------------------------------------------------------------------

    async def fill(self) -> None:
        world = self.world
        await world.open()
        # Signed: of a sealed request nobody could open without keys, nobody knows who asks.
        self.client = Client(world.settings, broker=world.broker, protection="signed")
        await self.client.__aenter__()
        await self.client.create_index(INDEX, dimension=DIMENSION, storage_precision="float32")
        await self.client.create_index(OTHER, dimension=DIMENSION, storage_precision="float32")
        holder = await world.holder("query-1")
        caller = world.admin_caller
        shown = caller.shown(QUERY_REQUEST)
        self.lease = await holder.lease(INDEX, auth=caller.auth(INDEX), **shown)
        async with self.running("ingest"), self.running("index"):
            await self._ingest(INDEX, range(500))
            self.early_head = self.bytes_of(self.head_key)
            packs = layout.packs_prefix(self.uid)
            self.early_packs = [key for key in self.world.stored() if key.startswith(packs)]
            await eventually(self._trained, "the centroids are trained")
            await self._delete(range(0, 40, 3))
            await self._ingest(INDEX, range(500, 540))
            await self._ingest(OTHER, range(20))
        self.opened = self.open_head()
        number = 540
        while len(self.stored_segments()) < 2 or not any(d.base for d in self.opened.head.deletes):
            # A merge took in everything, or few of the deleted lay together: the tests need a large
            # and a small object, and a bitmap.
            async with self.running("ingest"), self.running("index"):
                await self._ingest(INDEX, range(number, number + 40))
                await self._delete(range(number, number + 40, 3))
            number += 40
            self.opened = self.open_head()
        async with self.running("query"):
            self.baseline = await self.ask()

    async def _ingest(self, index: str, numbers: range) -> None:
        operations = [operation(index, number) for number in numbers]
        async for result in self.client.ingest_many(operations, wait="searchable"):
            assert result.status == "accepted", result

    async def _delete(self, numbers: range) -> None:
        for number in numbers:
            await self.client.delete(INDEX, f"doc-{number:04d}", wait="searchable")

    async def _trained(self) -> bool:
        return bool(read_ref(self.open_head().head.vector).epoch)

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.world.aclose()

    # -- running it ------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, role: str) -> AsyncIterator[asyncio.Task[None]]:
        """Run a worker that knows nothing yet."""
        stop = asyncio.Event()
        settings = self.world.settings.model_copy(update={"worker_id": f"{role}-1"})
        store = self.world.store.view(read_only=role == "query")
        task = asyncio.create_task(
            SERVE[role](settings, stop, broker=self.world.broker, store=store)
        )
        try:
            yield task
        finally:
            stop.set()
            await task

    async def ask(self) -> dict[str, Any]:
        """Return the answer of every probe: hits and counts, or the code of the error."""
        answers = {
            name: await self._answer(INDEX, query, options)
            for name, (query, options) in PROBES.items()
        }
        query, options = PROBES["contents"]
        answers["other index"] = await self._answer(OTHER, query, options)
        return answers

    async def _answer(self, index: str, query: Any, options: dict[str, Any]) -> Any:
        try:
            result = await self.client.query(index, query, timeout_s=TIMEOUT_S, **options)
        except SealstreamError as error:
            return error.code
        return {"hits": [to_plain(hit) for hit in result.hits], "count": result.count}

    # -- its objects -----------------------------------------------------------------------------

    @property
    def uid(self) -> bytes:
        return self.lease.uid

    @property
    def head_key(self) -> str:
        return layout.head(self.uid, 0)

    def bytes_of(self, key: str) -> bytes:
        return self.world.store._shared.objects[key].stored.data

    def only(self, prefix: str) -> str:
        """Return the first key below a prefix."""
        return next(key for key in self.world.stored() if key.startswith(prefix))

    async def change(self, changes: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
        """Write objects (None removes them); return what undoes it."""
        stored = set(self.world.stored())
        undo = {key: self.bytes_of(key) if key in stored else None for key in changes}
        for key, data in changes.items():
            if data is None:
                await self.world.store.delete([key])
            else:
                await self.world.store.put(key, data)
        return undo

    def segment_key(self, generation: int) -> Any:
        return self.lease.keys(generation, Purpose.SEGMENT)

    def open_head(self) -> OpenedHead:
        verifier = head_verifier(self.world.directory, INDEX)
        data = self.bytes_of(self.head_key)
        return open_head(data, self.uid, 0, self.segment_key, verifier)

    def segments(self) -> list[SegmentFile]:
        """Return the live segments, the largest first."""
        refs = sorted(self.opened.head.segments, key=lambda ref: -ref.size)
        store = self.world.store.view(read_only=True)
        return [SegmentFile(store, None, self.uid, 0, ref, self.segment_key) for ref in refs]

    def stored_segments(self) -> list[SegmentFile]:
        """Return those of `segments` that are objects; small ones stand in the head."""
        return [file for file in self.segments() if not file.ref.inline]

    async def blocks(self, kind: BlockKind | None) -> list[tuple[int, int]]:
        """Return (place, length) of the blocks of a kind in the largest segment; None: nodes."""
        file = self.segments()[0]
        if kind is BlockKind.BUCKET:
            return list(zip(file.bucket_places.tolist(), file.bucket_lengths.tolist(), strict=True))
        if kind is BlockKind.DIRECTORY:
            return [(file.ref.directory_at, file.ref.directory_length)]
        directory = await file.directory(ReadStats())
        place, packed = 0, directory.large
        if kind is not None:
            _, place, packed = directory.columns.get(kind, (0, 0, b""))
        lengths = np.frombuffer(packed, "<u4").astype(int)
        places = place + np.cumsum(lengths) - lengths
        return list(zip(places.tolist(), lengths.tolist(), strict=True))

    def head_parts(self) -> dict[str, tuple[int, int]]:
        """Return (place, length) of what a head is made of."""
        data = self.bytes_of(self.head_key)
        sealed, certificate, signature = msgspec.msgpack.decode(data)
        return {
            name: (data.index(part), len(part))
            for name, part in (
                ("sealed", sealed),
                ("certificate", certificate),
                ("signature", signature),
            )
        }


def flip(data: bytes, places: list[tuple[int, int]]) -> bytes:
    """Flip one bit in the middle of each place."""
    changed = bytearray(data)
    for place, length in places:
        changed[place + length // 2] ^= 0x10
    return bytes(changed)
