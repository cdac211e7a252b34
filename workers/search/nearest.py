"""Answer vector queries: probe clusters, scan codes, rerank with full vectors.

1. Each query probes `nprobe` clusters of every epoch that a live segment still uses.
2. Codes that are not in memory are fetched: all nodes of all segments in one parallel look-up.
3. Codes are scanned, rows that the query may not use are masked.
4. The best `rerank` rows are scored again with their full vectors; the best k of these are the
   answer, equal scores by id.

A segment is searched exactly instead where there are no clusters yet (epoch 0), and where so few
rows may be used that scoring them all is cheaper and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np

from schemas.errors import ErrorCode
from schemas.query import VectorQuery
from workers.chain.kinds import NodeKind
from workers.chain.segment_file import gather_all
from workers.errors import Damaged, Reject
from workers.search.columns import ShardColumns
from workers.search.run import Candidate, Run, Scored, with_score
from workers.search.snapshot import Mask, Request, RowNumbers
from workers.vector.centroids import Epoch, VectorState, probe
from workers.vector.codes import (
    Codes,
    CodesNode,
    MalformedCodesError,
    QuantizedQuery,
    decode_codes,
    quantize_query,
    scan_batch,
)
from workers.vector.metric import F32, Metric, distance, exact_scores, prepare

DEFAULT_NPROBE: Final = 32
MIN_RERANK: Final = 30
RERANK_PER_HIT: Final = 3
EXACT_ROWS: Final = 20_000
"""Filtered to at most so many rows, vectors are scored exactly (1.2 ms for 12k of 384)."""
FILTERED_PROBES: Final = 4
"""A filter that leaves more multiplies the probes: the near ones may be filtered out."""
_THREAD_BYTES: Final = 16 * 1024 * 1024
"""Codes scanned from so many bytes on go to a thread (about 1 ms)."""
_THREAD_VECTORS: Final = 4 * 1024 * 1024
"""The same for full vectors, which are converted on the way."""

_NO_SCORES: Final = np.empty(0, dtype=np.float32)
_NOTHING: Final = CodesNode(
    0,
    0,
    np.empty(0, dtype=np.uint32),
    Codes(np.empty((0, 0), dtype=np.int8), _NO_SCORES, _NO_SCORES),
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Query:
    """One query of a batch, prepared."""

    vector: F32
    nprobe: int
    rerank: int | None


@dataclass(slots=True)
class _Shard:
    """A shard in a vector search, with what each query found in it."""

    number: int
    columns: ShardColumns
    state: VectorState
    quantized: list[QuantizedQuery]
    boost: int = 1
    usable: dict[int, Mask] = field(default_factory=dict)
    exact: list[int] = field(default_factory=list)
    probed: list[int] = field(default_factory=list)


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
    asked = [_prepare(run, query, metric) for query in queries]
    shards = await _shards(run, asked, metric)
    found: list[list[Scored]] = [[] for _ in asked]
    sure: list[list[Scored]] = [[] for _ in asked]
    for shard in shards:
        await _scan_exact(shard, asked, metric, sure)
        await _scan_codes(run, shard, asked, found)
    return [
        await _finish(run, query, metric, found[i], sure[i], k) for i, query in enumerate(asked)
    ]


def _prepare(run: Run, query: VectorQuery, metric: Metric) -> _Query:
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
    return _Query(prepare(vector, metric), query.nprobe or DEFAULT_NPROBE, query.rerank)


async def _shards(run: Run, asked: list[_Query], metric: Metric) -> list[_Shard]:
    states = await gather_all([run.context.centroids(one.shard) for one in run.columns])
    shards = []
    for number, (columns, state) in enumerate(zip(run.columns, states, strict=True)):
        if state is None:
            continue
        quantized = [quantize_query(query.vector, state.mean, metric) for query in asked]
        shards.append(_Shard(number, columns, state, quantized))
    for shard in shards:
        for segment in range(shard.columns.shard.segments):
            shard.usable[segment] = await _usable(run, shard, segment)
    matched = sum(int(mask.sum()) for shard in shards for mask in shard.usable.values())
    total = sum(mask.size for shard in shards for mask in shard.usable.values())
    stored = run.context.config.storage_precision != "int8"
    # Few usable rows: exact. Without a filter only if most rows are out of the caller's reach.
    sparse = run.condition is not None or matched * 4 < total
    narrow = sparse and matched <= EXACT_ROWS
    for shard in shards:
        shard.boost = FILTERED_PROBES if sparse else 1
        epochs = shard.columns.shard.epochs
        for segment, mask in shard.usable.items():
            if not mask.any():
                continue
            exact = stored and (narrow or epochs[segment] == 0)
            (shard.exact if exact else shard.probed).append(segment)
    return shards


async def _usable(run: Run, shard: _Shard, segment: int) -> Mask:
    """Return which rows of a segment this query may use."""
    columns, mask = shard.columns, shard.columns.shard.live(segment)
    if run.context.members_only or run.condition is not None:
        mask = mask & await columns.allowed(segment, run.context.groups)
    if run.condition is not None:
        mask = mask & await columns.filtered(segment, run.condition, None)
    return mask


async def _scan_exact(
    shard: _Shard, asked: list[_Query], metric: Metric, sure: list[list[Scored]]
) -> None:
    """Score every usable vector of the exact segments."""
    for segment in shard.exact:
        mask = shard.usable[segment]
        chosen = np.flatnonzero(mask)
        if chosen.size * 2 >= mask.size:
            column = await shard.columns.all_vectors(segment)
            rows, vectors = column.rows, column.vectors
            keep = mask[rows]
            if not keep.all():
                rows, vectors = rows[keep], vectors[keep]
        else:
            rows, vectors = await shard.columns.vectors(segment, chosen)
        if not rows.size:
            continue
        heavy = vectors.nbytes * len(asked) >= _THREAD_VECTORS

        def work(vectors: F32 = vectors) -> list[F32]:
            full = vectors.astype(np.float32, copy=False)
            return [exact_scores(query.vector, full, metric) for query in asked]

        for i, scores in enumerate(await _cpu(heavy, work)):
            sure[i].append(Scored(shard.number, segment, rows, scores))


async def _scan_codes(
    run: Run, shard: _Shard, asked: list[_Query], found: list[list[Scored]]
) -> None:
    """Scan the probed clusters of the other segments."""
    if not shard.probed:
        return
    by_epoch: dict[int, list[int]] = {}
    for segment in shard.probed:
        by_epoch.setdefault(shard.columns.shard.epochs[segment], []).append(segment)
    probes: dict[int, list[list[int]]] = {}
    for number in by_epoch:
        epoch = _epoch(shard.state, number)
        probes[number] = [
            probe(query.vector, epoch, shard.state.metric, query.nprobe * shard.boost).tolist()
            for query in asked
        ]
    nodes = await _nodes(run, shard, by_epoch, probes)
    heavy = sum(node.size_bytes for one in nodes.values() for node in one.values())
    per_segment = await _cpu(
        heavy * len(asked) >= _THREAD_BYTES, lambda: _scan(shard, by_epoch, probes, nodes)
    )
    for segment, results in per_segment.items():
        for i, (rows, scores) in enumerate(results):
            found[i].append(Scored(shard.number, segment, rows, scores))


def _scan(
    shard: _Shard,
    by_epoch: dict[int, list[int]],
    probes: dict[int, list[list[int]]],
    nodes: dict[int, dict[int, CodesNode]],
) -> dict[int, list[tuple[RowNumbers, F32]]]:
    """Return (rows, scores) by segment and query; only rows that may be used."""
    out: dict[int, list[tuple[RowNumbers, F32]]] = {}
    for epoch, segments in by_epoch.items():
        askers: dict[int, list[int]] = {}
        for i, clusters in enumerate(probes[epoch]):
            for cluster in clusters:
                askers.setdefault(cluster, []).append(i)
        for segment in segments:
            rows: list[list[RowNumbers]] = [[] for _ in shard.quantized]
            scores: list[list[F32]] = [[] for _ in shard.quantized]
            for cluster, node in nodes[segment].items():
                who = askers.get(cluster, [])
                values = scan_batch([shard.quantized[i] for i in who], node.values) if who else []
                for i, one in zip(who, values, strict=True):
                    rows[i].append(node.rows.astype(np.int64))
                    scores[i].append(one)
            out[segment] = [
                _masked(shard.usable[segment], rows[i], scores[i]) for i in range(len(rows))
            ]
    return out


def _masked(usable: Mask, rows: list[RowNumbers], scores: list[F32]) -> tuple[RowNumbers, F32]:
    if not rows:
        return np.empty(0, dtype=np.int64), _NO_SCORES
    every, values = np.concatenate(rows), np.concatenate(scores)
    keep = usable[every]
    if not keep.all():
        every, values = every[keep], values[keep]
    return every, values


async def _nodes(
    run: Run,
    shard: _Shard,
    by_epoch: dict[int, list[int]],
    probes: dict[int, list[list[int]]],
) -> dict[int, dict[int, CodesNode]]:
    """Return the decoded codes by segment and cluster, from memory where they are."""
    columns = shard.columns
    nodes: dict[int, dict[int, CodesNode]] = {}
    only: dict[Request, list[int]] = {}
    origin: dict[Request, tuple[int, int]] = {}
    tokens = run.context.centroid_tokens
    for epoch, segments in by_epoch.items():
        clusters = sorted({cluster for one in probes[epoch] for cluster in one})
        for segment in segments:
            nodes[segment] = {}
            for cluster in clusters:
                known: CodesNode | None = columns.cached(
                    columns.key(segment, "codes", epoch, cluster)
                )
                if known is not None:
                    if known.rows.size:
                        nodes[segment][cluster] = known
                    continue
                if tokens is None:
                    raise Reject(ErrorCode.UNSUPPORTED, "vector search is not offered here")
                for token in tokens(epoch, cluster):
                    request = (NodeKind.CODES, token)
                    only.setdefault(request, []).append(segment)
                    origin[request] = (epoch, cluster)
    if only:
        run.labels += len(only)
        await _fetch(shard, only, origin, nodes)
    return nodes


async def _fetch(
    shard: _Shard,
    only: dict[Request, list[int]],
    origin: dict[Request, tuple[int, int]],
    nodes: dict[int, dict[int, CodesNode]],
) -> None:
    columns = shard.columns
    payloads = await columns.shard.lookup(list(only), only=only)
    missing = {
        (segment, *origin[request]) for request, segments in only.items() for segment in segments
    }
    for request, found in payloads.items():
        epoch, cluster = origin[request]
        for segment, payload in found:
            try:
                node = decode_codes(payload)
            except MalformedCodesError as error:
                raise Damaged(ErrorCode.DAMAGED, "codes of this index do not decode") from error
            nodes[segment][cluster] = node
            missing.discard((segment, epoch, cluster))
            columns.keep(columns.key(segment, "codes", epoch, cluster), node, node.size_bytes + 256)
    for segment, epoch, cluster in missing:
        # Remembered too: that a segment has nothing near a centroid saves the next look-up.
        columns.keep(columns.key(segment, "codes", epoch, cluster), _NOTHING, 256)


async def _finish(
    run: Run,
    query: _Query,
    metric: Metric,
    found: list[Scored],
    sure: list[Scored],
    k: int,
) -> list[Candidate]:
    rerank = max(MIN_RERANK, RERANK_PER_HIT * k) if query.rerank is None else query.rerank
    if rerank and run.context.config.storage_precision != "int8":
        best = _best(found, max(rerank, k))
        found = await gather_all([_rescore(run, query, metric, one) for one in best])
    ranked = await run.rank([*found, *sure], k)
    return [
        with_score(one, one.score, distance(one.score, metric)) if one.score is not None else one
        for one in ranked
    ]


def _best(found: list[Scored], k: int) -> list[Scored]:
    """Return the `k` best rows, by segment."""
    found = [one for one in found if one.rows.size]
    if not found:
        return []
    every = np.concatenate([one.scores for one in found])
    if every.size <= k:
        return found
    chosen = np.sort(np.argpartition(every, every.size - k)[every.size - k :])
    out, start = [], 0
    for one in found:
        low, high = np.searchsorted(chosen, (start, start + one.rows.size))
        inside = chosen[low:high] - start
        start += one.rows.size
        if inside.size:
            out.append(Scored(one.shard, one.segment, one.rows[inside], one.scores[inside]))
    return out


async def _rescore(run: Run, query: _Query, metric: Metric, one: Scored) -> Scored:
    rows, vectors = await run.columns[one.shard].vectors(one.segment, one.rows)
    return Scored(one.shard, one.segment, rows, exact_scores(query.vector, vectors, metric))


def _epoch(state: VectorState, number: int) -> Epoch:
    for epoch in state.epochs:
        if epoch.number == number:
            return epoch
    raise Damaged(ErrorCode.DAMAGED, "a segment names centroids that its head does not")


async def _cpu(heavy: bool, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if heavy else work()
