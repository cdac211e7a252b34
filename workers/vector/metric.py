"""Define the three metrics: how vectors are prepared, scored and turned into distances.

| metric    | at ingest      | score (higher is nearer) | distance             |
|-----------|----------------|--------------------------|----------------------|
| cosine    | L2-normalised  | q . x                    | 1 - q . x            |
| dot       | as it is       | q . x                    | -(q . x)             |
| euclidean | as it is       | -(distance squared)      | ||q - x||, not squared |
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class Metric(StrEnum):
    """A metric of an index, by its name in `IndexConfig.metric`."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    DOT = "dot"


def prepare(vectors: F32, metric: Metric) -> F32:
    """Return `vectors` (float32 `(d,)` or `(n, d)`) as they are stored and compared.

    A zero vector stays zero under cosine: it is near to nothing.
    """
    if metric is not Metric.COSINE:
        return np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: F32 = np.divide(
        vectors, norms, out=np.zeros(vectors.shape, dtype=np.float32), where=norms > 0
    )
    return scaled


def exact_scores(query: F32, vectors: npt.NDArray[np.floating], metric: Metric) -> F32:
    """Score prepared `vectors` (`(n, d)`, float16 or float32) for one prepared query.

    Returns:
        float32 `(n,)`, higher is nearer.
    """
    full = vectors.astype(np.float32, copy=False)
    if metric is Metric.EUCLIDEAN:
        # The differences, not the expanded square: no cancellation between near vectors.
        apart = full - query
        nearness: F32 = -np.einsum("ij,ij->i", apart, apart)
        return nearness
    dots: F32 = full @ query
    return dots


def distance(score: float, metric: Metric) -> float:
    """Return the distance that a score stands for."""
    if metric is Metric.COSINE:
        return 1.0 - score
    if metric is Metric.DOT:
        return -score
    return float(np.sqrt(max(-score, 0.0)))


def top(scores: F32, ties: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """Return the indexes of the `k` highest scores, best first; equal ones by `ties` ascending."""
    if k <= 0 or not scores.size:
        return np.empty(0, dtype=np.int64)
    if k < scores.size:
        # Everything equal to the k-th stays in, so that the tie rule decides and not the partition.
        bar = np.partition(scores, scores.size - k)[scores.size - k]
        chosen = np.flatnonzero(scores >= bar)
    else:
        chosen = np.arange(scores.size)
    return chosen[np.lexsort((ties[chosen], -scores[chosen]))[:k]]
