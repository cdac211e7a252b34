"""Sealed objects under hostile hands: nothing opens that was not sealed exactly so."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.crypto.errors import InvalidKey, OpenFailed
from workers.crypto.seal import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SealedHeader,
    SealPurpose,
    SealSuite,
    open_sealed,
    read_header,
    seal,
    sealed_size,
)
from workers.crypto.secret import SecretBytes

KEY = bytes(range(32))
CHUNK = CHUNK_BYTES + 16
BOUND: dict[str, Any] = {
    "purpose": SealPurpose.CONTENT,
    "index_uid": b"i" * 16,
    "object_id": b"o" * 16,
    "associated_data": b"ad",
}
SIZES = [
    0,
    1,
    15,
    16,
    CHUNK_BYTES - 17,
    CHUNK_BYTES - 16,
    CHUNK_BYTES - 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    2 * CHUNK_BYTES - 1,
    2 * CHUNK_BYTES,
    2 * CHUNK_BYTES + 1,
    3 * CHUNK_BYTES + 5,
]


def plain(size: int) -> bytes:
    return bytes(n * 7 % 251 for n in range(min(size, 997))).ljust(size, b"p")


def refused(blob: bytes, **changed: Any) -> None:
    with pytest.raises(OpenFailed):
        open_sealed(KEY, blob, **{**BOUND, **changed})


@pytest.mark.parametrize("size", SIZES)
def test_it_opens_as_sealed(size: int) -> None:
    blob = seal(KEY, plain(size), **BOUND)
    assert type(blob) is bytes
    assert len(blob) == sealed_size(size)
    opened = open_sealed(KEY, blob, **BOUND)
    assert type(opened) is bytes
    assert opened == plain(size)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=40), st.binary(max_size=20))
def test_any_content_and_context(content: bytes, associated: bytes, name: bytes) -> None:
    bound = {**BOUND, "associated_data": associated, "object_id": name}
    assert open_sealed(KEY, seal(KEY, content, **bound), **bound) == content


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [10, CHUNK_BYTES + 10])
def test_any_bytes_like_will_do(kind: type, size: int) -> None:
    blob = seal(SecretBytes(KEY), kind(plain(size)), **BOUND)
    assert open_sealed(SecretBytes(KEY), kind(blob), **BOUND) == plain(size)


def test_every_message_has_a_salt_of_its_own() -> None:
    assert len({seal(KEY, b"same", **BOUND)[32:64] for _ in range(20)}) == 20


def test_a_salt_of_the_caller_stands_in_the_header() -> None:
    salt = bytes(range(32))
    assert read_header(seal(KEY, b"x", salt=salt, **BOUND)).salt == salt
    with pytest.raises(ValueError, match="salt"):
        seal(KEY, b"x", salt=salt[:31], **BOUND)


def test_the_header_is_readable_without_a_key() -> None:
    blob = seal(KEY, b"x", **BOUND, key_id=b"k" * 16, generation=2**32 - 1)
    assert read_header(blob) == SealedHeader(
        version=1,
        suite=SealSuite.AES256GCM_HKDF_SHA256,
        purpose=SealPurpose.CONTENT,
        key_id=b"k" * 16,
        generation=2**32 - 1,
        salt=blob[32:64],
        commitment=blob[64:96],
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"purpose": SealPurpose.HEAD},
        {"index_uid": b"j" * 16},
        {"index_uid": b""},
        {"object_id": b"p" * 16},
        {"associated_data": b""},
        # Context that would collide if it were concatenated without lengths.
        {"object_id": b"o" * 16 + b"ad", "associated_data": b""},
        {"object_id": b"o" * 15, "associated_data": b"oad"},
    ],
)
def test_another_context_does_not_open(changed: dict[str, Any]) -> None:
    refused(seal(KEY, b"x" * 100, **BOUND), **changed)


@pytest.mark.parametrize("size", [0, 100, CHUNK_BYTES + 1])
def test_another_key_does_not_open(size: int) -> None:
    blob = seal(KEY, plain(size), **BOUND)
    with pytest.raises(OpenFailed, match="another key"):
        open_sealed(bytes(32), blob, **BOUND)


@pytest.mark.parametrize("at", range(HEADER_BYTES + 16 + 3))
def test_a_flipped_bit_anywhere_is_seen(at: int) -> None:
    blob = bytearray(seal(KEY, b"abc", **BOUND))
    for bit in (0, 7):
        blob[at] ^= 1 << bit
        refused(bytes(blob))
        blob[at] ^= 1 << bit
    assert open_sealed(KEY, blob, **BOUND) == b"abc"


@pytest.mark.parametrize("chunk", [0, 1, 2])
@pytest.mark.parametrize("at", [0, CHUNK // 2, -1])
def test_a_flipped_bit_in_any_chunk_is_seen(chunk: int, at: int) -> None:
    blob = bytearray(seal(KEY, plain(3 * CHUNK_BYTES), **BOUND))
    blob[HEADER_BYTES + chunk * CHUNK + at % CHUNK] ^= 1
    refused(bytes(blob))


@pytest.mark.parametrize("size", [0, 1, 40, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_truncation_is_seen(size: int) -> None:
    blob = seal(KEY, plain(size), **BOUND)
    cuts = {0, 1, 4, 95, 96, 97, 111, 112, len(blob) - 1, len(blob) - 16, len(blob) - 17}
    cuts |= {HEADER_BYTES + CHUNK, HEADER_BYTES + CHUNK + 1, HEADER_BYTES + CHUNK + 16}
    for cut in sorted(cuts):
        if 0 <= cut < len(blob):
            refused(blob[:cut])


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_extension_is_seen(size: int) -> None:
    blob = seal(KEY, plain(size), **BOUND)
    for more in (b"\0", bytes(16), bytes(17), blob[HEADER_BYTES:]):
        refused(blob + more)


def test_chunks_cannot_be_reordered_dropped_or_repeated() -> None:
    blob = seal(KEY, plain(3 * CHUNK_BYTES), **BOUND)
    head = blob[:HEADER_BYTES]
    a, b, c = (blob[HEADER_BYTES + n * CHUNK :][:CHUNK] for n in range(3))
    for chunks in ((b, a, c), (a, c, b), (a, c), (b, c), (a, b), (a, b, b), (a, b, c, c), (c,)):
        refused(head + b"".join(chunks))
    assert open_sealed(KEY, head + a + b + c, **BOUND) == plain(3 * CHUNK_BYTES)


def test_chunks_of_two_messages_cannot_be_mixed() -> None:
    one, two = (seal(KEY, plain(2 * CHUNK_BYTES), **BOUND) for _ in range(2))
    cut = HEADER_BYTES + CHUNK
    refused(one[:cut] + two[cut:])
    refused(one[:HEADER_BYTES] + two[HEADER_BYTES:])


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"SST2"),
        (4, b"\x00"),
        (4, b"\x02"),
        (5, b"\x00"),
        (5, b"\x02"),
        (6, bytes([SealPurpose.HEAD])),
        (6, b"\xff"),
        (7, b"\x01"),
        (8, b"k" * 16),
        (24, struct.pack(">I", 6)),
        (28, struct.pack(">I", 0)),
        (28, struct.pack(">I", CHUNK_BYTES // 2)),
        (28, struct.pack(">I", 2**32 - 1)),
        (32, bytes(32)),
        (64, bytes(32)),
    ],
)
def test_no_header_field_can_be_swapped(offset: int, value: bytes) -> None:
    blob = seal(KEY, b"x" * 100, **BOUND, generation=5)
    refused(blob[:offset] + value + blob[offset + len(value) :])


def test_an_unknown_purpose_in_the_header_is_refused_even_when_asked_for() -> None:
    blob = seal(KEY, b"x", **BOUND)
    with pytest.raises(OpenFailed):
        open_sealed(KEY, blob[:6] + b"\xff" + blob[7:], **{**BOUND, "purpose": 255})


def test_below_the_floor_is_refused() -> None:
    blob = seal(KEY, b"x", **BOUND)
    for floor in ({"min_suite": 2}, {"min_version": 2}):
        with pytest.raises(OpenFailed, match="floor"):
            open_sealed(KEY, blob, **BOUND, **floor)


@pytest.mark.parametrize("blob", [b"", b"SST1", bytes(96), bytes(1000), b"SST1" + bytes(200)])
def test_garbage_is_refused(blob: bytes) -> None:
    refused(blob)
    with pytest.raises(OpenFailed):
        read_header(blob)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(InvalidKey):
        seal(bytes(size), b"x", **BOUND)
    with pytest.raises(InvalidKey):
        open_sealed(bytes(size), seal(KEY, b"x", **BOUND), **BOUND)


@pytest.mark.parametrize("wrong", [{"key_id": b"short"}, {"generation": -1}, {"generation": 2**32}])
def test_what_does_not_fit_the_header_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="key id"):
        seal(KEY, b"x", **BOUND, **wrong)
