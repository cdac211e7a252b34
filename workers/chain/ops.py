"""What the writer is asked to do, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ErrorInfo
from schemas.position import Order
from workers.chain.access import AccessChange
from workers.chain.codec import Node
from workers.chain.head import Refused
from workers.chain.kinds import RowKind
from workers.chain.rows import Rows


@dataclass(frozen=True, slots=True)
class PendingOp:
    """One decoded operation of the shard.

    Args:
        order: where the operation stood in plaintext-ingest.
        kind: what row it makes.
        id: the document's id.
        object_id: 16 bytes.
        groups: group tokens of the document's access list (DOC only).
        caller_groups: group tokens of the caller, for the overwrite check.
        overwrite_by_scope: do not ask for a group of the existing document's access list.
        if_version: apply only if the document's version is this; 0 means that none may exist.
        issued_ms: when the caller signed it; 0 if nobody did.
        metadata: opaque, b"" if none.
        object: encoded object pointer, opaque, b"" if none.
        pack: what readers need to open the pack behind `object` (opaque, shared by many ops; the
            segment stores each distinct value once), b"" if none.
        lengths: tokens per text field.
        vector: float32 or float16 `(d,)`, normalised as the index wants it, or None.
    """

    order: Order
    kind: RowKind
    id: str
    object_id: bytes
    groups: tuple[bytes, ...] = ()
    caller_groups: tuple[bytes, ...] = ()
    overwrite_by_scope: bool = False
    if_version: int | None = None
    issued_ms: int = 0
    metadata: bytes = b""
    object: bytes = b""
    pack: bytes = b""
    lengths: Mapping[str, int] = field(default_factory=dict)
    vector: NDArray[np.float32] | NDArray[np.float16] | None = None


class Accepted(NamedTuple):
    """What a node builder gets: where each op's postings go.

    `row_of_op` is int64 `(ops,)`: the row of op i in the new segment, or -1 when its postings are
    left out (ignored, rejected, or overwritten later in the same batch). `rows` is the new document
    table.
    """

    row_of_op: NDArray[np.int64]
    rows: Rows


NodeBuilder = Callable[[Accepted], Iterable[Node]]
"""Makes one node per distinct (kind, token) over the rows given. Runs in a thread: pure CPU."""


@dataclass(frozen=True, slots=True)
class PendingBatch:
    """The operations of one or more index-update records, in the order of their offsets.

    Args:
        offset: the highest index-update offset among them; becomes the head's `applied`.
        ops: the operations; may be empty (then only `applied` advances).
        access: access lists to be replaced, in the order of their records.
        build_nodes: called once with the accepted rows.
        vocabulary: opaque blocks for prefix queries.
        epoch: training epoch of the CODES nodes in it.
        created_ms: when the newest of the records was made, by its writer's clock; 0 if none says.
        generation: key generation of the segment: the oldest that anything in it is sealed under;
            None: the one that is written with now.
        origins: of each operation, the offset of its record and its number there; if given, the
            head notes what is refused.
        refused: operations of these records that were refused before they came here.
    """

    offset: int
    ops: Sequence[PendingOp]
    build_nodes: NodeBuilder
    vocabulary: Sequence[bytes] = ()
    epoch: int = 0
    created_ms: int = 0
    access: Sequence[AccessChange] = ()
    generation: int | None = None
    origins: Sequence[tuple[int, int]] = ()
    refused: Sequence[Refused] = ()


@unique
class OpStatus(IntEnum):
    """What became of an operation."""

    APPLIED = 1
    IGNORED = 2
    REJECTED = 3


class Outcome(NamedTuple):
    """The fate of one operation.

    `version` is the document's version after an applied DOC or TOMBSTONE, else 0. `error` is set
    only when rejected (FORBIDDEN or CONFLICT). IGNORED is a late duplicate: it needs no answer.
    """

    status: OpStatus
    version: int
    error: ErrorInfo | None


@dataclass(frozen=True, slots=True)
class Published:
    """The head after a batch, and what became of its operations, in their order."""

    version: int
    applied: int
    outcomes: list[Outcome]
    head_sha256: bytes
    documents: int
    segments: int


class Groups(NamedTuple):
    """Postings grouped by token: postings `order[starts[i]:ends[i]]` belong to `tokens[i]`.

    `rows` are the rows of the reordered postings (`rows[starts[i]:ends[i]]`, ascending per token).
    """

    tokens: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    order: NDArray[np.int64]
    rows: NDArray[np.int64]


def group_postings(
    token: NDArray[np.int64], op: NDArray[np.int64], row_of_op: NDArray[np.int64]
) -> Groups:
    """Group a batch's postings by token, without those whose op has no row.

    Args:
        token: index of each posting's token, `(p,)`.
        op: index of each posting's op, `(p,)`.
        row_of_op: from `Accepted`.
    """
    row = row_of_op[op]
    kept = np.flatnonzero(row >= 0)
    order = kept[np.lexsort((row[kept], token[kept]))]
    grouped = token[order]
    starts = np.flatnonzero(np.diff(grouped, prepend=-1) != 0)
    ends = np.append(starts[1:], len(grouped)).astype(np.int64)
    if not len(grouped):
        ends = ends[:0]
    return Groups(grouped[starts], starts, ends, order, row[order])
