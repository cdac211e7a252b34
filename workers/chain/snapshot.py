"""A shard at one version, for reading. Immutable: newer versions do not disturb it.

Its segments stay readable for 24 h after a newer head dropped them (`sweep.py`). Beyond that a read
raises `EXPIRED`; `DAMAGED` means that a segment is missing which the *current* head names. A call's
cost is counted in `stats`; `measured()` gives a view with counters of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ErrorCode
from workers.chain.access import AccessTable
from workers.chain.bitmap import DeadRows
from workers.chain.columns import RECORDS, Record
from workers.chain.faults import damaged
from workers.chain.head import OpenedHead, ShardStats
from workers.chain.kinds import BlockKind, RowKind
from workers.chain.lookup import Request, look_up
from workers.chain.pairs import repeated, winners
from workers.chain.rows import GroupSet
from workers.chain.segment_file import ReadStats, SegmentFile, SegmentGone, both, gather_all
from workers.chain.table import Table
from workers.errors import Reject
from workers.storage.cache import BlockCache

T = TypeVar("T")
RowNumbers = NDArray[np.int64]


class Snapshot:
    """One version of a shard.

    Args:
        opened: the head.
        files: its segments, in the head's order; "segment i" below is an index into them.
        dead: their dead rows.
        still_named: asks whether the current head names a segment uid.
        access: the lists that were changed after their documents were written.
    """

    def __init__(
        self,
        opened: OpenedHead,
        files: Sequence[SegmentFile],
        dead: Sequence[DeadRows],
        cache: BlockCache | None,
        still_named: Callable[[bytes], Awaitable[bool]],
        stats: ReadStats | None = None,
        *,
        access: AccessTable | None = None,
    ) -> None:
        self._opened = opened
        self._files = list(files)
        self._dead = list(dead)
        self._cache = cache
        self._still_named = still_named
        self._access = access or {}
        self._live: dict[int, NDArray[np.bool_]] = {}
        self.stats = stats or ReadStats()

    @property
    def shard(self) -> int:
        """The shard's number."""
        return self._opened.head.shard

    @property
    def version(self) -> int:
        """The head's version; 0 if the shard was never written."""
        return self._opened.head.version

    @property
    def applied(self) -> int:
        """The highest index-update offset contained, -1 if none."""
        return self._opened.head.applied

    @property
    def shard_stats(self) -> ShardStats:
        """Exact counts over live rows."""
        return self._opened.head.stats

    @property
    def vector(self) -> bytes:
        """The vector state, opaque here; b"" before training."""
        return self._opened.head.vector

    @property
    def head_sha256(self) -> bytes:
        """SHA-256 of the head object."""
        return self._opened.sha256

    @property
    def segments(self) -> int:
        """The number of live segments."""
        return len(self._files)

    @property
    def epochs(self) -> list[int]:
        """The training epoch of each segment's CODES nodes."""
        return [file.ref.epoch for file in self._files]

    def rows_in(self, segment: int) -> int:
        """Return the number of rows of a segment, dead ones included."""
        return self._files[segment].ref.rows

    def segment_uid(self, segment: int) -> bytes:
        """Return a segment's uid: callers may cache what they derived from it under this name."""
        return self._files[segment].ref.uid

    def measured(self) -> Snapshot:
        """Return the same snapshot with counters at zero, for one query's `explain`."""
        view = Snapshot(
            self._opened,
            self._files,
            self._dead,
            self._cache,
            self._still_named,
            ReadStats(),
            access=self._access,
        )
        view._live = self._live
        return view

    def live(self, segment: int) -> NDArray[np.bool_]:
        """Return a read-only mask `(rows,)` of the rows that no later operation killed."""
        mask = self._live.get(segment)
        if mask is None:
            mask = np.ones(self.rows_in(segment), bool)
            mask[self._dead[segment]] = False
            mask.flags.writeable = False
            self._live[segment] = mask
        return mask

    async def lookup(
        self,
        requests: Sequence[Request],
        *,
        only: Mapping[Request, Collection[int]] | None = None,
    ) -> dict[Request, list[tuple[int, bytes]]]:
        """Return each chain's nodes as (segment, payload), in segment order.

        One parallel round trip for the buckets of all segments, a second one for large nodes.
        Payloads name dead rows too: mask them with `live`.

        Args:
            requests: (kind, chain token).
            only: segments to look in, for requests that concern only some (CODES of one epoch).

        Raises:
            Damaged: a part does not authenticate, or a named segment is missing.
            Reject: `EXPIRED`, this snapshot is too old.
            Retry: no lease, or the store is unavailable.
        """
        return await self._guard(
            lambda: look_up(self._files, self._cache, requests, only, self.stats)
        )

    async def kinds(self, segment: int, rows: RowNumbers | None = None) -> NDArray[np.uint8]:
        """Return the `RowKind` of rows, of all when None."""
        records = await self._records(segment, BlockKind.KINDS, rows)
        return np.asarray(records["kind"], np.uint8)

    async def object_ids(self, segment: int, rows: RowNumbers | None = None) -> NDArray[np.uint8]:
        """Return the object ids of rows, `(n, 16)`."""
        records = await self._records(segment, BlockKind.OBJECT_IDS, rows)
        return np.asarray(records["object_id"], np.uint8)

    async def rows(self, segment: int, rows: RowNumbers | None = None) -> Record:
        """Return records (seq, group_set, pack) of rows."""
        return await self._records(segment, BlockKind.ROWS, rows)

    async def origins(self, segment: int, rows: RowNumbers | None = None) -> Record:
        """Return records (stream, partition, offset, applied_ms, issued_ms, version) of rows."""
        return await self._records(segment, BlockKind.ORIGIN, rows)

    async def ids(self, segment: int, rows: RowNumbers | None = None) -> list[str]:
        """Return the document ids of rows."""
        return await self._guard(lambda: self._table(segment).ids(rows))

    async def metadata(self, segment: int, rows: RowNumbers | None = None) -> list[bytes]:
        """Return the metadata of rows, b"" where there is none."""
        return await self._guard(lambda: self._table(segment).metadata(rows))

    async def objects(self, segment: int, rows: RowNumbers) -> list[tuple[bytes, bytes]]:
        """Return (object pointer, pack) of rows, b"" where there is none."""
        return await self._guard(lambda: self._table(segment).objects(rows))

    async def lengths(
        self, segment: int, rows: RowNumbers | None = None
    ) -> dict[str, NDArray[np.uint32]]:
        """Return the token counts per text field of rows."""
        return await self._guard(lambda: self._table(segment).lengths(rows))

    async def vectors(
        self, segment: int, rows: RowNumbers | None = None
    ) -> tuple[RowNumbers, NDArray[np.float16] | NDArray[np.float32]]:
        """Return the asked rows that have a vector, and their vectors `(m, d)`."""
        return await self._guard(lambda: self._table(segment).vectors(rows))

    async def groups(self, segment: int, rows: RowNumbers) -> list[GroupSet]:
        """Return the access list (group tokens) of rows, () where there is none."""
        found = await self.written_groups(segment, rows)
        changed = await self.changed_groups(segment)
        if changed:
            found = [changed.get(row, one) for row, one in zip(rows.tolist(), found, strict=True)]
        return found

    async def group_sets(self, segment: int) -> list[GroupSet]:
        """Return the distinct access lists that `group_set` of `rows` counts through."""
        return await self._guard(lambda: self._table(segment).group_sets())

    async def written_groups(self, segment: int, rows: RowNumbers) -> list[GroupSet]:
        """Return the access lists that rows were written with, changed since or not."""
        return await self._guard(lambda: self._table(segment).groups(rows))

    @property
    def access_key(self) -> bytes:
        """What changes when an access list is changed, for who caches what follows from lists."""
        ref = self._opened.head.access
        return b"" if ref is None else ref.uid or hashlib.sha256(ref.inline).digest()

    async def changed_groups(self, segment: int) -> dict[int, GroupSet]:
        """Return the access lists of those live documents whose list was changed, by row.

        `rows` and `written_groups` have the lists that documents were written with, `groups` and
        this the present ones.
        """
        names = list(self._access)
        if not names:
            return {}
        live = self.live(segment)
        hits = await self._guard(lambda: self._table(segment).find(names))
        found = [(i, row) for i, row, kind in hits if kind == RowKind.DOC and live[row]]
        if not found:
            return {}
        origins = await self.origins(segment, np.array([row for _, row in found], dtype=np.int64))
        return {
            row: self._access[names[i]].groups
            for (i, row), version in zip(found, origins["version"].tolist(), strict=True)
            if version == self._access[names[i]].document
        }

    async def vocabulary(self, segment: int) -> list[bytes]:
        """Return the opaque vocabulary blocks of a segment."""
        return await self._guard(lambda: self._table(segment).vocabulary())

    async def packs(self, segment: int) -> list[bytes]:
        """Return the packs that live rows of a segment name (as of its building)."""
        return await self._guard(lambda: self._table(segment).packs())

    async def documents(self, segment: int) -> NDArray[np.bool_]:
        """Return a mask `(rows,)` of the live documents: live rows of kind DOC."""
        kinds = await self.kinds(segment)
        return np.asarray(self.live(segment) & (kinds == RowKind.DOC))

    async def find_ids(self, object_ids: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """Return (segment, row) of each id's live document, None if there is none."""
        if not self.shard_stats.docs:
            return [None] * len(object_ids)

        async def find() -> list[tuple[int, int] | None]:
            hits = await gather_all(
                [self._table(i).find(object_ids) for i in range(len(self._files))]
            )
            found: list[tuple[int, int] | None] = [None] * len(object_ids)
            for segment, rows in enumerate(hits):
                live = self.live(segment)
                for i, row, kind in rows:
                    if kind == RowKind.DOC and live[row]:
                        found[i] = (segment, row)
            return found

        return await self._guard(find)

    async def resolve_pairs(
        self, postings: Sequence[tuple[int, RowNumbers, NDArray[np.bool_]]]
    ) -> list[tuple[int, int]]:
        """Return the (segment, row) that hold a keyword, one per id, in the order of arrival.

        Args:
            postings: of one keyword: segment, rows, and sign per row (True for '+'). Dead rows
                are masked here.
        """
        return await self._guard(lambda: self._resolve(postings))

    async def _resolve(
        self, postings: Sequence[tuple[int, RowNumbers, NDArray[np.bool_]]]
    ) -> list[tuple[int, int]]:
        hits = _live_hits(postings, self.live)
        held = hits.sign
        parts = [(i, hits.row[hits.segment == i]) for i in np.unique(hits.segment).tolist()]
        # An id has at most one live document, so without pairs there is nothing to resolve.
        if self.shard_stats.pairs:
            # Read together: most keywords of a shard that has pairs have some.
            kinds, ids = await both(
                self._of(parts, BlockKind.KINDS), self._of(parts, BlockKind.OBJECT_IDS)
            )
            again = repeated(ids["object_id"])
            if len(again) and bool(np.any(kinds["kind"] != RowKind.DOC)):
                few = [(i, hits.row[again[hits.segment[again] == i]]) for i, _ in parts]
                origin = await self._of(few, BlockKind.ORIGIN)
                held = held.copy()
                held[again] &= winners(ids["object_id"][again], origin)
        return list(zip(hits.segment[held].tolist(), hits.row[held].tolist(), strict=True))

    async def _records(self, segment: int, kind: BlockKind, rows: RowNumbers | None) -> Record:
        return await self._guard(lambda: self._table(segment).records(kind, rows))

    async def _of(self, parts: Sequence[tuple[int, RowNumbers]], kind: BlockKind) -> Record:
        """Return the records of rows of several segments."""
        if not parts:
            return np.zeros(0, RECORDS[kind])
        return np.concatenate(
            await gather_all([self._table(i).records(kind, rows) for i, rows in parts])
        )

    def _table(self, segment: int) -> Table:
        return Table(self._files[segment], self.stats)

    async def _guard(self, read: Callable[[], Awaitable[T]]) -> T:
        """Run a read; when a segment is gone, find out whether it should be."""
        try:
            return await read()
        except SegmentGone as gone:
            if not await self._still_named(gone.uid):
                raise Reject(
                    ErrorCode.EXPIRED, "this snapshot is no longer kept; start the query anew"
                ) from gone
        try:
            return await read()
        except SegmentGone as gone:
            raise damaged(f"a live segment of shard {self.shard} is missing") from gone


class _Hits(NamedTuple):
    """Live postings in the order of arrival, which is that of (segment, row)."""

    segment: NDArray[np.int64]
    row: NDArray[np.int64]
    sign: NDArray[np.bool_]


def _live_hits(
    postings: Sequence[tuple[int, RowNumbers, NDArray[np.bool_]]],
    live: Callable[[int], NDArray[np.bool_]],
) -> _Hits:
    segment = np.concatenate(
        [np.zeros(0, np.int64), *(np.full(len(rows), i) for i, rows, _ in postings)]
    )
    row = np.concatenate([np.zeros(0, np.int64), *(rows for _, rows, _ in postings)])
    sign = np.concatenate([np.zeros(0, bool), *(signs for _, _, signs in postings)])
    alive = np.concatenate([np.zeros(0, bool), *(live(i)[rows] for i, rows, _ in postings)])
    order = np.flatnonzero(alive)
    order = order[np.lexsort((row[order], segment[order]))]
    return _Hits(segment[order], row[order], sign[order])
