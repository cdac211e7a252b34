"""Which shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from workers.leases.directory import IndexEntry


@dataclass(frozen=True, slots=True)
class Place:
    """A shard of an index, and the partition of index-update that its updates come from."""

    index: str
    uid: bytes
    shard: int
    partition: int

    @classmethod
    def of(cls, entry: IndexEntry, shard: int) -> Self:
        """Return the place of a shard of an index."""
        return cls(entry.name, entry.uid, shard, entry.partitions[shard])
