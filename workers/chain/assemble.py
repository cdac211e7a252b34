"""Making the document table of a new segment from the accepted operations of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.chain.kinds import RowKind
from workers.chain.ops import PendingOp
from workers.chain.resolve import Resolution
from workers.chain.rows import Rows, ids_array, intern_groups


def assemble(
    ops: Sequence[PendingOp],
    resolution: Resolution,
    *,
    next_seq: int,
    now_ms: int,
    vocabulary: Sequence[bytes],
) -> tuple[Rows, NDArray[np.int64]]:
    """Return the document table, and the row of each op (int64, -1 for none).

    Rows that a later operation of the batch killed stay as floors, without payload or postings.
    """
    accepted = [ops[i] for i in resolution.accepted]
    dead = set(resolution.dead_rows)
    payload = [None if r in dead else op for r, op in enumerate(accepted)]
    rows = _columns(accepted, resolution.versions, next_seq, now_ms)
    rows.ids = [op.id if op else "" for op in payload]
    rows.metadata = [op.metadata if op else b"" for op in payload]
    rows.objects = [op.object if op else b"" for op in payload]
    rows.group_set, rows.group_sets = intern_groups(
        [tuple(sorted(set(op.groups))) if op and op.kind == RowKind.DOC else () for op in payload]
    )
    rows.pack, rows.packs = _intern([op.pack if op else b"" for op in payload])
    rows.lengths = _lengths(payload)
    rows.vocabulary = list(vocabulary)
    _add_vectors(rows, payload)
    row_of_op = np.full(len(ops), -1, np.int64)
    row_of_op[resolution.accepted] = np.arange(len(accepted))
    row_of_op[[resolution.accepted[r] for r in dead]] = -1
    return rows, row_of_op


def _columns(
    accepted: Sequence[PendingOp], versions: Sequence[int], next_seq: int, now_ms: int
) -> Rows:
    n = len(accepted)
    rows = Rows.blank(n)
    rows.object_id = ids_array([op.object_id for op in accepted])
    rows.seq = np.arange(next_seq, next_seq + n, dtype=np.uint64)
    rows.kind = np.fromiter((op.kind for op in accepted), np.uint8, n)
    rows.stream = np.fromiter((op.order.stream for op in accepted), np.uint32, n)
    rows.partition = np.fromiter((op.order.partition for op in accepted), np.int32, n)
    rows.offset = np.fromiter((op.order.offset for op in accepted), np.int64, n)
    rows.applied_ms = np.full(n, now_ms, np.int64)
    rows.issued_ms = np.fromiter((op.issued_ms for op in accepted), np.int64, n)
    rows.version = np.array(versions, np.uint32)
    return rows


def _intern(values: Sequence[bytes]) -> tuple[NDArray[np.int32], list[bytes]]:
    known: dict[bytes, int] = {}
    column = np.fromiter(
        (known.setdefault(one, len(known)) if one else -1 for one in values),
        np.int32,
        len(values),
    )
    return column, list(known)


def _lengths(payload: Sequence[PendingOp | None]) -> dict[str, NDArray[np.uint32]]:
    columns: dict[str, NDArray[np.uint32]] = {}
    for row, op in enumerate(payload):
        if op is None:
            continue
        for name, length in op.lengths.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = np.zeros(len(payload), np.uint32)
            column[row] = length
    return columns


def _add_vectors(rows: Rows, payload: Sequence[PendingOp | None]) -> None:
    having = [(r, op.vector) for r, op in enumerate(payload) if op and op.vector is not None]
    if having:
        rows.vector_rows = np.array([r for r, _ in having], np.uint32)
        vectors: NDArray[Any] = np.stack([vector for _, vector in having])
        rows.vectors = vectors
