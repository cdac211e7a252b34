"""Packs: the sealed contents of a micro-batch, and the pointers that find them again.

Invariant: every content is sealed under a random key of its own; that key stands only in the
document's access record, which is sealed under the pack's random key; and the pack key is sealed
once to the index's *public* object key. Who builds a pack can therefore not open it afterwards.

Three places for a content, all described by an `ObjectPointer` in the document table:

- below `INLINE_BYTES` it travels in the update and lives in the segment;
- up to `LARGE_BYTES` it stands in the one pack object of its micro-batch;
- above, it has a pack object (and a pack key) of its own.

Ordering rule: a pack object is durable before any update that points to it is produced.

Pack object:

    0       n   sealed contents, one after the other (`workers/crypto/seal.py`)
    n       m   msgpack [v, created_ms, [[shard, partition], ...]]: where updates refer to it
    n + m   4   m, unsigned little endian
    +4      4   "SPK1"

Wrapped pack key (`UpdateBatch.packs`, `PendingOp.pack`, `ObjectRequest.pack_key`):

    0   16  pack uid, also the name of the pack object
    16   4  key generation, unsigned little endian
    20   -  HPKE(object key of that generation, info = PACK(index uid, generation, pack uid)) of
            the 32-byte pack key
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.draw import Draw
from workers.crypto.hpke import HpkePublicKey
from workers.crypto.info import Info, info
from workers.crypto.seal import SealPurpose, seal
from workers.crypto.secret import KEY_BYTES, SecretBytes, random_secret
from workers.errors import Damaged
from workers.objects.pointer import (
    ObjectPointer,
    Place,
    decode_pointer,
    encode_pointer,
    object_request,
    open_content,
    read_sealed,
)
from workers.objects.record import AccessRecord, seal_record
from workers.storage import layout

__all__ = [
    "INLINE_BYTES",
    "LARGE_BYTES",
    "Content",
    "ObjectPointer",
    "PackBuilder",
    "PackObject",
    "Place",
    "WrappedPackKey",
    "decode_pointer",
    "encode_pointer",
    "object_request",
    "open_content",
    "pack_routes",
    "packs_by_uid",
    "read_sealed",
    "split_pack_key",
    "wrap_pack_key",
]

INLINE_BYTES: Final = 4 * 1024
LARGE_BYTES: Final = 1024 * 1024

_UID_BYTES = 16
_SALT_BYTES = 32
_MAGIC = b"SPK1"
_WRAPPED = struct.Struct("<16sI")
_TRAILER = struct.Struct("<I4s")


@dataclass(frozen=True, slots=True, repr=False)
class PackObject:
    """A pack object to be written: `key` is relative to the store's prefix."""

    key: str
    data: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Content:
    """What is sealed for one document.

    Attributes:
        data: the content; None if the document has none.
        content_type: media type, "" without content.
        associated_data: authenticated, not encrypted.
    """

    data: bytes | None
    content_type: str
    associated_data: bytes


class PackBuilder:
    """Seal the contents of one micro-batch of one index. Pure CPU; not safe to share.

    `add` every document, then `finish`. The pack keys are wiped by `finish` and by leaving the
    `with` block.
    """

    def __init__(
        self,
        *,
        index_uid: bytes,
        generation: int,
        object_public: HpkePublicKey,
        created_ms: int,
    ) -> None:
        self._index_uid = index_uid
        self._generation = generation
        self._object_public = object_public
        self._created_ms = created_ms
        self._shared: _OpenPack | None = None
        self._own: list[_OpenPack] = []
        self._draw = Draw()

    def add(
        self,
        object_id: bytes,
        content: Content,
        groups: Sequence[str],
        route: tuple[int, int],
    ) -> ObjectPointer:
        """Seal one document's content and access record.

        Args:
            object_id: 16 bytes.
            content: what to seal.
            groups: ids (UUIDs) of the groups of the access list, at least one.
            route: shard and partition of the update that will carry the pointer.

        Raises:
            ValueError: no group, or no UUID.
        """
        pack = self._pack_for(content)
        pack.routes.add(route)
        place, offset, inline = Place.NONE, 0, b""
        sealed = b""
        with SecretBytes(self._draw.take(KEY_BYTES)) as key:
            if content.data is not None:
                sealed = seal(
                    key,
                    content.data,
                    purpose=SealPurpose.CONTENT,
                    generation=self._generation,
                    index_uid=self._index_uid,
                    object_id=object_id,
                    associated_data=content.associated_data,
                    salt=self._draw.take(_SALT_BYTES),
                )
                if len(content.data) < INLINE_BYTES:
                    place, inline = Place.INLINE, sealed
                else:
                    place, offset = Place.PACK, pack.append(sealed)
            digest = hashlib.sha256(sealed).digest()
            access = seal_record(
                pack.key,
                AccessRecord(key, tuple(groups)),
                index_uid=self._index_uid,
                generation=self._generation,
                object_id=object_id,
                content_sha256=digest,
                draw=self._draw,
            )
        return ObjectPointer(
            v=1,
            place=place,
            object_id=object_id,
            generation=self._generation,
            pack=pack.uid,
            offset=offset,
            length=len(sealed) if place is Place.PACK else 0,
            inline=inline,
            sha256=digest,
            content_type=content.content_type,
            associated_data=content.associated_data,
            access=access,
        )

    def finish(self) -> tuple[list[PackObject], list[bytes]]:
        """Return the pack objects to write and the wrapped pack keys, and wipe the keys."""
        packs = [*self._own, *([self._shared] if self._shared is not None else [])]
        objects = [
            PackObject(layout.pack(self._index_uid, pack.uid), pack.object(self._created_ms))
            for pack in packs
            if pack.size
        ]
        wrapped = [self._wrap(pack) for pack in packs]
        self.wipe()
        return objects, wrapped

    def wipe(self) -> None:
        """Overwrite the pack keys with zeros; harmless to repeat."""
        for pack in (*self._own, *([self._shared] if self._shared is not None else [])):
            pack.key.wipe()

    def _pack_for(self, content: Content) -> _OpenPack:
        if content.data is not None and len(content.data) > LARGE_BYTES:
            self._own.append(_OpenPack())
            return self._own[-1]
        if self._shared is None:
            self._shared = _OpenPack()
        return self._shared

    def _wrap(self, pack: _OpenPack) -> bytes:
        return wrap_pack_key(
            self._object_public, pack.key, self._index_uid, self._generation, pack.uid
        )


class _OpenPack:
    """A pack that is being filled."""

    __slots__ = ("_parts", "key", "routes", "size", "uid")

    def __init__(self) -> None:
        self.uid = os.urandom(_UID_BYTES)
        self.key: SecretBytes = random_secret()
        self.size = 0
        self.routes: set[tuple[int, int]] = set()
        self._parts: list[bytes] = []

    def append(self, sealed: bytes) -> int:
        """Add a sealed content; return its offset in the object."""
        offset = self.size
        self._parts.append(sealed)
        self.size += len(sealed)
        return offset

    def object(self, created_ms: int) -> bytes:
        """Return the whole object."""
        trailer = msgspec.msgpack.encode([1, created_ms, sorted(self.routes)])
        return b"".join((*self._parts, trailer, _TRAILER.pack(len(trailer), _MAGIC)))


def packs_by_uid(packs: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return wrapped pack keys by the 16-byte uid of their pack."""
    return {entry[:_UID_BYTES]: entry for entry in packs}


def wrap_pack_key(
    object_public: HpkePublicKey, key: SecretBytes, index_uid: bytes, generation: int, uid: bytes
) -> bytes:
    """Return the wrapped key of a pack.

    Args:
        object_public: the index's public object key of `generation`.
        key: of the pack.
        index_uid: 16 bytes.
        generation: of the data key.
        uid: of the pack, 16 bytes.
    """
    sealed = object_public.seal(info(Info.PACK, index_uid, generation, uid), key)
    return _WRAPPED.pack(uid, generation) + sealed


@dataclass(frozen=True, slots=True)
class WrappedPackKey:
    """A split wrapped pack key; only the key service opens `sealed` (`record.open_pack_key`)."""

    uid: bytes
    generation: int
    sealed: bytes


def split_pack_key(wrapped: bytes) -> WrappedPackKey:
    """Split a wrapped pack key.

    Raises:
        Damaged: it is too short.
    """
    if len(wrapped) <= _WRAPPED.size:
        raise Damaged(ErrorCode.DAMAGED, "a wrapped pack key is too short")
    uid, generation = _WRAPPED.unpack_from(wrapped)
    return WrappedPackKey(uid, generation, wrapped[_WRAPPED.size :])


def pack_routes(tail: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Read the end of a pack object: when it was made, and which updates may refer to it.

    Args:
        tail: the last bytes of the object, at least its trailer.

    Returns:
        Milliseconds since 1970, and (shard, partition of index-update) of every referring update.

    Raises:
        Damaged: it is not the end of a pack.
    """
    try:
        size, magic = _TRAILER.unpack(tail[-_TRAILER.size :])
        if magic != _MAGIC or size > len(tail) - _TRAILER.size:
            raise ValueError
        start = len(tail) - _TRAILER.size - size
        v, created_ms, routes = msgspec.msgpack.decode(
            tail[start : start + size], type=tuple[int, int, list[tuple[int, int]]]
        )
        if v != 1:
            raise ValueError
    except (struct.error, ValueError, msgspec.MsgspecError) as error:
        raise Damaged(ErrorCode.DAMAGED, "the end of a pack does not decode") from error
    return created_ms, routes
