"""What compaction must know about payloads, which is nothing: it asks a codec.

A *rowmap* tells where the rows of an input segment went: int64 `(rows of that segment,)`, the new
row number, or -1 where the row was dropped. Within one merge the new rows keep the order of `seq`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from workers.chain.kinds import NodeKind

RowMap = NDArray[np.int64]


class Node(NamedTuple):
    """One node before it is sealed: chain token (32 bytes), and a payload only its codec reads."""

    kind: NodeKind
    token: bytes
    payload: bytes


class Codec(Protocol):
    """Merges nodes of the same chains from several segments."""

    kind: NodeKind

    def merge_many(
        self, chains: Sequence[Sequence[tuple[bytes, RowMap]]]
    ) -> Sequence[bytes | None]:
        """Return, for each chain, one payload over the new rows; None when no posting is left.

        Args:
            chains: per chain the payload and the rowmap of each input segment that has a node of
                it. A segment's rowmap is the same object wherever it comes.
        """
        ...


class Regroup(Protocol):
    """Makes all nodes of a kind anew: for payloads that may change their chain (CODES)."""

    kind: NodeKind

    def regroup(
        self, parts: Sequence[tuple[bytes, bytes, RowMap]]
    ) -> Iterable[tuple[bytes, bytes]]:
        """Yield (token, payload) of the merged segment.

        Args:
            parts: token, payload and rowmap of every node of this kind in the input segments.
        """
        ...
