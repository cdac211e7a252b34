from __future__ import annotations

import numpy as np
import pytest

from workers.crypto.secret import SecretBytes
from workers.errors import Damaged
from workers.storage import layout
from workers.storage.memory import MemoryStore
from workers.vector.centroids import (
    MAX_EPOCHS,
    MalformedStateError,
    assign,
    decode_state,
    encode_state,
    initial_state,
    nearest,
    probe,
)
from workers.vector.metric import Metric, prepare
from workers.vector.store import load_state, read_ref, save_state
from workers.vector.training import (
    MIN_VECTORS,
    cluster_count,
    retrain,
    sample_size,
    should_train,
    train,
)

UID = bytes(16)


def blobs(n: int, k: int, d: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = 10 * random.normal(size=(k, d))
    labels = random.integers(0, k, n)
    return (centres[labels] + random.normal(size=(n, d))).astype(np.float32), labels


@pytest.mark.parametrize("metric", list(Metric))
def test_training_finds_well_separated_clusters(metric):
    vectors, labels = blobs(2_000, 8)
    vectors = prepare(vectors, metric)
    found = nearest(vectors, train(vectors, 24, metric))
    # With three times as many centroids as blobs, none is shared by two blobs.
    for cluster in np.unique(found):
        assert np.unique(labels[found == cluster]).size == 1


def test_training_is_repeatable_and_normalised_for_cosine():
    vectors = prepare(blobs(500, 5)[0], Metric.COSINE)
    first = train(vectors, 16, Metric.COSINE, seed=3)
    assert np.array_equal(first, train(vectors, 16, Metric.COSINE, seed=3))
    assert np.linalg.norm(first, axis=1) == pytest.approx(np.ones(16), rel=1e-4)


def test_training_on_few_or_equal_vectors():
    same = np.ones((10, 4), np.float32)
    assert train(same, 4, Metric.EUCLIDEAN).shape == (4, 4)
    assert train(same[:2], 50, Metric.EUCLIDEAN).shape == (2, 4)


def test_assignment_in_blocks_is_assignment_at_once(monkeypatch):
    vectors, _ = blobs(1_000, 6)
    centroids = vectors[:30]
    whole = nearest(vectors, centroids)
    monkeypatch.setattr("workers.vector.centroids._ASSIGN_ROWS", 7)
    assert np.array_equal(nearest(vectors, centroids), whole)
    brute = ((vectors[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (whole == brute).mean() > 0.999


@pytest.mark.parametrize("metric", list(Metric))
def test_probes_are_the_nearest_clusters_in_order(metric):
    vectors, _ = blobs(400, 6)
    state = retrain(initial_state(24, metric), prepare(vectors, metric), 40_000)
    query = prepare(vectors[0], metric)
    epoch = state.current
    all_of_them = probe(query, epoch, metric, epoch.clusters - 1)
    assert probe(query, epoch, metric, 5).tolist() == all_of_them[:5].tolist()
    assert sorted(probe(query, epoch, metric, 10_000).tolist()) == list(range(epoch.clusters))
    if metric is not Metric.DOT:
        assert all_of_them[0] == assign(query[None], state)[0]


def test_states_travel_as_bytes():
    vectors, _ = blobs(500, 5)
    state = initial_state(24, Metric.EUCLIDEAN, vectors)
    assert state.mean == pytest.approx(vectors.mean(axis=0), rel=1e-4)
    assert not state.trained
    state = state.with_epoch(vectors[:9].copy(), 500).with_epoch(vectors[:12].copy(), 900)
    found = decode_state(encode_state(state))
    assert [e.number for e in found.epochs] == [0, 1, 2]
    assert (found.metric, found.trained, found.dimension) == (Metric.EUCLIDEAN, True, 24)
    assert found.current.trained_on == 900
    for mine, theirs in zip(state.epochs, found.epochs, strict=True):
        assert np.array_equal(mine.centroids, theirs.centroids)
    assert [e.number for e in found.settled().epochs] == [2]


def test_the_mean_of_cosine_is_zero_and_epochs_are_bounded():
    vectors, _ = blobs(50, 2)
    state = initial_state(24, Metric.COSINE, vectors)
    assert not state.mean.any()
    for _ in range(2 * MAX_EPOCHS):
        state = state.with_epoch(vectors[:2].copy(), 50)
    assert len(decode_state(encode_state(state)).epochs) == MAX_EPOCHS


@pytest.mark.parametrize("bad", [b"", b"SSVX" + bytes(60), b"cut", b"long"])
def test_malformed_states_are_refused(bad):
    good = encode_state(initial_state(4, Metric.DOT))
    with pytest.raises(MalformedStateError):
        decode_state({b"cut": good[:-1], b"long": good + b"\0"}.get(bad, bad))


def test_published_bytes():
    """The format is stored: these bytes must not change."""
    state = initial_state(2, Metric.DOT).with_epoch(np.array([[1, 0]], np.float32), 7)
    assert encode_state(state).hex() == (
        "53535643"
        "01"
        "02"
        "0200"
        "02000000"
        "0000000000000000"
        "00000000"
        "01000000"
        "0000000000000000"
        "01000000"
        "01000000"
        "0700000000000000"
        "0000803f00000000"
    )


def test_when_to_train():
    state = initial_state(384, Metric.COSINE)
    assert not should_train(state, MIN_VECTORS - 1)
    assert should_train(state, MIN_VECTORS)
    trained = state.with_epoch(np.ones((10, 384), np.float32), 10_000)
    assert not should_train(trained, 19_999)
    assert should_train(trained, 20_000)
    assert should_train(trained, 12_000, [100] * 90 + [900] * 10)
    assert not should_train(trained, 12_000, [100] * 90 + [250] * 10)
    # Just trained: doing it again would give the same clusters.
    assert not should_train(trained, 10_500, [100] * 90 + [900] * 10)


def test_cluster_counts_follow_the_size_of_nodes():
    assert cluster_count(60_000, 384) == 145
    assert cluster_count(10, 384) == 1
    assert cluster_count(10**9, 384) == 8192
    assert sample_size(1_000, 384) == 128
    assert sample_size(60_000, 384) == 64 * 145


async def test_small_states_stand_in_the_head_and_large_ones_in_an_object():
    store, keys = MemoryStore(), {1: SecretBytes(b"v" * 32)}
    small = initial_state(24, Metric.DOT)
    ref = await save_state(store, keys[1], UID, 3, 1, small)
    assert read_ref(ref).uid == b""
    assert store.stats.puts == 0
    assert (await load_state(store, keys.__getitem__, UID, 3, ref)).dimension == 24
    assert await load_state(store, keys.__getitem__, UID, 3, b"") is None
    large = small.with_epoch(blobs(500, 4)[0], 500)
    ref = await save_state(store, keys[1], UID, 3, 1, large)
    found = await load_state(store, keys.__getitem__, UID, 3, ref)
    assert np.array_equal(found.current.centroids, large.current.centroids)
    assert read_ref(ref).clusters == 500


async def test_centroids_that_were_swapped_or_lost_are_damaged():
    store, keys = MemoryStore(), {1: SecretBytes(b"v" * 32)}
    large = initial_state(24, Metric.DOT).with_epoch(blobs(500, 4)[0], 500)
    ref = await save_state(store, keys[1], UID, 0, 1, large)
    other = await save_state(store, keys[1], UID, 0, 1, large.with_epoch(blobs(9, 2)[0], 9))
    with pytest.raises(Damaged):
        await load_state(store, keys.__getitem__, UID, 1, ref)
    names = [layout.centroids(UID, 0, read_ref(one).uid) for one in (ref, other)]
    await store.put(names[0], (await store.get(names[1])).data)
    with pytest.raises(Damaged):
        await load_state(store, keys.__getitem__, UID, 0, ref)
    await store.delete([names[0]])
    with pytest.raises(Damaged):
        await load_state(store, keys.__getitem__, UID, 0, ref)
    with pytest.raises(Damaged):
        await load_state(store, keys.__getitem__, UID, 0, b"junk")
