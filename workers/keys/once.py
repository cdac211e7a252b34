"""Admin-requests that were begun, remembered until they are no longer good, restarts included.

`realm/requests/<PRF(realm key, request id)>` = SST1 of msgpack [topic, partition, offset,
expires s, seed]. It is created conditionally before a change is begun. The record it was created
for may come again (after a crash) and finds its seed; any other record with that request id is a
copy.
"""

from __future__ import annotations

import os
import time
from typing import Final

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.derive import prf
from workers.crypto.errors import OpenFailed
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import Key
from workers.errors import Damaged, Reject
from workers.kafka.broker import Record
from workers.leases.certificate import Clock
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.first import create_first
from workers.storage.store import Store

KIND: Final = "requests"
_SEED_BYTES: Final = 32


class _Begun(msgspec.Struct, array_like=True, frozen=True):
    topic: str
    partition: int
    offset: int
    expires_s: float
    seed: bytes


class Once:
    """Request ids that may not be used again."""

    def __init__(self, store: Store, key: Key, *, clock: Clock = time.time) -> None:
        """Prepare; `key` is the realm's `key-service` key."""
        self._store = store
        self._key = key
        self._clock = clock

    async def admit(self, request_id: bytes, record: Record, expires_s: float) -> bytes:
        """Remember a request; return its 32-byte seed, the same when this record comes again.

        Args:
            request_id: 16 bytes.
            record: where it stands.
            expires_s: until when a copy would be good, seconds since 1970.

        Raises:
            Reject: CONFLICT, another record had this request id. Damaged.
            Retry: STORAGE_UNAVAILABLE.
        """
        name = prf(self._key, "admin request", request_id)[:16]
        place = (record.topic, record.partition, record.offset)
        begun = _Begun(*place, expires_s, os.urandom(_SEED_BYTES))
        data = self._seal(name, begun)
        first = await create_first(self._store, layout.realm(KIND, name), data)
        if first != data:
            begun = self._open(name, first)
        if (begun.topic, begun.partition, begun.offset) != place:
            raise Reject(ErrorCode.CONFLICT, "a copy of an admin-request that was seen")
        return begun.seed

    async def sweep(self) -> None:
        """Delete what has expired. Raises Retry; leaves what does not open."""
        expired = []
        async for entry in self._store.list(layout.realm(KIND)):
            try:
                name = bytes.fromhex(entry.key.rpartition("/")[2])
                begun = self._open(name, (await self._store.get(entry.key)).data)
            except (NotFound, Damaged, ValueError):
                continue
            if begun.expires_s <= self._clock():
                expired.append(entry.key)
        if expired:
            await self._store.delete(expired)

    def _seal(self, name: bytes, begun: _Begun) -> bytes:
        return seal(
            self._key,
            msgspec.msgpack.encode(begun),
            purpose=SealPurpose.REALM,
            index_uid=b"",
            object_id=lp(KIND, name),
        )

    def _open(self, name: bytes, data: bytes) -> _Begun:
        try:
            plain = open_sealed(
                self._key,
                data,
                purpose=SealPurpose.REALM,
                index_uid=b"",
                object_id=lp(KIND, name),
            )
            return msgspec.msgpack.decode(plain, type=_Begun)
        except (OpenFailed, ValueError, msgspec.MsgspecError) as error:
            raise Damaged(
                ErrorCode.DAMAGED, "the record of an admin-request does not open"
            ) from error
