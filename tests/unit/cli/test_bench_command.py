"""`sealstream bench` finds its code in a checkout only, and its measures are the usual ones."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest

from workers.cli import bench
from workers.cli.common import USAGE, Exit

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TESTS))
    return importlib.import_module("bench.measures")


def test_outside_a_checkout_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "_TESTS", tmp_path)
    with pytest.raises(Exit, match="checkout") as refused:
        bench.bench("seal")
    assert refused.value.code == USAGE


def test_ndcg_discounts_by_rank(measures: Any) -> None:
    assert measures.ndcg(["a", "b"], {"a", "b"}) == 1.0
    assert measures.ndcg(["x", "a"], {"a"}) == pytest.approx(1 / math.log2(3))
    assert measures.ndcg(["x"], {"a"}) == 0.0


def test_average_precision_counts_what_was_not_found(measures: Any) -> None:
    assert measures.average_precision(["a", "x", "b"], {"a", "b"}) == pytest.approx((1 + 2 / 3) / 2)
    assert measures.average_precision(["a"], {"a", "b"}) == 0.5


def test_fusion_adds_reciprocal_ranks(measures: Any) -> None:
    assert measures.fuse([["a", "b"], ["b", "c"]]) == ["b", "a", "c"]


def test_recall_is_the_share_that_was_found(measures: Any) -> None:
    assert measures.recall([1, 2, 3], [2, 3, 4, 5]) == 0.5
