"""Applying a micro-batch to an open shard: all of it, or all but what cannot be built.

A batch that fails in a way that nobody foresaw is sifted (`sift.py`): the operations over which it
fails are refused, the rest is published with the head that says so.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from schemas.update import UpdateOp
from workers.chain.head import Refused
from workers.chain.ops import OpStatus, PendingBatch, Published
from workers.index.build import MicroBatch, gather
from workers.index.emit import Refusals
from workers.index.opening import OpenShard
from workers.index.receive import Received
from workers.index.sift import LeftOut, sift
from workers.runtime.deadletter import DeadLetters
from workers.runtime.lastresort import foreseen, unexpected
from workers.telemetry import metrics

log = structlog.get_logger("index.applying")
T = TypeVar("T")


async def apply(
    shard: OpenShard, offset: int, checked: Sequence[Received], dead_letters: DeadLetters
) -> tuple[Published, Refusals]:
    """Publish what can be built of some batches.

    Args:
        shard: which.
        offset: of the last record; the head contains everything up to it then.
        checked: the batches of its records that were not refused, in their order.
        dead_letters: take the records of what cannot be built, before it is published.

    Returns:
        The head, and the operations that were refused or left out.

    Raises:
        Fenced, Damaged, Retry: as `ShardWriter.apply`.
        Exception: what building raises without any operation.
    """
    left_out: Refusals = []
    try:
        whole, published = await _with_batch(shard, offset, checked, shard.writer.apply)
    except Exception as failure:
        if foreseen(failure):
            raise
        log.warning("a batch cannot be built", index=shard.place.index, shard=shard.place.shard)

        async def rehearse(some: Sequence[Received]) -> None:
            await _with_batch(shard, offset, some, shard.writer.rehearse)

        sifted = await sift(checked, rehearse, shard.keys.lease().config)
        if not sifted.left_out:
            raise
        left_out, noted = await _leave_out(sifted.left_out, dead_letters)
        whole, published = await _with_batch(shard, offset, sifted.kept, shard.writer.apply, noted)
    return published, _refused(whole.sources, published) + left_out


async def _with_batch(
    shard: OpenShard,
    offset: int,
    checked: Sequence[Received],
    use: Callable[[PendingBatch], Awaitable[T]],
    refused: Sequence[Refused] = (),
) -> tuple[MicroBatch, T]:
    """Put batches together and hand them to the writer; return both.

    `refused`: what was left out of them.
    """
    lease, vectors, head = shard.keys.lease(), shard.vectors, shard.writer.head
    whole = await asyncio.to_thread(gather, [one.checked for one in checked if one.checked])
    # Nothing in a segment outlives its generation: packs and words are of their update's.
    generation = min([lease.generation, *(one.generation for one in checked)])
    async with vectors.epochs_in_use:
        first = whole.first_vectors()
        clusters = await vectors.clusters(shard.writer, head, first, generation)
        shard.look()
        # A training may publish the next epoch at any moment: what counts is what they are of.
        epoch = vectors.epoch(shard.head) if clusters is None else clusters.state.current.number
        used = await use(
            PendingBatch(
                offset=offset,
                ops=whole.ops,
                build_nodes=lambda accepted: whole.nodes(accepted, clusters),
                vocabulary=whole.vocabulary,
                epoch=epoch,
                created_ms=whole.created_ms,
                generation=generation,
                access=whole.access,
                origins=[origin for one in checked for origin in one.origins],
                refused=refused,
            )
        )
        shard.look()
    return whole, used


async def _leave_out(
    parts: Sequence[LeftOut], dead_letters: DeadLetters
) -> tuple[Refusals, list[Refused]]:
    """Dead-letter the records of what cannot be built.

    Returns its operations, and what the head says of them.
    """
    refused, noted, told = [], [], set()
    for one in parts:
        record, operation = one.source.record, one.operation
        error = unexpected(one.failure, record).info()
        if operation is not None:
            refused.append((operation, error))
            at = [(record.offset, one.op)]
            noted.append(Refused(error.code.value, error.message, error.field, at))
        if record.offset not in told:
            told.add(record.offset)
            await dead_letters.send(record, error, 1, sealed=True)
    return refused, noted


def _refused(sources: Sequence[UpdateOp], published: Published) -> Refusals:
    """Count what became of the operations; return those that were refused, and why."""
    refused = []
    counts = Counter(
        (op.kind, one.status) for op, one in zip(sources, published.outcomes, strict=True)
    )
    for (kind, status), count in counts.items():
        metrics.APPLIED.inc(count, kind=kind.name.lower(), outcome=status.name.lower())
    for op, outcome in zip(sources, published.outcomes, strict=True):
        if outcome.status is OpStatus.REJECTED and outcome.error is not None:
            refused.append((op, outcome.error))
    return refused
