"""Choosing what to merge, and merging it.

Policy (size-tiered over at most 8 live segments): from 6 live segments on, merge the smallest ones:
at least 4, and more while the next one is no larger than what was chosen so far. Sizes then grow
geometrically, so a row is rewritten O(log n) times. A segment that is mostly dead is rewritten
alone. Segments above `max_segment_bytes` are left alone unless the limit of live segments would be
passed. Inputs and output are held in memory: about four times the bytes merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.chain.codec import Codec, Regroup, RowMap
from workers.chain.kinds import NodeKind
from workers.chain.merge import merge_nodes, merge_rows
from workers.chain.retain import Retained
from workers.chain.rows import Rows
from workers.chain.segment import BuiltSegment, SegmentContext, build_segment
from workers.chain.state import SegmentTable
from workers.chain.whole import WholeSegment

MAX_LIVE_SEGMENTS = 8
MERGE_FROM = 6
MERGE_AT_LEAST = 4
DEAD_SHARE = 0.5
DEAD_ROWS = 1024
MAX_SEGMENT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged segment, not yet published; `built` is None when no row was left."""

    built: BuiltSegment | None
    rows: Rows
    table_maps: list[RowMap]
    dead: NDArray[np.uint32]


def choose(tables: Sequence[SegmentTable], max_segment_bytes: int = MAX_SEGMENT_BYTES) -> list[int]:
    """Return the segments to merge next, in the head's order; [] when there is nothing to do."""
    by_size = sorted(range(len(tables)), key=lambda i: tables[i].ref.size)
    if len(tables) >= MERGE_FROM:
        small = [i for i in by_size if tables[i].ref.size <= max_segment_bytes]
        if len(small) < 2:
            small = by_size
        if len(small) >= MERGE_AT_LEAST or len(tables) >= MAX_LIVE_SEGMENTS:
            return sorted(_prefix(tables, small))
    for i in by_size:
        dead = len(tables[i].dead)
        if dead >= DEAD_ROWS and dead > DEAD_SHARE * tables[i].ref.rows:
            return [i]
    return []


def _prefix(tables: Sequence[SegmentTable], ordered: Sequence[int]) -> list[int]:
    chosen = list(ordered[:MERGE_AT_LEAST])
    total = sum(tables[i].ref.size for i in chosen)
    for i in ordered[MERGE_AT_LEAST:]:
        size = tables[i].ref.size
        if size > total:
            break
        chosen.append(i)
        total += size
    return chosen


def merge_segments(
    ctx: SegmentContext,
    segments: Sequence[WholeSegment],
    retained: Sequence[Retained],
    codecs: Mapping[NodeKind, Codec],
    regroup: Regroup | None,
) -> Merged:
    """Merge segments into one with a new uid, so with new labels and keys. Runs in a thread.

    Raises:
        Damaged: a part of an input does not open.
        Fatal: a kind of node has no codec.
    """
    merged = merge_rows([segment.rows() for segment in segments], retained)
    if not len(merged.rows):
        return Merged(None, merged.rows, merged.table_maps, merged.dead)
    nodes = merge_nodes(segments, merged.posting_maps, codecs, regroup)
    built = build_segment(ctx, merged.rows, nodes)
    return Merged(built, merged.rows, merged.table_maps, merged.dead)
