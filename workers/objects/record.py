"""Access records: who may read an object, and the key that opens it.

Claims: only the holder of the index's private `object` key (the key service) reads a record or can
change one; a record opens only for the object, index, generation and access version it was made
for, and only beside the very sealed object it was made for, so neither can be exchanged.

    wrapped pack key    0  16  pack uid
                       16   -  HPKE(object key; info = PACK(index uid, generation, pack uid)) of
                               the pack's 32-byte random key
    access record       0   1  format, 1
                        1   4  access version, u32 big endian, from 1
                        5  12  nonce, random
                       17   -  AES-256-GCM(pack key) of msgpack [object key, [group id 16 bytes, ...]]
                               AAD = lp(index uid, generation, object id, access version,
                                        sha256(sealed object))

Nonces are random and not counted, because the key service later seals newer versions of a record
under the same pack key; a pack key seals some hundreds of records, far below the 2^32 where that
would begin to matter. The access version is clear because it must be known to open; it is bound.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey
from workers.crypto.info import Info, info
from workers.crypto.lp import lp
from workers.crypto.secret import KEY_BYTES, SecretBytes, key_view, random_secret

MAX_GROUPS: Final = 1_000
MAX_ACCESS_VERSION: Final = 2**32 - 1

_FORMAT = 1
_HEAD = struct.Struct(">BI")
_NONCE_BYTES = 12
_UID_BYTES = 16
_TAG_BYTES = 16


class _Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    object_key: bytes
    groups: list[bytes]

    def __repr__(self) -> str:
        return "_Body()"


@dataclass(frozen=True, slots=True)
class RecordContext:
    """What an access record is bound to.

    Attributes:
        index_uid: 16 bytes.
        generation: data-key generation of the pack key.
        object_id: 16 bytes.
        sealed_sha256: SHA-256 of the sealed object, 32 bytes.
    """

    index_uid: bytes
    generation: int
    object_id: bytes
    sealed_sha256: bytes


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """An opened record. `groups`: ids (UUIDs, lower case) that may read; `version`: from 1."""

    object_key: SecretBytes = field(repr=False)
    groups: tuple[str, ...]
    version: int


@dataclass(frozen=True, slots=True)
class PackKey:
    """The key under which the access records of one pack are sealed.

    Attributes:
        uid: the pack, 16 bytes; the same as the pack object's.
        key: 32 bytes.
        wrapped: what travels and is stored beside the records.
    """

    uid: bytes
    key: SecretBytes = field(repr=False)
    wrapped: bytes

    @classmethod
    def make(
        cls, object_public: HpkePublicKey, index_uid: bytes, generation: int, pack_uid: bytes
    ) -> PackKey:
        """Draw a pack key and seal it to the index's public object key.

        Args:
            object_public: `Lease.object_public`.
            index_uid: 16 bytes.
            generation: the one that `object_public` belongs to.
            pack_uid: 16 bytes.

        Raises:
            ValueError: `pack_uid` is not 16 bytes.
        """
        if len(pack_uid) != _UID_BYTES:
            raise ValueError("a pack uid has 16 bytes")
        key = random_secret()
        sealed = object_public.seal(info(Info.PACK, index_uid, generation, pack_uid), key)
        return cls(pack_uid, key, pack_uid + sealed)

    @classmethod
    def open(
        cls, object_private: HpkePrivateKey, index_uid: bytes, generation: int, wrapped: bytes
    ) -> PackKey:
        """Open a wrapped pack key.

        Raises:
            OpenFailed: made for another index or generation, or changed.
        """
        uid = wrapped[:_UID_BYTES]
        plain = object_private.open(
            info(Info.PACK, index_uid, generation, uid), wrapped[_UID_BYTES:]
        )
        if len(plain) != KEY_BYTES:
            raise OpenFailed("a pack key has 32 bytes")
        return cls(uid, SecretBytes(plain), wrapped)


def seal_record(
    pack_key: PackKey,
    context: RecordContext,
    object_key: SecretBytes,
    groups: Sequence[str],
    version: int = 1,
) -> bytes:
    """Seal an access record.

    Args:
        pack_key: of the object's pack.
        context: what it is bound to.
        object_key: the 32-byte key of the sealed object.
        groups: UUIDs of the groups that may read, at least one.
        version: of the access list.

    Raises:
        ValueError: no group, too many, no UUID, or a version out of range.
    """
    ids = sorted({UUID(group).bytes for group in groups})
    if not 1 <= len(ids) <= MAX_GROUPS:
        raise ValueError(f"an access list has 1 to {MAX_GROUPS} groups")
    if not 1 <= version <= MAX_ACCESS_VERSION:
        raise ValueError("an access version is a u32 from 1")
    plain = msgspec.msgpack.encode(_Body(bytes(key_view(object_key)), ids))
    nonce = os.urandom(_NONCE_BYTES)
    cipher = AESGCM(key_view(pack_key.key))
    return (
        _HEAD.pack(_FORMAT, version) + nonce + cipher.encrypt(nonce, plain, _aad(context, version))
    )


def open_record(
    pack_key: PackKey, context: RecordContext, record: bytes, *, min_version: int = 1
) -> AccessRecord:
    """Open an access record.

    Args:
        pack_key: of the object's pack.
        context: what the record must be bound to.
        record: as stored.
        min_version: the lowest access version accepted; a rolled-back list is refused.

    Raises:
        OpenFailed: changed, for something else, of an unknown format, or below `min_version`.
    """
    if len(record) < _HEAD.size + _NONCE_BYTES + _TAG_BYTES:
        raise OpenFailed("shorter than any access record")
    form, version = _HEAD.unpack_from(record)
    if form != _FORMAT:
        raise OpenFailed("an access record of an unknown format")
    if version < max(1, min_version):
        raise OpenFailed("an access record older than its list")
    start = _HEAD.size + _NONCE_BYTES
    try:
        cipher = AESGCM(key_view(pack_key.key))
        plain = cipher.decrypt(record[_HEAD.size : start], record[start:], _aad(context, version))
        body = msgspec.msgpack.decode(plain, type=_Body)
        groups = tuple(str(UUID(bytes=group)) for group in body.groups)
    except InvalidTag as error:
        raise OpenFailed("an access record does not open") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise OpenFailed("an access record is malformed") from error
    if len(body.object_key) != KEY_BYTES:
        raise OpenFailed("an access record is malformed")
    return AccessRecord(SecretBytes(body.object_key), groups, version)


def record_version(record: bytes) -> int:
    """Return the access version a record claims; authentic only once it has opened.

    Raises:
        OpenFailed: too short or of an unknown format.
    """
    if len(record) < _HEAD.size or record[0] != _FORMAT:
        raise OpenFailed("not an access record")
    return int(_HEAD.unpack_from(record)[1])


def _aad(context: RecordContext, version: int) -> bytes:
    return lp(
        context.index_uid,
        context.generation,
        context.object_id,
        version,
        context.sealed_sha256,
    )
