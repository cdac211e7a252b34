"""The length-prefixed, injective encoding of a list of parts.

Every key derivation, signature and HPKE `info` runs over `lp(...)`, so that no two different lists
of parts give the same bytes. Per part:

    offset  size  field
    0       1     tag: "b" bytes, "s" text, "i" integer
    1       4     length of the value in bytes, unsigned big endian
    5       n     bytes as they are; text as UTF-8; an integer as 8 bytes, signed big endian

A part delimits itself, so `lp(a, b) == lp(a) + lp(b)`: callers may precompute a constant prefix.
"""

from __future__ import annotations

import struct

_HEAD = struct.Struct(">cI")
_INT = b"i\x00\x00\x00\x08"

Part = bytes | bytearray | memoryview | str | int


def lp(*parts: Part) -> bytes:
    """Encode `parts` so that different lists never share an encoding.

    Args:
        parts: bytes-like, text (UTF-8) or integers of 64 bits, signed. An `IntEnum` counts as its
            integer and a `StrEnum` as its text.

    Raises:
        TypeError: A part of another type, also a bool.
        ValueError: An integer beyond 64 bits, a part of 4 GiB or more, or text with lone
            surrogates.
    """
    out: list[bytes] = []
    try:
        for part in parts:
            # Exact types first: this runs for every token and node.
            if type(part) is bytes:
                out += (b"b", len(part).to_bytes(4, "big"), part)
            elif isinstance(part, str):
                raw = part.encode()
                out += (b"s", len(raw).to_bytes(4, "big"), raw)
            elif isinstance(part, int) and type(part) is not bool:
                out += (_INT, part.to_bytes(8, "big", signed=True))
            elif isinstance(part, bytes | bytearray | memoryview):
                raw = bytes(part)
                out += (b"b", len(raw).to_bytes(4, "big"), raw)
            else:
                raise TypeError(f"lp encodes bytes, text and integers, not {type(part).__name__}")
    except OverflowError as exc:
        raise ValueError("a part is too large for its length prefix") from exc
    return b"".join(out)


def lp_text(text: str) -> bytes:
    """Return `lp(text)`, faster: this runs for every new word of an index."""
    raw = text.encode()
    return b"s" + len(raw).to_bytes(4, "big") + raw


def unlp(data: bytes, *, count: int | None = None) -> list[bytes | str | int]:
    """Decode what `lp` made; refuse everything that `lp` cannot have made.

    Args:
        data: the whole encoding.
        count: the number of parts expected; None takes any number.

    Raises:
        ValueError: `data` is truncated, has an unknown tag, bad UTF-8, or another number of parts.
    """
    parts: list[bytes | str | int] = []
    offset = 0
    while offset < len(data):
        if count is not None and len(parts) == count:
            raise ValueError("more parts than expected")
        if len(data) - offset < _HEAD.size:
            raise ValueError("a part is truncated")
        tag, length = _HEAD.unpack_from(data, offset)
        start = offset + _HEAD.size
        offset = start + length
        if offset > len(data):
            raise ValueError("a part is truncated")
        raw = bytes(data[start:offset])
        if tag == b"b":
            parts.append(raw)
        elif tag == b"s":
            parts.append(raw.decode())
        elif tag == b"i" and length == 8:
            parts.append(int.from_bytes(raw, "big", signed=True))
        else:
            raise ValueError("a part has an unknown tag")
    if count is not None and len(parts) != count:
        raise ValueError("fewer parts than expected")
    return parts
