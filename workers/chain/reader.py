"""The reader of a shard: follows its head and hands out snapshots.

Heads are re-checked with a conditional GET at most every `max_age_ms`, whoever asks; the answer is
usually 304. What it refuses: a head that does not authenticate, one older than any it has seen or
was told of (`expect`), a fork, and a head that vanished.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from workers.chain.access import AccessTable, load_access
from workers.chain.bitmap import DeadRows, no_rows, open_deletes
from workers.chain.faults import damaged
from workers.chain.head import (
    NO_HASH,
    AccessRef,
    Deletes,
    OpenedHead,
    SegmentRef,
    VerifyWriter,
    check_successor,
    empty_head,
    open_head,
)
from workers.chain.kinds import SegmentKeys
from workers.chain.seals import SegmentSeals
from workers.chain.segment_file import SegmentFile, both, gather_all
from workers.chain.snapshot import Snapshot
from workers.storage import layout
from workers.storage.cache import BlockCache
from workers.storage.errors import NotFound
from workers.storage.store import Store


class ShardReader:
    """Reads one shard. Memory: the head, directories, dead rows; all else is in the bounded cache.

    Args:
        store: read-only credentials suffice.
        cache: shared by all readers of the process.
        keys: segment keys by generation.
        verify_writer: checks who signed a head.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        cache: BlockCache | None,
        index_uid: bytes,
        shard: int,
        keys: SegmentKeys,
        verify_writer: VerifyWriter,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index_uid = index_uid
        self.shard = shard
        self._store = store
        self._cache = cache
        self._keys = keys
        self._verify_writer = verify_writer
        self._clock_s = clock_s
        self._head_key = layout.head(index_uid, shard)
        self._lock = asyncio.Lock()
        self._opened: OpenedHead | None = None
        self._snapshot: Snapshot | None = None
        self._checked_s = float("-inf")
        self._min_version = 0
        self._files: dict[bytes, SegmentFile] = {}
        self._dead: dict[bytes, tuple[Deletes, DeadRows]] = {}
        self._access: tuple[AccessRef | None, AccessTable] = (None, {})

    @property
    def snapshot(self) -> Snapshot | None:
        """The latest snapshot, None before the first `refresh`."""
        return self._snapshot

    def expect(self, version: int) -> None:
        """Refuse heads below `version` from now on.

        Tell it what a signed event, a grant or a checkpoint says.
        """
        if version > self._min_version:
            self._min_version = version
            if self._opened is None or self._opened.head.version < version:
                self._checked_s = float("-inf")

    async def refresh(self, max_age_ms: float = 0) -> Snapshot:
        """Return a snapshot that was current at most `max_age_ms` ago.

        Raises:
            Damaged: see the module.
            Retry: the store or the key is unavailable.
        """
        called_s = self._clock_s()
        fresh_from = called_s - max_age_ms / 1000
        if self._snapshot is not None and self._checked_s > fresh_from:
            return self._snapshot
        async with self._lock:
            # Whoever held the lock before us may have started its check after we asked.
            if self._snapshot is not None and self._checked_s > fresh_from:
                return self._snapshot
            started_s = self._clock_s()
            snapshot = await self._check()
            self._checked_s = started_s
            return snapshot

    async def _check(self) -> Snapshot:
        opened = await self._read_head()
        while opened.head.version < (floor := self._min_version):
            # A version may be announced while an earlier one is on its way here.
            opened = await self._read_head()
            if opened.head.version < floor:
                raise damaged(f"the head of shard {self.shard} is older than its writer announced")
        if self._snapshot is not None and opened is self._opened:
            return self._snapshot
        try:
            snapshot = await self._build(opened)
        except NotFound as exc:
            again = await self._read_head()
            if again.sha256 == opened.sha256:
                raise damaged(f"an object that shard {self.shard} names is missing") from exc
            opened = again
            snapshot = await self._build_or_damaged(again)
        self._opened, self._snapshot = opened, snapshot
        return snapshot

    async def _read_head(self) -> OpenedHead:
        seen = self._opened
        try:
            if seen is not None and seen.etag:
                stored = await self._store.get_if_changed(self._head_key, seen.etag)
                if stored is None:
                    return seen
            else:
                stored = await self._store.get(self._head_key)
        except NotFound as exc:
            if seen is not None and seen.head.version:
                raise damaged(f"the head of shard {self.shard} is gone") from exc
            return seen or OpenedHead(empty_head(self.index_uid, self.shard, 0), NO_HASH, "")
        opened = await asyncio.to_thread(
            lambda: open_head(
                stored.data,
                self.index_uid,
                self.shard,
                self._keys,
                self._verify_writer,
                etag=stored.etag,
            )
        )
        if seen is not None and seen.head.version:
            check_successor(seen, opened)
        return opened

    async def _build_or_damaged(self, opened: OpenedHead) -> Snapshot:
        try:
            return await self._build(opened)
        except NotFound as exc:
            raise damaged(f"an object that shard {self.shard} names is missing") from exc

    async def _build(self, opened: OpenedHead) -> Snapshot:
        head = opened.head
        files = {ref.uid: self._file(ref) for ref in head.segments}
        pairs = list(zip(head.segments, head.deletes, strict=True))
        dead, access = await both(self._load_all_dead(pairs), self._load_access(head.access))
        self._access = (head.access, access)
        self._files = files
        self._dead = {
            ref.uid: (deletes, rows) for (ref, deletes), rows in zip(pairs, dead, strict=True)
        }
        return Snapshot(
            opened,
            list(files.values()),
            dead,
            self._cache,
            self._still_named,
            access=access,
        )

    def _file(self, ref: SegmentRef) -> SegmentFile:
        return self._files.get(ref.uid) or SegmentFile(
            self._store, self._cache, self.index_uid, self.shard, ref, self._keys
        )

    async def _load_access(self, ref: AccessRef | None) -> AccessTable:
        if self._access[0] == ref:
            return self._access[1]
        return await load_access(self._store, ref, self.index_uid, self.shard, self._keys)

    async def _load_all_dead(self, pairs: Sequence[tuple[SegmentRef, Deletes]]) -> list[DeadRows]:
        return await gather_all([self._load_dead(ref, deletes) for ref, deletes in pairs])

    async def _load_dead(self, ref: SegmentRef, deletes: Deletes) -> DeadRows:
        if not deletes.count:
            return no_rows()
        known = self._dead.get(ref.uid)
        if known is not None and known[0] == deletes:
            return known[1]
        return await load_dead(self._store, self.index_uid, self.shard, ref, deletes, self._keys)

    async def _still_named(self, uid: bytes) -> bool:
        """Whether the head of this moment names a segment."""
        snapshot = await self.refresh()
        return any(snapshot.segment_uid(i) == uid for i in range(snapshot.segments))


async def load_dead(
    store: Store,
    index_uid: bytes,
    shard: int,
    ref: SegmentRef,
    deletes: Deletes,
    keys: SegmentKeys,
) -> DeadRows:
    """Read the dead rows of a segment.

    Raises:
        Damaged: the bitmap does not authenticate.
        NotFound: its object does not exist.
    """
    if not deletes.base:
        return open_deletes(deletes, ref, None, None)
    blob = (await store.get(layout.deletes(index_uid, shard, deletes.base))).data
    seals = SegmentSeals(index_uid, shard, deletes.base, keys(deletes.generation))
    return await asyncio.to_thread(open_deletes, deletes, ref, blob, seals)
