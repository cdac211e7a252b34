"""Which of several statements about one (keyword, id) holds.

Within a source (stream, partition) the highest offset speaks for the source; among the sources the
one that arrived last wins. Reducing per source first makes the outcome well-defined: pairwise
comparison alone ("same source: offset, else: arrival") can go in a circle when the records of a
source arrive out of order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.chain.columns import Record
from workers.chain.rows import split_ids


def repeated(object_ids: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the positions, ascending, of ids `(n, 16)` that occur more than once."""
    hi, lo = split_ids(object_ids)
    order = np.lexsort((lo, hi))
    same = (hi[order][1:] == hi[order][:-1]) & (lo[order][1:] == lo[order][:-1])
    twice = np.zeros(len(order), bool)
    twice[1:] |= same
    twice[:-1] |= same
    return np.sort(order[twice])


def winners(object_ids: NDArray[np.uint8], origin: Record) -> NDArray[np.bool_]:
    """Return a mask of the rows that win, exactly one per object id.

    Args:
        object_ids: of the rows with a posting of one keyword, `(n, 16)`, in the order of arrival.
        origin: their ORIGIN records.
    """
    hi, lo = split_ids(object_ids)
    arrival = np.arange(len(origin))
    spoken = _last((arrival, origin["offset"]), (origin["partition"], origin["stream"], lo, hi))
    kept = np.flatnonzero(spoken)
    mask = np.zeros(len(origin), bool)
    mask[kept[_last((kept,), (lo[kept], hi[kept]))]] = True
    return mask


def _last(ranks: tuple[NDArray[Any], ...], groups: tuple[NDArray[Any], ...]) -> NDArray[np.bool_]:
    """Mask the highest of each group; the last key of either tuple is the most significant."""
    order = np.lexsort((*ranks, *groups))
    ends = np.zeros(len(order), bool)
    ends[-1:] = True
    for column in groups:
        ordered = column[order]
        ends[:-1] |= ordered[1:] != ordered[:-1]
    mask = np.zeros(len(order), bool)
    mask[order[ends]] = True
    return mask
