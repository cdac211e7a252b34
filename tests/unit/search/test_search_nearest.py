from __future__ import annotations

import numpy as np
import pytest
from search_kit import Doc, delete, make_index

from schemas.index import MAX_TOP_K, fusion_depth
from schemas.query import Hybrid, HybridQuery, TextQuery, VectorQuery
from schemas.values import Vector
from workers.errors import Reject
from workers.search import nearest
from workers.vector.metric import Metric, exact_scores, prepare

D = 32


def near(vector, **options) -> VectorQuery:
    return VectorQuery(vector=Vector(np.asarray(vector, dtype=np.float32)), **options)


def cloud(n: int, seed: int = 0) -> np.ndarray:
    """n vectors around 40 centres: clustered, as embeddings are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(40, D))
    values = centres[random.integers(0, 40, n)] + 0.4 * random.normal(size=(n, D))
    return (values + 0.5).astype(np.float32)


def truth(vectors: np.ndarray, query: np.ndarray, metric: str, k: int) -> list[str]:
    kind = Metric(metric)
    scores = exact_scores(prepare(query, kind), prepare(vectors, kind), kind)
    return [f"v{i}" for i in np.lexsort((np.arange(len(scores)), -scores))[:k]]


async def filled(n: int, **config):
    index = await make_index(dimension=D, **config)
    vectors = cloud(n)
    for start in range(0, n, max(1, n // 3)):
        part = range(start, min(n, start + max(1, n // 3)))
        await index.write(*[Doc(f"v{i}", vector=vectors[i], metadata={"n": i}) for i in part])
    return index, vectors


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
async def test_untrained_search_is_exact(metric, precision):
    index, vectors = await filled(300, metric=metric, storage_precision=precision)
    for query in cloud(10, seed=1):
        ids = await index.ids(near(query))
        expected = truth(vectors, query, metric, 10)
        if precision == "float32":
            assert ids == expected
        else:
            assert len(set(ids) & set(expected)) >= 9


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
async def test_distances_are_those_of_the_metric(metric, precision):
    index, vectors = await filled(60, metric=metric, storage_precision=precision)
    query = cloud(1, seed=2)[0]
    best = (await index.answer(near(query))).candidates[0]
    x = vectors[int(best.id[1:])].astype(np.float64)
    q = query.astype(np.float64)
    expected = {
        "cosine": 1 - q @ x / np.linalg.norm(q) / np.linalg.norm(x),
        "euclidean": np.linalg.norm(q - x),
        "dot": -(q @ x),
    }[metric]
    tolerance = 1e-4 if precision == "float32" else 0.05
    assert best.distance == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("shards", [1, 2])
async def test_trained_search_finds_the_neighbours(metric, shards):
    index, vectors = await filled(6_000, metric=metric, shards=shards)
    await index.train()
    assert all(state.trained for state in index.states.values())
    queries = cloud(20, seed=3)
    hits = 0
    for query in queries:
        ids = await index.ids(near(query, nprobe=8))
        hits += len(set(ids) & set(truth(vectors, query, metric, 10)))
    assert hits / 200 >= 0.9


async def test_everything_probed_and_reranked_is_exact():
    index, vectors = await filled(5_000, storage_precision="float32")
    await index.train()
    for query in cloud(5, seed=4):
        ids = await index.ids(near(query, nprobe=10_000, rerank=10_000))
        assert ids == truth(vectors, query, "cosine", 10)


async def test_a_batch_answers_as_single_queries_do():
    index, _ = await filled(5_000)
    await index.train()
    queries = [near(one, nprobe=4) for one in cloud(9, seed=5)]
    queries.append(TextQuery(text="nothing"))
    answers = await index.answers(queries, limits=[10] * 10)
    single = [await index.answer(query) for query in queries]
    for many, one in zip(answers, single, strict=True):
        assert [c.id for c in many.candidates] == [c.id for c in one.candidates]
        assert [c.score for c in many.candidates] == pytest.approx(
            [c.score for c in one.candidates], rel=1e-6
        )


async def test_new_replaced_and_deleted_vectors_after_training():
    index, _vectors = await filled(5_000)
    await index.train()
    query = cloud(1, seed=6)[0]
    best = (await index.ids(near(query)))[0]
    await index.write(Doc("new", vector=query), delete(best))
    assert (await index.ids(near(query)))[0] == "new"
    assert best not in await index.ids(near(query, nprobe=1000))
    await index.write(Doc("new", vector=-query))
    assert "new" not in await index.ids(near(query))
    await index.compact()
    ids = await index.ids(near(query))
    assert best not in ids
    assert "new" not in ids


async def test_segments_of_an_older_epoch_are_still_searched():
    index, _vectors = await filled(5_000)
    await index.train()
    state = index.states[0]
    # What a batch written beside a second training leaves behind: nodes of the epoch before.
    late = cloud(1, seed=7)[0]
    await index.write(Doc("late", vector=late))
    newer = state.with_epoch(state.current.centroids[:10].copy(), 5_000)
    await index._publish_state(0, newer)
    await index.write(Doc("newest", vector=late * 1.01))
    assert set((await index.ids(near(late)))[:2]) == {"late", "newest"}
    await index.compact()
    assert set((await index.ids(near(late)))[:2]) == {"late", "newest"}


async def test_nodes_of_an_older_key_generation_are_found():
    index, _ = await filled(5_000)
    await index.train()
    await index.rotate()
    late = cloud(1, seed=8)[0]
    before = await index.ids(near(late))
    await index.write(Doc("late", vector=late))
    assert (await index.ids(near(late)))[0] == "late"
    assert set(before[:8]) <= set(await index.ids(near(late)))
    await index.compact()
    assert (await index.ids(near(late)))[0] == "late"


@pytest.mark.parametrize("trained", [False, True])
async def test_filters_and_access_lists_do_not_starve_the_answer(trained):
    index, vectors = await filled(5_000)
    if trained:
        await index.train()
    query = cloud(1, seed=9)[0]
    few = set(range(0, 5_000, 500))
    ids = await index.ids(near(query, nprobe=1), where={"n": {"$in": sorted(few)}})
    assert ids == [i for i in truth(vectors, query, "cosine", 5_000) if int(i[1:]) in few][:10]
    await index.write(Doc("mine", vector=-query, groups=("board",)))
    assert await index.ids(near(query, nprobe=1), "board") == ["mine"]
    assert await index.ids(near(query, nprobe=1), "nobody") == []


async def test_visibility_index_gives_denied_neighbours_without_distance():
    index = await make_index(dimension=D, visibility="index")
    one = cloud(2)
    await index.write(Doc("a", vector=one[0], groups=("board",)), Doc("b", vector=one[1]))
    found = (await index.answer(near(one[0]), "staff")).candidates
    assert [(c.id, c.denied, c.distance is None) for c in found] == [
        ("a", True, True),
        ("b", False, False),
    ]


async def test_an_index_without_a_dimension_or_with_another_refuses():
    index = await make_index()
    with pytest.raises(Reject) as caught:
        await index.answer(near(np.ones(3)))
    assert caught.value.code == "UNSUPPORTED"
    index = await make_index(dimension=D)
    with pytest.raises(Reject) as caught:
        await index.answer(near(np.ones(3)))
    assert caught.value.code == "DIMENSION_MISMATCH"
    assert await index.ids(near(np.ones(D))) == []


async def test_a_zero_vector_is_stored_and_near_to_nothing():
    index = await make_index(dimension=D)
    await index.write(Doc("zero", vector=np.zeros(D)), Doc("one", vector=np.ones(D)))
    found = (await index.answer(near(np.ones(D)))).candidates
    assert [(c.id, round(c.score, 3)) for c in found] == [("one", 1.0), ("zero", 0.0)]
    assert len(await index.ids(near(np.zeros(D)))) == 2


async def test_documents_without_vectors_are_no_neighbours():
    index = await make_index(dimension=D)
    await index.write(Doc("text", {"body": "word"}), Doc("v", vector=np.ones(D)))
    await index.write(Doc("more", {"body": "word"}))
    assert await index.ids(near(np.ones(D))) == ["v"]


async def test_hybrid_is_reciprocal_rank_fusion_of_both_lists():
    index = await make_index(dimension=2)
    await index.write(
        Doc("both", {"body": "solar panel"}, vector=(1.0, 0.1)),
        Doc("text", {"body": "solar solar"}, vector=(-1.0, 0.0)),
        Doc("near", {"body": "wind"}, vector=(1.0, 0.0)),
    )
    vector = Vector(np.array([1.0, 0.0], dtype=np.float32))
    query = HybridQuery(hybrid=Hybrid(text="solar", vector=vector))
    found = (await index.answer(query)).candidates
    expected = {
        "both": 0.5 / 62 + 0.5 / 62,
        "text": 0.5 / 61 + 0.5 / 63,
        "near": 0.5 / 61,
    }
    assert {c.id: c.score for c in found} == pytest.approx(expected)
    assert [c.id for c in found] == sorted(expected, key=lambda i: -expected[i])
    only_text = HybridQuery(hybrid=Hybrid(text="solar", vector=vector, alpha=0.0))
    assert (await index.ids(only_text))[0] == "text"
    only_near = HybridQuery(hybrid=Hybrid(text="solar", vector=vector, alpha=1.0))
    assert (await index.ids(only_near))[0] == "near"
    near_k = HybridQuery(hybrid=Hybrid(text="solar", vector=vector, rrf_k=1))
    assert (await index.answer(near_k)).candidates[0].score == pytest.approx(0.5 / 2 + 0.5 / 4)


async def test_no_query_has_more_rows_scored_again_than_the_limit(monkeypatch):
    index, _ = await filled(5_000)
    await index.train()
    monkeypatch.setattr(nearest, "MAX_RERANK", 50)
    asked: list[int] = []
    best_rows = nearest.best_rows

    def counting(found, keep):
        asked.append(keep)
        return best_rows(found, keep)

    monkeypatch.setattr(nearest, "best_rows", counting)
    assert len(await index.ids(near(cloud(1)[0]), top_k=40)) == 40
    assert asked == [50]
    assert fusion_depth(10) == 100
    assert fusion_depth(10_000) == MAX_TOP_K
