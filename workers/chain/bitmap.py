"""Which rows of a segment are dead: a sorted array in memory, a compact block in the store.

    block   0   tag: "r" row numbers, "b" bitmap
            1   "r": u32le, sorted · "b": one bit per row, the first row in the top bit

The shorter form is written. A bitmap object is sealed as block (DELETES, 0) under its own random
uid and named, with its SHA-256, in the head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.chain.faults import damaged
from workers.chain.head import Deletes, SegmentRef
from workers.chain.kinds import BlockKind, Padding
from workers.chain.seals import SegmentSeals

DeadRows = NDArray[np.uint32]

RECENT_ROWS = 1024
"""Dead rows kept in the head before they are folded into an object."""


def no_rows() -> DeadRows:
    """Return an empty set."""
    return np.zeros(0, np.uint32)


def encode_dead(dead: DeadRows, rows: int) -> bytes:
    """Encode the dead rows of a segment with `rows` rows."""
    if 4 * len(dead) <= rows // 8:
        return b"r" + dead.astype("<u4").tobytes()
    mask = np.zeros(rows, bool)
    mask[dead] = True
    return b"b" + np.packbits(mask).tobytes()


def decode_dead(block: bytes, rows: int) -> DeadRows:
    """Decode what `encode_dead` made.

    Raises:
        Damaged: it cannot be of a segment with `rows` rows.
    """
    if block[:1] == b"r" and len(block) % 4 == 1:
        dead = np.frombuffer(block, "<u4", offset=1)
    elif block[:1] == b"b" and len(block) - 1 == -(-rows // 8):
        bits = np.unpackbits(np.frombuffer(block, np.uint8, offset=1), count=rows)
        dead = np.flatnonzero(bits).astype(np.uint32)
    else:
        raise damaged("a deletion bitmap has another size than its segment")
    return _checked(dead, rows)


def open_deletes(
    deletes: Deletes, ref: SegmentRef, blob: bytes | None, seals: SegmentSeals | None
) -> DeadRows:
    """Return the dead rows of a segment.

    Args:
        deletes: what the head says.
        ref: the segment.
        blob: the object `deletes.base`, None when there is none.
        seals: the keys of that object.

    Raises:
        Damaged: the object is not the one named, or the counts disagree.
    """
    dead = _checked(np.frombuffer(deletes.recent, "<u4"), ref.rows)
    if blob is not None and seals is not None:
        if hashlib.sha256(blob).digest() != deletes.base_hash:
            raise damaged("a deletion bitmap is not the one its head names")
        base = decode_dead(seals.open_block(BlockKind.DELETES, 0, blob), ref.rows)
        dead = np.union1d(base, dead)
    if len(dead) != deletes.count:
        raise damaged("a deletion bitmap has another count than its head says")
    return dead


def fold_deletes(
    before: Deletes,
    ref: SegmentRef,
    dead: DeadRows,
    killed: NDArray[np.int64],
    *,
    uid: bytes,
    generation: int,
    seals: Callable[[bytes], SegmentSeals],
    level: Padding,
) -> tuple[Deletes, bytes | None]:
    """Return the next entry of the head, and the bitmap object to store under `uid` if one is due.

    Args:
        before: the entry so far.
        ref: the segment.
        dead: all its dead rows now.
        killed: those not contained in `before`.
        uid: random, for a new object.
        generation: of the key of a new object.
        seals: makes the keys of an object from its uid.
        level: padding of a new object.
    """
    if not len(killed):
        return before, None
    recent = np.union1d(np.frombuffer(before.recent, "<u4"), killed).astype("<u4")
    if len(recent) <= RECENT_ROWS or ref.inline:
        return (
            msgspec.structs.replace(before, count=len(dead), recent=recent.tobytes()),
            None,
        )
    blob = seals(uid).seal_block(BlockKind.DELETES, 0, encode_dead(dead, ref.rows), level)
    digest = hashlib.sha256(blob).digest()
    return Deletes(len(dead), uid, digest, generation, b""), blob


def _checked(dead: DeadRows, rows: int) -> DeadRows:
    if len(dead) and (int(dead[-1]) >= rows or bool(np.any(np.diff(dead.astype(np.int64)) <= 0))):
        raise damaged("a deletion bitmap names rows that do not exist")
    return dead
