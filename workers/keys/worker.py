"""The key service process.

Start, in this order: realm -> HPKE keys -> directory (own entry) -> revocations -> directory (the
indexes' entries) -> audit (`start`) -> work. So nothing is answered before the directory is true
and the audit works.

Beside the work, every second: wipe keys that were cached too long, forget what has expired, write
the audit checkpoint that is due; every minute: rotate HPKE keys; every hour: renew directory
entries in the second half of their life.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from typing import Final

import structlog

from schemas.codec import parse
from schemas.errors import ErrorCode, InvalidMessage
from schemas.prepare import prepare_types
from schemas.topics import (
    ADMIN_REQUEST,
    ADMIN_RESULT,
    INDEX_UPDATE,
    KEY_AUDIT,
    KEY_DIRECTORY,
    KEY_GRANT,
    KEY_REQUEST,
    KEY_REVOCATION,
    with_prefix,
)
from workers.crypto.errors import KeyWiped
from workers.crypto.seal import SealPurpose
from workers.errors import Damaged, Fatal, Reject, Retry
from workers.identity.base import IdentityProvider
from workers.identity.pages import Pages
from workers.identity.password import Passwords
from workers.identity.providers import Providers
from workers.identity.standalone import GroupRecord, StandaloneProvider, UserRecord
from workers.kafka.broker import Broker, Record
from workers.keys.access import AccessEntry, AccessLists
from workers.keys.admin import Admin
from workers.keys.admin_access import AccessOperations
from workers.keys.admin_identity import IdentityOperations
from workers.keys.admin_indexes import IndexOperations
from workers.keys.admin_keys import KeyOperations
from workers.keys.admin_user_keys import UserKeyOperations
from workers.keys.answers import Answers, Terms
from workers.keys.audit import Audit
from workers.keys.callers import Callers
from workers.keys.catalog import Catalog
from workers.keys.enrolment import Enrolment
from workers.keys.floors import DirectoryFloors
from workers.keys.hierarchy import Hierarchy
from workers.keys.indexes import Indexes
from workers.keys.lifecycle import Lifecycle
from workers.keys.once import Once
from workers.keys.publish import Publisher
from workers.keys.realm import Realm, RealmPurpose, open_realm
from workers.keys.revocations import RevocationLog
from workers.keys.service_keys import ServiceKeys
from workers.keys.user_keys import UserKeyRecord, UserKeys
from workers.kms.base import Kms
from workers.kms.registry import open_kms
from workers.leases.certificate import Clock
from workers.leases.directory import KEY_SERVICE_KEY, KeyDirectory
from workers.leases.holder import SUITES
from workers.runtime.deadletter import DeadLetters
from workers.runtime.each import EachPump
from workers.runtime.health import Health
from workers.runtime.lastresort import unexpected
from workers.runtime.policy import DrainPolicy
from workers.runtime.process import connections
from workers.runtime.wait import event_within
from workers.settings import Settings
from workers.storage.store import Store
from workers.telemetry import metrics

GROUP: Final = "sealstream-keys"
DEFAULT_ID: Final = "keys-1"
MAX_CONCURRENCY: Final = 32
_TICK_S: Final = 1.0
_ROTATE_S: Final = 60.0
_REFRESH_S: Final = 3600.0
_ADVANCE_S: Final = 5.0

log = structlog.get_logger("keys.worker")


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`; then drain and leave.

    Raises:
        Fatal: the settings, the realm or the KMS cannot work.
    """
    async with AsyncExitStack() as stack:
        broker, store = await stack.enter_async_context(connections(settings, "keys"))
        kms = open_kms(settings.kms_spec, settings)
        stack.push_async_callback(kms.aclose)
        await serve(settings, stop, broker=broker, store=store, kms=kms)


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    *,
    broker: Broker,
    store: Store,
    kms: Kms,
    clock: Clock = time.time,
) -> None:
    """Run on a broker, a store and a KMS that somebody else opened (tests, one process)."""
    prepare_types()
    worker_id = settings.worker_id or DEFAULT_ID
    health = Health(worker_id, settings.run_dir / f"{worker_id}.json")
    health.set("role", "keys")
    service = KeyService(settings, broker=broker, store=store, kms=kms, clock=clock)
    beside = [asyncio.create_task(health.run(stop), name="health")]
    try:
        await service.start()
        pump = EachPump(
            broker,
            settings.topic_prefix + GROUP,
            [service.requests, service.admin_requests],
            service.handle,
            max_concurrency=MAX_CONCURRENCY,
            health=health,
            drain=DrainPolicy(finish_s=settings.drain_s),
        )

        async def ready() -> None:
            await pump.wait_assigned()
            health.set("ready", True)
            log.info("ready")

        beside.append(asyncio.create_task(ready(), name="ready"))
        beside.append(asyncio.create_task(service.keep(stop, health), name="keep"))
        await pump.run(stop)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await service.stop()


class KeyService:
    """All parts of the key service, put together; the pump calls `handle`."""

    def __init__(
        self,
        settings: Settings,
        *,
        broker: Broker,
        store: Store,
        kms: Kms,
        provider: IdentityProvider | None = None,
        clock: Clock = time.time,
    ) -> None:
        """Prepare; `provider` instead of the standalone one."""
        self._settings = settings
        self._broker = broker
        self._store = store
        self._kms = kms
        self._provider = provider
        self._clock = clock
        self._stack = AsyncExitStack()
        self._started = False
        self._refreshed_s = self._rotated_s = self._advanced_s = clock()
        self.requests = self._topic(KEY_REQUEST)
        self.admin_requests = self._topic(ADMIN_REQUEST)

    async def start(self) -> None:
        """Open the realm, publish the directory, begin the audit.

        Raises:
            Fatal: no realm, or not the pinned one.
            Retry: the broker, the store or the KMS is not available.
            Damaged: the realm or the catalog does not open.
        """
        settings, clock = self._settings, self._clock
        realm = await open_realm(self._store, self._kms)
        self._realm = realm
        self._stack.callback(realm.wipe)
        _check_pinned(settings, realm)
        signer, suite = realm.signing_key, SUITES[settings.hpke_suite]
        self._keys = ServiceKeys(self._store, realm, suite)
        await self._keys.rotate(clock())
        producer = await self._broker.producer(linger_ms=0)
        self._stack.push_async_callback(producer.stop)
        self._directory = KeyDirectory(
            self._broker, settings, fingerprint=realm.fingerprint, clock=clock
        )
        self._stack.push_async_callback(self._directory.stop)
        await self._directory.start()
        self._publisher = Publisher(producer, self._topic(KEY_DIRECTORY), signer, clock=clock)
        floors = DirectoryFloors(self._directory, self._publisher)
        self._revocations = RevocationLog(
            self._store,
            realm.key(RealmPurpose.POLICY),
            producer=producer,
            topic=self._topic(KEY_REVOCATION),
            signer=signer,
            directory=self._directory,
            floors=floors,
            clock=clock,
        )
        self._audit = Audit(
            producer,
            self._topic(KEY_AUDIT),
            settings.worker_id or DEFAULT_ID,
            signer,
            clock=clock,
            policy_epoch=lambda: self._revocations.epoch,
        )
        hierarchy = Hierarchy(self._store, self._kms, signer, clock=clock)
        self._stack.callback(hierarchy.wipe)
        self._hierarchy = hierarchy
        indexes = Indexes(Catalog(self._store, realm), hierarchy, self._directory, clock=clock)
        self._indexes = indexes
        standalone = self._standalone(realm, floors)
        user_keys = UserKeys(
            Pages(
                self._store,
                floors,
                realm.key(RealmPurpose.USER_KEY),
                kind="user-keys",
                purpose=SealPurpose.USER_KEY,
                entry=UserKeyRecord,
                spread=1,
            ),
            realm,
            suite=suite,
            clock=clock,
        )
        callers = Callers(
            realm,
            self._keys,
            self._provider or self._with_others(standalone, realm),
            user_keys,
            self._directory.revocations,
            allow_plain=settings.allow_plain_credentials,
            clock=clock,
        )
        index_update = self._topic(INDEX_UPDATE)
        access = AccessLists(
            Pages(
                self._store,
                floors,
                realm.key(RealmPurpose.GROUP),
                kind="access",
                purpose=SealPurpose.ACCESS_RECORD,
                entry=AccessEntry,
                # Every page has a record of its own in key-directory, which everybody reads.
                spread=16,
            ),
            self._store,
            indexes,
            producer,
            signer,
            updates=index_update,
            max_record_bytes=settings.max_record_bytes,
            clock=clock,
        )
        grants = self._topic(KEY_GRANT)
        terms = Terms(
            lease_s=settings.lease_s,
            decision_s=settings.decision_cache_s,
            suite_floor=suite,
            grants=grants,
            partitions=await self._broker.partitions(grants),
            prefix=settings.topic_prefix,
        )
        self._answers = Answers(
            indexes=indexes,
            callers=callers,
            access=access,
            keys=self._keys,
            publisher=self._publisher,
            audit=self._audit,
            producer=producer,
            store=self._store,
            signer=signer,
            terms=terms,
            clock=clock,
        )
        self._once = Once(self._store, realm.key(RealmPurpose.KEY_SERVICE), clock=clock)
        index_operations = IndexOperations(
            store=self._store,
            kms=self._kms,
            indexes=indexes,
            publisher=self._publisher,
            suite=suite,
            partitions=lambda: self._broker.partitions(index_update),
            forget=[user_keys.forget, access.forget],
            clock=clock,
        )
        self._lifecycle = Lifecycle(
            store=self._store,
            indexes=indexes,
            publisher=self._publisher,
            audit=self._audit,
            producer=producer,
            signer=signer,
            updates=index_update,
            suite=suite,
            lease_s=settings.lease_s,
            clock=clock,
        )
        self._enrolment = Enrolment(
            self._store, realm.key(RealmPurpose.ENROLMENT), signer, clock=clock
        )
        key_operations = KeyOperations(
            indexes=indexes,
            user_keys=user_keys,
            publisher=self._publisher,
            lifecycle=self._lifecycle,
            revocations=self._revocations,
            enrolment=self._enrolment,
            administrators=realm.administrator.default_group,
            clock=clock,
        )
        self._admin = Admin(
            operations={
                **index_operations.operations,
                **UserKeyOperations(indexes, user_keys).operations,
                **AccessOperations(indexes, access).operations,
                **IdentityOperations(standalone, realm, self._revocations, clock=clock).operations,
                **key_operations.operations,
            },
            catalog=indexes.catalog,
            callers=callers,
            keys=self._keys,
            once=self._once,
            audit=self._audit,
            producer=producer,
            signer=signer,
            results=self._topic(ADMIN_RESULT),
            allow_plain=settings.allow_plain_credentials,
            clock=clock,
        )
        dead_letter_key = realm.key(RealmPurpose.DEAD_LETTER).copy()
        self._dead_letters = DeadLetters(producer, dead_letter_key)
        await self._publisher.key_service(self._keys, realm.streams)
        await self._directory.refresh()
        await self._revocations.start()
        await self._refresh_directory()
        await self._audit.write("start")
        self._started = True

    async def stop(self) -> None:
        """Sign the end of the audit, wipe the keys and close what was opened."""
        if self._started:
            with contextlib.suppress(Retry, TimeoutError):
                await self._audit.close()
        await self._stack.aclose()

    async def handle(self, record: Record) -> None:
        """Do the work of one record of key-request or admin-request. Raises Retry."""
        part = self._answers if record.topic == self.requests else self._admin
        try:
            await self._load_key(record)
            await part.handle(record)
        except Exception as error:
            refusal = error if isinstance(error, Reject) else unexpected(error, record)
            log.warning("request dead-lettered", code=refusal.code.value)
            await self._dead_letters.send(record, refusal.info(), 1, sealed=True)

    async def tick(self) -> None:
        """Do what time demands. Called every second.

        Raises:
            Retry: something is not available; what was not done is done at a later call.
            Damaged: a stored record does not open.
        """
        now = self._clock()
        self._hierarchy.expire()
        self._answers.expire()
        self._admin.expire()
        await self._audit.tick()
        if now - self._advanced_s >= _ADVANCE_S:
            self._advanced_s = now
            await self._lifecycle.tick()
        if now - self._rotated_s >= _ROTATE_S:
            self._rotated_s = now
            before = self._keys.version
            await self._keys.rotate(now)
            if self._keys.version != before:
                await self._publisher.key_service(self._keys, self._realm.streams)
        if now - self._refreshed_s >= _REFRESH_S:
            self._refreshed_s = now
            await self._publisher.key_service(self._keys, self._realm.streams)
            await self._revocations.publish()
            await self._refresh_directory()
            await self._once.sweep()
            await self._enrolment.sweep()

    async def keep(self, stop: asyncio.Event, health: Health) -> None:
        """Call `tick` every second until `stop`."""
        while not await event_within(stop, _TICK_S):
            try:
                await self.tick()
            except (Retry, Damaged, KeyWiped) as error:
                health.error("keep", error)
            except Exception as error:
                # Keys must be wiped and the audit be signed all the same, in the next second.
                health.error("keep", error)
                metrics.UNEXPECTED.inc(topic=self.requests)
                log.exception("what is due was not done")

    def _standalone(self, realm: Realm, floors: DirectoryFloors) -> StandaloneProvider:
        passwords = Passwords()
        self._stack.callback(passwords.close)
        users = Pages(
            self._store,
            floors,
            realm.key(RealmPurpose.USER),
            kind="users",
            purpose=SealPurpose.USER,
            entry=UserRecord,
        )
        groups = Pages(
            self._store,
            floors,
            realm.key(RealmPurpose.GROUP),
            kind="groups",
            purpose=SealPurpose.GROUP,
            entry=GroupRecord,
        )
        return StandaloneProvider(
            administrator=realm.administrator,
            users=users,
            groups=groups,
            passwords=passwords,
            token_key=realm.key(RealmPurpose.IDENTITY_TOKEN),
            user_key=realm.key(RealmPurpose.USER),
            clock=self._clock,
        )

    def _with_others(self, own: StandaloneProvider, realm: Realm) -> IdentityProvider:
        """Return the realm's own provider, with those of the settings beside it. Raises Fatal."""
        settings, administrators = self._settings, realm.administrator.default_group
        oidc: IdentityProvider | None = None
        saml: IdentityProvider | None = None
        if settings.oidc_issuer is not None:
            from workers.identity.open import open_oidc

            issuer, fetch = open_oidc(settings, administrators, clock=self._clock)
            self._stack.push_async_callback(fetch.aclose)
            # Who runs this shall read now, not at the first token, that the issuer is a wrong one.
            # Nothing waits for that: it may be down.
            looking = asyncio.create_task(issuer.look(), name="oidc")
            self._stack.push_async_callback(_ended, looking)
            oidc = issuer
        if settings.saml_issuer is not None:
            from workers.identity.open import open_saml

            saml = open_saml(settings, administrators, clock=self._clock)
            self._stack.callback(saml.close)
        return Providers(own, oidc=oidc, saml=saml)

    async def _refresh_directory(self) -> None:
        # One damaged entry must not keep the key service from serving all other indexes.
        async for record in self._indexes.catalog.records(_report_damage):
            await self._publisher.refresh(record, self._directory)
            self._lifecycle.watch(record)

    async def _load_key(self, record: Record) -> None:
        """Read the HPKE keys anew if the record is sealed to one that another instance made."""
        if self._directory.version(KEY_SERVICE_KEY) > self._keys.version:
            await self._keys.load()
        # What is no sealed message at all is refused where it is decoded.
        with contextlib.suppress(InvalidMessage, KeyError, ValueError, TypeError):
            wanted = bytes.fromhex(parse(record.value)["key_id"])
            if self._keys.find(wanted) is None:
                await self._keys.load_at_most_once_a_second(self._clock())

    def _topic(self, name: str) -> str:
        return with_prefix(self._settings.topic_prefix, name)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _report_damage(error: Damaged) -> None:
    metrics.DAMAGED.inc(what="keys")
    log.error("an entry of the catalog is left out of key-directory", why=error.message)


def _check_pinned(settings: Settings, realm: Realm) -> None:
    pinned = settings.key_service_fingerprint
    if pinned is not None and pinned != realm.fingerprint:
        raise Fatal(
            ErrorCode.UNAUTHENTICATED,
            "the bucket's realm is not the pinned one: check key_service_fingerprint, bucket and"
            " prefix",
        )
