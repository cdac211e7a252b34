"""The sealed object format: contents, envelopes, heads, identity records.

Claims: nobody without the key reads the plaintext or changes a bit, a chunk or the length
unnoticed; a blob opens only under the one key, purpose, index, object id and associated data it was
sealed for (the commitment makes AES-GCM key-committing). Length is not hidden. All integers are big
endian.

    offset  size  field
    0       4     "SST1"
    4       1     version, 1
    5       1     suite (`SealSuite`)
    6       1     purpose (`SealPurpose`)
    7       1     flags, 0
    8       16    key id, zeros where there is none
    24      4     generation of the key
    28      4     chunk size in bytes, 65536
    32      32    salt, random per message
    64      32    commitment
    96      ...   chunks: AES-256-GCM of up to 65536 bytes of plaintext, 16 bytes of tag after each

    key || commitment = HKDF-SHA-256(K, salt, "sealstream/1 seal" ||
                            lp(header[0:32], purpose, index uid, object id, associated data), 64)
    nonce             = 7 zero bytes || chunk number u32 || 1 for the last chunk, else 0
    AAD               = the 96-byte header for the first chunk, else empty

An empty plaintext is one empty last chunk; a plaintext of k full chunks has no empty chunk after
them. A fresh salt gives a fresh key per message, so no nonce can repeat.

From 64 KiB up the work is done with `encrypt_into`/`decrypt_into`, which release the GIL while
`encrypt`/`decrypt` hold it (see README.md): call this from a thread for objects of a megabyte and
more.
"""

from __future__ import annotations

import hmac
import io
import os
import struct
from enum import IntEnum, unique
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from workers.crypto.errors import OpenFailed
from workers.crypto.lp import lp
from workers.crypto.nodes import (
    INTO_BYTES,
    TAG_BYTES,
    Buffer,
    block_aad,
    node_aad,
    open_block,
    open_node,
    seal_block,
    seal_node,
)
from workers.crypto.secret import KEY_BYTES, Key, key_view

__all__ = [
    "CHUNK_BYTES",
    "HEADER_BYTES",
    "VERSION",
    "SealPurpose",
    "SealSuite",
    "SealedHeader",
    "block_aad",
    "node_aad",
    "open_block",
    "open_node",
    "open_sealed",
    "read_header",
    "seal",
    "seal_block",
    "seal_node",
    "sealed_size",
]

MAGIC = b"SST1"
VERSION = 1
HEADER_BYTES = 96
CHUNK_BYTES = 64 * 1024
_SEALED_CHUNK = CHUNK_BYTES + TAG_BYTES
_FIXED = struct.Struct(">4sBBBB16sII")
_NO_KEY_ID = bytes(16)
_SALT_BYTES = 32
_LABEL = b"sealstream/1 seal"
_SHA256 = SHA256()
_ONLY_CHUNK = bytes(11) + b"\x01"


@unique
class SealSuite(IntEnum):
    """The algorithms of a sealed object; higher is newer, so a floor is a comparison."""

    AES256GCM_HKDF_SHA256 = 1


_SUITE = SealSuite.AES256GCM_HKDF_SHA256


@unique
class SealPurpose(IntEnum):
    """What a sealed object is; part of its header and key, so the numbers never change."""

    CONTENT = 1
    PACK = 2
    ACCESS_RECORD = 3
    UPDATE_BODY = 4
    RESULT_BODY = 5
    SEGMENT = 6
    HEAD = 7
    DELETES = 8
    CENTROIDS = 9
    VOCABULARY = 10
    MESSAGE = 11
    ENVELOPE = 20
    TAG = 21
    DEK = 22
    INGEST_KEY = 23
    CATALOG = 30
    REALM = 31
    KEY_SERVICE = 32
    CHECKPOINT = 33
    USER = 40
    GROUP = 41
    USER_KEY = 42
    IDENTITY_TOKEN = 43
    APP_TOKEN = 44
    LOCAL_KMS = 60
    KMS_BOUND = 61


class SealedHeader(NamedTuple):
    """The clear header of a sealed object; authentic only once the object has opened."""

    version: int
    suite: SealSuite
    purpose: SealPurpose
    key_id: bytes
    generation: int
    salt: bytes
    commitment: bytes


def sealed_size(plaintext_bytes: int) -> int:
    """Return the size in bytes of a sealed object."""
    chunks = max(1, -(-plaintext_bytes // CHUNK_BYTES))
    return HEADER_BYTES + plaintext_bytes + chunks * TAG_BYTES


def _keys(key: Key, salt: bytes, fixed: bytes, *context: bytes | int) -> bytes:
    hkdf = HKDF(_SHA256, 2 * KEY_BYTES, salt, _LABEL + lp(fixed, *context))
    return hkdf.derive(key_view(key))


def _nonce(number: int, last: bool) -> bytes:
    return ((number << 8) | last).to_bytes(12, "big")


def seal(
    key: Key,
    plaintext: Buffer,
    *,
    purpose: SealPurpose,
    index_uid: bytes,
    object_id: bytes,
    associated_data: bytes = b"",
    key_id: bytes = _NO_KEY_ID,
    generation: int = 0,
    salt: bytes | None = None,
) -> bytes:
    """Seal `plaintext` into an object of `sealed_size(len(plaintext))` bytes.

    Args:
        key: 32 bytes; may seal any number of objects.
        plaintext: up to 2^32 chunks of 64 KiB.
        purpose: what the object is.
        index_uid: the index it belongs to; b"" for objects of the realm.
        object_id: what it is called; a blob moved to another name does not open.
        associated_data: bound but not stored; needed again to open.
        key_id: 16 bytes that let a reader find the key.
        generation: of the key.
        salt: 32 random bytes that nothing else ever uses, where the caller draws for many objects
            at once (`draw.py`).

    Raises:
        InvalidKey: `key` is not 32 bytes.
        ValueError: `key_id` is not 16 bytes, `generation` not a u32, or `salt` not 32 bytes.
    """
    if len(key_id) != 16 or not 0 <= generation < 1 << 32:
        raise ValueError("a key id has 16 bytes and a generation is a u32")
    if salt is None:
        salt = os.urandom(_SALT_BYTES)
    elif len(salt) != _SALT_BYTES:
        raise ValueError("a salt has 32 bytes")
    fixed = _FIXED.pack(MAGIC, VERSION, _SUITE, purpose, 0, key_id, generation, CHUNK_BYTES)
    derived = _keys(key, salt, fixed, purpose, index_uid, object_id, associated_data)
    cipher = AESGCM(derived[:KEY_BYTES])
    header = fixed + salt + derived[KEY_BYTES:]
    if len(plaintext) < INTO_BYTES:
        return header + cipher.encrypt(_ONLY_CHUNK, plaintext, header)
    # A BytesIO that owns its buffer hands it out as `bytes` without copying it.
    out = io.BytesIO(bytes(sealed_size(len(plaintext))))
    with memoryview(plaintext) as source, out.getbuffer() as target:
        target[:HEADER_BYTES] = header
        _seal_chunks(cipher, header, source, target[HEADER_BYTES:])
    return out.getvalue()


def _seal_chunks(cipher: AESGCM, header: bytes, source: memoryview, target: memoryview) -> None:
    last = (len(source) - 1) // CHUNK_BYTES
    aad: bytes | None = header
    for number in range(last + 1):
        chunk = source[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        at = number * _SEALED_CHUNK
        into = target[at : at + len(chunk) + TAG_BYTES]
        cipher.encrypt_into(_nonce(number, number == last), chunk, aad, into)
        aad = None


def read_header(blob: Buffer) -> SealedHeader:
    """Parse the header of a sealed object without a key.

    Raises:
        OpenFailed: Too short, not a sealed object, or of a version, suite, purpose, flag or chunk
        size
            that this code does not know.
    """
    if len(blob) < HEADER_BYTES + TAG_BYTES:
        raise OpenFailed("shorter than any sealed object")
    magic, version, suite, purpose, flags, key_id, generation, chunk = _FIXED.unpack_from(blob)
    if magic != MAGIC or version != VERSION or flags != 0 or chunk != CHUNK_BYTES:
        raise OpenFailed("not a sealed object of a known version")
    try:
        return SealedHeader(
            version,
            SealSuite(suite),
            SealPurpose(purpose),
            key_id,
            generation,
            bytes(blob[32:64]),
            bytes(blob[64:96]),
        )
    except ValueError as exc:
        raise OpenFailed("a sealed object of an unknown suite or purpose") from exc


def open_sealed(
    key: Key,
    blob: Buffer,
    *,
    purpose: SealPurpose,
    index_uid: bytes,
    object_id: bytes,
    associated_data: bytes = b"",
    min_suite: int = _SUITE,
    min_version: int = VERSION,
) -> bytes:
    """Open a sealed object; every argument must be what it was sealed with.

    Args:
        key: 32 bytes.
        blob: the whole object.
        purpose: the purpose expected.
        index_uid: as sealed.
        object_id: as sealed.
        associated_data: as sealed.
        min_suite: the lowest suite accepted.
        min_version: the lowest version accepted.

    Raises:
        InvalidKey: `key` is not 32 bytes.
        OpenFailed: Anything else: another key or context, changed, truncated or extended bytes, a
            version or suite below the floor. No plaintext is returned before all of it is verified.
    """
    header = read_header(blob)
    if header.version < min_version or header.suite < min_suite:
        raise OpenFailed("sealed with a version or suite below the floor")
    if header.purpose != purpose:
        raise OpenFailed("sealed for another purpose")
    fixed = bytes(blob[:32])
    derived = _keys(key, header.salt, fixed, purpose, index_uid, object_id, associated_data)
    if not hmac.compare_digest(derived[KEY_BYTES:], header.commitment):
        raise OpenFailed("sealed under another key, or for another name or context")
    cipher = AESGCM(derived[:KEY_BYTES])
    body = memoryview(blob)[HEADER_BYTES:]
    last, rest = divmod(len(body) - 1, _SEALED_CHUNK)
    # A short last chunk holds at least one byte of plaintext, unless it is the only one.
    if rest + 1 < TAG_BYTES + (last > 0):
        raise OpenFailed("a sealed object was truncated")
    try:
        if len(body) < INTO_BYTES:
            return cipher.decrypt(_ONLY_CHUNK, body, bytes(blob[:HEADER_BYTES]))
        out = io.BytesIO(bytes(len(body) - (last + 1) * TAG_BYTES))
        with out.getbuffer() as target:
            _open_chunks(cipher, bytes(blob[:HEADER_BYTES]), body, target)
    except InvalidTag as exc:
        raise OpenFailed("a sealed object was changed") from exc
    return out.getvalue()


def _open_chunks(cipher: AESGCM, header: bytes, source: memoryview, target: memoryview) -> None:
    last = (len(source) - 1) // _SEALED_CHUNK
    aad: bytes | None = header
    for number in range(last + 1):
        chunk = source[number * _SEALED_CHUNK : (number + 1) * _SEALED_CHUNK]
        at = number * CHUNK_BYTES
        into = target[at : at + len(chunk) - TAG_BYTES]
        cipher.decrypt_into(_nonce(number, number == last), chunk, aad, into)
        aad = None
