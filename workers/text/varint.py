"""Encode and decode whole arrays of unsigned integers as LEB128 varints with numpy.

Each value takes 1 to 9 bytes, 7 bits a byte, lowest first, the top bit set on all but the last.
One call handles every value of a micro-batch or of a compaction, so the cost is that of a few
passes over an array and not of a Python loop.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class MalformedPayloadError(ValueError):
    """Raised when a payload does not decode. The bytes were authenticated, so this is a bug."""


def varint_sizes(values: Ints) -> Ints:
    """Return the encoded size in bytes of each of `values` (int64 `(n,)`, non-negative)."""
    sizes = np.ones(values.shape, dtype=np.int64)
    if values.size:
        limit, largest = 128, int(values.max())
        while limit <= largest:
            sizes += values >= limit
            limit <<= 7
    return sizes


def encode_varints(values: Ints, sizes: Ints | None = None) -> tuple[Bytes, Ints]:
    """Encode `values` (int64 `(n,)`, non-negative).

    Args:
        values: what to encode.
        sizes: result of `varint_sizes(values)` where the caller has it already.

    Returns:
        The bytes, and int64 `(n + 1,)` byte offsets: value i is `bytes[offsets[i]:offsets[i+1]]`.
    """
    if sizes is None:
        sizes = varint_sizes(values)
    offsets = np.zeros(values.size + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    if offsets[-1] == values.size:
        return values.astype(np.uint8), offsets
    out = np.empty(int(offsets[-1]), dtype=np.uint8)
    starts = offsets[:-1]
    out[starts] = (values & 0x7F) | np.where(sizes > 1, 0x80, 0)
    longer = np.flatnonzero(sizes > 1)
    shift = 1
    while longer.size:
        last = sizes[longer] == shift + 1
        part = (values[longer] >> (7 * shift)) & 0x7F
        out[starts[longer] + shift] = part | np.where(last, 0, 0x80)
        longer = longer[~last]
        shift += 1
    return out, offsets


def decode_varints(data: bytes | memoryview | Bytes) -> tuple[Ints, Ints]:
    """Decode every varint of `data`.

    Returns:
        int64 `(n,)` values, and int64 `(n,)` offsets of the first byte of each.

    Raises:
        MalformedPayloadError: if the last varint is cut or one is longer than 9 bytes.
    """
    raw = data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    if not raw.size:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    ends = np.flatnonzero(raw < 0x80)
    if not ends.size or ends[-1] != raw.size - 1:
        raise MalformedPayloadError("a varint is cut off")
    if ends.size == raw.size:
        return raw.astype(np.int64), ends
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    values = (raw[starts] & 0x7F).astype(np.int64)
    longer = np.flatnonzero(ends > starts)
    shift = 1
    while longer.size:
        if shift > 8:
            raise MalformedPayloadError("a varint is too long")
        values[longer] |= (raw[starts[longer] + shift] & 0x7F).astype(np.int64) << (7 * shift)
        longer = longer[ends[longer] > starts[longer] + shift]
        shift += 1
    return values, starts


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the varint at byte offset `at` and the offset behind it.

    Raises:
        MalformedPayloadError: if it is cut off or too long.
    """
    value = shift = 0
    while True:
        if at >= len(data) or shift > 56:
            raise MalformedPayloadError("a varint is cut off or too long")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def write_varint(out: bytearray, value: int) -> None:
    """Append one varint to `out`."""
    while value >= 0x80:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)


def ranges(starts: Ints, counts: Ints) -> Ints:
    """Return the concatenation of `arange(starts[i], starts[i] + counts[i])` for every i."""
    total = int(counts.sum())
    ends = np.cumsum(counts)
    out: Ints = np.arange(total, dtype=np.int64)
    out += np.repeat(starts - (ends - counts), counts)
    return out


def bounds(counts: Ints) -> Ints:
    """Return int64 `(n + 1,)` offsets of groups with the given counts."""
    out = np.zeros(counts.size + 1, dtype=np.int64)
    np.cumsum(counts, out=out[1:])
    return out
