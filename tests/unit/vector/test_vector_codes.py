from __future__ import annotations

import numpy as np
import pytest

from workers.chain.kinds import NodeKind
from workers.vector import kernel
from workers.vector.centroids import initial_state
from workers.vector.codes import (
    Codes,
    CodesCodec,
    MalformedCodesError,
    cluster_nodes,
    decode_codes,
    dequantize,
    encode_codes,
    quantize,
    quantize_query,
    scan,
    settle,
)
from workers.vector.metric import Metric, distance, exact_scores, prepare, top

METRICS = list(Metric)
CUTS = [(0, 123), (123, 500)]


def random_vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1.0, (n, d)).astype(np.float32)


@pytest.mark.parametrize("d", [1, 3, 64, 384, 784, 1024, 1025, 1536, 4096])
@pytest.mark.parametrize("n", [0, 1, 7, 300])
def test_numkong_and_numpy_give_the_same_numbers(d, n, monkeypatch):
    random = np.random.default_rng(d * 1000 + n)
    codes = random.integers(-127, 128, (n, d), dtype=np.int8)
    queries = random.integers(-127, 128, (9, d), dtype=np.int8)
    exact = queries.astype(np.int64) @ codes.astype(np.int64).T
    for several in (1, 2, 9):
        fast = kernel.dots_batch(queries[:several], codes)
        slow = kernel.dots_numpy(queries[:several], codes)
        assert fast.dtype == slow.dtype == np.float32
        assert np.array_equal(fast, slow)
        assert np.array_equal(fast, exact[:several].astype(np.float32))
    assert np.array_equal(kernel.dots(queries[0], codes), exact[0].astype(np.float32))
    monkeypatch.setattr(kernel, "_numkong", None)
    assert np.array_equal(kernel.dots(queries[0], codes), exact[0].astype(np.float32))
    assert np.array_equal(kernel.dots_batch(queries, codes), exact.astype(np.float32))


def test_extreme_codes_do_not_overflow():
    codes = np.full((3, 2048), 127, dtype=np.int8)
    assert kernel.dots(codes[0], codes).tolist() == [127 * 127 * 2048] * 3


@pytest.mark.parametrize("metric", METRICS)
def test_scores_of_codes_are_near_the_exact_ones(metric):
    vectors = prepare(random_vectors(500, 64), metric)
    queries = prepare(random_vectors(8, 64, seed=1), metric)
    mean = initial_state(64, metric, vectors).mean
    codes = quantize(vectors, mean)
    asked = [quantize_query(query, mean, metric) for query in queries]
    halves = [Codes(codes.codes[a:b], codes.scales[a:b], codes.half_norms[a:b]) for a, b in CUTS]
    for query, quick in zip(queries, asked, strict=True):
        exact = exact_scores(query, vectors, metric)
        rough = scan(quick, codes)
        assert np.array_equal(rough, settle(quick, kernel.dots(quick.codes, codes.codes), halves))
        assert np.abs(rough - exact).max() < 0.03 * np.abs(exact).max()
        best = set(np.argsort(-exact)[:10].tolist())
        assert len(best & set(np.argsort(-rough)[:30].tolist())) == 10


def test_quantising_loses_at_most_half_a_step():
    vectors = random_vectors(200, 48)
    mean = vectors.mean(axis=0)
    codes = quantize(vectors, mean)
    step = codes.scales[:, None]
    assert np.all(np.abs(dequantize(codes, mean) - vectors) <= 0.5 * step + 1e-6)
    assert codes.half_norms == pytest.approx(((vectors - mean) ** 2).sum(axis=1) / 2, rel=1e-5)


def test_zero_vectors_are_codes_of_zero():
    codes = quantize(np.zeros((2, 8), np.float32), np.zeros(8, np.float32))
    assert not codes.codes.any()
    query = quantize_query(np.zeros(8, np.float32), np.zeros(8, np.float32), Metric.COSINE)
    assert scan(query, codes).tolist() == [0, 0]
    assert not prepare(np.zeros((2, 8), np.float32), Metric.COSINE).any()


def test_published_bytes():
    """The format is stored: these bytes must not change."""
    values = Codes(
        np.array([[1, -1], [127, 0]], np.int8),
        np.array([0.5, 1.0], np.float32),
        np.array([2.0, 0.0], np.float32),
    )
    payload = encode_codes(3, 9, np.array([4, 300], np.uint32), values)
    assert payload.hex() == (
        "01000200030000000900000002000000040000002c0100000000003f0000803f000000400000000001ff7f00"
    )
    node = decode_codes(payload)
    assert (node.epoch, node.cluster, node.rows.tolist()) == (3, 9, [4, 300])
    assert np.array_equal(node.values.codes, values.codes)
    assert node.size_bytes == 2 * (4 + 4 + 4 + 2)


@pytest.mark.parametrize("cut", [0, 5, 16, -1])
def test_malformed_payloads_are_refused(cut):
    [(_, payload)] = cluster_nodes(
        np.array([1], np.uint32), random_vectors(1, 4), initial_state(4, Metric.DOT)
    )
    for bad in (payload[:cut], b"\x07" + payload[1:], payload + b"x"):
        with pytest.raises(MalformedCodesError):
            decode_codes(bad)


def state_of(vectors: np.ndarray, k: int):
    start = initial_state(vectors.shape[1], Metric.EUCLIDEAN, vectors)
    return start, start.with_epoch(vectors[:k].copy(), len(vectors))


def rows_of(nodes) -> dict[int, list[int]]:
    return {c: decode_codes(payload).rows.tolist() for c, payload in nodes}


def test_a_batch_is_split_by_cluster_in_row_order():
    vectors = random_vectors(60, 16)
    _, state = state_of(vectors, 5)
    rows = np.random.default_rng(2).permutation(60).astype(np.uint32)
    found = rows_of(cluster_nodes(rows, vectors, state))
    assert sorted(r for one in found.values() for r in one) == list(range(60))
    assert all(one == sorted(one) for one in found.values())
    assert list(cluster_nodes(rows[:0], vectors[:0], state)) == []


def test_regrouping_moves_every_row_to_the_current_epoch():
    vectors = random_vectors(90, 16)
    before, state = state_of(vectors, 6)
    old = list(cluster_nodes(np.arange(40, dtype=np.uint32), vectors[:40], before))
    new = list(cluster_nodes(np.arange(50, dtype=np.uint32), vectors[40:], state))
    first = np.arange(40, dtype=np.int64) * 2
    second = np.arange(50, dtype=np.int64) * 2 + 1
    first[7] = second[3] = -1
    codec = CodesCodec(state, lambda epoch, cluster: bytes([epoch, cluster]))
    assert codec.kind is NodeKind.CODES
    parts = [(b"", payload, first) for _, payload in old]
    parts += [(b"", payload, second) for _, payload in new]
    merged = dict(codec.regroup(parts))
    found = {token: decode_codes(payload) for token, payload in merged.items()}
    rows = np.concatenate([node.rows for node in found.values()])
    assert sorted(rows.tolist()) == sorted([*first[first >= 0], *second[second >= 0]])
    for token, node in found.items():
        assert (node.epoch, node.cluster) == (token[0], token[1]) == (1, token[1])
        # The codes are moved, not made again.
        for row, code in zip(node.rows.tolist(), node.values.codes, strict=True):
            source = vectors[row // 2] if row % 2 == 0 else vectors[40 + row // 2]
            assert np.array_equal(code, quantize(source[None], state.mean).codes[0])


def test_regrouping_nothing_gives_nothing():
    _, state = state_of(random_vectors(10, 4), 2)
    codec = CodesCodec(state, lambda *_: b"")
    assert list(codec.regroup([])) == []
    [(_, payload)] = cluster_nodes(
        np.array([0], np.uint32), random_vectors(1, 4), initial_state(4, Metric.DOT)
    )
    assert list(codec.regroup([(b"", payload, np.array([-1]))])) == []


def test_top_breaks_ties_by_the_given_order():
    scores = np.array([1, 3, 3, 2, 3], np.float32)
    ties = np.array([9, 8, 7, 6, 5])
    assert top(scores, ties, 2).tolist() == [4, 2]
    assert top(scores, ties, 10).tolist() == [4, 2, 1, 3, 0]
    assert top(scores, ties, 0).tolist() == []


@pytest.mark.parametrize(
    ("metric", "score", "expected"),
    [(Metric.COSINE, 0.75, 0.25), (Metric.DOT, 3.0, -3.0), (Metric.EUCLIDEAN, -9.0, 3.0)],
)
def test_distances(metric, score, expected):
    assert distance(score, metric) == pytest.approx(expected)
