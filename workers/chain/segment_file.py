"""Reading parts of one live segment: from the head, from one GET of a small object, or by ranges.

Invariant: everything returned has been opened under the key of its own place (`seals.py`), so it is
authentic. Opened blocks are what the cache keeps (decrypting again for every query would cost more
than the search), so a cache holds plaintext of the index; a lapsed lease still stops every read,
because the key is asked for first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.chain.faults import damaged
from workers.chain.head import SegmentRef
from workers.chain.kinds import BlockKind, Padding, SegmentKeys
from workers.chain.seals import SegmentSeals
from workers.chain.segment import Directory
from workers.errors import Damaged
from workers.storage import layout
from workers.storage.cache import BlockCache
from workers.storage.errors import NotFound
from workers.storage.store import Store

T = TypeVar("T")
U = TypeVar("U")

WHOLE_BYTES = 256 * 1024
"""Segments up to this size are read with one GET: cheaper than ranges, and it hides which part was
wanted."""
THREAD_BYTES = 64 * 1024
"""Blobs from this size on are opened in a thread."""
GAP_BYTES = 32 * 1024
"""Unwanted bytes read rather than asking twice. Large nodes that together take no more are all read
with the first bucket: that saves the round after it, and hides which of them was wanted."""
RUN_BYTES = 4 * 1024 * 1024


class _Block(NamedTuple):
    number: int
    place: int
    length: int


class SegmentGone(Exception):  # noqa: N818 - named by what happened
    """Raised when the object of a segment does not exist (any more)."""

    def __init__(self, uid: bytes) -> None:
        super().__init__("a segment is gone from the store")
        self.uid = uid


@dataclass(slots=True)
class ReadStats:
    """What reading cost: requests and bytes to the store, parts served from the cache."""

    gets: int = 0
    bytes: int = 0
    cache_hits: int = 0
    dummies: int = 0


class SegmentFile:
    """One segment and the means to read it.

    Args:
        data: the whole segment when the caller has read it, else None.
    """

    def __init__(
        self,
        store: Store,
        cache: BlockCache | None,
        index_uid: bytes,
        shard: int,
        ref: SegmentRef,
        keys: SegmentKeys,
        data: bytes | None = None,
    ) -> None:
        self.ref = ref
        self.key = layout.segment(index_uid, shard, ref.uid)
        self.bucket_lengths = np.frombuffer(ref.bucket_lengths, "<u4")
        self.bucket_places = ref.buckets_at + np.concatenate(
            ([0], np.cumsum(self.bucket_lengths[:-1], dtype=np.int64))
        )
        self._store = store
        self._cache = cache
        self._index_uid = index_uid
        self._shard = shard
        self._keys = keys
        self._data = data if data is not None else (ref.inline or None)
        self._directory: Directory | None = None
        # Where the blocks of a column begin, and where the last one ends.
        self._edges: dict[BlockKind, NDArray[np.int64]] = {}
        self._opened_key = self.key + "#open"

    @property
    def data(self) -> bytes:
        """All bytes, on what `load_whole` returned.

        Raises:
            ValueError: they are not in memory.
        """
        if self._data is None:
            raise ValueError("this segment was not loaded whole")
        return self._data

    @property
    def padding(self) -> Padding:
        """The padding level it was built with."""
        return cast("Padding", self.ref.padding)

    def seals(self) -> SegmentSeals:
        """Return the segment's keys, for one operation.

        Raises:
            Retry: there is no lease for its key generation.
        """
        key = self._keys(self.ref.generation)
        return SegmentSeals(self._index_uid, self._shard, self.ref.uid, key)

    async def load_whole(self, stats: ReadStats | None = None) -> SegmentFile:
        """Return this segment with all its bytes in memory, for reading most of it."""
        if self._data is not None:
            return self
        data = await self._get_whole(stats or ReadStats())
        return SegmentFile(
            self._store, None, self._index_uid, self._shard, self.ref, self._keys, data
        )

    async def read(self, place: int, length: int, stats: ReadStats) -> bytes:
        """Return sealed bytes.

        Raises:
            SegmentGone: the object does not exist.
            Damaged: it ends too early, or is small and not what the head says.
        """
        if self._data is not None:
            return self._data[place : place + length]
        if self.ref.size <= WHOLE_BYTES and self._cache is not None:
            whole = await self._cache.get((self.key, 0, 0), lambda: self._get_whole(stats))
            return whole[place : place + length]
        nodes = self.ref.buckets_at
        if place + length <= nodes <= GAP_BYTES and self._cache is not None:
            together = await self._cache.get(
                (self.key, 0, nodes), lambda: self._get_range(0, nodes, stats)
            )
            return together[place : place + length]
        return await self._get_range(place, length, stats)

    async def large_nodes(self, stats: ReadStats) -> bool:
        """Read all large nodes into the cache if they are worth one request (`GAP_BYTES`).

        Return whether they were there before: who read them may have opened none of them.
        """
        nodes = self.ref.buckets_at
        if self._cache is None or not 0 < nodes <= GAP_BYTES:
            return False
        before = (self.key, 0, nodes) in self._cache
        await self.read(0, nodes, stats)
        return before

    def forget_large_nodes(self) -> None:
        """Drop what `large_nodes` read: something in it does not open."""
        if self._cache is not None:
            self._cache.drop(self.key)

    async def _get_range(self, place: int, length: int, stats: ReadStats) -> bytes:
        stats.gets += 1
        stats.bytes += length
        try:
            data = await self._store.get_range(self.key, place, length)
        except NotFound as exc:
            raise SegmentGone(self.ref.uid) from exc
        except ValueError as exc:
            raise self._truncated() from exc
        if len(data) < length:
            raise self._truncated()
        return data

    async def block(
        self, kind: BlockKind, number: int, place: int, length: int, stats: ReadStats
    ) -> bytes:
        """Return an opened block at a known place."""
        hit = self._peek(_Block(number, place, length), stats)
        if hit is not None:
            return hit
        seals = self.seals()

        async def load() -> bytes:
            blob = await self.read(place, length, stats)
            if length < THREAD_BYTES:
                return seals.open_block(kind, number, blob)
            return await asyncio.to_thread(seals.open_block, kind, number, blob)

        if self._cache is None:
            return await load()
        return await self._cache.get((self._opened_key, place, length), load)

    async def directory(self, stats: ReadStats) -> Directory:
        """Return the segment's directory."""
        if self._directory is None:
            ref = self.ref
            block = await self.block(
                BlockKind.DIRECTORY, 0, ref.directory_at, ref.directory_length, stats
            )
            self._directory = _decode_directory(block)
        return self._directory

    async def bucket(self, number: int, stats: ReadStats) -> bytes:
        """Return an opened bucket."""
        place, length = int(self.bucket_places[number]), int(self.bucket_lengths[number])
        return await self.block(BlockKind.BUCKET, number, place, length, stats)

    async def run_of(self, kind: BlockKind, stats: ReadStats) -> tuple[int, int]:
        """Return a column's rows per block and its number of blocks; (0, 0) if it is absent."""
        column = (await self.directory(stats)).columns.get(kind)
        return (0, 0) if column is None else (column[0], len(column[2]) // 4)

    async def blocks(
        self, kind: BlockKind, numbers: Sequence[int], stats: ReadStats
    ) -> list[bytes]:
        """Return opened blocks of a column; near ones that are not cached share a request.

        Raises:
            Damaged: the column has no such block.
        """
        column = (await self.directory(stats)).columns.get(kind)
        if column is None or (len(numbers) and max(numbers) >= len(column[2]) // 4):
            raise damaged(f"a {kind.name} block of shard {self._shard} is missing")
        places = self._edges.get(kind)
        if places is None:
            lengths = np.frombuffer(column[2], "<u4")
            places = column[1] + np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
            self._edges[kind] = places
        wanted = [
            _Block(number, int(places[number]), int(places[number + 1] - places[number]))
            for number in numbers
        ]
        found: dict[int, bytes] = {}
        absent: list[_Block] = []
        for block in wanted:
            hit = self._peek(block, stats)
            if hit is None:
                absent.append(block)
            else:
                found[block.number] = hit
        runs = await gather_all([self._run(kind, run, stats) for run in _near(absent)])
        for opened in runs:
            found.update(opened)
        return [found[number] for number in numbers]

    def _peek(self, block: _Block, stats: ReadStats) -> bytes | None:
        if self._cache is None:
            return None
        # A lapsed lease stops cached reads too.
        self._keys(self.ref.generation)
        hit = self._cache.peek((self._opened_key, block.place, block.length))
        if hit is not None:
            stats.cache_hits += 1
        return hit

    async def _run(
        self, kind: BlockKind, run: Sequence[_Block], stats: ReadStats
    ) -> dict[int, bytes]:
        """Read near blocks with one request."""
        if len(run) == 1:
            return {run[0].number: await self.block(kind, *run[0], stats)}
        start, end = run[0].place, run[-1].place + run[-1].length
        blob = await self.read(start, end - start, stats)
        seals = self.seals()

        def open_all() -> dict[int, bytes]:
            return {
                one.number: seals.open_block(
                    kind, one.number, blob[one.place - start : one.place - start + one.length]
                )
                for one in run
            }

        opened = open_all() if len(blob) < THREAD_BYTES else await asyncio.to_thread(open_all)
        if self._cache is not None:
            for one in run:
                self._cache.put((self._opened_key, one.place, one.length), opened[one.number])
        return opened

    async def whole_column(self, kind: BlockKind, stats: ReadStats) -> list[bytes]:
        """Return all opened blocks of a column with one request, opened in a thread, not cached."""
        column = (await self.directory(stats)).columns.get(kind)
        if column is None:
            return []
        lengths = np.frombuffer(column[2], "<u4").tolist()
        blob = await self.read(column[1], sum(lengths), stats)
        seals = self.seals()

        def open_all() -> list[bytes]:
            opened, at = [], 0
            for number, length in enumerate(lengths):
                opened.append(seals.open_block(kind, number, blob[at : at + length]))
                at += length
            return opened

        return await asyncio.to_thread(open_all)

    async def _get_whole(self, stats: ReadStats) -> bytes:
        stats.gets += 1
        stats.bytes += self.ref.size
        try:
            data = (await self._store.get(self.key)).data
        except NotFound as exc:
            raise SegmentGone(self.ref.uid) from exc
        await asyncio.to_thread(self._check_whole, data)
        return data

    def _truncated(self) -> Damaged:
        return damaged(f"a segment of shard {self._shard} is truncated")

    def _check_whole(self, data: bytes) -> None:
        if hashlib.sha256(data).digest() != self.ref.sha256:
            raise damaged(f"a segment of shard {self._shard} is not the one its head names")


def _near(blocks: Sequence[_Block]) -> list[list[_Block]]:
    """Group blocks of a column that are near each other, up to `RUN_BYTES` each."""
    runs: list[list[_Block]] = []
    for block in sorted(set(blocks)):
        if runs:
            first, last = runs[-1][0], runs[-1][-1]
            gap = block.place - last.place - last.length
            if gap <= GAP_BYTES and block.place + block.length - first.place <= RUN_BYTES:
                runs[-1].append(block)
                continue
        runs.append([block])
    return runs


def _decode_directory(block: bytes) -> Directory:
    try:
        return msgspec.msgpack.decode(block, type=Directory)
    except msgspec.MsgspecError as exc:
        raise damaged("the directory of a segment cannot be read") from exc


async def gather_all(tasks: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all in parallel.

    On the first failure cancel the others, wait for them to end, and raise it.
    """
    if len(tasks) < 2:
        # A task costs more than most reads from the cache.
        return [await task for task in tasks]
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        return list(await asyncio.gather(*running))
    except BaseException:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise


async def both(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Await two in parallel, as `gather_all` does."""
    tasks: list[Coroutine[Any, Any, object]] = [first, second]
    one, other = await gather_all(tasks)
    return cast("T", one), cast("U", other)
