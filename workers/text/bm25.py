"""Score postings with BM25 in Lucene's form.

    idf(t)     = ln(1 + (N - df + 0.5) / (df + 0.5))
    score(t,d) = idf(t) * tf / (tf + k1 * (1 - b + b * length(d) / average length))

N, df and the average length are those of the whole index, never of a segment: a document's score
must not depend on what it was compacted with. Source: Robertson and Zaragoza, "The Probabilistic
Relevance Framework" (2009); the variant is bm25s's `lucene` (Kamphuis et al., ECIR 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FieldStats:
    """Statistics of one field over all shards.

    Attributes:
        docs: live documents that have the field.
        total_length: sum of their lengths, in terms.
    """

    docs: int
    total_length: int

    @property
    def average_length(self) -> float:
        """Mean length in terms; 1 for an empty field, so that nothing divides by zero."""
        return self.total_length / self.docs if self.docs and self.total_length else 1.0


def idf(df: int, docs: int) -> float:
    """Return the inverse document frequency of a term in `df` of `docs` documents."""
    # Statistics may lag behind the postings by a publish; the idf must stay positive.
    docs = max(docs, df)
    return math.log1p((docs - df + 0.5) / (df + 0.5))


def score(
    tfs: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.uint32],
    *,
    df: int,
    stats: FieldStats,
    k1: float = 1.2,
    b: float = 0.75,
) -> Floats:
    """Score the postings of one term.

    Args:
        tfs: int64 `(n,)` occurrences in each document.
        lengths: uint32 `(n,)` length of the field in each document, in terms.
        df: live documents that hold the term, over the whole index.
        stats: statistics of the field, over the whole index.
        k1: saturation of the frequency, >= 0.
        b: weight of the length, in [0, 1].

    Returns:
        float32 `(n,)` scores.
    """
    return score_with_idf(
        tfs,
        lengths,
        rarity=idf(df, stats.docs),
        average_length=stats.average_length,
        k1=k1,
        b=b,
    )


def score_with_idf(
    tfs: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.uint32],
    *,
    rarity: float,
    average_length: float,
    k1: float,
    b: float,
) -> Floats:
    """Score postings of something whose idf is known (a phrase: the sum over its terms)."""
    tf = tfs.astype(np.float32)
    norm = lengths.astype(np.float32)
    norm *= np.float32(k1 * b / average_length)
    norm += np.float32(k1 * (1.0 - b))
    norm += tf
    tf *= np.float32(rarity)
    return np.divide(tf, norm, out=tf)
