"""Compute int8 dot products, with numkong where it is installed and numpy where not.

Both give the same numbers to the bit: the products are integers, and numpy's float32 sums of them
stay below 2**24, where float32 is exact, because wide vectors are cut into blocks of dimensions.
numkong releases the GIL and uses the widest instructions of the machine.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

_numkong: Any
try:
    import numkong as _numkong
except ImportError:  # pragma: no cover - the wheel exists for every platform we test
    _numkong = None

I8 = npt.NDArray[np.int8]
F32 = npt.NDArray[np.float32]

_EXACT_DIMENSIONS: Final = 1024
"""127 * 127 * 1024 < 2**24: a float32 sum over so many dimensions is exact."""
_PACK_FROM: Final = 4
"""From this many queries on, repacking the codes pays for itself."""


def dots(query: I8, codes: I8) -> F32:
    """Return the dot products of one query (int8 `(d,)`) with codes (int8 `(n, d)`).

    Returns:
        float32 `(n,)`, equal to the integer products rounded to float32.
    """
    if _numkong is None or not codes.size:
        found = dots_numpy(query[None, :], codes)
    else:
        found = np.asarray(_numkong.cdist(query[None, :], codes, "dot")).astype(np.float32)
    return found.reshape(-1)


def dots_batch(queries: I8, codes: I8) -> F32:
    """Return the dot products of queries (int8 `(q, d)`) with codes (int8 `(n, d)`).

    Returns:
        float32 `(q, n)`.
    """
    if _numkong is None or not codes.size or not queries.size:
        return dots_numpy(queries, codes)
    if queries.shape[0] < _PACK_FROM:
        found: F32 = np.asarray(_numkong.cdist(queries, codes, "dot")).astype(np.float32)
    else:
        packed = _numkong.dots_pack(codes)
        found = np.asarray(_numkong.dots_packed(queries, packed)).astype(np.float32)
    return found


def dots_numpy(queries: I8, codes: I8) -> F32:
    """Return the same as `dots_batch` with numpy alone."""
    width = codes.shape[1]
    if width <= _EXACT_DIMENSIONS:
        plain: F32 = queries.astype(np.float32) @ codes.astype(np.float32).T
        return plain
    total = np.zeros((queries.shape[0], codes.shape[0]), dtype=np.float64)
    for at in range(0, width, _EXACT_DIMENSIONS):
        left = queries[:, at : at + _EXACT_DIMENSIONS].astype(np.float32)
        right = codes[:, at : at + _EXACT_DIMENSIONS].astype(np.float32)
        total += left @ right.T
    return total.astype(np.float32)
