"""User keys: 32 random bytes that let one user read from an index, write to it, or both.

The record of a key, in sealed pages of its index (realm key `user-key`), holds the SHA-256 of the
key, never the key. Where the callers keep the index's KEK (provider `none`) it holds that too,
sealed under PRF(realm key, index uid, user key): realm and bucket together do not open it, somebody
has to show the user key.

Deleting the record ends the key: the key service refuses it at once, workers within the 60 s for
which they reuse a decision.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.derive import prf
from workers.crypto.errors import OpenFailed
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged, Reject
from workers.identity.pages import Pages
from workers.keys.catalog import PROVIDER_NONE, IndexRecord
from workers.keys.principal import Permission
from workers.keys.realm import Realm, RealmPurpose
from workers.leases.certificate import Clock

KEY_BYTES: Final = 32


class UserKeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One user key.

    Args:
        sha256: of the key.
        permissions: `read`, `write`, or both.
        kek: of an index whose callers keep it, sealed; else b"".
        request_id: of the request that made it.
    """

    v: int = 1
    user_id: str
    sha256: bytes
    permissions: list[Permission]
    kek: bytes = b""
    created_ms: int
    request_id: str

    def __repr__(self) -> str:
        return f"UserKeyRecord({self.permissions})"


@dataclass(frozen=True, slots=True)
class KnownUser:
    """What a user key stands for. `index_key`: the KEK, where the callers keep it."""

    permissions: frozenset[Permission]
    index_key: SecretBytes | None = field(repr=False, default=None)


class UserKeys:
    """Makes, lists, checks and deletes user keys."""

    def __init__(
        self, pages: Pages[UserKeyRecord], realm: Realm, *, clock: Clock = time.time
    ) -> None:
        """Prepare; the scope of `pages` is the uid of an index."""
        self._pages = pages
        self._key = realm.key(RealmPurpose.USER_KEY)
        self._clock = clock

    async def create(
        self,
        record: IndexRecord,
        user_id: str,
        permissions: Iterable[Permission],
        *,
        seed: bytes,
        request_id: str,
        index_key: SecretBytes | None,
    ) -> bytes:
        """Make a user's key for an index and return it; it is kept nowhere.

        Args:
            record: of the index.
            user_id: whom it is for; a name, known to the index alone.
            permissions: what it allows.
            seed: 32 secret bytes, the same when the request is run again.
            request_id: of the request.
            index_key: the KEK of an index with provider `none`, proved.

        Raises:
            Reject: CONFLICT, the user has a key. Damaged. Retry.
        """
        key = prf(seed, "user key", record.uid, user_id)[:KEY_BYTES]
        kek = b""
        if record.provider == PROVIDER_NONE and index_key is not None:
            kek = seal(
                self._kek_key(record.uid, key),
                index_key.view(),
                purpose=SealPurpose.USER_KEY,
                index_uid=record.uid,
                object_id=_object_id(user_id),
            )
        made = UserKeyRecord(
            user_id=user_id,
            sha256=hashlib.sha256(key).digest(),
            permissions=sorted(set(permissions)),
            kek=kek,
            created_ms=int(self._clock() * 1000),
            request_id=request_id,
        )

        def add(known: UserKeyRecord | None) -> UserKeyRecord:
            if known is not None and known.request_id != request_id:
                raise Reject(
                    ErrorCode.CONFLICT,
                    "this user has a key for the index: delete it first",
                    field="args.user_id",
                )
            return known or made

        await self._pages.change(user_id, add, record.uid)
        return key

    async def list(self, record: IndexRecord) -> list[UserKeyRecord]:
        """Return the keys of an index, by user. Raises Damaged, Retry."""
        found = [one async for _, one in self._pages.all(record.uid)]
        return sorted(found, key=lambda one: one.user_id)

    async def delete(self, record: IndexRecord, user_id: str) -> None:
        """End a user's key. Raises Reject: NOT_FOUND; Damaged; Retry."""

        def remove(known: UserKeyRecord | None) -> None:
            if known is None:
                raise Reject(
                    ErrorCode.NOT_FOUND, "this user has no key for the index", field="args.user_id"
                )

        await self._pages.change(user_id, remove, record.uid)

    async def forget(self, uid: bytes) -> None:
        """Delete the records of an index that is deleted. Raises Retry."""
        await self._pages.drop(uid)

    async def authenticate(self, record: IndexRecord, user_id: str, key: bytes) -> KnownUser:
        """Return what a user key allows.

        Raises:
            Reject: UNAUTHENTICATED, no such key. Damaged. Retry.
        """
        known = await self._pages.get(user_id, record.uid)
        shown = hashlib.sha256(key).digest()
        if known is None or not hmac.compare_digest(shown, known.sha256):
            raise Reject(
                ErrorCode.UNAUTHENTICATED,
                "no such user key for this index: unknown, or deleted",
                field="auth",
            )
        kek = None
        if known.kek:
            try:
                kek = SecretBytes(
                    open_sealed(
                        self._kek_key(record.uid, key),
                        known.kek,
                        purpose=SealPurpose.USER_KEY,
                        index_uid=record.uid,
                        object_id=_object_id(user_id),
                    )
                )
            except OpenFailed as error:
                raise Damaged(ErrorCode.DAMAGED, "a user key's record does not open") from error
        return KnownUser(frozenset(known.permissions), kek)

    def _kek_key(self, uid: bytes, key: bytes) -> bytes:
        return prf(self._key, "kek", uid, key)[:KEY_BYTES]


def _object_id(user_id: str) -> bytes:
    return lp("kek", user_id)
