"""Answer vector queries: probe clusters, scan codes, rerank with full vectors.

1. Each query probes `nprobe` clusters of every epoch that a live segment still uses.
2. Codes that are not in memory are fetched and scanned (`probing`); rows that the query may not
   use are masked.
3. The best `rerank` rows are scored again with their full vectors; the best k of these are the
   answer, equal scores by id.

A segment is searched exactly instead where there are no clusters yet (epoch 0), and where so few
rows may be used that scoring them all is cheaper and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np

from schemas.errors import ErrorCode
from schemas.index import MAX_RERANK
from schemas.query import VectorQuery
from workers.chain.segment_file import both, gather_all
from workers.errors import Reject
from workers.search.columns import Usable, VectorColumn
from workers.search.probing import Asked, ShardProbe, best_rows, scan_codes
from workers.search.run import Candidate, Run, Scored, with_score
from workers.search.snapshot import RowNumbers
from workers.vector.centroids import VectorState
from workers.vector.codes import quantize_query
from workers.vector.metric import F32, Metric, distance, exact_scores, prepare

DEFAULT_NPROBE: Final = 32
MIN_RERANK: Final = 30
RERANK_PER_HIT: Final = 3
EXACT_ROWS: Final = 20_000
"""Filtered to at most so many rows, vectors are scored exactly (1.2 ms for 12k of 384)."""
FILTERED_PROBES: Final = 4
"""A filter that leaves more multiplies the probes: the near ones may be filtered out."""
_THREAD_VECTORS: Final = 4 * 1024 * 1024
"""Vectors scored exactly from so many bytes on go to a thread (they are converted on the way)."""


async def search_vector(run: Run, query: VectorQuery, k: int) -> list[Candidate]:
    """Return the `k` nearest documents, nearest first, ties by id. See `search_vectors`."""
    return (await search_vectors(run, [query], k))[0]


async def search_vectors(run: Run, queries: Sequence[VectorQuery], k: int) -> list[list[Candidate]]:
    """Answer several vector queries at once, with one matrix product for each cluster.

    Raises:
        Reject: UNSUPPORTED, the index has no vectors; DIMENSION_MISMATCH.
        Damaged: stored codes or centroids do not decode.
    """
    metric = Metric(run.context.config.metric)
    asked = [_prepare(run, query, metric, k) for query in queries]
    shards = await _shards(run, asked, metric)
    found: list[list[Scored]] = [[] for _ in asked]
    sure: list[list[Scored]] = [[] for _ in asked]
    for shard in shards:
        await _scan_exact(shard, asked, metric, sure)
        await scan_codes(run, shard, asked, found)
    best = [best_rows(one, query.keep) for one, query in zip(found, asked, strict=True)]
    if run.context.config.storage_precision != "int8":
        best = await _rescore(run, asked, metric, best)
    ranked = await run.rank_many([[*a, *b] for a, b in zip(best, sure, strict=True)], k)
    return [[_with_distance(one, metric) for one in answer] for answer in ranked]


def _with_distance(one: Candidate, metric: Metric) -> Candidate:
    return one if one.score is None else with_score(one, one.score, distance(one.score, metric))


def _prepare(run: Run, query: VectorQuery, metric: Metric, k: int) -> Asked:
    dimension = run.context.config.dimension
    if dimension is None:
        raise Reject(
            ErrorCode.UNSUPPORTED, "this index was created without a dimension: no vectors"
        )
    vector = query.vector.array
    if vector.size != dimension:
        raise Reject(
            ErrorCode.DIMENSION_MISMATCH,
            f"the vector has {vector.size} dimensions, the index has {dimension}",
            field="query.vector",
        )
    rerank = query.rerank
    if rerank is None:
        rerank = min(MAX_RERANK, max(MIN_RERANK, RERANK_PER_HIT * k))
    return Asked(
        vector=prepare(vector, metric),
        nprobe=query.nprobe or DEFAULT_NPROBE,
        rerank=rerank > 0,
        keep=max(rerank, k),
    )


async def _shards(run: Run, asked: list[Asked], metric: Metric) -> list[ShardProbe]:
    """Return the shards that have vectors, and how each of their segments is searched."""
    states, usable = await both(_centroids(run), _usable(run))
    shards = []
    for number, (columns, state) in enumerate(zip(run.columns, states, strict=True)):
        if state is None:
            continue
        quantized = [quantize_query(query.vector, state.mean, metric) for query in asked]
        shard = ShardProbe(number, columns, state, quantized)
        for segment in range(columns.shard.segments):
            shard.usable[segment] = usable[number, segment]
        shards.append(shard)
    matched = sum(one.count for shard in shards for one in shard.usable.values())
    total = sum(one.mask.size for shard in shards for one in shard.usable.values())
    stored = run.context.config.storage_precision != "int8"
    # Few usable rows: exact. Without a filter only if most rows are out of the caller's reach.
    sparse = run.condition is not None or matched * 4 < total
    narrow = sparse and matched <= EXACT_ROWS
    for shard in shards:
        shard.boost = FILTERED_PROBES if sparse else 1
        epochs = shard.columns.shard.epochs
        for segment, rows in shard.usable.items():
            if rows.count:
                exact = stored and (narrow or epochs[segment] == 0)
                (shard.exact if exact else shard.probed).append(segment)
    return shards


async def _centroids(run: Run) -> list[VectorState | None]:
    return await gather_all([run.context.centroids(one.shard) for one in run.columns])


async def _usable(run: Run) -> dict[tuple[int, int], Usable]:
    """Return which rows of each (shard, segment) this query may use. See `Run.mask`."""
    places = run.places()
    found = await gather_all([_usable_rows(run, number, segment) for number, segment in places])
    return dict(zip(places, found, strict=True))


async def _usable_rows(run: Run, number: int, segment: int) -> Usable:
    columns = run.columns[number]
    checked = run.context.members_only or run.condition is not None
    usable = await columns.usable(segment, run.context.groups if checked else None)
    if run.condition is None or not usable.count:
        return usable
    return Usable.of(usable.mask & await columns.filtered(segment, run.condition, None))


async def _scan_exact(
    shard: ShardProbe, asked: list[Asked], metric: Metric, sure: list[list[Scored]]
) -> None:
    """Score every usable vector of the exact segments."""
    for segment in shard.exact:
        usable = shard.usable[segment]
        if usable.count * 2 >= usable.mask.size:
            column = await shard.columns.all_vectors(segment)
            rows, vectors = column.rows, column.vectors
            if not usable.everything:
                keep = usable.mask[rows]
                rows, vectors = rows[keep], vectors[keep]
        else:
            rows, vectors = await shard.columns.vectors(segment, np.flatnonzero(usable.mask))
        if not rows.size:
            continue

        def work(vectors: F32 = vectors) -> list[F32]:
            full = vectors.astype(np.float32, copy=False)
            return [exact_scores(query.vector, full, metric) for query in asked]

        heavy = vectors.nbytes * len(asked) >= _THREAD_VECTORS
        scores = await asyncio.to_thread(work) if heavy else work()
        for i, one in enumerate(scores):
            sure[i].append(Scored(shard.number, segment, rows, one))


async def _rescore(
    run: Run, asked: list[Asked], metric: Metric, best: list[list[Scored]]
) -> list[list[Scored]]:
    """Score rows again with their full vectors, which are read once for all queries."""
    wanted: dict[tuple[int, int], list[RowNumbers]] = {}
    for query, found in zip(asked, best, strict=True):
        for one in found if query.rerank else ():
            wanted.setdefault((one.shard, one.segment), []).append(one.rows)
    places = list(wanted)
    columns = await gather_all(
        [
            run.columns[shard].vectors(segment, np.unique(np.concatenate(wanted[shard, segment])))
            for shard, segment in places
        ]
    )
    read = dict(zip(places, columns, strict=True))
    out = []
    for query, found in zip(asked, best, strict=True):
        if not query.rerank:
            out.append(found)
            continue
        again = []
        for one in found:
            rows, vectors = VectorColumn(*read[one.shard, one.segment]).of(one.rows)
            scores = exact_scores(query.vector, vectors, metric)
            again.append(Scored(one.shard, one.segment, rows, scores))
        out.append(again)
    return out
