"""Answer key-requests: leases, decisions, object keys.

Order, per request: open and verify -> replay -> policy -> keys -> audit -> grant. What cannot be
verified is not answered: it goes to the dead letters. What is refused is answered with a signed
`deny`. Nothing is granted that the audit did not take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from schemas.auth import Scope
from schemas.errors import ErrorCode
from schemas.topics import (
    CONTENT_JSON,
    HEADER_CONTENT_TYPE,
    PLAINTEXT_INGEST,
    QUERY_REQUEST,
    with_prefix,
)
from workers.crypto.derive import Purpose
from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, HpkeSuite
from workers.crypto.secret import SecretBytes, key_view
from workers.crypto.sign import SigningKey
from workers.errors import Damaged, Reject, Retry, SealstreamError
from workers.kafka.broker import Producer, Record
from workers.keys.access import AccessEntry, AccessLists, entry_name
from workers.keys.audit import Audit
from workers.keys.callers import INGEST_RETENTION_S, Callers
from workers.keys.catalog import IndexRecord
from workers.keys.indexes import Indexes
from workers.keys.policy import (
    check_index,
    check_purposes,
    check_scopes,
    check_use,
    lease_payload,
    may_read,
    noted_refusal,
)
from workers.keys.principal import Principal, lacks
from workers.keys.publish import Publisher
from workers.keys.replay import ReplayWindow
from workers.keys.service_keys import ServiceKeys
from workers.leases.certificate import CLOCK_SKEW_S, Clock, Role, issue_certificate
from workers.leases.credential import verify_proof
from workers.leases.grant import (
    CertificatePayload,
    DecisionPayload,
    GrantHeader,
    LeasePayload,
    ObjectsPayload,
    Payload,
    ResealPayload,
    seal_grant,
    sign_denial,
)
from workers.leases.lease import ROLE_PURPOSES
from workers.leases.request import Caller, ObjectItem, OpenedRequest, RequestBody, open_request
from workers.objects.pack import split_pack_key
from workers.objects.record import open_pack_key, open_record
from workers.objects.reseal import ResealPairs, read_job, reseal, write_job
from workers.runtime.lastresort import unexpected
from workers.storage.store import Store
from workers.telemetry import metrics

DENIAL_LIFE_MS: Final = 60_000
_HEADERS: Final = ((HEADER_CONTENT_TYPE, CONTENT_JSON.encode()),)
# Where the messages lie that a worker of a role may show the credentials of.
_INPUTS: Final[dict[Role, str]] = {"ingest": PLAINTEXT_INGEST, "query": QUERY_REQUEST}

log = structlog.get_logger("keys.answers")


@dataclass(frozen=True, slots=True)
class Terms:
    """What grants are made of: lives in seconds, the lowest HPKE suite, the topic to answer on.

    `prefix`: of the deployment's topics, which callers have signed.
    """

    lease_s: int
    decision_s: int
    suite_floor: HpkeSuite
    grants: str
    partitions: int
    prefix: str


@dataclass(frozen=True, slots=True)
class _Granted:
    """`record` of the index it is about; None for certificates."""

    record: IndexRecord | None
    payload: Payload
    life_s: float
    caller: Principal | None = None

    @property
    def index(self) -> str:
        return self.record.index if self.record else ""

    @property
    def generation(self) -> int:
        return self.record.generation if self.record else 0


class Answers:
    """Answers one key-request at a time, any number concurrently."""

    def __init__(
        self,
        *,
        indexes: Indexes,
        callers: Callers,
        access: AccessLists,
        keys: ServiceKeys,
        publisher: Publisher,
        audit: Audit,
        producer: Producer,
        store: Store,
        signer: SigningKey,
        terms: Terms,
        clock: Clock = time.time,
    ) -> None:
        self._indexes = indexes
        self._callers = callers
        self._access = access
        self._keys = keys
        self._publisher = publisher
        self._audit = audit
        self._producer = producer
        self._store = store
        self._signer = signer
        self._terms = terms
        self._clock = clock
        self._replays = ReplayWindow()
        # Callers of the requests that are being answered, for the audit of a refusal.
        self._asking: dict[bytes, str] = {}
        # Until when a worker holds a lease of this instance: what makes a request a renewal.
        self._leases: dict[tuple[str, bytes, bool], float] = {}

    def expire(self) -> None:
        """Forget requests and leases that have ended. Called every second."""
        now = self._clock()
        self._replays.expire(now)
        for name in [name for name, until_s in self._leases.items() if until_s <= now]:
            del self._leases[name]

    async def handle(self, record: Record) -> None:
        """Answer one record of key-request.

        Raises:
            Reject: for the dead letters: it cannot be verified, or is a copy, and is not answered;
                or this service failed on it, and that is its answer too.
            Retry: the answer could not be produced; safe to repeat with the same record.
        """
        opened = open_request(
            record.key,
            record.value,
            private_key=self._keys.find,
            issuer=self._signer.public,
            now_s=self._clock(),
        )
        body = opened.body
        expires_s = body.expires_ms / 1000 + CLOCK_SKEW_S
        if not self._replays.admit(body.request_id, record, expires_s):
            copy = Reject(ErrorCode.CONFLICT, "a copy of a request that was seen")
            await self._audit_denial(opened, copy)
            raise copy
        if not 0 <= body.reply_partition < self._terms.partitions:
            raise Reject(ErrorCode.INVALID_MESSAGE, "the request names no partition of key-grant")
        failure: Reject | None = None
        try:
            value = await self._grant(opened)
        except (Reject, Retry) as error:
            value = await self._deny(opened, error)
        except Exception as error:
            failure = unexpected(error, record)
            value = await self._deny(opened, failure)
        finally:
            self._asking.pop(body.request_id, None)
        await self._producer.send_and_wait(
            self._terms.grants,
            value,
            key=body.worker_id.encode(),
            partition=body.reply_partition,
            headers=_HEADERS,
        )
        if failure is not None:
            raise failure

    async def _grant(self, opened: OpenedRequest) -> bytes:
        ephemeral = self._ephemeral(opened.body)
        granted = await self._decide(opened)
        try:
            return await self._sealed(opened, granted, ephemeral)
        finally:
            if isinstance(granted.payload, (LeasePayload, ObjectsPayload)):
                granted.payload.wipe()

    async def _sealed(
        self, opened: OpenedRequest, granted: _Granted, ephemeral: HpkePublicKey
    ) -> bytes:
        """Return what was granted, sealed to who asked, once the audit has it."""
        body = opened.body
        if body.generation not in (0, granted.generation):
            raise Reject(ErrorCode.CONFLICT, "this key generation is not the current one")
        now_ms = int(self._clock() * 1000)
        header = GrantHeader(
            request_id=body.request_id,
            request_sha256=opened.sha256,
            to=body.worker_id,
            index=granted.index,
            generation=granted.generation,
            purposes=tuple(body.purposes),
            not_before_ms=now_ms,
            expires_ms=now_ms + int(granted.life_s * 1000),
        )
        await self._audit.write(
            body.kind,
            decision="grant",
            request_id=body.request_id.hex(),
            worker=body.worker_id,
            caller=granted.caller.id if granted.caller else None,
            index=granted.index or None,
            generation=granted.generation or None,
            purposes=list(body.purposes),
            request_sha256=opened.sha256.hex(),
        )
        metrics.GRANTS.inc(kind=body.kind, decision="grant")
        if isinstance(granted.payload, LeasePayload):
            name = (body.worker_id, granted.payload.uid, self._is_full(opened))
            self._leases[name] = header.expires_ms / 1000
        return seal_grant(header, body.kind, granted.payload, ephemeral, self._signer)

    async def _deny(self, opened: OpenedRequest, error: Reject | Retry) -> bytes:
        body = opened.body
        await self._audit_denial(opened, error)
        metrics.GRANTS.inc(kind=body.kind, decision="deny")
        if isinstance(error, Damaged):
            metrics.DAMAGED.inc(what="keys")
            log.error("stored keys or records are damaged", request=body.kind)
        now_ms = int(self._clock() * 1000)
        header = GrantHeader(
            request_id=body.request_id,
            request_sha256=opened.sha256,
            to=body.worker_id,
            index=body.index,
            generation=0,
            purposes=tuple(body.purposes),
            not_before_ms=now_ms,
            expires_ms=now_ms + DENIAL_LIFE_MS,
            deny=error.info(),
        )
        return sign_denial(header, self._signer)

    async def _audit_denial(self, opened: OpenedRequest, error: SealstreamError) -> None:
        """Note a refusal; one that cannot be noted is told all the same: it gives nothing away."""
        body = opened.body
        try:
            await self._audit.write(
                body.kind,
                decision="deny",
                why=error.code,
                request_id=body.request_id.hex(),
                worker=body.worker_id,
                caller=self._asking.get(body.request_id),
                index=body.index or None,
                purposes=list(body.purposes),
                request_sha256=opened.sha256.hex(),
            )
        except Retry:
            log.warning("refusal not in the audit", code=error.code.value)

    async def _decide(self, opened: OpenedRequest) -> _Granted:
        body = opened.body
        if self._indexes.directory.revocations.covers(opened.certificate):
            raise Reject(ErrorCode.FORBIDDEN, "this worker was revoked: enrol it anew")
        if body.kind == "certificate":
            return self._certificate(opened)
        # Before the index is looked up: a worker learns nothing about indexes that are not its own.
        if body.index:
            check_index(opened.certificate, body.index)
        record = await self._indexes.record(body.index, body.uid)
        check_index(opened.certificate, record.index)
        if body.kind == "refusal":
            raise noted_refusal(body.purposes)
        if body.kind == "lease":
            return await self._lease(opened, record)
        if body.kind == "reseal":
            return await self._reseal(opened, record)
        if body.caller is None:
            raise Reject(ErrorCode.INVALID_MESSAGE, "the request names no caller")
        principal = await self._caller(opened, body.caller, record)
        if body.kind == "decision":
            check_scopes(principal, body.purposes)
            return self._decision(principal, record)
        return await self._objects(opened, record, principal)

    def _certificate(self, opened: OpenedRequest) -> _Granted:
        """Certify a worker for longer: the same role, indexes and key."""
        old = opened.certificate
        new = issue_certificate(
            self._signer,
            worker_id=old.worker_id,
            role=old.role,
            indexes=old.indexes,
            sign_pub=old.sign_pub,
            now_s=self._clock(),
        )
        return _Granted(None, CertificatePayload(new.encoded), DENIAL_LIFE_MS / 1000)

    async def _caller(
        self, opened: OpenedRequest, caller: Caller, record: IndexRecord
    ) -> Principal:
        role = opened.certificate.role
        if role == "index":
            raise Reject(ErrorCode.FORBIDDEN, "an index worker meets no callers")
        principal = await self._callers.of_message(caller, record, role)
        self._asking[opened.body.request_id] = principal.id
        if principal.cnf is not None:
            topic = with_prefix(self._terms.prefix, _INPUTS[role])
            verify_proof(principal.cnf, caller.proof, topic)
        self._callers.check_revoked(principal)
        await self._indexes.prove(record, principal.index_key)
        check_use(role, principal)
        return principal

    async def _lease(self, opened: OpenedRequest, record: IndexRecord) -> _Granted:
        body, role = opened.body, opened.certificate.role
        check_purposes(role, body.purposes, with_caller=body.caller is not None)
        principal = None
        if body.caller is not None:
            principal = await self._caller(opened, body.caller, record)
        renewal = (body.worker_id, record.uid, self._is_full(opened)) in self._leases
        ring = await self._indexes.open(record, fresh=not renewal)
        if Purpose.INGEST in body.purposes:
            keep_s = INGEST_RETENTION_S
            record = await self._indexes.with_todays_ingest_key(record, ring, keep_s)
            if self._indexes.directory.version(record.index) < record.version:
                await self._publisher.index(record)
        payload = lease_payload(role, record, ring, body.purposes)
        return _Granted(record, payload, self._terms.lease_s, principal)

    def _decision(self, principal: Principal, record: IndexRecord) -> _Granted:
        life_s = min(self._terms.decision_s, principal.expires_s - self._clock())
        payload = DecisionPayload(
            caller=principal.id,
            groups=list(principal.groups),
            default_group=principal.default_group,
            scopes=sorted(principal.scopes),
            cnf=principal.cnf,
            expires_ms=int((self._clock() + life_s) * 1000),
            group_scopes={g: sorted(s) for g, s in principal.group_scopes.items()},
        )
        # The header's life bounds its delivery, the payload's its reuse.
        return _Granted(record, payload, DENIAL_LIFE_MS / 1000, principal)

    async def _objects(
        self, opened: OpenedRequest, record: IndexRecord, principal: Principal
    ) -> _Granted:
        body = opened.body
        if opened.certificate.role != "query":
            raise Reject(ErrorCode.FORBIDDEN, "only query workers open objects")
        if Scope.DECRYPT not in principal.any_scopes:
            raise lacks(Scope.DECRYPT)
        renewal = (body.worker_id, record.uid, True) in self._leases
        ring = await self._indexes.open(record, fresh=not renewal)
        ring.check()
        pairs = {g: ring.pair(g, Purpose.OBJECT) for g in ring.data_keys}
        groups = principal.groups_with(Scope.DECRYPT)
        changed = await self._access.changed(record.uid, _entry_names(body))
        keys = await asyncio.to_thread(_open_all, body, record.uid, pairs, groups, changed)
        if None in keys:
            denied = Reject(ErrorCode.FORBIDDEN, "the caller is not on the access list")
            await self._audit_denial(opened, denied)
        return _Granted(record, ObjectsPayload(keys), DENIAL_LIFE_MS / 1000, principal)

    async def _reseal(self, opened: OpenedRequest, record: IndexRecord) -> _Granted:
        """Seal access records and words for the current generation; the worker sees none of it."""
        body = opened.body
        if opened.certificate.role != "index":
            raise Reject(ErrorCode.FORBIDDEN, "only index workers move records")
        if body.job is None or len(body.job.uid) != 16:
            raise Reject(ErrorCode.INVALID_MESSAGE, "the request names no job")
        renewal = (body.worker_id, record.uid, True) in self._leases
        ring = await self._indexes.open(record, fresh=not renewal)
        data = await read_job(self._store, record.uid, body.job)
        ring.check()
        pairs = ResealPairs(
            objects={g: ring.pair(g, Purpose.OBJECT) for g in ring.data_keys},
            queries={g: ring.pair(g, Purpose.QUERY) for g in ring.data_keys},
            generation=record.generation,
        )
        answer = await asyncio.to_thread(reseal, data, pairs, record.uid)
        job = await write_job(self._store, record.uid, answer)
        payload = ResealPayload(job, record.generation)
        return _Granted(record, payload, DENIAL_LIFE_MS / 1000)

    def _ephemeral(self, body: RequestBody) -> HpkePublicKey:
        try:
            return HpkePublicKey.decode(body.ephemeral, floor=self._terms.suite_floor)
        except ValueError as error:
            raise Reject(
                ErrorCode.UNSUPPORTED, "the request's key is of no suite that is accepted here"
            ) from error

    def _is_full(self, opened: OpenedRequest) -> bool:
        return ROLE_PURPOSES[opened.certificate.role] == set(opened.body.purposes)


def _open_all(
    body: RequestBody,
    uid: bytes,
    pairs: dict[int, HpkePrivateKey],
    groups: tuple[str, ...],
    changed: Sequence[AccessEntry | None],
) -> list[bytearray | None]:
    """Open a batch of access records; None where the caller may not read. Runs in a thread.

    A list that was changed counts instead of the record's, whichever record is shown.

    Raises:
        Damaged: a record or pack key does not open.
        Reject: INVALID_MESSAGE.
    """
    packs: dict[int, tuple[int, SecretBytes]] = {}
    keys: list[bytearray | None] = []
    try:
        for item, entry in zip(body.objects, changed, strict=True):
            if item.pack not in packs:
                packs[item.pack] = _open_pack(body, item, uid, pairs)
            generation, pack_key = packs[item.pack]
            if generation != item.generation:
                raise OpenFailed("a record of another generation")
            found = open_record(
                pack_key,
                item.record,
                index_uid=uid,
                generation=generation,
                object_id=item.object_id,
                content_sha256=item.sealed_sha256,
            )
            listed = found.groups if entry is None else entry.groups
            keys.append(bytearray(key_view(found.object_key)) if may_read(groups, listed) else None)
            # The next one may fail, and its error would keep this key.
            del found
    except OpenFailed as error:
        raise Damaged(
            ErrorCode.DAMAGED, "an access record does not open: damaged, exchanged or rolled back"
        ) from error
    finally:
        for _, pack_key in packs.values():
            pack_key.wipe()
        if len(keys) < len(body.objects):
            # One of them failed: nobody gets the others.
            ObjectsPayload(keys).wipe()
    return keys


def _entry_names(body: RequestBody) -> list[str]:
    """Return what the access lists of the asked objects are called. Raises Reject, Damaged."""
    packs = [split_pack_key(wrapped).uid for wrapped in body.pack_keys]
    if any(not 0 <= item.pack < len(packs) for item in body.objects):
        raise Reject(ErrorCode.INVALID_MESSAGE, "an object names no pack key")
    return [entry_name(item.object_id, packs[item.pack]) for item in body.objects]


def _open_pack(
    body: RequestBody, item: ObjectItem, uid: bytes, pairs: dict[int, HpkePrivateKey]
) -> tuple[int, SecretBytes]:
    wrapped = split_pack_key(body.pack_keys[item.pack])
    private = pairs.get(wrapped.generation)
    if private is None:
        raise OpenFailed("a pack key of an unknown generation")
    key = open_pack_key(
        private,
        wrapped.sealed,
        index_uid=uid,
        generation=wrapped.generation,
        pack_uid=wrapped.uid,
    )
    return wrapped.generation, key
