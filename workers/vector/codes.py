"""Quantise vectors to int8 and hold the codes of one (segment, cluster) in one node.

The codes do not depend on the centroids: a mean fixed for the index's life is subtracted (zero for
cosine), and each vector has a scale of its own. Clustering anew is then a permutation of codes.

    y = x - mean,  scale = max|y| / 127,  code = round(y / scale),  half norm = ||y||^2 / 2

Payload of a CODES node, little-endian:

    0   u8        version, 1
    1   u8        0
    2   u16       d, dimensions
    4   u32       epoch of the centroids
    8   u32       cluster
    12  u32       n, vectors
    16  u32 * n   rows in the document table, increasing
        f32 * n   scales
        f32 * n   half norms
        i8 * n*d  codes
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from workers.chain.kinds import NodeKind
from workers.vector import kernel
from workers.vector.centroids import VectorState, assign
from workers.vector.metric import F32, Metric

_HEADER: Final = struct.Struct("<BBHIII")
_VERSION: Final = 1
I8 = npt.NDArray[np.int8]
U32 = npt.NDArray[np.uint32]


class MalformedCodesError(ValueError):
    """Raised when a payload does not decode. The bytes were authenticated, so this is a bug."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Quantised vectors.

    Attributes:
        codes: int8 `(n, d)`.
        scales: float32 `(n,)`.
        half_norms: float32 `(n,)`, half the squared norm of the vector less the mean.
    """

    codes: I8
    scales: F32
    half_norms: F32


@dataclass(frozen=True, slots=True)
class CodesNode:
    """One decoded CODES payload. The arrays are read-only views of the payload.

    Attributes:
        epoch: of the centroids that the cluster belongs to.
        cluster: its number in that epoch.
        rows: uint32 `(n,)`, increasing.
        values: the codes of those rows.
    """

    epoch: int
    cluster: int
    rows: U32
    values: Codes

    @property
    def size_bytes(self) -> int:
        """Memory that the arrays hold."""
        values = self.values
        return (
            self.rows.nbytes + values.codes.nbytes + values.scales.nbytes + values.half_norms.nbytes
        )


@dataclass(frozen=True, slots=True)
class QuantizedQuery:
    """A query in the form that codes are scanned with.

    Attributes:
        codes: int8 `(d,)`.
        scale: of the query's codes.
        euclidean: whether half norms are subtracted.
        offset: what makes the scores of two shards, whose means differ, comparable.
    """

    codes: I8
    scale: float
    euclidean: bool
    offset: float


def quantize(vectors: F32, mean: F32) -> Codes:
    """Quantise prepared vectors (float32 `(n, d)`) less `mean` (float32 `(d,)`)."""
    apart = vectors - mean
    scales = np.abs(apart).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    safe = np.where(scales > 0, scales, np.float32(1))
    codes = np.rint(apart / safe[:, None]).astype(np.int8)
    half_norms = (np.einsum("ij,ij->i", apart, apart) / 2).astype(np.float32)
    return Codes(codes, scales, half_norms)


def dequantize(codes: Codes, mean: F32) -> F32:
    """Return float32 `(n, d)` vectors near to those that were quantised."""
    vectors: F32 = codes.codes.astype(np.float32) * codes.scales[:, None] + mean
    return vectors


def quantize_query(query: F32, mean: F32, metric: Metric) -> QuantizedQuery:
    """Return a prepared query (float32 `(d,)`) in the form that `scan` takes."""
    euclidean = metric is Metric.EUCLIDEAN
    apart = query - mean if euclidean else query
    scale = float(np.abs(apart).max(initial=0.0)) / 127 or 1.0
    offset = -float(apart @ apart) if euclidean else float(query @ mean)
    codes = np.rint(apart / np.float32(scale)).astype(np.int8)
    return QuantizedQuery(codes, scale, euclidean, offset)


def scan(query: QuantizedQuery, codes: Codes) -> F32:
    """Return approximate scores (float32 `(n,)`) on the scale of `metric.exact_scores`."""
    return settle(query, kernel.dots(query.codes, codes.codes), [codes])


def settle(query: QuantizedQuery, products: F32, codes: Sequence[Codes]) -> F32:
    """Turn integer products into approximate scores, in place.

    Args:
        query: that was multiplied.
        products: float32 `(n,)`, `kernel.dots` over all of `codes`, one after the other.
        codes: what it was multiplied with.
    """
    products *= _joined([one.scales for one in codes])
    products *= np.float32(query.scale)
    if query.euclidean:
        # -||q - x||^2 = 2 (q - m).(x - m) - ||x - m||^2 - ||q - m||^2
        products -= _joined([one.half_norms for one in codes])
        products *= np.float32(2)
    if query.offset:
        products += np.float32(query.offset)
    return products


def _joined(parts: list[F32]) -> F32:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def encode_codes(epoch: int, cluster: int, rows: U32, values: Codes) -> bytes:
    """Return the payload of one cluster.

    Args:
        epoch: of the centroids.
        cluster: its number.
        rows: uint32 `(n,)`, increasing.
        values: the codes of those rows.
    """
    count, width = values.codes.shape
    return b"".join(
        (
            _HEADER.pack(_VERSION, 0, width, epoch, cluster, count),
            rows.astype("<u4").tobytes(),
            values.scales.astype("<f4").tobytes(),
            values.half_norms.astype("<f4").tobytes(),
            np.ascontiguousarray(values.codes).tobytes(),
        )
    )


def decode_codes(payload: bytes) -> CodesNode:
    """Decode the payload of one cluster.

    Raises:
        MalformedCodesError: if it is not one.
    """
    if len(payload) < _HEADER.size:
        raise MalformedCodesError("a CODES payload is cut off")
    version, _, width, epoch, cluster, count = _HEADER.unpack_from(payload)
    if version != _VERSION or len(payload) != _HEADER.size + count * (12 + width):
        raise MalformedCodesError("not a CODES payload of this version")
    at = _HEADER.size
    rows = np.frombuffer(payload, "<u4", count, at)
    scales = np.frombuffer(payload, "<f4", count, at + 4 * count)
    half_norms = np.frombuffer(payload, "<f4", count, at + 8 * count)
    codes = np.frombuffer(payload, np.int8, count * width, at + 12 * count)
    return CodesNode(epoch, cluster, rows, Codes(codes.reshape(count, width), scales, half_norms))


def cluster_nodes(rows: U32, vectors: F32, state: VectorState) -> Iterator[tuple[int, bytes]]:
    """Quantise the vectors of a micro-batch and yield (cluster, payload) for each cluster in it.

    Args:
        rows: uint32 `(n,)` rows in the document table.
        vectors: float32 `(n, d)`, prepared.
        state: the current centroids.
    """
    if rows.size:
        values = quantize(vectors, state.mean)
        yield from _split(state.current.number, rows, values, assign(vectors, state))


class CodesCodec:
    """Regroup CODES nodes at compaction (a chain `Regroup`).

    Nodes of the current epoch are concatenated cluster by cluster; those of an older one are
    assigned anew, from their codes, without quantising again.
    """

    kind = NodeKind.CODES

    def __init__(self, state: VectorState, token: Callable[[int, int], bytes]) -> None:
        """Make a codec that groups by `state`.

        Args:
            state: the centroids to group by.
            token: returns the chain token of (epoch, cluster) under the *current* key generation.
        """
        self._state = state
        self._token = token

    def regroup(
        self, parts: Sequence[tuple[bytes, bytes, npt.NDArray[np.int64]]]
    ) -> Iterable[tuple[bytes, bytes]]:
        """Yield (token, payload) of the merged clusters.

        Args:
            parts: (token, payload, row map) of every CODES node of the merged segments; a row map
                is int64 `(rows of its segment,)`, new row or -1 for dropped.
        """
        current = self._state.current.number
        rows: list[npt.NDArray[np.int64]] = []
        values: list[Codes] = []
        clusters: list[npt.NDArray[np.int64]] = []
        for _, payload, rowmap in parts:
            node = decode_codes(payload)
            mapped = rowmap[node.rows]
            kept = mapped >= 0
            if not kept.any():
                continue
            part = _take(node.values, kept)
            rows.append(mapped[kept])
            values.append(part)
            if node.epoch == current:
                clusters.append(np.full(rows[-1].size, node.cluster, dtype=np.int64))
            else:
                clusters.append(assign(dequantize(part, self._state.mean), self._state))
        if not rows:
            return
        merged = Codes(
            np.concatenate([part.codes for part in values]),
            np.concatenate([part.scales for part in values]),
            np.concatenate([part.half_norms for part in values]),
        )
        where = np.concatenate(rows).astype(np.uint32)
        for cluster, payload in _split(current, where, merged, np.concatenate(clusters)):
            yield self._token(current, cluster), payload


def _take(values: Codes, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Codes:
    return Codes(values.codes[chosen], values.scales[chosen], values.half_norms[chosen])


def _split(
    epoch: int, rows: U32, values: Codes, clusters: npt.NDArray[np.int64]
) -> Iterator[tuple[int, bytes]]:
    order = np.lexsort((rows, clusters))
    ordered = clusters[order]
    cuts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])).tolist()
    for start, end in zip(cuts, [*cuts[1:], order.size], strict=True):
        chosen = order[start:end]
        cluster = int(ordered[start])
        yield cluster, encode_codes(epoch, cluster, rows[chosen], _take(values, chosen))
