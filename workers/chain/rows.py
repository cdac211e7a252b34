"""The document table of a segment: one row per applied operation, as columns.

Invariant: rows stand in the order of `seq`, the shard's count of applied operations, so row order
is arrival order within a segment; across segments compare `seq`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

GroupSet = tuple[bytes, ...]
"""Group tokens (16 bytes each) of an access list."""


@dataclass(slots=True)
class Rows:
    """`n` rows in the order of `seq`.

    `group_set` is an index into `group_sets`, `pack` one into `packs`; -1 means none. `vectors`
    holds the rows named in `vector_rows` (sorted), float16 or float32 `(m, d)`. `lengths` are token
    counts per text field. `issued_ms` is 0 for an operation nobody signed.
    """

    object_id: NDArray[np.uint8]
    seq: NDArray[np.uint64]
    kind: NDArray[np.uint8]
    stream: NDArray[np.uint32]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    applied_ms: NDArray[np.int64]
    issued_ms: NDArray[np.int64]
    version: NDArray[np.uint32]
    group_set: NDArray[np.int32]
    pack: NDArray[np.int32]
    ids: list[str]
    metadata: list[bytes]
    objects: list[bytes]
    group_sets: list[GroupSet] = field(default_factory=list)
    lengths: dict[str, NDArray[np.uint32]] = field(default_factory=dict)
    vector_rows: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    vectors: NDArray[np.float16] | NDArray[np.float32] | None = None
    packs: list[bytes] = field(default_factory=list)
    vocabulary: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def blank(cls, n: int) -> Rows:
        """Return `n` rows of zeros without groups, packs, lengths or vectors."""
        return cls(
            object_id=np.zeros((n, 16), np.uint8),
            seq=np.zeros(n, np.uint64),
            kind=np.zeros(n, np.uint8),
            stream=np.zeros(n, np.uint32),
            partition=np.zeros(n, np.int32),
            offset=np.zeros(n, np.int64),
            applied_ms=np.zeros(n, np.int64),
            issued_ms=np.zeros(n, np.int64),
            version=np.zeros(n, np.uint32),
            group_set=np.full(n, -1, np.int32),
            pack=np.full(n, -1, np.int32),
            ids=[""] * n,
            metadata=[b""] * n,
            objects=[b""] * n,
        )


FIXED = (
    "object_id",
    "seq",
    "kind",
    "stream",
    "partition",
    "offset",
    "applied_ms",
    "issued_ms",
    "version",
    "group_set",
    "pack",
)
"""The columns of fixed width."""


def split_ids(object_id: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Split object ids `(n, 16)` into two u64 columns that sort as the bytes do."""
    halves = np.ascontiguousarray(object_id, np.uint8).reshape(-1, 16).view(">u8")
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


def ids_array(object_ids: Sequence[bytes]) -> NDArray[np.uint8]:
    """Pack object ids of 16 bytes into `(n, 16)` uint8.

    Raises:
        ValueError: one has another length.
    """
    joined = b"".join(object_ids)
    if len(joined) != 16 * len(object_ids) or any(len(one) != 16 for one in object_ids):
        raise ValueError("an object id has 16 bytes")
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)


def intern_groups(sets: Sequence[GroupSet]) -> tuple[NDArray[np.int32], list[GroupSet]]:
    """Return the index of each row's group set (-1 for an empty one) and the distinct sets."""
    known: dict[GroupSet, int] = {}
    column = np.fromiter(
        (known.setdefault(one, len(known)) if one else -1 for one in sets), np.int32, len(sets)
    )
    return column, list(known)
