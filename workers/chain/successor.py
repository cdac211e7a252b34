"""What a batch makes of a shard: its rows, its segment, and the head that comes next.

Nothing is stored here and no state changes, so whatever fails can be tried again, and a batch can
be rehearsed. The caller holds `ShardCore.lock` from the tables to the publication.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from workers.chain.access import AccessTable, with_changes, without
from workers.chain.assemble import assemble
from workers.chain.core import Parts, ShardCore
from workers.chain.head import Deletes, Head, Refused
from workers.chain.ops import Accepted, Outcome, PendingBatch
from workers.chain.resolve import FINAL, Resolution, resolve
from workers.chain.rows import Rows
from workers.chain.segment import BuiltSegment, build_segment
from workers.chain.state import SegmentTable, change_stats


class Born(NamedTuple):
    """The segment of a batch."""

    built: BuiltSegment
    rows: Rows
    table: SegmentTable


class Decided(NamedTuple):
    """What becomes of the operations, the access lists after them, and the segment, if any."""

    resolution: Resolution
    access: AccessTable
    born: Born | None


class Following(NamedTuple):
    """The next head, the tables of its segments, and what is to be stored before it."""

    head: Head
    tables: list[SegmentTable]
    parts: Parts


def decide(
    core: ShardCore, tables: Sequence[SegmentTable], batch: PendingBatch, access: AccessTable
) -> Decided:
    """Resolve a batch against the shard and build its segment. Pure CPU: run it in a thread.

    Args:
        core: the shard; its head is read.
        tables: of the live segments.
        batch: what to apply.
        access: the changed access lists of the head.

    Raises:
        Retry: no lease for the key generation.
    """
    # What a list becomes counts for the whole batch, also for what came a moment before it.
    access = with_changes(access, batch.access, tables)
    resolution = resolve(tables, batch.ops, access)
    accepted = (batch.ops[number] for number in resolution.accepted)
    access = without(access, {op.object_id for op in accepted if op.kind in FINAL})
    if not resolution.accepted:
        return Decided(resolution, access, None)
    ctx = core.context(batch.epoch, batch.generation)
    rows, row_of_op = assemble(
        batch.ops,
        resolution,
        next_seq=core.head.next_seq,
        now_ms=ctx.now_ms,
        vocabulary=batch.vocabulary,
    )
    built = build_segment(ctx, rows, batch.build_nodes(Accepted(row_of_op, rows)))
    dead = np.array(sorted(resolution.dead_rows), np.uint32)
    table = SegmentTable.of_rows(built.ref, rows, dead)
    return Decided(resolution, access, Born(built, rows, table))


def follow(
    core: ShardCore, tables: Sequence[SegmentTable], batch: PendingBatch, decided: Decided
) -> Following:
    """Make the next head, all but its reference to access lists, and what is stored before it.

    Raises:
        Retry: no lease for the key generation.
    """
    head = core.head
    kills = decided.resolution.kill_arrays()
    nothing = np.zeros(0, np.int64)
    killed = [kills.get(i, nothing) for i in range(len(tables))]
    after = [
        dataclasses.replace(table, dead=np.union1d(table.dead, rows).astype(np.uint32))
        if len(rows)
        else table
        for table, rows in zip(tables, killed, strict=True)
    ]
    before = list(head.deletes)
    born = decided.born
    if born is not None:
        after.append(born.table)
        before.append(Deletes())
        killed.append(born.table.dead.astype(np.int64))
    parts = core.parts(None if born is None else born.built, after, before, killed)
    head = msgspec.structs.replace(
        head,
        applied=batch.offset,
        next_seq=head.next_seq + len(decided.resolution.accepted),
        segments=[table.ref for table in after],
        deletes=parts.deletes,
        stats=change_stats(head.stats, tables, kills, None if born is None else born.table),
        # A writer whose clock is ahead must not make everybody else's batches look old.
        clock_ms=max(head.clock_ms, min(batch.created_ms, core.clock_ms())),
        refused=_refused(batch, decided.resolution.outcomes),
    )
    return Following(head, after, parts)


def _refused(batch: PendingBatch, outcomes: Sequence[Outcome]) -> list[Refused]:
    """Return what the head notes of a batch's refusals, by reason."""
    places: dict[tuple[str, str, str | None], list[tuple[int, int]]] = {}
    for one in batch.refused:
        places.setdefault((one.code, one.message, one.field), []).extend(one.at)
    if batch.origins:
        for origin, outcome in zip(batch.origins, outcomes, strict=True):
            if outcome.error is not None:
                error = outcome.error
                reason = (error.code.value, error.message, error.field)
                places.setdefault(reason, []).append(origin)
    return [Refused(*reason, at) for reason, at in places.items()]
