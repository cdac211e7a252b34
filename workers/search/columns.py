"""Read the columns of a shard's segments, decoded once and kept while there is room.

A query that touches few rows of a large segment reads those rows alone; one that touches many, or
comes after others, finds or makes the whole column in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from schemas.filter import Filter
from workers.chain.kinds import RowKind
from workers.chain.segment_file import both
from workers.search.cache import DecodedCache, Key
from workers.search.filter import MetadataColumns, build_columns, evaluate
from workers.search.snapshot import Mask, RowNumbers, ShardSnapshot

_WHOLE_BELOW: Final = 4096
"""Segments of fewer rows are read whole: a range request costs more than the rest of them."""
_WHOLE_FROM: Final = 8
"""A column is read whole when at least one row of so many is asked for, or at the second query."""
_SHARE: Final = 4
"""A column may take one part of so many of the cache."""
_ID_BYTES: Final = 100
_METADATA_BYTES: Final = 300
_FLOAT32_BELOW: Final = 8192
"""Segments of fewer vectors keep them as float32."""
_THREAD_ROWS: Final = 512
"""From so many rows of metadata on, decoding goes to a thread."""


@dataclass(frozen=True, slots=True)
class VectorColumn:
    """All vectors of a segment: int64 `(m,)` rows, increasing, and float16 or float32 `(m, d)`."""

    rows: RowNumbers
    vectors: npt.NDArray[Any]

    def of(self, rows: RowNumbers) -> tuple[RowNumbers, npt.NDArray[Any]]:
        """Return those of `rows` that have a vector, and the vectors."""
        places = np.searchsorted(self.rows, rows)
        places[places == self.rows.size] = 0
        present = self.rows[places] == rows if self.rows.size else np.zeros(rows.size, bool)
        return rows[present], self.vectors[places[present]]


@dataclass(frozen=True, slots=True)
class Usable:
    """Which rows of a segment a query may use: bool `(rows,)`, and how many they are."""

    mask: Mask
    count: int

    @classmethod
    def of(cls, mask: Mask) -> Usable:
        """Count a mask."""
        return cls(mask, int(np.count_nonzero(mask)))

    @property
    def everything(self) -> bool:
        """Whether no row is left out."""
        return self.count == self.mask.size


class ShardColumns:
    """The columns of one shard at one version.

    Args:
        index_uid: of the index, to name cache entries.
        shard: the snapshot.
        cache: of the process.
        vector_bytes: of one stored vector.
    """

    def __init__(
        self, index_uid: bytes, shard: ShardSnapshot, cache: DecodedCache, vector_bytes: int = 0
    ) -> None:
        self.shard = shard
        self._uid = index_uid
        self._cache = cache
        self._vector_bytes = vector_bytes
        self._first: set[Key] = set()

    def key(self, segment: int, *name: Hashable) -> Key:
        """Return the cache key of something derived from a segment alone."""
        return (self._uid, self.shard.segment_uid(segment), *name)

    def cached(self, key: Key) -> Any:
        """Return a cached value or None."""
        return self._cache.get(key)

    def keep(self, key: Key, value: Any, size_bytes: int) -> None:
        """Cache a value."""
        self._cache.put(key, value, size_bytes)

    async def kinds(self, segment: int) -> npt.NDArray[np.uint8]:
        """Return uint8 `(rows,)` row kinds."""
        key = self.key(segment, "kinds")
        found: npt.NDArray[np.uint8] | None = self.cached(key)
        if found is None:
            found = np.ascontiguousarray(await self.shard.kinds(segment, None))
            self.keep(key, found, found.nbytes)
        return found

    async def documents(self, segment: int) -> Mask:
        """Return which rows are live documents."""
        kinds = await self.kinds(segment)
        return np.asarray(self.shard.live(segment) & (kinds == RowKind.DOC))

    async def allowed(self, segment: int, groups: frozenset[bytes]) -> Mask:
        """Return which rows have an access list that names one of `groups`."""
        key = self.key(segment, "allowed", self.shard.access_key, groups)
        found: Mask | None = self.cached(key)
        if found is None:
            group_set, sets = await self._group_table(segment)
            # One more entry, for the rows without a list: index -1.
            table = np.array([*(not groups.isdisjoint(one) for one in sets), False], dtype=np.bool_)
            found = np.asarray(table[group_set], dtype=np.bool_)
            for row, changed in (await self._changed_groups(segment)).items():
                found[row] = not groups.isdisjoint(changed)
            self.keep(key, found, found.nbytes)
        return found

    async def usable(self, segment: int, groups: frozenset[bytes] | None) -> Usable:
        """Return which rows are live and, unless `groups` is None, may be read by one of them."""
        key = self.key(segment, "usable", self.shard.version, groups)
        found: Usable | None = self.cached(key)
        if found is None:
            mask = self.shard.live(segment)
            if groups is not None:
                mask = np.asarray(mask & await self.allowed(segment, groups))
            found = Usable.of(mask)
            self.keep(key, found, mask.nbytes + 64)
        return found

    async def filtered(self, segment: int, condition: Filter, rows: RowNumbers | None) -> Mask:
        """Return bool `(k,)`: for which of `rows` (all if None) the filter holds."""
        known = self._cache.peek(self.key(segment, "metadata"))
        if not known and rows is not None and not self._whole(segment, "M", rows, _METADATA_BYTES):
            part = await self._build(await self.shard.metadata(segment, rows))
            return evaluate(condition, part)
        mask = evaluate(condition, await self.metadata(segment))
        return np.asarray(mask if rows is None else mask[rows])

    async def metadata(self, segment: int) -> MetadataColumns:
        """Return the metadata of all rows of a segment, by field."""
        key = self.key(segment, "metadata")
        columns: MetadataColumns | None = self.cached(key)
        if columns is None:
            columns = await self._build(await self.shard.metadata(segment, None))
            self.keep(key, columns, columns.size_bytes)
        return columns

    async def sequence(self, segment: int) -> npt.NDArray[np.int64]:
        """Return int64 `(rows,)` `seq` of every row: the order of arrival."""
        key = self.key(segment, "seq")
        found: npt.NDArray[np.int64] | None = self.cached(key)
        if found is None:
            found = (await self.shard.rows(segment, None))["seq"].astype(np.int64)
            self.keep(key, found, found.nbytes)
        return found

    async def lengths(self, segment: int, field: str, rows: RowNumbers) -> npt.NDArray[np.uint32]:
        """Return uint32 `(k,)` lengths of one text field; 0 where it is absent."""
        key = self.key(segment, "lengths")
        columns: dict[str, npt.NDArray[np.uint32]] | None = self.cached(key)
        if columns is None:
            if not self._whole(segment, "L", rows, 16):
                part = (await self.shard.lengths(segment, rows)).get(field)
                return part if part is not None else np.zeros(rows.size, dtype=np.uint32)
            columns = await self.shard.lengths(segment, None)
            columns = {name: np.ascontiguousarray(one) for name, one in columns.items()}
            self.keep(key, columns, sum(one.nbytes for one in columns.values()) + 64)
        column = columns.get(field)
        return column[rows] if column is not None else np.zeros(rows.size, dtype=np.uint32)

    async def ids(self, segment: int, rows: RowNumbers) -> list[str]:
        """Return the document ids of rows."""
        key = self.key(segment, "ids")
        known: list[str] | None = self.cached(key)
        if known is None:
            if not self._whole(segment, "I", rows, _ID_BYTES):
                return await self.shard.ids(segment, rows)
            known = await self.shard.ids(segment, None)
            self.keep(key, known, sum(map(len, known)) + 64 * len(known))
        return [known[row] for row in rows.tolist()]

    async def vectors(self, segment: int, rows: RowNumbers) -> tuple[RowNumbers, npt.NDArray[Any]]:
        """Return those of `rows` that have a vector, and the vectors."""
        column: VectorColumn | None = self.cached(self.key(segment, "vectors"))
        if column is None:
            if not self._whole(segment, "V", rows, self._vector_bytes):
                return await self.shard.vectors(segment, rows)
            column = await self.all_vectors(segment)
        return column.of(rows)

    async def all_vectors(self, segment: int) -> VectorColumn:
        """Return all vectors of a segment."""
        key = self.key(segment, "vectors")
        column: VectorColumn | None = self.cached(key)
        if column is None:
            rows, vectors = await self.shard.vectors(segment, None)
            if rows.size <= _FLOAT32_BELOW:
                # Searched exactly, again and again: converting would cost more than scoring.
                vectors = vectors.astype(np.float32, copy=False)
            column = VectorColumn(rows, vectors)
            self.keep(key, column, rows.nbytes + vectors.nbytes)
        return column

    async def _changed_groups(self, segment: int) -> dict[int, tuple[bytes, ...]]:
        """Return the access lists that were changed since, by row."""
        if not self.shard.access_key:
            return {}
        key = self.key(segment, "changed", self.shard.access_key)
        found: dict[int, tuple[bytes, ...]] | None = self.cached(key)
        if found is None:
            found = await self.shard.changed_groups(segment)
            self.keep(key, found, 64 + 160 * len(found))
        return found

    async def _group_table(
        self, segment: int
    ) -> tuple[npt.NDArray[np.int32], list[tuple[bytes, ...]]]:
        """Return the number of each row's group set, and the sets."""
        key = self.key(segment, "groups")
        found: tuple[npt.NDArray[np.int32], list[tuple[bytes, ...]]] | None = self.cached(key)
        if found is None:
            records, sets = await both(
                self.shard.rows(segment, None), self.shard.group_sets(segment)
            )
            numbers = np.ascontiguousarray(records["group_set"])
            found = (numbers, sets)
            self.keep(key, found, numbers.nbytes + 80 * len(sets) + 64)
        return found

    def _whole(self, segment: int, name: str, rows: RowNumbers, row_bytes: int) -> bool:
        """Say whether to read a whole column for some of its rows."""
        total = self.shard.rows_in(segment)
        if total < _WHOLE_BELOW:
            return True
        if total * row_bytes > self._cache.max_bytes // _SHARE:
            return False
        touched = self.key(segment, "touched", name)
        again = self._cache.peek(touched) and touched not in self._first
        if not again:
            # One query may ask more than once: for other rows, or ahead.
            self._first.add(touched)
        self.keep(touched, True, 64)
        return again or rows.size * _WHOLE_FROM >= total

    async def _build(self, metadata: list[bytes]) -> MetadataColumns:
        if len(metadata) < _THREAD_ROWS:
            return build_columns(metadata)
        return await asyncio.to_thread(build_columns, metadata)
