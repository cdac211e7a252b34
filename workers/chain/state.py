"""What the writer remembers of its shard: one table per live segment, all rows, dead ones too.

Dead rows matter because they are floors: a late duplicate of an operation whose row was killed must
still be recognised. Compaction keeps such rows until the retention of plaintext-ingest has passed
(`retain.py`). About 90 bytes per row, plus 4 per text field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.chain.bitmap import DeadRows
from workers.chain.head import FieldStats, SegmentRef, ShardStats
from workers.chain.kinds import RowKind
from workers.chain.rows import GroupSet, Rows, split_ids


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """The document table of a live segment without payloads, and its rows by object id.

    `hi`, `lo` and `by_id` are sorted by object id: `by_id[i]` is the row of id `(hi[i], lo[i])`.
    All other columns are by row. Never changed in place: compaction reads it beside the updates.
    """

    ref: SegmentRef
    hi: NDArray[np.uint64]
    lo: NDArray[np.uint64]
    by_id: NDArray[np.int64]
    seq: NDArray[np.uint64]
    kind: NDArray[np.uint8]
    stream: NDArray[np.uint32]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    applied_ms: NDArray[np.int64]
    issued_ms: NDArray[np.int64]
    version: NDArray[np.uint32]
    group_set: NDArray[np.int32]
    group_sets: list[GroupSet]
    lengths: dict[str, NDArray[np.uint32]]
    dead: DeadRows

    @classmethod
    def of_rows(cls, ref: SegmentRef, rows: Rows, dead: DeadRows) -> SegmentTable:
        """Make the table of a segment from its rows."""
        hi, lo = split_ids(rows.object_id)
        by_id = np.lexsort((lo, hi))
        return cls(
            ref=ref,
            hi=hi[by_id],
            lo=lo[by_id],
            by_id=by_id,
            seq=rows.seq,
            kind=rows.kind,
            stream=rows.stream,
            partition=rows.partition,
            offset=rows.offset,
            applied_ms=rows.applied_ms,
            issued_ms=rows.issued_ms,
            version=rows.version,
            group_set=rows.group_set,
            group_sets=rows.group_sets,
            lengths=rows.lengths,
            dead=dead,
        )

    def live(self) -> NDArray[np.bool_]:
        """Return the mask of live rows."""
        mask = np.ones(len(self.kind), bool)
        mask[self.dead] = False
        return mask

    def is_dead(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `rows` are dead."""
        if not len(self.dead):
            return np.zeros(len(rows), bool)
        places = np.searchsorted(self.dead, rows)
        places[places == len(self.dead)] = 0
        return np.asarray(self.dead[places] == rows)


class Matches(NamedTuple):
    """Rows with an asked id: position in the question, segment, row."""

    which: NDArray[np.int64]
    segment: NDArray[np.int64]
    row: NDArray[np.int64]


def match_ids(
    tables: Sequence[SegmentTable], hi: NDArray[np.uint64], lo: NDArray[np.uint64]
) -> Matches:
    """Return every row of every table with one of the ids `(hi[i], lo[i])`."""
    found = [_match_one(table, hi, lo) for table in tables]
    segments = [np.full(len(rows), i) for i, (_, rows) in enumerate(found)]
    empty = np.zeros(0, np.int64)
    return Matches(
        np.concatenate([empty, *(which for which, _ in found)]),
        np.concatenate([empty, *segments]),
        np.concatenate([empty, *(rows for _, rows in found)]),
    )


def _match_one(
    table: SegmentTable, hi: NDArray[np.uint64], lo: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left = np.searchsorted(table.hi, hi, "left")
    counts = np.searchsorted(table.hi, hi, "right") - left
    which = np.repeat(np.arange(len(hi)), counts)
    # Position inside each run of equal `hi`: usually one or a few rows of one id.
    inside = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = np.repeat(left, counts) + inside
    same = table.lo[places] == lo[which]
    return which[same], table.by_id[places[same]]


def count_live(tables: Sequence[SegmentTable]) -> ShardStats:
    """Count a shard's live rows from scratch: what the head's statistics must equal."""
    docs = pairs = rows = 0
    fields: dict[str, list[int]] = {}
    for table in tables:
        live = table.live()
        documents = live & (table.kind == RowKind.DOC)
        docs += int(documents.sum())
        pairs += int((live & (table.kind >= RowKind.PAIRS)).sum())
        rows += len(table.kind)
        for name, lengths in table.lengths.items():
            total = fields.setdefault(name, [0, 0])
            total[0] += int((lengths[documents] > 0).sum())
            total[1] += int(lengths[documents].sum(dtype=np.int64))
    return ShardStats(docs, rows, pairs, field_stats(fields))


def field_stats(fields: dict[str, list[int]]) -> dict[str, FieldStats]:
    """Turn [docs, total length] per field into statistics, without fields nobody has."""
    return {name: FieldStats(*total) for name, total in sorted(fields.items()) if total[0]}


def change_stats(
    stats: ShardStats,
    tables: Sequence[SegmentTable],
    kills: dict[int, NDArray[np.int64]],
    born: SegmentTable | None,
) -> ShardStats:
    """Return the statistics after rows were killed and a segment was added, exactly.

    Args:
        stats: before.
        tables: the live segments before.
        kills: newly dead rows by segment.
        born: the added segment with its own dead rows.
    """
    fields = {name: [one.docs, one.total_length] for name, one in stats.fields.items()}
    added = count_live([born] if born is not None else [])
    docs, pairs = stats.docs + added.docs, stats.pairs + added.pairs
    for name, one in added.fields.items():
        total = fields.setdefault(name, [0, 0])
        total[0] += one.docs
        total[1] += one.total_length
    for segment, rows in kills.items():
        table = tables[segment]
        kinds = table.kind[rows]
        documents = rows[kinds == RowKind.DOC]
        docs -= len(documents)
        pairs -= int((kinds >= RowKind.PAIRS).sum())
        for name, lengths in table.lengths.items():
            killed = lengths[documents]
            if name in fields:
                fields[name][0] -= int((killed > 0).sum())
                fields[name][1] -= int(killed.sum(dtype=np.int64))
    return ShardStats(docs, stats.rows + added.rows, pairs, field_stats(fields))
