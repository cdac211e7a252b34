"""See the shards of an index at one version.

`ShardSnapshot` is all that search asks of a shard; `workers.chain.snapshot.Snapshot` satisfies it,
and tests answer from memory. A snapshot never changes: every query reads one version of each shard.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from workers.chain.head import ShardStats
from workers.chain.kinds import NodeKind
from workers.chain.segment_file import ReadStats
from workers.text.bm25 import FieldStats

RowNumbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Request = tuple[NodeKind, bytes]
"""A kind of node and a chain token of 32 bytes."""


class ShardSnapshot(Protocol):
    """One shard at one version. Its segments are numbered from 0.

    `rows` arguments are int64 row numbers in any order; None stands for all rows of the segment.
    """

    stats: ReadStats

    @property
    def shard(self) -> int:
        """Number of the shard."""
        ...

    @property
    def version(self) -> int:
        """Version of its head."""
        ...

    @property
    def applied(self) -> int:
        """Highest index-update offset that it holds."""
        ...

    @property
    def shard_stats(self) -> ShardStats:
        """Exact counts over live rows."""
        ...

    @property
    def vector(self) -> bytes:
        """What `workers.vector.store` reads the centroids by, b"" for none."""
        ...

    @property
    def segments(self) -> int:
        """How many segments are live."""
        ...

    @property
    def epochs(self) -> list[int]:
        """Training epoch of each segment's CODES nodes."""
        ...

    def rows_in(self, segment: int) -> int:
        """Return the rows of a segment, dead ones included."""
        ...

    def segment_uid(self, segment: int) -> bytes:
        """Return the uid under which anything derived from a segment may be cached."""
        ...

    async def group_sets(self, segment: int) -> list[tuple[bytes, ...]]:
        """Return the distinct access lists that rows were written with, by `group_set`."""
        ...

    @property
    def access_key(self) -> bytes:
        """What changes when an access list is changed."""
        ...

    async def changed_groups(self, segment: int) -> dict[int, tuple[bytes, ...]]:
        """Return the access lists of those documents whose list was changed, by row."""
        ...

    def live(self, segment: int) -> Mask:
        """Return bool `(rows,)`: which rows no later operation killed."""
        ...

    async def lookup(
        self,
        requests: Sequence[Request],
        *,
        only: Mapping[Request, Collection[int]] | None = None,
    ) -> dict[Request, list[tuple[int, bytes]]]:
        """Return (segment, payload) of every node of the requested chains."""
        ...

    async def kinds(self, segment: int, rows: RowNumbers | None = None) -> npt.NDArray[np.uint8]:
        """Return the `RowKind` of rows."""
        ...

    async def object_ids(
        self, segment: int, rows: RowNumbers | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return object ids `(n, 16)`."""
        ...

    async def rows(self, segment: int, rows: RowNumbers | None = None) -> npt.NDArray[Any]:
        """Return records with `seq`, `group_set` and `pack`."""
        ...

    async def origins(self, segment: int, rows: RowNumbers | None = None) -> npt.NDArray[Any]:
        """Return records with `applied_ms`, `version` and where the row came from."""
        ...

    async def ids(self, segment: int, rows: RowNumbers | None = None) -> list[str]:
        """Return document ids."""
        ...

    async def metadata(self, segment: int, rows: RowNumbers | None = None) -> list[bytes]:
        """Return metadata, msgpack, b"" for none."""
        ...

    async def objects(self, segment: int, rows: RowNumbers) -> list[tuple[bytes, bytes]]:
        """Return (object pointer, pack) of rows, b"" for none."""
        ...

    async def lengths(
        self, segment: int, rows: RowNumbers | None = None
    ) -> dict[str, npt.NDArray[np.uint32]]:
        """Return term counts by text field."""
        ...

    async def vectors(
        self, segment: int, rows: RowNumbers | None = None
    ) -> tuple[RowNumbers, npt.NDArray[np.float16] | npt.NDArray[np.float32]]:
        """Return the asked rows that have a vector, and the vectors `(m, d)`."""
        ...

    async def groups(self, segment: int, rows: RowNumbers) -> list[tuple[bytes, ...]]:
        """Return the group tokens of the access list of each row."""
        ...

    async def vocabulary(self, segment: int) -> list[bytes]:
        """Return the sealed word lists of a segment."""
        ...

    async def find_ids(self, object_ids: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """Return (segment, row) of the live document of each object id."""
        ...

    async def resolve_pairs(
        self, postings: Sequence[tuple[int, RowNumbers, Mask]]
    ) -> list[tuple[int, int]]:
        """Return the (segment, row) that hold a keyword, one for each id, by arrival."""
        ...


@dataclass(frozen=True, slots=True)
class IndexSnapshot:
    """All shards of an index, each at one version, in the order of their numbers."""

    index_uid: bytes
    shards: tuple[ShardSnapshot, ...]

    def versions(self) -> list[tuple[int, int]]:
        """Return (shard, version) of each."""
        return [(shard.shard, shard.version) for shard in self.shards]

    def documents(self) -> int:
        """Return the number of live documents."""
        return sum(shard.shard_stats.docs for shard in self.shards)

    def field_names(self) -> list[str]:
        """Return the text fields that any shard has, sorted."""
        return sorted({name for shard in self.shards for name in shard.shard_stats.fields})

    def field_stats(self, name: str) -> FieldStats:
        """Return the statistics of one text field over all shards."""
        found = [s.shard_stats.fields[name] for s in self.shards if name in s.shard_stats.fields]
        return FieldStats(
            docs=sum(counts.docs for counts in found),
            total_length=sum(counts.total_length for counts in found),
        )
