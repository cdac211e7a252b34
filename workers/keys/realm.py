"""The realm: one deployment's root of keys, its key-service identity, its administrator.

    KMS key ──wraps── realm root
                       └ per purpose HKDF-Expand(root, "sealstream/1 realm" ‖ lp(purpose))

Objects, all sealed under the key of their purpose but the first:

    realm/root              msgpack [v, wrapped, version, key id]: wrapped by the KMS key
    realm/key-service       seed of the Ed25519 key whose fingerprint everybody pins
    realm/administrator     id and default group of the local administrator
    realm/streams           stream id per source topic
    realm/hpke/<day>        HPKE keys (`service_keys.py`)
    realm/policy/<epoch>    revocations (`revocations.py`)
    realm/invitations/<id>  invitations that were used (`enrolment.py`)

Invariant: each is created once, conditionally; who comes second reads what the first one wrote. So
`init_realm` may run at every start and on several machines at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

import msgspec
import structlog
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from schemas.errors import ErrorCode
from schemas.topics import PLAINTEXT_INGEST
from workers.crypto.derive import prf
from workers.crypto.errors import OpenFailed
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import KEY_BYTES, SecretBytes, key_view, random_secret
from workers.crypto.sign import SigningKey, fingerprint
from workers.errors import Damaged, Fatal, Reject
from workers.identity.administrator import Administrator
from workers.identity.token import make_token
from workers.kms.base import Kms
from workers.kms.registry import open_kms
from workers.leases.certificate import (
    MAX_LIFE_S,
    Clock,
    Role,
    WorkerIdentity,
    issue_certificate,
    read_secret_file,
    save_identity,
    verify_certificate,
)
from workers.settings import Settings
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.first import create_first
from workers.storage.open import open_store
from workers.storage.store import Store

TOKEN_LIFE_S: Final = 365 * 86_400
ONE_OF_EACH: Final[Mapping[Role, int]] = {"ingest": 1, "index": 1, "query": 1}
_KMS_CONTEXT: Final = {"purpose": "realm-root"}

T = TypeVar("T")

log = structlog.get_logger("keys.realm")


class RealmPurpose(StrEnum):
    """What a key under the realm root is for; part of its derivation, so names never change."""

    CATALOG = "catalog"
    KEY_SERVICE = "key-service"
    IDENTITY_TOKEN = "identity-token"  # noqa: S105 - the name of a purpose
    APP_TOKEN = "app-token"  # noqa: S105 - the name of a purpose
    USER = "user"
    GROUP = "group"
    USER_KEY = "user-key"
    DEAD_LETTER = "dead-letter"
    POLICY = "policy"
    ENROLMENT = "enrolment"


class _Root(msgspec.Struct, array_like=True, frozen=True):
    v: int
    wrapped: bytes
    version: str
    key_id: str


@dataclass(frozen=True, slots=True)
class RealmInfo:
    """What `init_realm` leaves for the settings.

    Attributes:
        token: identity token of the local administrator, good for a year.
        fingerprint: of the key service, to be pinned.
    """

    token: str = field(repr=False)
    fingerprint: str


class Realm:
    """An opened realm. Only key-service processes have one."""

    def __init__(
        self,
        root: SecretBytes,
        signing_key: SigningKey,
        administrator: Administrator,
        streams: Mapping[str, int],
    ) -> None:
        self._root = root
        self._keys: dict[RealmPurpose, SecretBytes] = {}
        self.signing_key = signing_key
        self.administrator = administrator
        self.streams = streams

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the key service, hex."""
        return fingerprint(self.signing_key.public)

    def key(self, purpose: RealmPurpose) -> SecretBytes:
        """Return the realm key of a purpose, 32 bytes."""
        if purpose not in self._keys:
            self._keys[purpose] = _derive(self._root, purpose)
        return self._keys[purpose]

    def catalog_name(self, index: str) -> bytes:
        """Return what the catalog calls an index: HMAC(realm root, name), 32 bytes."""
        return prf(self._root, "catalog", index)[:32]

    def wipe(self) -> None:
        """Overwrite the keys."""
        for key in (self._root, *self._keys.values()):
            key.wipe()


async def init_realm(
    settings: Settings,
    *,
    store: Store | None = None,
    kms: Kms | None = None,
    workers: Mapping[Role, int] = ONE_OF_EACH,
    clock: Clock = time.time,
) -> RealmInfo:
    """Make the realm if there is none, and enrol this machine's workers.

    Idempotent: a second call finds the realm, renews certificates in the second half of their life
    and makes another identity token of the same administrator. Worker identities go to
    HOME/workers/<role>-<n>/, certified for every index.

    Args:
        settings: home, object store, KMS.
        store: instead of the configured one; not closed.
        kms: instead of the configured one; not closed.
        workers: how many of each role.
        clock: seconds since 1970.

    Raises:
        Retry: the object store or the KMS is not available.
        Damaged: the realm in the bucket does not open.
        Fatal: a worker's key file is unsafe, or the object store has not what we build on.
    """
    own_store, own_kms = store is None, kms is None
    store = store or open_store(settings)
    kms = kms or open_kms(settings.kms_spec, settings, create=True)
    try:
        if own_store:
            await store.check("keys")
        realm = await _open(store, kms, create=True)
        for role, count in workers.items():
            for number in range(1, count + 1):
                _enrol(settings, realm, role, f"{role}-{number}", clock())
        token = make_token(
            realm.key(RealmPurpose.IDENTITY_TOKEN),
            realm.administrator.id,
            now_s=clock(),
            life_s=TOKEN_LIFE_S,
        )
        info = RealmInfo(token, realm.fingerprint)
        realm.wipe()
        return info
    finally:
        if own_kms:
            await kms.aclose()
        if own_store:
            await store.aclose()


async def open_realm(store: Store, kms: Kms) -> Realm:
    """Open the realm that `init_realm` made.

    Raises:
        Fatal: there is none.
        Retry: the object store or the KMS is not available.
        Damaged: it does not open.
    """
    return await _open(store, kms, create=False)


async def _open(store: Store, kms: Kms, *, create: bool) -> Realm:
    root = await _root(store, kms, create=create)
    sealer = _Sealer(store, _derive(root, RealmPurpose.KEY_SERVICE))
    seed = await sealer.once("key-service", lambda: os.urandom(KEY_BYTES), bytes)
    admin = await sealer.once(
        "administrator", lambda: (str(uuid4()), str(uuid4())), tuple[str, str]
    )
    streams = await sealer.once(
        "streams",
        lambda: {PLAINTEXT_INGEST: int.from_bytes(os.urandom(4), "big")},
        dict[str, int],
    )
    return Realm(root, SigningKey.from_seed(seed), Administrator(*admin), streams)


async def _root(store: Store, kms: Kms, *, create: bool) -> SecretBytes:
    key = layout.realm("root")
    try:
        stored = (await store.get(key)).data
    except NotFound:
        if not create:
            raise Fatal(
                ErrorCode.KEY_UNAVAILABLE,
                "the bucket holds no realm: run `sealstream up`, or check bucket and prefix",
            ) from None
        with random_secret() as root:
            wrapped = await kms.wrap(kms.default_key, root, _KMS_CONTEXT)
        record = _Root(1, wrapped.data, wrapped.version, kms.default_key)
        stored = await create_first(store, key, msgspec.msgpack.encode(record))
    try:
        record = msgspec.msgpack.decode(stored, type=_Root)
    except msgspec.MsgspecError as error:
        raise Damaged(ErrorCode.DAMAGED, "the record of the realm root is malformed") from error
    return await kms.unwrap(record.key_id, record.wrapped, _KMS_CONTEXT)


class _Sealer:
    """Realm records that are drawn once and then only read."""

    def __init__(self, store: Store, key: SecretBytes) -> None:
        self._store = store
        self._key = key

    async def once(self, kind: str, draw: Callable[[], T], kind_type: type[T]) -> T:
        """Return the record of `kind`; draw and create it if there is none."""
        key = layout.realm(kind)
        try:
            stored = (await self._store.get(key)).data
        except NotFound:
            plain = msgspec.msgpack.encode(draw())
            sealed = seal(
                self._key,
                plain,
                purpose=SealPurpose.KEY_SERVICE,
                index_uid=b"",
                object_id=kind.encode(),
            )
            stored = await create_first(self._store, key, sealed)
        try:
            plain = open_sealed(
                self._key,
                stored,
                purpose=SealPurpose.KEY_SERVICE,
                index_uid=b"",
                object_id=kind.encode(),
            )
            return msgspec.msgpack.decode(plain, type=kind_type)
        except (OpenFailed, msgspec.MsgspecError) as error:
            raise Damaged(
                ErrorCode.DAMAGED, "a record of the realm does not open: damaged or exchanged"
            ) from error


def _derive(root: SecretBytes, purpose: RealmPurpose) -> SecretBytes:
    expand = HKDFExpand(SHA256(), 32, b"sealstream/1 realm" + lp(purpose))
    return SecretBytes(expand.derive(key_view(root)))


def _enrol(settings: Settings, realm: Realm, role: Role, worker_id: str, now_s: float) -> None:
    """Give a worker of this machine a key and a certificate for every index."""
    folder = settings.home / "workers" / worker_id
    if (folder / "sign.key").exists():
        seed = read_secret_file(folder / "sign.key")
        if _certified_long_enough(folder, realm, role, now_s):
            return
    else:
        seed = os.urandom(KEY_BYTES)
    certificate = issue_certificate(
        realm.signing_key,
        worker_id=worker_id,
        role=role,
        indexes=["*"],
        sign_pub=SigningKey.from_seed(seed).public.raw,
        now_s=now_s,
    )
    save_identity(folder, seed, certificate)
    log.info("worker enrolled", worker=worker_id, expires_s=certificate.expires_s)


def _certified_long_enough(folder: Path, realm: Realm, role: Role, now_s: float) -> bool:
    try:
        encoded = WorkerIdentity.load(folder).certificate.encoded
        certificate = verify_certificate(encoded, realm.signing_key.public, now_s=now_s)
    except (Fatal, Reject):
        return False
    return certificate.role == role and certificate.expires_s - now_s > MAX_LIFE_S / 2
