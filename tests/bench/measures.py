"""Measures of ranked lists, as trec_eval defines them, with binary relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ndcg(ranked: Sequence[str], relevant: set[str], depth: int = 10) -> float:
    """Return nDCG at `depth`; 0 without relevant documents."""
    gain = sum(1 / math.log2(i + 2) for i, one in enumerate(ranked[:depth]) if one in relevant)
    ideal = sum(1 / math.log2(i + 2) for i in range(min(depth, len(relevant))))
    return gain / ideal if ideal else 0.0


def average_precision(ranked: Sequence[str], relevant: set[str]) -> float:
    """Return the average precision of a list; 0 without relevant documents."""
    found, total = 0, 0.0
    for place, one in enumerate(ranked, 1):
        if one in relevant:
            found += 1
            total += found / place
    return total / len(relevant) if relevant else 0.0


def recall(ranked: Sequence[object], truth: Sequence[object]) -> float:
    """Return which part of `truth` is in `ranked`."""
    return len(set(ranked) & set(truth)) / len(truth)


def fuse(lists: Sequence[Sequence[str]], k: int = 60) -> list[str]:
    """Return the fusion of ranked lists by reciprocal ranks from 1, ties by id."""
    scores: dict[str, float] = {}
    for ranked in lists:
        for rank, one in enumerate(ranked, 1):
            scores[one] = scores.get(one, 0.0) + 1 / (k + rank)
    return sorted(scores, key=lambda one: (-scores[one], one))
