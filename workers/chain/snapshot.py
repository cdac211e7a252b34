"""A shard at one version, for reading. Immutable: newer versions do not disturb it.

Its segments stay readable for 24 h after a newer head dropped them (`sweep.py`). Beyond that a read
raises `EXPIRED`; `DAMAGED` means that a segment is missing which the *current* head names. A call's
cost is counted in `stats`; `measured()` gives a view with counters of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ErrorCode
from workers.chain.bitmap import DeadRows
from workers.chain.columns import ORIGIN_DTYPE, ROWS_DTYPE, Record
from workers.chain.faults import damaged
from workers.chain.head import OpenedHead, ShardStats
from workers.chain.kinds import RowKind
from workers.chain.lookup import Request, look_up
from workers.chain.pairs import winners
from workers.chain.rows import GroupSet
from workers.chain.segment_file import ReadStats, SegmentFile, SegmentGone, gather_all
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
    """

    def __init__(
        self,
        opened: OpenedHead,
        files: Sequence[SegmentFile],
        dead: Sequence[DeadRows],
        cache: BlockCache | None,
        still_named: Callable[[bytes], Awaitable[bool]],
        stats: ReadStats | None = None,
    ) -> None:
        self._opened = opened
        self._files = list(files)
        self._dead = list(dead)
        self._cache = cache
        self._still_named = still_named
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
            self._opened, self._files, self._dead, self._cache, self._still_named, ReadStats()
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

    async def rows(self, segment: int, rows: RowNumbers | None = None) -> Record:
        """Return records (seq, kind, group_set, pack) of rows, of all when None."""
        return await self._guard(lambda: self._table(segment).records(ROWS_DTYPE, rows))

    async def origins(self, segment: int, rows: RowNumbers | None = None) -> Record:
        """Return records (object_id, stream, partition, offset, applied_ms, issued_ms, version)."""
        return await self._guard(lambda: self._table(segment).records(ORIGIN_DTYPE, rows))

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
        return await self._guard(lambda: self._table(segment).groups(rows))

    async def vocabulary(self, segment: int) -> list[bytes]:
        """Return the opaque vocabulary blocks of a segment."""
        return await self._guard(lambda: self._table(segment).vocabulary())

    async def documents(self, segment: int) -> NDArray[np.bool_]:
        """Return a mask `(rows,)` of the live documents: live rows of kind DOC."""
        records = await self.rows(segment)
        documents: NDArray[np.bool_] = self.live(segment) & (records["kind"] == RowKind.DOC)
        return documents

    async def find_ids(self, object_ids: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """Return (segment, row) of each id's live document, None if there is none."""

        async def find() -> list[tuple[int, int] | None]:
            hits = await gather_all(
                [self._table(i).find(object_ids) for i in range(len(self._files))]
            )
            found: list[tuple[int, int] | None] = [None] * len(object_ids)
            for segment, (which, rows) in enumerate(hits):
                alive = self.live(segment)[rows]
                which, rows = which[alive], rows[alive]
                kinds = (await self._table(segment).records(ROWS_DTYPE, rows))["kind"]
                for i, row in zip(
                    which[kinds == RowKind.DOC].tolist(),
                    rows[kinds == RowKind.DOC].tolist(),
                    strict=True,
                ):
                    found[i] = (segment, row)
            return found

        return await self._guard(find)

    async def resolve_pairs(
        self, postings: Sequence[tuple[int, RowNumbers, NDArray[np.bool_]]]
    ) -> list[tuple[int, int]]:
        """Return the (segment, row) that hold a keyword, one per id, in the order of `seq`.

        Args:
            postings: of one keyword: segment, rows, and sign per row (True for '+'). Dead rows
                are masked here.
        """
        return await self._guard(lambda: self._resolve(postings))

    async def _resolve(
        self, postings: Sequence[tuple[int, RowNumbers, NDArray[np.bool_]]]
    ) -> list[tuple[int, int]]:
        masked = [
            (segment, rows[alive], signs[alive])
            for segment, rows, signs in postings
            for alive in (self.live(segment)[rows],)
            if alive.any()
        ]
        if not masked:
            return []
        segment = np.concatenate([np.full(len(rows), i) for i, rows, _ in masked])
        row = np.concatenate([rows for _, rows, _ in masked]).astype(np.int64)
        sign = np.concatenate([signs for _, _, signs in masked])
        seqs = await gather_all([self._table(i).records(ROWS_DTYPE, r) for i, r, _ in masked])
        records = np.concatenate(seqs)
        if bool(np.all(records["kind"] == RowKind.DOC)):
            # At most one live document per id, so there is nothing to resolve.
            held = sign
        else:
            origin = np.concatenate(
                await gather_all([self._table(i).records(ORIGIN_DTYPE, r) for i, r, _ in masked])
            )
            held = winners(origin, records["seq"]) & sign
        order = np.argsort(records["seq"][held])
        picked = np.flatnonzero(held)[order]
        return list(zip(segment[picked].tolist(), row[picked].tolist(), strict=True))

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
