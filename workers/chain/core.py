"""What updates, compaction and sweeping of a shard share: head, tables, one lock to publish.

Invariant: the tables describe the segments of the head; both change only after a publication.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.chain.access import AccessTable, load_access, seal_access
from workers.chain.bitmap import fold_deletes
from workers.chain.faults import damaged, fenced
from workers.chain.fresh import FreshSegments
from workers.chain.head import AccessRef, Deletes, Head, HeadSigner, OpenedHead, VerifyWriter
from workers.chain.kinds import Padding, SegmentKeys
from workers.chain.load import load_tables
from workers.chain.publish import HeadStore
from workers.chain.rows import Rows
from workers.chain.seals import SegmentSeals
from workers.chain.segment import BuiltSegment, SegmentContext
from workers.chain.segment_file import SegmentGone, gather_all
from workers.chain.state import SegmentTable
from workers.errors import SealstreamError
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.store import Store


class Parts(NamedTuple):
    """Objects to be stored before the head that names them, and what it says in `deletes`."""

    writes: list[tuple[str, bytes]]
    deletes: list[Deletes]


class ShardCore:
    """One shard under its writer. Hold `lock` around everything that reads `head` to publish.

    Args:
        store: read and write credentials.
        keys: segment keys by generation.
        signer: the worker as a writer of heads.
        verify_writer: checks who signed a head that is loaded.
        generation: key generation of what is written from now on.
        padding: level of what is written from now on.
        clock_ms: milliseconds since 1970.
        fresh: segments written a moment ago, of all shards of the process.
    """

    def __init__(
        self,
        store: Store,
        index_uid: bytes,
        shard: int,
        keys: SegmentKeys,
        signer: HeadSigner,
        verify_writer: VerifyWriter,
        *,
        generation: int,
        padding: Padding,
        clock_ms: Callable[[], int],
        fresh: FreshSegments,
    ) -> None:
        self.store = store
        self.index_uid = index_uid
        self.shard = shard
        self.keys = keys
        self.generation = generation
        self.padding = padding
        self.clock_ms = clock_ms
        self.fresh = fresh
        self.lock = asyncio.Lock()
        self._heads = HeadStore(store, index_uid, shard, keys, signer, verify_writer)
        self._tables: list[SegmentTable] | None = None
        self._access: tuple[AccessRef | None, AccessTable] = (None, {})

    @property
    def opened(self) -> OpenedHead:
        """The head as last loaded or published.

        Raises:
            Fenced: `load` must run first.
        """
        return self._heads.opened

    @property
    def head(self) -> Head:
        """The contents of `opened`."""
        return self._heads.opened.head

    @property
    def known_tables(self) -> list[SegmentTable]:
        """The tables if they are loaded, else []."""
        return self._tables or []

    def use_signer(self, signer: HeadSigner) -> None:
        """Sign the next heads as `signer`."""
        self._heads.signer = signer

    async def load(self, min_version: int) -> Head:
        """Read the head, forget the tables. Writes nothing."""
        self._tables = None
        return (await self._heads.load(self.generation, min_version)).head

    async def tables(self) -> list[SegmentTable]:
        """Return the tables of the live segments, loading them when needed.

        Raises:
            Fenced: the head changed while loading.
            Damaged: a part does not authenticate, or is missing though the head names it.
            Retry: the store or a key is unavailable.
        """
        head = self.head
        if self._tables is None:
            try:
                self._tables = await load_tables(self.store, head, self.keys)
            except (SegmentGone, NotFound) as exc:
                raise await self.missing() from exc
        return self._tables

    async def access(self) -> AccessTable:
        """Return the changed access lists of the head, loading them when needed.

        Raises:
            Fenced, Damaged, Retry: as `tables`.
        """
        ref = self.head.access
        if self._access[0] != ref:
            try:
                table = await load_access(self.store, ref, self.index_uid, self.shard, self.keys)
            except NotFound as exc:
                raise await self.missing() from exc
            self._access = (ref, table)
        return self._access[1]

    def keep_access(self, table: AccessTable) -> None:
        """Remember the access lists of the head that was just published."""
        self._access = (self.head.access, table)

    async def store_access(self, table: AccessTable) -> AccessRef | None:
        """Store changed access lists; return what the next head says of them. Raises Retry."""
        uid = os.urandom(16)
        ref, blob = seal_access(table, self.index_uid, self.shard, uid, self.keys, self.generation)
        if blob:
            await self.store.put(layout.access(self.index_uid, self.shard, uid), blob)
        return ref

    async def missing(self) -> SealstreamError:
        """Return the error for an object that the head names and the store does not have."""
        if await self._heads.changed():
            self._tables = None
            return fenced(f"another writer published shard {self.shard}; load it again")
        return damaged(f"an object that the head of shard {self.shard} names is missing")

    async def publish(self, head: Head, tables: Sequence[SegmentTable] | None) -> OpenedHead:
        """Publish `head`, whose segments `tables` describe (None: not loaded).

        Raises:
            Fenced: another writer owns the shard.
            Retry: no lease for the key, or no right to write; nothing was written.
        """
        head = msgspec.structs.replace(head, written_ms=self.clock_ms(), generation=self.generation)
        opened = await self._heads.publish(head)
        self._tables = None if tables is None else list(tables)
        return opened

    def seal(self, head: Head) -> bytes:
        """Return `head` as `publish` would store it. Raises Retry: no lease for the key."""
        return self._heads.seal(head)

    def context(self, epoch: int, generation: int | None = None) -> SegmentContext:
        """Return what a new segment is built for, under the present key generation or another.

        Raises:
            Retry: no lease for the key generation.
        """
        generation = self.generation if generation is None else generation
        return SegmentContext(
            index_uid=self.index_uid,
            shard=self.shard,
            segment_key=self.keys(generation),
            generation=generation,
            padding=self.padding,
            now_ms=self.clock_ms(),
            epoch=epoch,
            keep_bytes=self.fresh.max_bytes,
        )

    def keep(self, built: BuiltSegment, rows: Rows) -> None:
        """Remember a segment that was published, for its merge."""
        if built.nodes is not None:
            self.fresh.keep(built.ref, rows, built.nodes)

    def parts(
        self,
        built: BuiltSegment | None,
        tables: Sequence[SegmentTable],
        before: Sequence[Deletes],
        killed: Sequence[NDArray[np.int64]],
    ) -> Parts:
        """Return the objects to store for a new segment and the bitmaps that are due.

        Args:
            built: a segment that is not yet stored, or None.
            tables: the live segments of the next head, with all their dead rows.
            before: their present entries (an empty one for a new segment).
            killed: their dead rows that `before` lacks.
        """
        writes: list[tuple[str, bytes]] = []
        if built is not None and built.data:
            writes.append((layout.segment(self.index_uid, self.shard, built.uid), built.data))
        deletes: list[Deletes] = []
        for table, entry, rows in zip(tables, before, killed, strict=True):
            uid = os.urandom(16)
            after, blob = fold_deletes(
                entry,
                table.ref,
                table.dead,
                rows,
                uid=uid,
                generation=self.generation,
                seals=self._seals,
                level=self.padding,
            )
            deletes.append(after)
            if blob is not None:
                writes.append((layout.deletes(self.index_uid, self.shard, uid), blob))
        return Parts(writes, deletes)

    async def store_parts(self, parts: Parts) -> None:
        """Store the objects of the next head, all at once. Raises Retry."""
        await gather_all([self.store.put(key, data) for key, data in parts.writes])

    def _seals(self, uid: bytes) -> SegmentSeals:
        return SegmentSeals(self.index_uid, self.shard, uid, self.keys(self.generation))
