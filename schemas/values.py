"""Values that JSON has no type for: bytes and vectors.

Binary   {"base64": "<RFC 4648 section 4, padded>"}
Vector   [0.1, 0.2, ...]  or  {"f32": "<base64 of little-endian float32>"}
"""

from __future__ import annotations

import binascii
import struct
import sys
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from schemas.errors import InvalidMessage
from schemas.index import MAX_DIMENSION
from schemas.message import Part

Float32Array = npt.NDArray[np.float32]
BASE64_WORDS: Final = "base64 (RFC 4648 section 4, with padding)"

Base64 = Annotated[str, Meta(min_length=1, extra_json_schema={"contentEncoding": "base64"})]


def decode_base64(text: str, field: str | None = None) -> bytes:
    """Decode padded base64 of the standard alphabet, strictly.

    Raises:
        InvalidMessage: anything else; the message does not quote it.
    """
    try:
        # Strict, and three times as fast as binascii.
        return msgspec.convert(text, bytes)
    except msgspec.ValidationError:
        pass
    # Raised out here so that no context with the text hangs on the error.
    raise InvalidMessage(f"must be {BASE64_WORDS}", field)


def encode_base64(data: bytes | bytearray | memoryview) -> str:
    """Encode as `decode_base64` reads it."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


class Binary(Part, frozen=True, kw_only=True):
    """Bytes inside JSON: `{"base64": "..."}`."""

    data: bytes = msgspec.field(name="base64")

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Binary:
        """Wrap `data`."""
        return cls(data=bytes(data))

    def decode(self) -> bytes:
        """Return the bytes."""
        return self.data


class Vector:
    """A vector of finite float32, decoded once.

    Args:
        array: float32 `(d,)`, 1 <= d <= 65536; finite. It is shared, not copied.

    Raises:
        InvalidMessage: not of that shape, or not finite.
    """

    __slots__ = ("array",)

    array: Float32Array

    def __init__(self, array: Float32Array) -> None:
        if array.dtype != np.float32 or array.ndim != 1:
            raise InvalidMessage("a vector is one row of float32")
        if not 1 <= array.shape[0] <= MAX_DIMENSION:
            raise InvalidMessage(f"a vector has 1 to {MAX_DIMENSION} numbers")
        if not np.isfinite(array).all():
            raise InvalidMessage("a vector's numbers are finite float32")
        # A view: the caller's own array stays writable.
        self.array = array.view()
        self.array.flags.writeable = False

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Vector:
        """Convert any row of numbers, copying it.

        Raises:
            InvalidMessage: not one row of finite numbers that fit float32.
        """
        with np.errstate(over="ignore"):
            return cls(np.array(values, dtype=np.float32))

    @classmethod
    def from_json(cls, value: Any) -> Vector:
        """Convert the JSON form: a list of numbers, or `{"f32": base64}`.

        Raises:
            InvalidMessage: any other value, booleans and strings included.
        """
        if type(value) is list:
            return cls._from_list(value)
        if type(value) is dict and value.keys() == {"f32"} and type(value["f32"]) is str:
            data = decode_base64(value["f32"], "f32")
            if len(data) % 4:
                raise InvalidMessage("must hold whole float32 numbers", "f32")
            return cls(np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False))
        raise InvalidMessage('a vector is a list of numbers or {"f32": base64}')

    @classmethod
    def _from_list(cls, value: list[Any]) -> Vector:
        if not 1 <= len(value) <= MAX_DIMENSION:
            raise InvalidMessage(f"a vector has 1 to {MAX_DIMENSION} numbers")
        try:
            # The conversion refuses booleans and strings, packing what overflows float32.
            # Both run in C: together half the time of np.array() and a check for finiteness.
            data = _packer(len(value)).pack(*msgspec.convert(value, _FLOATS))
        except (msgspec.ValidationError, struct.error, OverflowError):
            data = b""
        if not data:
            raise InvalidMessage("a vector's numbers are finite float32")
        vector = cls.__new__(cls)
        vector.array = np.frombuffer(data, dtype=np.float32)
        return vector

    def to_json(self) -> dict[str, str]:
        """Return the compact JSON form."""
        array = self.array if sys.byteorder == "little" else self.array.astype("<f4")
        return {"f32": encode_base64(array.tobytes())}

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        # + 0: equal vectors hash alike, and -0.0 == 0.0.
        return hash((self.array + np.float32(0)).tobytes())

    def __repr__(self) -> str:
        return f"Vector({len(self)})"


def vector_array(vector: Vector) -> Float32Array:
    """Return the numbers as float32 `(d,)`, read-only."""
    return vector.array


_FLOATS: Final = list[float]


@lru_cache(maxsize=64)
def _packer(count: int) -> struct.Struct:
    return struct.Struct(f"={count}f")
