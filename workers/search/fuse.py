"""Fuse ranked lists by weighted reciprocal ranks.

    score(id) = sum over lists of  weight / (k + rank)        ranks count from 1

Source: Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion" (SIGIR 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def fuse(
    lists: Sequence[Sequence[T]], weights: Sequence[float], k: int = 60
) -> list[tuple[T, float]]:
    """Fuse ranked lists.

    Args:
        lists: each best first, without repetitions.
        weights: one for each list, >= 0; an item of weight 0 in every list still takes part.
        k: the constant of the fusion, > 0.

    Returns:
        Every item once with its score, in the order in which the lists first name it: the caller
        sorts, because only it knows how ties are broken.
    """
    scores: dict[T, float] = {}
    for ranked, weight in zip(lists, weights, strict=True):
        for rank, item in enumerate(ranked, start=1):
            scores[item] = scores.get(item, 0.0) + weight / (k + rank)
    return list(scores.items())
