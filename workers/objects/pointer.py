"""Pointers to sealed contents: what a document table says about a content, and how to read it.

A pointer tells where the sealed bytes are, what they must hash to, and which access record guards
their key. It is itself authenticated by the segment (or the update) that holds it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.errors import OpenFailed
from workers.crypto.seal import SealPurpose, open_sealed
from workers.crypto.secret import Key
from workers.errors import Damaged
from workers.leases.lease import ObjectRequest
from workers.storage import layout
from workers.storage.store import Store


class Place(IntEnum):
    """Where the sealed content of a document is."""

    NONE = 0
    INLINE = 1
    PACK = 2


class ObjectPointer(msgspec.Struct, array_like=True, frozen=True):
    """How to find, open and answer for one document's content.

    Attributes:
        v: 1.
        place: a `Place`; NONE if the document has no content.
        object_id: 16 bytes.
        generation: key generation whose object key opens the pack key.
        pack: 16-byte uid of the pack whose key seals `access`, and of the object with the content.
        offset, length: bytes of the sealed content in the pack object (PACK only).
        inline: the sealed content (INLINE only).
        sha256: of the sealed content; of nothing if there is none.
        content_type: media type of the content.
        associated_data: in clear, authenticated by the content's seal.
        access: sealed access record.
        access_version: version of the access list.
    """

    v: int
    place: int
    object_id: bytes
    generation: int
    pack: bytes
    offset: int
    length: int
    inline: bytes
    sha256: bytes
    content_type: str
    associated_data: bytes
    access: bytes
    access_version: int = 1


_pointer_decoder: Final = msgspec.msgpack.Decoder(ObjectPointer)


def encode_pointer(pointer: ObjectPointer) -> bytes:
    """Return `pointer` as it stands in an update and in the document table."""
    return msgspec.msgpack.encode(pointer)


def decode_pointer(data: bytes) -> ObjectPointer:
    """Decode what `encode_pointer` made.

    Raises:
        Damaged: it is not a pointer of this version.
    """
    try:
        pointer = _pointer_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Damaged(ErrorCode.DAMAGED, "an object pointer does not decode") from error
    sizes = (len(pointer.object_id), len(pointer.pack), len(pointer.sha256))
    if pointer.v != 1 or sizes != (16, 16, 32) or pointer.place not in (0, 1, 2):
        raise Damaged(ErrorCode.DAMAGED, "an object pointer has an unknown form")
    return pointer


def object_request(pointer: ObjectPointer, wrapped: bytes) -> ObjectRequest:
    """Return what to ask the key service for, to open a document's content.

    Args:
        pointer: of the document.
        wrapped: wrapped key of its pack.
    """
    return ObjectRequest(
        object_id=pointer.object_id,
        generation=pointer.generation,
        sealed_sha256=pointer.sha256,
        record=pointer.access,
        pack_key=wrapped,
    )


async def read_sealed(
    store: Store, index_uid: bytes, pointers: Sequence[ObjectPointer]
) -> list[bytes]:
    """Fetch the sealed contents of `pointers`, near ranges of one pack in one request.

    Contents without bytes (`Place.NONE`) come back empty. They are not opened: that takes the
    object keys, which the key service hands out one by one (`open_content`).

    Raises:
        NotFound: a pack is gone: load the head again and retry once.
        Damaged: a pack is shorter than its pointers say, or holds other bytes.
        Retry: STORAGE_UNAVAILABLE.
    """
    found = [pointer.inline for pointer in pointers]
    wanted: dict[bytes, list[int]] = {}
    for number, pointer in enumerate(pointers):
        if pointer.place == Place.PACK:
            wanted.setdefault(pointer.pack, []).append(number)

    async def fetch(uid: bytes, numbers: list[int]) -> None:
        ranges = [(pointers[number].offset, pointers[number].length) for number in numbers]
        try:
            parts = await store.get_ranges(layout.pack(index_uid, uid), ranges)
        except ValueError as error:
            raise Damaged(ErrorCode.DAMAGED, "a pack is shorter than its pointers say") from error
        for number, part in zip(numbers, parts, strict=True):
            found[number] = part

    fetches = (fetch(uid, numbers) for uid, numbers in wanted.items())
    # Every fetch is awaited before the first error is raised: none is left without an owner.
    for failure in await asyncio.gather(*fetches, return_exceptions=True):
        if isinstance(failure, BaseException):
            raise failure
    for pointer, data in zip(pointers, found, strict=True):
        if pointer.place != Place.NONE and hashlib.sha256(data).digest() != pointer.sha256:
            raise Damaged(ErrorCode.DAMAGED, "a sealed content is not what its pointer says")
    return found


def open_content(pointer: ObjectPointer, sealed: bytes, key: Key, *, index_uid: bytes) -> bytes:
    """Open one content with the object key from its access record.

    Raises:
        Damaged: it does not open.
    """
    try:
        return open_sealed(
            key,
            sealed,
            purpose=SealPurpose.CONTENT,
            index_uid=index_uid,
            object_id=pointer.object_id,
            associated_data=pointer.associated_data,
        )
    except OpenFailed as error:
        raise Damaged(ErrorCode.DAMAGED, "a sealed content does not open") from error
