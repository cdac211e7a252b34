"""Deciding what a batch does to the shard: applied, ignored or rejected, and which rows die.

For one id, an operation at order o = (source, offset), source = (stream, partition):

    upsert, delete   ignored  if a DOC or TOMBSTONE row of the same source has offset >= o
                     kills    all rows but PAIRS/REMOVALS of the same source with offset > o
    add_keywords,    ignored  if a DOC or TOMBSTONE row of the same source has offset >= o,
    remove_keywords           or a PAIRS/REMOVALS row of the same source has offset == o
                     kills    nothing: readers resolve pairs (`pairs.py`)

Dead rows count too for the question whether to ignore. What is not ignored may be rejected, in
this order:

    CONFLICT    signed more than 60 s before the latest signed operation on the id: a replay
    FORBIDDEN   the id has a document, and the caller is in none of its groups
    CONFLICT    `if_version` is not the document's version (0: there is none)
    TOO_LARGE   it would give the shard more than 256 text fields: each costs 4 bytes a row, used or
                not, in every process that writes or reads the shard

FORBIDDEN concerns keywords too: who may not change a document may not make it found, or unfound.
The version counts applied upserts and deletes of an id while its tombstone lives; the first is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ErrorCode, ErrorInfo
from workers.chain.access import AccessTable
from workers.chain.kinds import RowKind
from workers.chain.ops import OpStatus, Outcome, PendingOp
from workers.chain.rows import GroupSet, ids_array, split_ids
from workers.chain.state import SegmentTable, match_ids

REPLAY_MS = 60_000
"""How much earlier than the recorded one an operation may be signed."""

MAX_FIELDS = 256
"""Text fields of one shard."""

NEW = -1
"""Segment number of rows that this batch makes."""

_IGNORED = Outcome(OpStatus.IGNORED, 0, None)
FINAL = (RowKind.DOC, RowKind.TOMBSTONE)
"""Kinds of rows that replace all that stood under their id."""


@dataclass(slots=True)
class _Row:
    segment: int
    row: int
    final: bool
    document: bool
    source: tuple[int, int]
    offset: int
    live: bool
    version: int
    issued_ms: int
    groups: GroupSet


@dataclass(slots=True)
class Resolution:
    """What a batch does.

    `accepted[r]` is the op that becomes row r of the new segment, `versions[r]` its version;
    `dead_rows` are rows killed by a later op of the same batch; `kills` are rows by segment number.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    dead_rows: list[int] = field(default_factory=list)
    kills: dict[int, list[int]] = field(default_factory=dict)

    def kill_arrays(self) -> dict[int, NDArray[np.int64]]:
        """Return `kills` as sorted arrays."""
        return {segment: np.unique(rows) for segment, rows in self.kills.items()}


def resolve(
    tables: Sequence[SegmentTable], ops: Sequence[PendingOp], access: AccessTable | None = None
) -> Resolution:
    """Decide a batch, each operation seeing what those before it did. Pure; changes no table.

    Args:
        tables: the live segments.
        ops: of the batch.
        access: access lists that count instead of those in the tables.
    """
    result = Resolution()
    known = _known_rows(tables, ops, access or {})
    fields = {name for table in tables for name in table.lengths}
    for index, op in enumerate(ops):
        rows = known.setdefault(op.object_id, [])
        source = (op.order.stream, op.order.partition)
        final = op.kind in FINAL
        if rows and _is_late(rows, source, op.order.offset, final=final):
            result.outcomes.append(_IGNORED)
            continue
        error = _refuse(rows, op) or _crowded(fields, op)
        if error is not None:
            result.outcomes.append(Outcome(OpStatus.REJECTED, 0, error))
            continue
        fields.update(op.lengths)
        version = 1 + max((r.version for r in rows if r.final), default=0) if final else 0
        if final:
            _kill(rows, source, op.order.offset, result)
        rows.append(
            _Row(
                NEW,
                len(result.accepted),
                final,
                op.kind == RowKind.DOC,
                source,
                op.order.offset,
                True,
                version,
                op.issued_ms,
                op.groups,
            )
        )
        result.accepted.append(index)
        result.versions.append(version)
        result.outcomes.append(Outcome(OpStatus.APPLIED, version, None))
    return result


def _known_rows(
    tables: Sequence[SegmentTable], ops: Sequence[PendingOp], access: AccessTable
) -> dict[bytes, list[_Row]]:
    ids = list({op.object_id for op in ops})
    hi, lo = split_ids(ids_array(ids))
    matches = match_ids(tables, hi, lo)
    known: dict[bytes, list[_Row]] = {}
    for segment, table in enumerate(tables):
        mine = matches.segment == segment
        rows = matches.row[mine]
        if not len(rows):
            continue
        columns = zip(
            matches.which[mine].tolist(),
            rows.tolist(),
            table.kind[rows].tolist(),
            table.stream[rows].tolist(),
            table.partition[rows].tolist(),
            table.offset[rows].tolist(),
            table.is_dead(rows).tolist(),
            table.version[rows].tolist(),
            table.issued_ms[rows].tolist(),
            table.group_set[rows].tolist(),
            strict=True,
        )
        for i, row, kind, stream, partition, offset, dead, version, issued_ms, group_set in columns:
            known.setdefault(ids[i], []).append(
                _Row(
                    segment,
                    row,
                    kind in FINAL,
                    kind == RowKind.DOC,
                    (stream, partition),
                    offset,
                    not dead,
                    version,
                    issued_ms,
                    table.group_sets[group_set] if group_set >= 0 else (),
                )
            )
    for name in access.keys() & known.keys():
        for known_row in known[name]:
            if known_row.document and known_row.version == access[name].document:
                known_row.groups = access[name].groups
    return known


def _is_late(rows: list[_Row], source: tuple[int, int], offset: int, *, final: bool) -> bool:
    for row in rows:
        if row.source != source:
            continue
        if row.final and row.offset >= offset:
            return True
        if not final and not row.final and row.offset == offset:
            return True
    return False


def _refuse(rows: list[_Row], op: PendingOp) -> ErrorInfo | None:
    if op.issued_ms and rows:
        latest = max(row.issued_ms for row in rows)
        if op.issued_ms < latest - REPLAY_MS:
            return _error(
                ErrorCode.CONFLICT, "a later message about this id was applied; sign a new one"
            )
    document = next((row for row in rows if row.document and row.live), None)
    if (
        document is not None
        and not op.overwrite_by_scope
        and not set(document.groups).intersection(op.caller_groups)
    ):
        return _error(
            ErrorCode.FORBIDDEN, "changing this document needs a group of its access list", "id"
        )
    if op.if_version is not None and op.if_version != (document.version if document else 0):
        return _error(
            ErrorCode.CONFLICT, "the document has another version; read it again", "if_version"
        )
    return None


def _crowded(fields: set[str], op: PendingOp) -> ErrorInfo | None:
    if op.lengths.keys() <= fields or len(fields | op.lengths.keys()) <= MAX_FIELDS:
        return None
    return _error(
        ErrorCode.TOO_LARGE,
        f"the documents have more than {MAX_FIELDS} different text fields",
        "text",
    )


def _error(code: ErrorCode, message: str, at: str | None = None) -> ErrorInfo:
    return ErrorInfo(code=code, message=message, field=at)


def _kill(rows: list[_Row], source: tuple[int, int], offset: int, result: Resolution) -> None:
    for row in rows:
        if not row.live or (not row.final and row.source == source and row.offset > offset):
            continue
        row.live = False
        if row.segment == NEW:
            result.dead_rows.append(row.row)
        else:
            result.kills.setdefault(row.segment, []).append(row.row)
