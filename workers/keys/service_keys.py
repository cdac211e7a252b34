"""The key service's HPKE keys: what requests, credentials and admin-requests are sealed to.

One a day, `realm/hpke/<day>` (4 bytes, days since 1970), shared by all instances through the
bucket: whoever is first creates it, the others read it. A key is destroyed 2 days after its
successor came, but for the newest, which stays until it has one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from schemas.errors import ErrorCode
from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite, key_id
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import KEY_BYTES
from workers.errors import Damaged
from workers.keys.realm import Realm, RealmPurpose
from workers.storage import layout
from workers.storage.errors import AlreadyExists, NotFound
from workers.storage.store import Store
from workers.telemetry import metrics

DAY_S: Final = 86_400
KEEP_S: Final = 2 * DAY_S
_DAY_BYTES: Final = 4

log = structlog.get_logger("keys.service_keys")


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """One HPKE key pair; `created_ms` is its place in the order."""

    day: int
    created_ms: int
    private: HpkePrivateKey = field(repr=False)


class ServiceKeys:
    """The HPKE keys that are alive, newest first."""

    def __init__(self, store: Store, realm: Realm, suite: HpkeSuite) -> None:
        """Prepare; `suite` is that of keys made from now on."""
        self._store = store
        self._key = realm.key(RealmPurpose.KEY_SERVICE)
        self._suite = suite
        self._keys: list[ServiceKey] = []
        self._loaded_s = 0.0
        self._reported: set[str] = set()

    @property
    def keys(self) -> list[ServiceKey]:
        """The keys, newest first; at least one after `rotate`."""
        return self._keys

    @property
    def privates(self) -> list[HpkePrivateKey]:
        """The private keys, newest first."""
        return [key.private for key in self._keys]

    @property
    def version(self) -> int:
        """The version of the directory entry that shows these keys: when the newest was made."""
        return self._keys[0].created_ms if self._keys else 0

    def find(self, wanted: bytes) -> HpkePrivateKey | None:
        """Return the private key of a 16-byte key id, or None."""
        return next((k for k in self.privates if key_id(k.public) == wanted), None)

    async def rotate(self, now_s: float) -> None:
        """Load the keys, make today's if there is none, and destroy the old ones. Repeatable.

        Raises:
            Retry: the object store is not available.
            Damaged: no key is left that opens.
        """
        await self.load()
        today = int(now_s) // DAY_S
        if not any(key.day >= today for key in self._keys):
            plain = msgspec.msgpack.encode((self._suite, int(now_s * 1000), os.urandom(KEY_BYTES)))
            with contextlib.suppress(AlreadyExists):
                await self._store.create(_name(today), self._seal(today, plain))
            await self.load()
        if not self._keys:
            raise Damaged(
                ErrorCode.DAMAGED, "no key of the key service opens: damaged or exchanged"
            )
        old = [
            key
            for key, successor in zip(self._keys[1:], self._keys, strict=False)
            if successor.created_ms / 1000 + KEEP_S < now_s
        ]
        if old:
            await self._store.delete([_name(key.day) for key in old])
            self._keys = [key for key in self._keys if key not in old]

    async def load(self) -> None:
        """Read the keys that other instances made; one that is damaged is reported and left out.

        Raises:
            Retry: the object store is not available.
        """
        known = {key.day: key for key in self._keys}
        found = []
        async for entry in self._store.list(layout.realm("hpke")):
            try:
                day = _day(entry.key)
                key = known.get(day) or await self._read(day)
            except Damaged as error:
                self._report(entry.key, error)
                continue
            if key is not None:
                found.append(key)
        self._keys = sorted(found, key=lambda key: key.created_ms, reverse=True)

    async def load_at_most_once_a_second(self, now_s: float) -> None:
        """Load, unless that was just done: anybody can name a key that does not exist."""
        if now_s - self._loaded_s >= 1.0:
            self._loaded_s = now_s
            await self.load()

    def _report(self, name: str, error: Damaged) -> None:
        # The keys are listed every minute: once is enough.
        if name not in self._reported:
            self._reported.add(name)
            metrics.DAMAGED.inc(what="keys")
            log.error("a key of the key service is left out", object=name, why=error.message)

    async def _read(self, day: int) -> ServiceKey | None:
        try:
            stored = await self._store.get(_name(day))
        except NotFound:
            return None
        try:
            plain = open_sealed(
                self._key,
                stored.data,
                purpose=SealPurpose.KEY_SERVICE,
                index_uid=b"",
                object_id=_object_id(day),
            )
            suite, created_ms, seed = msgspec.msgpack.decode(plain, type=tuple[int, int, bytes])
            private = HpkePrivateKey.from_seed(HpkeSuite(suite), seed)
        except (OpenFailed, ValueError, msgspec.MsgspecError) as error:
            raise Damaged(
                ErrorCode.DAMAGED, "a key of the key service does not open: damaged or exchanged"
            ) from error
        return ServiceKey(day, created_ms, private)

    def _seal(self, day: int, plain: bytes) -> bytes:
        return seal(
            self._key,
            plain,
            purpose=SealPurpose.KEY_SERVICE,
            index_uid=b"",
            object_id=_object_id(day),
        )


def _name(day: int) -> str:
    return layout.realm("hpke", day.to_bytes(_DAY_BYTES, "big"))


def _day(name: str) -> int:
    """Return the day of an object's name. Raises Damaged: it is not the name of a key."""
    raw = name.rpartition("/")[2]
    try:
        day = int.from_bytes(bytes.fromhex(raw), "big")
    except ValueError:
        day = -1
    if len(raw) != 2 * _DAY_BYTES or day < 0:
        raise Damaged(ErrorCode.DAMAGED, "an object beside the keys of the key service")
    return day


def _object_id(day: int) -> bytes:
    return lp("hpke", day)
