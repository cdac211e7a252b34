"""Train centroids with k-means, and say when it is time to.

Sampled k-means in numpy: the assignment is one matrix product, the new centroids are sums over
sorted runs. The result depends only on the vectors and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from workers.vector.centroids import VectorState, nearest
from workers.vector.metric import F32, Metric

Ints = npt.NDArray[np.int64]

MIN_VECTORS: Final = 4096
"""Below this many vectors an index is searched exactly."""
TARGET_NODE_BYTES: Final = 160 * 1024
SAMPLE_PER_CLUSTER: Final = 64
MAX_CLUSTERS: Final = 8192
_ROUNDS: Final = 12
_LARGEST_TO_MEDIAN: Final = 3.0


def cluster_count(vectors: int, dimension: int) -> int:
    """Return K for an index of so many vectors: nodes of about `TARGET_NODE_BYTES`."""
    per_node = max(64, TARGET_NODE_BYTES // (dimension + 12))
    return max(1, min(MAX_CLUSTERS, round(vectors / per_node)))


def sample_size(vectors: int, dimension: int) -> int:
    """Return how many vectors training wants to see, at most `vectors`."""
    return min(vectors, SAMPLE_PER_CLUSTER * cluster_count(vectors, dimension))


def train(sample: F32, clusters: int, metric: Metric, *, seed: int = 0) -> F32:
    """Return float32 `(K, d)` centroids, K <= `clusters` when there are fewer distinct vectors.

    Args:
        sample: float32 `(n, d)`, prepared.
        clusters: wanted number.
        metric: under cosine the centroids are L2-normalised after every round.
        seed: of the choice of the first centroids.
    """
    clusters = min(clusters, len(sample))
    random = np.random.default_rng(seed)
    centroids = sample[np.sort(random.choice(len(sample), clusters, replace=False))].copy()
    for _ in range(_ROUNDS):
        labels = nearest(sample, centroids)
        sums, counts = _sums(sample, labels, clusters)
        filled = counts > 0
        centroids[filled] = sums[filled] / counts[filled, None]
        empty = np.flatnonzero(~filled)
        if empty.size:
            # An empty cluster takes a vector of a crowded one, which splits it.
            crowd = np.argsort(-counts[labels], kind="stable")
            centroids[empty] = sample[crowd[random.permutation(len(crowd))[: empty.size]]]
        if metric is Metric.COSINE:
            norms = np.linalg.norm(centroids, axis=1, keepdims=True)
            np.divide(centroids, norms, out=centroids, where=norms > 0)
    return centroids


def should_train(
    state: VectorState, live_vectors: int, cluster_sizes: Sequence[int] | None = None
) -> bool:
    """Say whether it is time to train (again).

    Args:
        state: the current one.
        live_vectors: vectors that the index has now.
        cluster_sizes: vectors in each cluster, where known.

    Returns:
        True when there are enough vectors for a first training, when their number doubled since
        the last one, or when the 99th percentile of the cluster sizes passed 3x the median.
    """
    if live_vectors < MIN_VECTORS:
        return False
    if not state.trained or live_vectors >= 2 * state.current.trained_on:
        return True
    if not cluster_sizes or live_vectors < 2 * MIN_VECTORS:
        return False
    median, largest = np.percentile(np.asarray(cluster_sizes), (50, 99))
    grown = live_vectors >= 1.1 * state.current.trained_on
    return bool(grown and largest > _LARGEST_TO_MEDIAN * max(median, 1.0))


def retrain(state: VectorState, sample: F32, live_vectors: int, *, seed: int = 0) -> VectorState:
    """Return `state` with a new epoch trained on `sample` (float32 `(n, d)`, prepared)."""
    clusters = cluster_count(live_vectors, state.dimension)
    return state.with_epoch(train(sample, clusters, state.metric, seed=seed), live_vectors)


def _sums(sample: F32, labels: Ints, clusters: int) -> tuple[F32, Ints]:
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=clusters)
    sums = np.zeros((clusters, sample.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[filled]
    sums[filled] = np.add.reduceat(sample[order], starts, axis=0)
    return sums, counts
