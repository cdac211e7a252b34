"""Keep the centroids of a shard: in its head while they are small, else in a sealed object.

`Head.vector` holds a `VectorRef` (msgpack). Epoch 0 travels inside it; from the first training on
it names an object `centroids/<uid>`, SST1-sealed under the `vector` subkey, object id = its uid,
associated data = the shard's number. A new state is a new object under a new uid: readers of an
older head find the state that belongs to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from schemas.errors import ErrorCode
from workers.chain.faults import Leased
from workers.crypto.errors import OpenFailed
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.store import Store
from workers.vector.centroids import (
    MalformedStateError,
    VectorState,
    decode_state,
    encode_state,
)

_VERSION: Final = 1
_INLINE_BYTES: Final = 16 * 1024

VectorKeys = Callable[[int], SecretBytes]
"""Returns the `vector` subkey of a key generation; raises `Retry(KEY_UNAVAILABLE)`."""


class VectorRef(Struct, frozen=True, array_like=True):
    """What a head says about its vectors.

    Args:
        v: version of this record.
        epoch: the current training epoch; 0 before the first.
        trained_on: vectors that it was trained for.
        clusters: of the current epoch.
        uid: of the centroids object, b"" when `inline` holds the state.
        generation: key generation that the object is sealed under.
        sha256: of the encoded state.
        inline: the encoded state, b"" when it is an object.
    """

    v: int
    epoch: int
    trained_on: int
    clusters: int
    uid: bytes
    generation: int
    sha256: bytes
    inline: bytes = b""


def read_ref(data: bytes) -> VectorRef:
    """Decode `Head.vector`.

    Raises:
        Damaged: it is not one.
    """
    try:
        ref = msgspec.msgpack.decode(data, type=VectorRef)
    except msgspec.MsgspecError as error:
        raise Damaged(ErrorCode.DAMAGED, "the vector state of a head does not decode") from error
    if ref.v != _VERSION:
        raise Damaged(ErrorCode.DAMAGED, "the vector state of a head has an unknown version")
    return ref


async def save_state(
    store: Store,
    key: SecretBytes,
    index_uid: bytes,
    shard: int,
    generation: int,
    state: VectorState,
) -> bytes:
    """Store a state; write what is returned to `Head.vector` afterwards.

    Args:
        store: to write to.
        key: the `vector` subkey of `generation`.
        index_uid: of the index.
        shard: its number.
        generation: of the key.
        state: to store.

    Raises:
        Retry: the store is unavailable, or the lease of the key ended.
    """
    plain = encode_state(state)
    uid = b""
    if len(plain) > _INLINE_BYTES:
        uid = os.urandom(16)
        blob = await asyncio.to_thread(lambda: _seal(key, plain, index_uid, shard, uid, generation))
        await store.put(layout.centroids(index_uid, shard, uid), blob)
    ref = VectorRef(
        v=_VERSION,
        epoch=state.current.number,
        trained_on=state.current.trained_on,
        clusters=state.current.clusters,
        uid=uid,
        generation=generation,
        sha256=hashlib.sha256(plain).digest(),
        inline=b"" if uid else plain,
    )
    return msgspec.msgpack.encode(ref)


async def load_state(
    store: Store, keys: VectorKeys, index_uid: bytes, shard: int, data: bytes
) -> VectorState | None:
    """Read the state that `Head.vector` names; None where it is empty.

    Raises:
        Damaged: it does not open, or its object is missing.
        Retry: the store or the key is unavailable.
    """
    if not data:
        return None
    ref = read_ref(data)
    plain = ref.inline
    if ref.uid:
        try:
            stored = await store.get(layout.centroids(index_uid, shard, ref.uid))
        except NotFound as error:
            raise Damaged(ErrorCode.DAMAGED, "the centroids of a shard are missing") from error
        key = keys(ref.generation)
        plain = await asyncio.to_thread(_open, key, stored.data, index_uid, shard, ref.uid)
    if hashlib.sha256(plain).digest() != ref.sha256:
        raise Damaged(ErrorCode.DAMAGED, "the centroids of a shard are not those its head names")
    try:
        return decode_state(plain)
    except MalformedStateError as error:
        raise Damaged(ErrorCode.DAMAGED, "the centroids of a shard do not decode") from error


def _seal(
    key: SecretBytes, plain: bytes, index_uid: bytes, shard: int, uid: bytes, generation: int
) -> bytes:
    with Leased(key):
        return seal(
            key,
            plain,
            purpose=SealPurpose.CENTROIDS,
            index_uid=index_uid,
            object_id=uid,
            associated_data=_context(shard),
            generation=generation,
        )


def _open(key: SecretBytes, blob: bytes, index_uid: bytes, shard: int, uid: bytes) -> bytes:
    try:
        with Leased(key):
            return open_sealed(
                key,
                blob,
                purpose=SealPurpose.CENTROIDS,
                index_uid=index_uid,
                object_id=uid,
                associated_data=_context(shard),
            )
    except OpenFailed as error:
        raise Damaged(ErrorCode.DAMAGED, "the centroids of a shard do not open") from error


def _context(shard: int) -> bytes:
    return shard.to_bytes(4, "big")
