"""Which of several statements about one (keyword, id) holds.

Within a source (stream, partition) the highest offset speaks for the source; among the sources the
one that arrived last (highest `seq`) wins. Reducing per source first makes the outcome
well-defined: pairwise comparison alone ("same source: offset, else: arrival") can be a circle when
a source's records arrive out of order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.chain.columns import Record
from workers.chain.rows import split_ids


def winners(origin: Record, seq: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return a mask of the rows that win, exactly one per object id.

    Args:
        origin: ORIGIN records `(n,)` of the rows with a posting of one keyword.
        seq: their arrival numbers `(n,)`.
    """
    hi, lo = split_ids(np.ascontiguousarray(origin["object_id"]))
    spoken = _last((seq, origin["offset"]), (origin["partition"], origin["stream"], lo, hi))
    kept = np.flatnonzero(spoken)
    last = _last((seq[kept],), (lo[kept], hi[kept]))
    mask = np.zeros(len(seq), bool)
    mask[kept[last]] = True
    return mask


def _last(
    ranks: tuple[NDArray[np.generic], ...], groups: tuple[NDArray[np.generic], ...]
) -> NDArray[np.bool_]:
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
