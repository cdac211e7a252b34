"""Scan the int8 codes of the clusters that queries probe.

Decoded codes stay in memory by (segment, epoch, cluster), also the knowledge that a segment has
none; what is missing is fetched with one parallel look-up over all segments.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from schemas.errors import ErrorCode
from workers.chain.kinds import NodeKind
from workers.errors import Damaged, Reject
from workers.search.columns import ShardColumns, Usable
from workers.search.run import Run, Scored
from workers.search.snapshot import Request, RowNumbers
from workers.vector import kernel
from workers.vector.centroids import Epoch, VectorState, probe
from workers.vector.codes import (
    Codes,
    CodesNode,
    MalformedCodesError,
    QuantizedQuery,
    decode_codes,
    settle,
)
from workers.vector.metric import F32

_THREAD_BYTES: Final = 16 * 1024 * 1024
"""Codes scanned from so many bytes on go to a thread (about 2 ms)."""
_NO_SCORES: Final = np.empty(0, dtype=np.float32)
_NOTHING: Final = CodesNode(
    0,
    0,
    np.empty(0, dtype=np.uint32),
    Codes(np.empty((0, 0), dtype=np.int8), _NO_SCORES, _NO_SCORES),
)

Nodes = dict[int, dict[int, CodesNode]]
"""Decoded codes by segment and cluster."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One query, prepared.

    Attributes:
        vector: float32 `(d,)`, as the metric wants it.
        nprobe: clusters of each epoch to scan.
        rerank: whether the best rows are scored again with full vectors.
        keep: best rows to keep of the scan.
    """

    vector: F32
    nprobe: int
    rerank: bool
    keep: int


@dataclass(slots=True)
class ShardProbe:
    """One shard in a vector search.

    Attributes:
        number: index into the snapshot's shards.
        columns: of the shard.
        state: its centroids.
        quantized: the queries, in order.
        boost: multiplies the probes.
        usable: by segment, which rows the query may use.
        exact: segments that are searched without codes.
        probed: segments that are searched by codes.
    """

    number: int
    columns: ShardColumns
    state: VectorState
    quantized: list[QuantizedQuery]
    boost: int = 1
    usable: dict[int, Usable] = field(default_factory=dict)
    exact: list[int] = field(default_factory=list)
    probed: list[int] = field(default_factory=list)


async def scan_codes(
    run: Run, shard: ShardProbe, asked: list[Asked], found: list[list[Scored]]
) -> None:
    """Append to `found[i]` the best rows of every probed segment for query i.

    Raises:
        Reject: UNSUPPORTED, no centroid tokens are to be had here.
        Damaged: codes do not decode, or belong to centroids that the head does not name.
    """
    by_epoch: dict[int, list[int]] = {}
    for segment in shard.probed:
        by_epoch.setdefault(shard.columns.shard.epochs[segment], []).append(segment)
    for number, segments in by_epoch.items():
        epoch = _epoch(shard.state, number)
        probes = [
            probe(query.vector, epoch, shard.state.metric, query.nprobe * shard.boost).tolist()
            for query in asked
        ]
        askers: dict[int, list[int]] = {}
        for i, clusters in enumerate(probes):
            for cluster in clusters:
                askers.setdefault(cluster, []).append(i)
        nodes = await _nodes(run, shard, number, segments, sorted(askers))
        size = sum(
            node.values.codes.nbytes * len(askers[cluster])
            for one in nodes.values()
            for cluster, node in one.items()
        )
        if size >= _THREAD_BYTES:
            results = await asyncio.to_thread(_scan, shard, asked, askers, nodes)
        else:
            results = _scan(shard, asked, askers, nodes)
        for i, scored in enumerate(results):
            found[i] += scored


def best_rows(found: list[Scored], k: int) -> list[Scored]:
    """Return the `k` best rows over all segments, by segment; ties any way."""
    found = [one for one in found if one.rows.size]
    if sum(one.rows.size for one in found) <= k:
        return found
    every = np.concatenate([one.scores for one in found]) if len(found) > 1 else found[0].scores
    chosen = np.sort(np.argpartition(every, every.size - k)[every.size - k :])
    out, start = [], 0
    for one in found:
        low, high = np.searchsorted(chosen, (start, start + one.rows.size))
        inside = chosen[low:high] - start
        start += one.rows.size
        if inside.size:
            out.append(Scored(one.shard, one.segment, one.rows[inside], one.scores[inside]))
    return out


def _scan(
    shard: ShardProbe, asked: list[Asked], askers: dict[int, list[int]], nodes: Nodes
) -> list[list[Scored]]:
    """Return the best usable rows by query and segment. Pure CPU."""
    out: list[list[Scored]] = [[] for _ in asked]
    for segment, clusters in nodes.items():
        parts: list[list[CodesNode]] = [[] for _ in asked]
        products: list[list[F32]] = [[] for _ in asked]
        for cluster, node in clusters.items():
            who = askers[cluster]
            if len(who) == 1:
                rows = [kernel.dots(shard.quantized[who[0]].codes, node.values.codes)]
            else:
                queries = np.stack([shard.quantized[i].codes for i in who])
                rows = list(kernel.dots_batch(queries, node.values.codes))
            for i, one in zip(who, rows, strict=True):
                parts[i].append(node)
                products[i].append(one)
        for i, query in enumerate(asked):
            if parts[i]:
                joined = settle(
                    shard.quantized[i],
                    np.concatenate(products[i]),
                    [node.values for node in parts[i]],
                )
                where = np.concatenate([node.rows for node in parts[i]])
                scored = _masked(shard, segment, where, joined)
                out[i] += best_rows([scored], query.keep)
    return out


def _masked(shard: ShardProbe, segment: int, rows: RowNumbers, scores: F32) -> Scored:
    usable = shard.usable[segment]
    if not usable.everything:
        keep = usable.mask[rows]
        rows, scores = rows[keep], scores[keep]
    return Scored(shard.number, segment, rows.astype(np.int64), scores)


async def _nodes(
    run: Run, shard: ShardProbe, epoch: int, segments: list[int], clusters: list[int]
) -> Nodes:
    """Return the decoded codes of the clusters, from memory where they are."""
    columns = shard.columns
    nodes: Nodes = {}
    only: dict[Request, list[int]] = {}
    origin: dict[Request, int] = {}
    tokens = run.context.centroid_tokens
    for segment in segments:
        here = nodes[segment] = {}
        for cluster in clusters:
            known: CodesNode | None = columns.cached(columns.key(segment, "codes", epoch, cluster))
            if known is not None:
                if known.rows.size:
                    here[cluster] = known
                continue
            if tokens is None:
                raise Reject(ErrorCode.UNSUPPORTED, "vector search is not offered here")
            for token in tokens(epoch, cluster):
                request = (NodeKind.CODES, token)
                only.setdefault(request, []).append(segment)
                origin[request] = cluster
    if only:
        run.labels += len(only)
        await _fetch(columns, epoch, only, origin, nodes)
    return nodes


async def _fetch(
    columns: ShardColumns,
    epoch: int,
    only: dict[Request, list[int]],
    origin: dict[Request, int],
    nodes: Nodes,
) -> None:
    payloads = await columns.shard.lookup(list(only), only=only)
    missing = {(segment, origin[one]) for one, segments in only.items() for segment in segments}
    for request, found in payloads.items():
        cluster = origin[request]
        for segment, payload in found:
            try:
                node = decode_codes(payload)
            except MalformedCodesError as error:
                raise Damaged(ErrorCode.DAMAGED, "codes of this index do not decode") from error
            nodes[segment][cluster] = node
            missing.discard((segment, cluster))
            columns.keep(columns.key(segment, "codes", epoch, cluster), node, node.size_bytes + 256)
    for segment, cluster in missing:
        # Remembered too: that a segment has nothing near a centroid saves the next look-up.
        columns.keep(columns.key(segment, "codes", epoch, cluster), _NOTHING, 256)


def _epoch(state: VectorState, number: int) -> Epoch:
    for epoch in state.epochs:
        if epoch.number == number:
            return epoch
    raise Damaged(ErrorCode.DAMAGED, "a segment names centroids that its head does not")
