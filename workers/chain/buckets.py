"""The hash table of a segment: 2^b buckets by label prefix, so a look-up reads one bucket.

    bucket    0         4    n, u32le
              4         16n  labels, sorted
              4 + 16n   4n   u32le: length of the sealed node; top bit set = large
              4 + 20n   ...  per label, in order: the sealed node, or for a large one
                             its place in the segment, u64le

Labels are uniform (a PRF), so a bucket number is the top b bits of the label. The table is sized
for buckets of about 8 KiB, up to 4096 of them (16 KiB of lengths in the head); beyond 32 MiB of
small nodes buckets grow instead.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from workers.chain.faults import damaged

BUCKET_BYTES = 8 * 1024
MAX_BUCKET_BITS = 12
INLINE_NODE_BYTES = 1024
"""Sealed nodes up to this size lie in their bucket."""

_LARGE = 1 << 31
_PLACE = struct.Struct("<Q")
_COUNT = struct.Struct("<I")


class Slot(NamedTuple):
    """A label's entry in a new table: `node`, or `place` and `length` of a node outside."""

    label: bytes
    node: bytes
    place: int
    length: int


class Found(NamedTuple):
    """Where a label's sealed node is: `node` when inline, else `(place, length)` in the segment."""

    node: bytes
    place: int
    length: int


def bucket_of(label: bytes, bits: int) -> int:
    """Return the bucket of a label."""
    return int.from_bytes(label[:4], "big") >> (32 - bits)


def choose_bits(slots: Sequence[Slot]) -> int:
    """Return b for buckets of about `BUCKET_BYTES`."""
    total = sum(20 + (len(slot.node) or _PLACE.size) for slot in slots)
    return min(MAX_BUCKET_BITS, max(0, (total // BUCKET_BYTES).bit_length()))


def encode_buckets(slots: list[Slot], bits: int) -> Iterator[bytes]:
    """Yield the 2^bits buckets of `slots`, which are sorted in place.

    Raises:
        ValueError: two slots have the same label.
    """
    slots.sort()
    at = 0
    for number in range(1 << bits):
        start = at
        while at < len(slots) and bucket_of(slots[at].label, bits) == number:
            at += 1
        yield _encode(slots[start:at])


def _encode(slots: list[Slot]) -> bytes:
    labels = [slot.label for slot in slots]
    if len(set(labels)) != len(labels):
        raise ValueError("duplicate label: the segment's uid must be drawn anew")
    lengths = [slot.length if slot.node else slot.length | _LARGE for slot in slots]
    data = [slot.node or _PLACE.pack(slot.place) for slot in slots]
    return b"".join(
        (_COUNT.pack(len(slots)), *labels, struct.pack(f"<{len(slots)}I", *lengths), *data)
    )


class Bucket:
    """An opened bucket.

    Raises:
        Damaged: its bytes are no bucket.
    """

    __slots__ = ("_data", "_n", "_sizes", "_starts")

    def __init__(self, data: bytes) -> None:
        if len(data) < 4:
            raise damaged("a bucket is truncated")
        self._data = data
        self._n = _COUNT.unpack_from(data)[0]
        first = 4 + 20 * self._n
        if len(data) < first:
            raise damaged("a bucket is truncated")
        sizes = np.frombuffer(data, "<u4", self._n, 4 + 16 * self._n)
        stored = np.where(sizes >= _LARGE, _PLACE.size, sizes).astype(np.int64)
        self._sizes: list[int] = sizes.tolist()
        self._starts: list[int] = (first + np.cumsum(stored) - stored).tolist()

    def find(self, label: bytes) -> Found | None:
        """Return where the node with this label is, or None."""
        end = 4 + 16 * self._n
        at = self._data.find(label, 4, end)
        while at >= 0 and (at - 4) % 16:
            at = self._data.find(label, at + 1, end)
        if at < 0:
            return None
        index = (at - 4) // 16
        start, length = self._starts[index], self._sizes[index]
        if length & _LARGE:
            return Found(b"", _PLACE.unpack_from(self._data, start)[0], length & ~_LARGE)
        return Found(self._data[start : start + length], 0, length)
