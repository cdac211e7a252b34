"""Choosing what to merge, and merging it.

Policy, from 7 live segments on: merge the newest ones, as many as make the fewest bytes per cube of
segments freed. Only neighbours are merged, so segments stay in the order of arrival and their
ranges of `seq` never overlap: readers order hits by (segment, row) alone. Sizes come to grow
geometrically; measured in a simulation of equal batches, a row is rewritten 3.5 times in 300
batches and 8.6 times in 5,000 (the least possible with 7 segments is about 3 and 6).

A segment that is mostly dead is rewritten alone. Segments above `max_segment_bytes`, and those
before them, are left alone unless the limit of live segments is reached. Inputs and output are held
in memory: about four times the bytes merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.chain.codec import Codec, Regroup, RowMap
from workers.chain.fresh import Source
from workers.chain.head import Deletes
from workers.chain.kinds import NodeKind
from workers.chain.merge import MergedRows, merge_nodes
from workers.chain.rows import Rows
from workers.chain.segment import BuiltSegment, SegmentContext, build_segment
from workers.chain.state import SegmentTable

MAX_LIVE_SEGMENTS = 8
MERGE_FROM = 7
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
    sizes = [table.ref.size for table in tables]
    if len(tables) >= MERGE_FROM:
        first = max((i + 1 for i, size in enumerate(sizes) if size > max_segment_bytes), default=0)
        if len(tables) - first < 2 and len(tables) >= MAX_LIVE_SEGMENTS:
            first = 0
        if len(tables) - first >= 2:
            return list(range(_newest(sizes, first), len(tables)))
    for i, table in enumerate(tables):
        dead = len(table.dead)
        if dead >= DEAD_ROWS and dead > DEAD_SHARE * table.ref.rows:
            return [i]
    return []


def _newest(sizes: Sequence[int], first: int) -> int:
    """Return where the run of newest segments to merge begins, not before `first`."""
    last = len(sizes) - 1
    costs = {i: sum(sizes[i:]) / (last - i) ** 3 for i in range(first, last)}
    return min(costs, key=lambda i: (costs[i], -i))


def choose_old(
    tables: Sequence[SegmentTable],
    deletes: Sequence[Deletes],
    generation: int,
    max_segment_bytes: int = MAX_SEGMENT_BYTES,
) -> list[int]:
    """Return neighbours of which something is sealed under a key generation before `generation`.

    At least one if there is any, and more as long as they stay below `max_segment_bytes`.
    """
    chosen: list[int] = []
    size = 0
    for i, (table, dead) in enumerate(zip(tables, deletes, strict=True)):
        old = table.ref.generation < generation or (dead.base and dead.generation < generation)
        if old and (not chosen or size + table.ref.size <= max_segment_bytes):
            chosen.append(i)
            size += table.ref.size
        elif chosen:
            break
    return chosen


def merge_segments(
    ctx: SegmentContext,
    segments: Sequence[Source],
    merged: MergedRows,
    codecs: Mapping[NodeKind, Codec],
    regroup: Regroup | None,
) -> Merged:
    """Merge segments into one with a new uid, so with new labels and keys. Runs in a thread.

    Args:
        ctx: what the output is built for.
        segments: the inputs.
        merged: their document tables, merged.
        codecs: merge the nodes of each kind.
        regroup: makes the CODES nodes anew.

    Raises:
        Damaged: a part of an input does not open.
        Fatal: a kind of node has no codec, or CODES of several epochs have no `regroup`.
    """
    if not len(merged.rows):
        return Merged(None, merged.rows, merged.table_maps, merged.dead)
    nodes = merge_nodes(segments, merged.posting_maps, codecs, regroup, ctx.epoch)
    built = build_segment(ctx, merged.rows, nodes)
    return Merged(built, merged.rows, merged.table_maps, merged.dead)
