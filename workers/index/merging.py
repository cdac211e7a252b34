"""Writing anew what is stored already: merges of segments, and the move to another key generation.

A merge can be tried again at any time, so whatever goes wrong with one makes this shard wait, and
no other.
"""

from __future__ import annotations

from schemas.errors import ErrorCode
from schemas.topics import INDEX_UPDATE
from workers.errors import Retry
from workers.index.opening import OpenShard
from workers.runtime.lastresort import reveal
from workers.telemetry import metrics


async def merge_due(shard: OpenShard) -> bool:
    """Merge once, if there are segments to be merged. Returns whether there were.

    Raises:
        Fenced, Damaged, Retry.
    """
    return shard.writer.needs_compaction and await _merge(shard, old=False)


async def move_old(shard: OpenShard) -> bool:
    """Move one piece of what is sealed under an earlier key generation to the present one.

    Returns:
        Whether there was one.

    Raises:
        Fenced, Damaged, Retry.
    """
    head, generation = shard.head, shard.keys.generation()
    if not head.version:
        return False
    if await shard.vectors.move(shard.writer, head, generation):
        return True
    if any(named < generation for named in head.generations() - {head.generation}):
        return await _merge(shard, old=True)
    if head.generation < generation:
        await shard.writer.publish_state()
        return True
    return False


async def _merge(shard: OpenShard, *, old: bool) -> bool:
    generation = shard.keys.generation()
    regroup, epoch = await shard.vectors.regroup(shard.head, generation)
    try:
        done = await shard.writer.compact(
            old=old, regroup=regroup, epoch=epoch, generation=generation
        )
    except Exception as failure:
        reveal(failure, INDEX_UPDATE, index=shard.place.index, shard=shard.place.shard)
        raise Retry(ErrorCode.OVERLOADED, "a merge failed: see the log") from failure
    if done is None:
        return False
    metrics.COMPACTIONS.inc(outcome="merged")
    metrics.COMPACTED_BYTES.inc(done.bytes_in, direction="in")
    metrics.COMPACTED_BYTES.inc(done.bytes_out, direction="out")
    return True
