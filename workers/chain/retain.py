"""Which rows compaction keeps.

    live DOC, PAIRS   always
    live TOMBSTONE    while younger than the retention: it is a floor
    live REMOVALS     while younger, and as long as there is a live row that it may still hide
    dead rows         while younger, as floors without payload, unless the same source has a DOC or
                      TOMBSTONE row of the id at a higher offset: that one stops the same late
                      duplicates, and lives longer

The retention is longer than that of plaintext-ingest and of index-update, and counts by the clock
of the batches (`Head.clock_ms`): whoever applies batches refuses those that are older than that
clock by the retention (`too_old`), so once a floor is gone nothing comes that it would have
stopped, not even a record that somebody kept to append it again. Other segments than those merged
are consulted through the writer's tables, so each decision is about the whole shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.chain.kinds import RowKind
from workers.chain.state import SegmentTable, match_ids

RETENTION_MS: Final = 8 * 86_400_000
"""How long floors stay: as long as index-update keeps a record, and a day."""

Mask = NDArray[np.bool_]


class Retained(NamedTuple):
    """Masks `(rows,)` of one input: rows that stay, and which of them stay dead."""

    keep: Mask
    dead: Mask


def too_old(created_ms: int, clock_ms: int, retention_ms: int = RETENTION_MS) -> bool:
    """Tell whether floors against a batch made at `created_ms` may be gone at `clock_ms`."""
    return created_ms <= clock_ms - retention_ms


def retain(
    tables: Sequence[SegmentTable], segment: int, *, now_ms: int, retention_ms: int
) -> Retained:
    """Decide for the rows of `tables[segment]` at `now_ms`, the clock of the head."""
    table = tables[segment]
    live = table.live()
    young = table.applied_ms > now_ms - retention_ms
    keep = live.copy()
    keep[live & (table.kind == RowKind.TOMBSTONE) & ~young] = False
    old_removals = np.flatnonzero(live & (table.kind == RowKind.REMOVALS) & ~young)
    keep[old_removals] = _may_hide(tables, segment, old_removals)
    floors = np.flatnonzero(~live & young)
    keep[floors] = ~_outranked(tables, segment, floors)
    return Retained(keep, ~live)


def _may_hide(tables: Sequence[SegmentTable], segment: int, rows: NDArray[np.int64]) -> Mask:
    """Whether some live row of the id would count for more without this one.

    Also a live row of the same source at a lower offset that is itself a removal: it would speak
    for the source in this row's place, with another arrival number.
    """
    which, other_segment, other = match_rows(tables, segment, rows)
    hides = np.zeros(len(rows), bool)
    mine = tables[segment]
    for i, table in enumerate(tables):
        at = other_segment == i
        w, o = which[at], other[at]
        r = rows[w]
        same = _same_source(mine, r, table, o)
        pairs_or_doc = table.kind[o] != RowKind.TOMBSTONE
        gives = (table.kind[o] == RowKind.DOC) | (table.kind[o] == RowKind.PAIRS)
        blocks = ~table.is_dead(o) & np.where(
            same,
            pairs_or_doc & (table.offset[o] < mine.offset[r]),
            gives & (table.seq[o] < mine.seq[r]),
        )
        hides[w[blocks]] = True
    return hides


def _outranked(tables: Sequence[SegmentTable], segment: int, rows: NDArray[np.int64]) -> Mask:
    which, other_segment, other = match_rows(tables, segment, rows)
    outranked = np.zeros(len(rows), bool)
    mine = tables[segment]
    for i, table in enumerate(tables):
        at = other_segment == i
        w, o = which[at], other[at]
        r = rows[w]
        final = (table.kind[o] == RowKind.DOC) | (table.kind[o] == RowKind.TOMBSTONE)
        higher = final & _same_source(mine, r, table, o) & (table.offset[o] > mine.offset[r])
        outranked[w[higher]] = True
    return outranked


def match_rows(
    tables: Sequence[SegmentTable], segment: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (position in `rows`, segment, row) of all rows with the same ids."""
    table = tables[segment]
    where = np.empty(len(table.by_id), np.int64)
    where[table.by_id] = np.arange(len(table.by_id))
    matches = match_ids(tables, table.hi[where[rows]], table.lo[where[rows]])
    return matches.which, matches.segment, matches.row


def _same_source(
    mine: SegmentTable, rows: NDArray[np.int64], table: SegmentTable, other: NDArray[np.int64]
) -> Mask:
    return np.asarray(
        (table.stream[other] == mine.stream[rows])
        & (table.partition[other] == mine.partition[rows])
    )
