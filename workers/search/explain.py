"""Say what a query cost, and what the storage could learn from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from schemas.index import IndexConfig
from workers.search.execute import Answer
from workers.search.snapshot import IndexSnapshot

USD_PER_GET: Final = 0.0000004
"""Price of one GET on S3 Standard, us-east-1 ($0.0004 per 1,000); other stores differ."""


def explain(
    config: IndexConfig, snapshot: IndexSnapshot, answers: Sequence[Answer]
) -> dict[str, Any]:
    """Return the `explain` object of a result.

    Args:
        config: of the index.
        snapshot: whose shards count for this request alone (`Snapshot.measured`).
        answers: of all queries of the request.
    """
    shards = snapshot.shards
    gets = sum(shard.stats.gets for shard in shards)
    read = sum(shard.stats.bytes for shard in shards)
    labels = sum(answer.labels for answer in answers)
    return {
        "gets": gets,
        "bytes": read,
        "cache_hits": sum(shard.stats.cache_hits for shard in shards),
        "dummy_reads": sum(shard.stats.dummies for shard in shards),
        "shards": len(shards),
        "segments": sum(shard.segments for shard in shards),
        "documents": snapshot.documents(),
        "chains": labels,
        "estimated_usd": round(gets * USD_PER_GET, 9),
        "storage_learns": _learned(config, gets, labels),
        "notes": list(dict.fromkeys(note for answer in answers for note in answer.notes)),
    }


def _learned(config: IndexConfig, gets: int, labels: int) -> list[str]:
    if not gets:
        return ["nothing: everything was in this worker's memory"]
    learned = [
        "the time of the query, and which index uid and shards it was on",
        (
            f"which {gets} byte ranges were read together; the same words or neighbours read them "
            "again until compaction relabels them"
        ),
    ]
    if config.padding == "off":
        learned.append("the exact sizes of the nodes that were read: how long the chains are")
        learned.append("whether a chain exists in a segment: a miss reads no large node")
    elif config.padding == "standard":
        learned.append("the size classes of the nodes that were read; misses look like small hits")
    else:
        learned.append("only padded size classes; misses and small nodes cost the same reads")
    learned.append(
        f"at most how many chains were asked for ({labels}); not the words, ids, vectors or filters"
    )
    return learned
