"""Hold the centroids of an index: which exist, where a vector belongs, which a query probes.

An index begins at epoch 0, with one cluster, number 0, that holds every vector: search is exact.
Training makes the next epoch. Segments written before keep their nodes until compaction regroups
them, so the state names every epoch that a live segment may still use (`VectorState.epochs`), and
a query probes each.

`encode_state` gives the bytes of the centroids object, little-endian (the caller seals them):

    0   4s   "SSVC"
    4   u8   version, 1
    5   u8   metric: 0 cosine, 1 euclidean, 2 dot
    6   u16  d, dimensions
    8   u32  m, epochs
    12  f32 * d   mean
        m times, oldest first:
            u32  epoch
            u32  K, clusters
            u64  vectors that there were when it was trained
            f32 * K*d   centroids (nothing for epoch 0)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from workers.vector.metric import F32, Metric

_MAGIC: Final = b"SSVC"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sBBHI")
_EPOCH: Final = struct.Struct("<IIQ")
_METRICS: Final = (Metric.COSINE, Metric.EUCLIDEAN, Metric.DOT)
_ASSIGN_ROWS: Final = 8192
"""Rows of one matrix product of `assign`: bounds its memory to 256 MB at 8k centroids."""
MAX_EPOCHS: Final = 16


class MalformedStateError(ValueError):
    """Raised when a centroids object does not decode."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The centroids of one training.

    Attributes:
        number: 0 for the single cluster before training, then counting up.
        centroids: float32 `(K, d)`; `(1, d)` zeros for epoch 0.
        trained_on: vectors that the index had.
    """

    number: int
    centroids: F32
    trained_on: int

    @property
    def clusters(self) -> int:
        """How many there are."""
        return int(self.centroids.shape[0])


@dataclass(frozen=True, slots=True)
class VectorState:
    """What an index knows about its vectors.

    Attributes:
        metric: of the index.
        mean: float32 `(d,)`, subtracted before quantising; never changes.
        epochs: those that a live segment may still use, oldest first; the last is current.
    """

    metric: Metric
    mean: F32
    epochs: tuple[Epoch, ...]

    @property
    def current(self) -> Epoch:
        """The epoch that new vectors are assigned in."""
        return self.epochs[-1]

    @property
    def trained(self) -> bool:
        """Whether search is approximate."""
        return self.current.number > 0

    @property
    def dimension(self) -> int:
        """Dimensions of a vector."""
        return int(self.mean.size)

    def with_epoch(self, centroids: F32, trained_on: int) -> VectorState:
        """Return the state with a new current epoch, the older ones kept."""
        epoch = Epoch(self.current.number + 1, centroids, trained_on)
        return VectorState(self.metric, self.mean, (*self.epochs, epoch)[-MAX_EPOCHS:])

    def settled(self) -> VectorState:
        """Return the state with the current epoch alone.

        Call it only when no live segment holds nodes of an older one.
        """
        return VectorState(self.metric, self.mean, self.epochs[-1:])


def initial_state(dimension: int, metric: Metric, sample: F32 | None = None) -> VectorState:
    """Return the state of an index before training.

    Args:
        dimension: of its vectors.
        metric: of the index.
        sample: float32 `(n, d)` of first vectors, for the mean; ignored for cosine. Without one
            the mean is zero, which only makes the codes a little coarser.
    """
    mean = np.zeros(dimension, dtype=np.float32)
    if sample is not None and len(sample) and metric is not Metric.COSINE:
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    single = Epoch(0, np.zeros((1, dimension), dtype=np.float32), 0)
    return VectorState(metric, mean, (single,))


def assign(vectors: F32, state: VectorState, epoch: Epoch | None = None) -> npt.NDArray[np.int64]:
    """Return int64 `(n,)`: the cluster of each prepared vector in the current epoch."""
    chosen = epoch or state.current
    if chosen.clusters == 1:
        return np.zeros(len(vectors), dtype=np.int64)
    return nearest(vectors, chosen.centroids)


def nearest(vectors: F32, centroids: F32) -> npt.NDArray[np.int64]:
    """Return int64 `(n,)`: the nearest of `centroids` to each of `vectors` by L2 distance."""
    half = (np.einsum("ij,ij->i", centroids, centroids) / 2).astype(np.float32)
    out = np.empty(len(vectors), dtype=np.int64)
    for at in range(0, len(vectors), _ASSIGN_ROWS):
        products = vectors[at : at + _ASSIGN_ROWS] @ centroids.T
        products -= half
        out[at : at + _ASSIGN_ROWS] = products.argmax(axis=1)
    return out


def probe(query: F32, epoch: Epoch, metric: Metric, nprobe: int) -> npt.NDArray[np.int64]:
    """Return the clusters that a prepared query probes, nearest first.

    Args:
        query: float32 `(d,)`.
        epoch: whose clusters.
        metric: by which "near" is meant.
        nprobe: how many at most, >= 1.
    """
    if epoch.clusters <= nprobe:
        return np.arange(epoch.clusters, dtype=np.int64)
    scores = epoch.centroids @ query
    if metric is Metric.EUCLIDEAN:
        scores = scores - np.einsum("ij,ij->i", epoch.centroids, epoch.centroids) / 2
    chosen = np.argpartition(-scores, nprobe - 1)[:nprobe]
    return chosen[np.lexsort((chosen, -scores[chosen]))].astype(np.int64)


def encode_state(state: VectorState) -> bytes:
    """Return the bytes of a centroids object; the caller seals them."""
    parts = [
        _HEAD.pack(
            _MAGIC, _VERSION, _METRICS.index(state.metric), state.dimension, len(state.epochs)
        ),
        state.mean.astype("<f4").tobytes(),
    ]
    for epoch in state.epochs:
        parts.append(_EPOCH.pack(epoch.number, epoch.clusters, epoch.trained_on))
        if epoch.number:
            parts.append(epoch.centroids.astype("<f4").tobytes())
    return b"".join(parts)


def decode_state(data: bytes) -> VectorState:
    """Decode a centroids object.

    Raises:
        MalformedStateError: if it is not one.
    """
    try:
        magic, version, metric, width, count = _HEAD.unpack_from(data)
        if magic != _MAGIC or version != _VERSION or not 0 < count <= MAX_EPOCHS:
            raise MalformedStateError("not a centroids object of this version")
        mean = np.frombuffer(data, "<f4", width, _HEAD.size)
        at = _HEAD.size + 4 * width
        epochs = []
        for _ in range(count):
            number, clusters, trained_on = _EPOCH.unpack_from(data, at)
            at += _EPOCH.size
            centroids = np.zeros((1, width), dtype=np.float32)
            if number:
                centroids = np.frombuffer(data, "<f4", clusters * width, at).reshape(-1, width)
                at += 4 * clusters * width
            epochs.append(Epoch(number, centroids, trained_on))
        if at != len(data):
            raise MalformedStateError("a centroids object has another size than it says")
        return VectorState(_METRICS[metric], mean, tuple(epochs))
    except (struct.error, ValueError, IndexError) as error:
        if isinstance(error, MalformedStateError):
            raise
        raise MalformedStateError("a centroids object is cut off") from error
