"""Sizes that tell less: classes for what storage sees the length of, dummies for what it can count.

    level      class of n bytes                  dummy labels          extra fetch
    off        n                                 none                  none
    standard   next multiple of 2^k/8: <= +12.5% to the next class     on a miss
    strict     next power of two: <= +100%       to the next class     also on an inline hit

Everything sealed as a block or as a large node is `u32le length ‖ data ‖ zeros` up to its class.
Inline nodes are not padded: storage sees only the bucket around them.
"""

from __future__ import annotations

import struct

from workers.chain.kinds import Padding

_LENGTH = struct.Struct("<I")
_SMALLEST: dict[str, int] = {"off": 0, "standard": 64, "strict": 1024}


def size_class(n: int, level: Padding) -> int:
    """Return the padded size of `n` bytes (or labels) at `level`."""
    if level == "off" or n == 0:
        return n
    step = 1 << max(0, (n - 1).bit_length() - (0 if level == "strict" else 4))
    return -(-n // step) * step


def pad(data: bytes, level: Padding) -> bytes:
    """Frame `data` and pad it to its class."""
    framed = _LENGTH.size + len(data)
    total = size_class(max(framed, _SMALLEST[level]), level)
    return _LENGTH.pack(len(data)) + data + bytes(total - framed)


def unpad(framed: bytes) -> bytes:
    """Take off what `pad` added.

    Raises:
        ValueError: the frame is shorter than it says.
    """
    if len(framed) < _LENGTH.size:
        raise ValueError("the frame is truncated")
    (length,) = _LENGTH.unpack_from(framed)
    if length > len(framed) - _LENGTH.size:
        raise ValueError("the frame is truncated")
    return framed[_LENGTH.size : _LENGTH.size + length]
