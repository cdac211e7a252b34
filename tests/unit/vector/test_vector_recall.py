"""Recall on 60,000 MiniLM embeddings against the exact neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workers.vector.centroids import initial_state, probe
from workers.vector.codes import cluster_nodes, decode_codes, quantize_query, scan
from workers.vector.metric import Metric, exact_scores, prepare, top
from workers.vector.training import retrain, sample_size

DATA = Path(__file__).parents[4] / "shared" / "data" / "minilm"


@pytest.fixture(scope="module")
def trained():
    if not (DATA / "base.f16.npy").exists():
        pytest.skip("the MiniLM embeddings are not in ../shared/data")
    base = np.load(DATA / "base.f16.npy")
    vectors = prepare(base.astype(np.float32), Metric.COSINE)
    n, d = vectors.shape
    chosen = np.random.default_rng(0).choice(n, sample_size(n, d), replace=False)
    state = retrain(initial_state(d, Metric.COSINE), vectors[np.sort(chosen)], n)
    nodes = {
        cluster: decode_codes(payload)
        for cluster, payload in cluster_nodes(np.arange(n, dtype=np.uint32), vectors, state)
    }
    return base, state, nodes


@pytest.mark.parametrize(("nprobe", "least"), [(16, 0.88), (32, 0.93)])
def test_recall_at_10(trained, nprobe, least):
    base, state, nodes = trained
    queries = np.load(DATA / "queries.f32.npy")
    truth = np.load(DATA / "groundtruth100.i32.npy")[:, :10]
    hits = 0
    for query, expected in zip(queries, truth, strict=True):
        quick = quantize_query(query, state.mean, state.metric)
        probed = [
            nodes[c]
            for c in probe(query, state.current, state.metric, nprobe).tolist()
            if c in nodes
        ]
        rows = np.concatenate([node.rows for node in probed])
        scores = np.concatenate([scan(quick, node.values) for node in probed])
        near = rows[np.argpartition(-scores, 30)[:30]]
        exact = exact_scores(query, base[near], state.metric)
        best = near[top(exact, near.astype(np.int64), 10)]
        hits += np.intersect1d(best, expected).size
    assert hits / truth.size >= least
