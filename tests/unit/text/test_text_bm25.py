from __future__ import annotations

import math

import numpy as np
import pytest

from workers.text.bm25 import FieldStats, idf, score


def test_the_formula():
    tfs = np.array([1, 3, 10])
    lengths = np.array([10, 20, 5], dtype=np.uint32)
    found = score(tfs, lengths, df=3, stats=FieldStats(100, 1_000))
    rare = math.log(1 + (100 - 3 + 0.5) / 3.5)
    for i in range(3):
        norm = 1.2 * (1 - 0.75 + 0.75 * int(lengths[i]) / 10)
        assert found[i] == pytest.approx(rare * int(tfs[i]) / (int(tfs[i]) + norm), rel=1e-6)
    assert found.dtype == np.float32


def test_statistics_that_lag_never_make_scores_negative():
    assert idf(10, 5) > 0
    assert idf(0, 0) > 0
    assert FieldStats(0, 0).average_length == 1.0
    found = score(np.array([1]), np.array([0], dtype=np.uint32), df=1, stats=FieldStats(0, 0))
    assert found[0] > 0


def test_agrees_with_bm25s_on_random_documents():
    bm25s = pytest.importorskip("bm25s")
    random = np.random.default_rng(1)
    docs = [random.integers(0, 50, random.integers(1, 40)).tolist() for _ in range(80)]
    engine = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    vocabulary = {str(i): i for i in range(50)}
    engine.index((docs, vocabulary), show_progress=False)
    stats = FieldStats(len(docs), sum(map(len, docs)))
    lengths = np.array([len(doc) for doc in docs], dtype=np.uint32)
    for term in range(50):
        tfs = np.array([doc.count(term) for doc in docs])
        rows = np.flatnonzero(tfs)
        expected = engine.get_scores([str(term)])
        mine = np.zeros(len(docs), dtype=np.float32)
        mine[rows] = score(tfs[rows], lengths[rows], df=rows.size, stats=stats)
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-6)
