"""Vector queries: the engine alone against CyborgDB and faiss."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np

from bench.children import ColdTask, PeerTask, ask
from bench.data import Vectors, minilm
from bench.engine import Keys, Reading, Writing, parse
from bench.load import vector_operations
from bench.measures import recall
from bench.peer import Cyborg, available
from bench.report import Figure, Report
from bench.stack import progress
from bench.timing import Samples, alternate, percentile
from schemas.filter import parse_filter
from schemas.index import IndexConfig
from workers.settings import Settings, load_settings
from workers.storage.open import open_store
from workers.vector.training import cluster_count

K: Final = 10
PROBES: Final = (16, 32, 64)
QUERIES: Final = 200
BATCHES: Final = 3
COLD_ROUNDS: Final = 5
TENTHS: Final = 10
_BATCH: Final = 2000
_PEER_LISTS: Final = 512
_PEER_SETTINGS: Final = ((8, 100), (16, 200), (32, 400), (64, 800), (128, 1000))
"""(probes, rerank) of the peer, the cheap ones first; it takes at most 10,000 candidates."""
_HIGH, _MOST_MS = 0.97, 2.0


@dataclass(slots=True)
class _Peer:
    index: Cyborg
    prefix: str
    recalls: dict[tuple[int, int], float]

    def at(self, wanted: float) -> tuple[int, int]:
        """Return the cheapest settings with this recall, or those with the best."""
        good = [one for one in _PEER_SETTINGS if self.recalls[one] >= wanted - 0.005]
        return good[0] if good else max(_PEER_SETTINGS, key=lambda one: self.recalls[one])


async def measure_vectors(report: Report, home: Path) -> None:
    """Add the figures of vector queries."""
    vectors, settings = minilm(), load_settings(home=home)
    report.data.append(vectors.source)
    keys, config = Keys.make(), IndexConfig(dimension=vectors.base.shape[1])
    segments = await _write(settings, keys, config, vectors)
    clusters = cluster_count(len(vectors.base), vectors.base.shape[1])
    report.settings |= {"vector segments": segments, "clusters": clusters, "queries": QUERIES}
    reading = Reading(open_store(settings), keys, config)
    plain = await asyncio.to_thread(_faiss, vectors, clusters)
    peer = await asyncio.to_thread(_load_peer, settings, vectors) if available() else None
    if peer is None:
        report.notes.append("cyborgdb_core is not installed: no comparison with it")
    else:
        report.settings["CyborgDB recall by (probes, rerank)"] = {
            f"{probes}.{rerank}": round(found, 3)
            for (probes, rerank), found in peer.recalls.items()
        }
    for probes in PROBES:
        report.figures += await _warm(vectors, reading, plain, peer, probes)
    report.figures += await _filtered(vectors, reading, plain)
    report.figures += await _cold(home, keys, config, vectors, peer)


async def _write(settings: Settings, keys: Keys, config: IndexConfig, vectors: Vectors) -> int:
    progress(f"writing {len(vectors.base)} vectors")
    writing = await Writing(open_store(settings), keys, config).load()
    operations = vector_operations(vectors.base)
    for number, operation in enumerate(operations):
        operation["metadata"] = {"tenth": number % TENTHS}
    for start in range(0, len(operations), _BATCH):
        await writing.write(operations[start : start + _BATCH])
        await writing.settle()
    return writing.segments


def _faiss(vectors: Vectors, clusters: int) -> Any:
    import faiss

    dimension = vectors.base.shape[1]
    quantizer = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFFlat(quantizer, dimension, clusters, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.base)
    index.add(vectors.base)
    return index


def _load_peer(settings: Settings, vectors: Vectors) -> _Peer:
    progress("CyborgDB: loading and training")
    prefix = f"bench-peer-{uuid4().hex[:8]}"
    index = Cyborg(settings, prefix)
    index.create(vectors.base.shape[1])
    index.upsert(vectors.base, batch=5000)
    progress("training")
    index.train(_PEER_LISTS)
    index.wait_trained()
    truth = vectors.truth[:QUERIES, :K]
    recalls = {}
    for probes, rerank in _PEER_SETTINGS:
        found = index.search(vectors.queries[:QUERIES], K, probes, rerank)
        recalls[probes, rerank] = _recall(np.asarray(found).tolist(), truth)
    return _Peer(index, prefix, recalls)


async def _warm(
    vectors: Vectors, reading: Reading, plain: Any, peer: _Peer | None, probes: int
) -> list[Figure]:
    queries = vectors.queries[:QUERIES]
    truth = vectors.truth[:QUERIES, :K]
    asked = [parse({"vector": one.tolist(), "nprobe": probes}) for one in queries]
    answers = [await reading.answer(one, K) for one in asked]
    found = _recall([[int(c.id) for c in one.candidates] for one in answers], truth)
    progress(f"vectors, {probes} probes: recall {found:.3f}")
    plain.nprobe = probes
    plain_found = _recall(plain.search(queries, K)[1].tolist(), truth)
    chosen = None if peer is None else peer.at(found)
    one_by_one: dict[str, Callable[[int], Awaitable[Any] | Any]] = {
        "ours": lambda i: reading.answer(asked[i], K),
        "faiss": lambda i: plain.search(queries[i : i + 1], K),
    }
    together: dict[str, Callable[[], Awaitable[Any] | Any]] = {
        "ours": lambda: reading.answers(asked, K),
        "faiss": lambda: plain.search(queries, K),
    }
    if peer is not None and chosen is not None:
        index, (lists, rerank) = peer.index, chosen
        one_by_one["peer"] = lambda i: index.search(queries[i], K, lists, rerank)
        together["peer"] = lambda: index.search(queries, K, lists, rerank)
    single = await each(one_by_one, QUERIES)
    batch = await alternate(together, BATCHES)
    detail = {"recall": found, "faiss recall": plain_found, "p99_ms": single["ours"].p99 * 1000}
    name = f"vector, {probes} probes, recall {found:.3f}"
    faiss_time = single["ours"].median / single["faiss"].median
    figures = [
        latency(f"{name}, p50", single, "faiss", "<= 1.5x faiss", faiss_time <= 1.5, detail),
        throughput(f"{name}, batch", batch, "faiss", QUERIES, "", None),
    ]
    if found >= _HIGH:
        ms = single["ours"].median * 1000
        figures.append(
            Figure(f"recall {found:.2f}, p50", ms, "ms", target="<= 2 ms", met=ms <= _MOST_MS)
        )
    if peer is None or chosen is None:
        return figures
    theirs = f"CyborgDB at {peer.recalls[chosen]:.3f}"
    faster = single["peer"].median / single["ours"].median
    batched = batch["peer"].median / batch["ours"].median
    detail = {"CyborgDB p99_ms": single["peer"].p99 * 1000, "probes, rerank": chosen}
    return [
        *figures,
        latency(f"{name}, p50", single, "peer", ">= 10x", faster >= 10, detail, theirs),
        throughput(f"{name}, batch", batch, "peer", QUERIES, ">= 30x", batched >= 30, theirs),
    ]


async def _filtered(vectors: Vectors, reading: Reading, plain: Any) -> list[Figure]:
    """One tenth of the vectors may be found: ours scores them all, faiss probes."""
    import faiss

    progress("filtered vectors")
    queries = vectors.queries[:QUERIES]
    condition = parse_filter({"tenth": 3})
    rows = np.arange(3, len(vectors.base), TENTHS)
    plain_only = faiss.SearchParametersIVF(sel=faiss.IDSelectorBatch(rows), nprobe=4 * max(PROBES))
    asked = [parse({"vector": one.tolist()}) for one in queries]
    exact = np.argsort(-(queries @ vectors.base[rows].T), axis=1, kind="stable")[:, :K]
    answers = [await reading.answer(one, K, condition) for one in asked]
    found = _recall([[int(c.id) for c in one.candidates] for one in answers], rows[exact])
    samples = await each(
        {
            "ours": lambda i: reading.answer(asked[i], K, condition),
            "faiss": lambda i: plain.search(queries[i : i + 1], K, params=plain_only),
        },
        QUERIES,
    )
    detail = {"recall": found, "p99_ms": samples["ours"].p99 * 1000}
    name = f"vector, filter leaves a tenth, recall {found:.3f}, p50"
    return [latency(name, samples, "faiss", "", None, detail)]


async def _cold(
    home: Path, keys: Keys, config: IndexConfig, vectors: Vectors, peer: _Peer | None
) -> list[Figure]:
    """First queries of fresh processes, different ones, so that no server cache helps one side."""
    progress("cold vector queries")
    ours, theirs = Samples(), Samples()
    found: list[float] = []
    cost: dict[str, Any] = {}
    for turn in range(COLD_ROUNDS):
        vector, truth = vectors.queries[-1 - turn], vectors.truth[-1 - turn, :K]
        query = {"vector": vector.tolist(), "nprobe": 32, "rerank": 0}
        answer = await ask(ColdTask(home, keys, config, query))
        ours.seconds.append(answer["ms"] / 1000)
        found.append(recall([int(one) for one in answer["found"]], truth.tolist()))
        cost = {"gets": answer["gets"], "MB": round(answer["bytes"] / 1e6, 2)}
        if peer is not None:
            probes, rerank = peer.at(0.9)
            task = PeerTask(home, peer.prefix, peer.index.key, vector, probes, rerank)
            theirs.seconds.append((await ask(task))["ms"] / 1000)
    name = f"vector, cold, 32 probes, no rerank, recall {np.mean(found):.2f}"
    if peer is None:
        return [Figure(name, ours.median * 1000, "ms", detail=cost)]
    samples = {"ours": ours, "peer": theirs}
    faster = theirs.median / ours.median
    return [latency(name, samples, "peer", ">= 10x", faster >= 10, cost, "CyborgDB, cold")]


async def each(
    sides: dict[str, Callable[[int], Awaitable[Any] | Any]], count: int
) -> dict[str, Samples]:
    """Time query after query, every side in turn on the same one."""
    found = {name: Samples() for name in sides}
    for number in range(count):
        one = await alternate(
            {name: (lambda side=side, i=number: side(i)) for name, side in sides.items()},
            1,
            warm=0,
        )
        for name, samples in one.items():
            found[name].seconds += samples.seconds
    return found


def latency(
    name: str,
    samples: dict[str, Samples],
    baseline: str,
    target: str,
    met: bool | None,
    detail: dict[str, Any],
    against: str = "",
) -> Figure:
    """Return the median of ours in milliseconds beside a baseline's."""
    ours, theirs = samples["ours"], samples[baseline]
    low, high = percentile(ours.seconds, 5) * 1000, percentile(ours.seconds, 95) * 1000
    return Figure(
        name=name,
        value=ours.median * 1000,
        unit="ms",
        spread=(low, high),
        against=against or baseline,
        baseline=theirs.median * 1000,
        ratio=theirs.median / ours.median,
        target=target,
        met=met,
        detail=detail,
    )


def throughput(
    name: str,
    samples: dict[str, Samples],
    baseline: str,
    count: int,
    target: str,
    met: bool | None,
    against: str = "",
) -> Figure:
    """Return queries per second of ours beside a baseline's."""
    value, spread = samples["ours"].rates(count)
    other, _ = samples[baseline].rates(count)
    return Figure(
        name, value, "queries/s", spread, against or baseline, other, value / other, target, met
    )


def _recall(found: Sequence[Sequence[int]], truth: Any) -> float:
    pairs = zip(found, truth.tolist(), strict=True)
    return float(np.mean([recall(one, true) for one, true in pairs]))
