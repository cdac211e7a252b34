"""Access records: who may read an object, and the key that opens it.

Claims: only the holder of the index's private `object` key (the key service) reads a record or can
change one; a record opens only for the object, index, generation and access version it was made
for, and only beside the very sealed object it was made for, so neither can be exchanged.

    access record    0   1  format, 1
                     1   4  access version, u32 big endian, from 1
                     5  12  nonce, random
                    17   -  AES-256-GCM(pack key) of msgpack [object key, [group id, 16 bytes, ...]]
                            AAD = lp(index uid, generation, object id, access version,
                                     sha256(sealed object))

The pack key is random and HPKE-sealed to `object` (`pack.py`). Nonces are random and not counted,
because the key service later seals newer versions of a record under the same pack key; a pack key
seals some hundreds of records, far below the 2^32 where that would begin to matter. The access
version is clear because it must be known to open; it is bound.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from workers.crypto.draw import Draw
from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey
from workers.crypto.info import Info, info
from workers.crypto.lp import lp
from workers.crypto.secret import KEY_BYTES, Key, SecretBytes, key_view

MAX_GROUPS: Final = 1_000
MAX_ACCESS_VERSION: Final = 2**32 - 1

_FORMAT = 1
_HEAD = struct.Struct(">BI")
_NONCE_BYTES = 12
_TAG_BYTES = 16


class _Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    object_key: bytes
    groups: list[bytes]

    def __repr__(self) -> str:
        return "_Body()"


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """What a record says.

    Attributes:
        object_key: the 32-byte key of the sealed object.
        groups: ids (UUIDs) of the groups that may read, at least one.
        version: of the access list, from 1.
    """

    object_key: Key = field(repr=False)
    groups: tuple[str, ...]
    version: int = 1


def seal_record(
    pack_key: Key,
    record: AccessRecord,
    *,
    index_uid: bytes,
    generation: int,
    object_id: bytes,
    content_sha256: bytes,
    draw: Draw | None = None,
) -> bytes:
    """Seal an access record.

    Args:
        pack_key: of the object's pack, 32 bytes.
        record: what to seal; its groups are stored sorted and once.
        index_uid: 16 bytes.
        generation: data-key generation of the pack key.
        object_id: 16 bytes.
        content_sha256: SHA-256 of the sealed object, 32 bytes.
        draw: random bytes for many records; None draws for this one.

    Raises:
        ValueError: no group, too many, no UUID, or a version out of range.
    """
    groups = list(_group_bytes(record.groups))
    if not 1 <= len(groups) <= MAX_GROUPS:
        raise ValueError(f"an access list has 1 to {MAX_GROUPS} groups")
    if not 1 <= record.version <= MAX_ACCESS_VERSION:
        raise ValueError("an access version is a u32 from 1")
    plain = msgspec.msgpack.encode(_Body(bytes(key_view(record.object_key)), groups))
    nonce = os.urandom(_NONCE_BYTES) if draw is None else draw.take(_NONCE_BYTES)
    bound = lp(index_uid, generation, object_id, record.version, content_sha256)
    sealed = AESGCM(key_view(pack_key)).encrypt(nonce, plain, bound)
    return _HEAD.pack(_FORMAT, record.version) + nonce + sealed


@lru_cache(maxsize=1024)
def _group_bytes(groups: tuple[str, ...]) -> tuple[bytes, ...]:
    """Return group ids as they are stored. Most documents of a batch have the same."""
    return tuple(sorted({UUID(group).bytes for group in groups}))


def open_record(
    pack_key: Key,
    sealed: bytes,
    *,
    index_uid: bytes,
    generation: int,
    object_id: bytes,
    content_sha256: bytes,
    min_version: int = 1,
) -> AccessRecord:
    """Open an access record; all arguments as it was sealed with.

    Args:
        pack_key: of the object's pack, 32 bytes.
        sealed: as stored.
        index_uid: 16 bytes.
        generation: data-key generation of the pack key.
        object_id: 16 bytes.
        content_sha256: SHA-256 of the sealed object, 32 bytes.
        min_version: the lowest access version accepted: an older list is refused.

    Raises:
        OpenFailed: changed, for something else, of an unknown format, or below `min_version`.
    """
    version = record_version(sealed)
    if version < max(1, min_version):
        raise OpenFailed("an access record older than its list")
    start = _HEAD.size + _NONCE_BYTES
    bound = lp(index_uid, generation, object_id, version, content_sha256)
    try:
        cipher = AESGCM(key_view(pack_key))
        plain = cipher.decrypt(sealed[_HEAD.size : start], sealed[start:], bound)
        body = msgspec.msgpack.decode(plain, type=_Body)
        groups = tuple(str(UUID(bytes=group)) for group in body.groups)
    except InvalidTag as error:
        raise OpenFailed("an access record does not open") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise OpenFailed("an access record is malformed") from error
    if len(body.object_key) != KEY_BYTES or not groups:
        raise OpenFailed("an access record is malformed")
    return AccessRecord(SecretBytes(body.object_key), groups, version)


def record_version(sealed: bytes) -> int:
    """Return the access version a record claims; authentic only once it has opened.

    Raises:
        OpenFailed: too short or of an unknown format.
    """
    if len(sealed) < _HEAD.size + _NONCE_BYTES + _TAG_BYTES or sealed[0] != _FORMAT:
        raise OpenFailed("not an access record")
    return int(_HEAD.unpack_from(sealed)[1])


def open_pack_key(
    object_private: HpkePrivateKey,
    sealed: bytes,
    *,
    index_uid: bytes,
    generation: int,
    pack_uid: bytes,
) -> SecretBytes:
    """Open the key of a pack; only the key service holds `object_private`.

    Args:
        object_private: of `generation`.
        sealed: the HPKE ciphertext.
        index_uid: 16 bytes.
        generation: data-key generation it was sealed to.
        pack_uid: 16 bytes.

    Raises:
        OpenFailed: made for another index, generation or pack, or changed.
    """
    plain = object_private.open(info(Info.PACK, index_uid, generation, pack_uid), sealed)
    if len(plain) != KEY_BYTES:
        raise OpenFailed("a pack key has 32 bytes")
    return SecretBytes(plain)
