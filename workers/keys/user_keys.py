"""User keys: 32 random bytes that let one user read from an index, write to it, or both.

The record of a key, in sealed pages of its index (realm key `user-key`), holds the SHA-256 of the
key, never the key. Where the callers keep the index's KEK (provider `none`) it holds that too, by
epoch, sealed to a pair whose seed is PRF(realm key, index uid, user key): realm and bucket together
do not open it, somebody has to show the user key. The record holds the public half, so that a later
KEK can be sealed for users who are not there (`reseal`).

Deleting the record ends the key: the key service refuses it at once, workers within the 60 s for
which they reuse a decision.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.derive import prf
from workers.crypto.errors import InvalidKey, OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, HpkeSuite
from workers.crypto.info import Info, info
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
        public: of an index whose callers keep its KEK: what that is sealed to; else b"".
        keks: the KEK, sealed, by epoch.
        request_id: of the request that made it.
    """

    v: int = 1
    user_id: str
    sha256: bytes
    permissions: list[Permission]
    public: bytes = b""
    keks: dict[int, bytes] = {}
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
        self,
        pages: Pages[UserKeyRecord],
        realm: Realm,
        *,
        suite: HpkeSuite,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            pages: their scope is the uid of an index.
            realm: has the key of all this.
            suite: of the pairs that KEKs are sealed to.
            clock: seconds since 1970.
        """
        self._pages = pages
        self._key = realm.key(RealmPurpose.USER_KEY)
        self._suite = suite
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
        public, keks = b"", {}
        if record.provider == PROVIDER_NONE and index_key is not None:
            half = self._pair(self._suite, record.uid, key).public
            public = half.encode()
            keks[record.epoch] = _sealed(half, record.uid, user_id, record.epoch, index_key)
        made = UserKeyRecord(
            user_id=user_id,
            sha256=hashlib.sha256(key).digest(),
            permissions=sorted(set(permissions)),
            public=public,
            keks=keks,
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

    async def reseal(
        self, record: IndexRecord, index_key: SecretBytes, *, epoch: int, keep: Collection[int]
    ) -> None:
        """Give every user key of an index a KEK that its callers keep.

        Args:
            record: of the index.
            index_key: the KEK.
            epoch: of the KEK.
            keep: other epochs whose KEKs stay; all others are dropped.

        Raises:
            Damaged. Retry.
        """

        def change(known: UserKeyRecord | None) -> UserKeyRecord | None:
            if known is None or not known.public:
                return known
            keks = {one: sealed for one, sealed in known.keks.items() if one in {epoch, *keep}}
            if epoch not in keks:
                try:
                    half = HpkePublicKey.decode(known.public)
                except InvalidKey as error:
                    raise _damaged() from error
                keks[epoch] = _sealed(half, record.uid, known.user_id, epoch, index_key)
            return msgspec.structs.replace(known, keks=keks)

        for user_id in [user_id async for user_id, _ in self._pages.all(record.uid)]:
            await self._pages.change(user_id, change, record.uid)

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
        # Of an epoch that this process has not heard of yet there may be none.
        if (sealed := known.keks.get(record.epoch)) is not None:
            try:
                suite = HpkePublicKey.decode(known.public).suite
                pair = self._pair(suite, record.uid, key)
                kek = SecretBytes(pair.open(_info(record.uid, user_id, record.epoch), sealed))
            except (OpenFailed, InvalidKey) as error:
                raise _damaged() from error
        return KnownUser(frozenset(known.permissions), kek)

    def _pair(self, suite: HpkeSuite, uid: bytes, key: bytes) -> HpkePrivateKey:
        return HpkePrivateKey.from_seed(suite, prf(self._key, "kek", uid, key)[:KEY_BYTES])


def _sealed(
    half: HpkePublicKey, uid: bytes, user_id: str, epoch: int, index_key: SecretBytes
) -> bytes:
    return half.seal(_info(uid, user_id, epoch), index_key)


def _info(uid: bytes, user_id: str, epoch: int) -> bytes:
    return info(Info.USER_KEY, uid, user_id, epoch)


def _damaged() -> Damaged:
    return Damaged(ErrorCode.DAMAGED, "a user key's record does not open")
