"""Hold what the key service grants (`asking.py`), renew it, wipe it.

One `LeaseHolder` per worker process. Invariants:
- Keys live in memory only and end with their lease; renewal starts at two thirds of its life.
- One request at a time per index and kind of lease: who comes meanwhile shares the answer.
- Decisions are reused for at most `decision_cache_s`, by the hash of index (name and uid) and
  credential; refusals are not reused, so that an index that was created just now is known at once.
- The worker's certificate is renewed when half of its life is over. When it has ended, or was
  revoked, every call raises Fatal, and all keys are wiped.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import msgspec
import structlog

from schemas.auth import Auth, Scope
from schemas.errors import ErrorCode
from schemas.sealed import SealedValue
from workers.crypto.derive import Purpose
from workers.crypto.hpke import HpkeSuite, key_id
from workers.crypto.info import Info
from workers.crypto.lp import lp
from workers.crypto.secret import SecretBytes
from workers.errors import Fatal, Reject, Retry
from workers.kafka.broker import Broker
from workers.leases.asking import ASK_TIMEOUT_S, Asking
from workers.leases.certificate import (
    CLOCK_SKEW_S,
    Clock,
    Role,
    WorkerIdentity,
    verify_certificate,
)
from workers.leases.credential import Proof, open_value, verify_message
from workers.leases.directory import KeyDirectory
from workers.leases.grant import (
    CertificatePayload,
    DecisionPayload,
    GrantHeader,
    LeasePayload,
    ObjectsPayload,
    ResealPayload,
)
from workers.leases.lease import (
    INTAKE_PURPOSES,
    ROLE_PURPOSES,
    Decision,
    Lease,
    ObjectRequest,
    build_lease,
)
from workers.leases.request import (
    MAX_OBJECTS,
    Caller,
    Job,
    ObjectItem,
)
from workers.settings import Settings
from workers.telemetry import metrics

__all__ = ["Decision", "Lease", "LeaseHolder", "ObjectRequest", "Purpose"]

log = structlog.get_logger("leases.holder")

RENEW_AT: Final = 2 / 3
# A lease that nothing has used for so long is not renewed.
IDLE_S: Final = 900.0
CERTIFICATE_RENEW_AT: Final = 0.5
_CERTIFICATE_RETRY_S: Final = 60.0
_RETRY_S: Final = 5.0
_TICK_S: Final = 1.0
_MAX_DECISIONS: Final = 10_000
# Keeps a batch of object requests well below the largest record.
_MAX_OBJECT_BYTES: Final = 300_000

SUITES: Final = {
    "mlkem768-x25519": HpkeSuite.MLKEM768_X25519,
    "x25519": HpkeSuite.X25519,
}


@dataclass(slots=True, eq=False)
class _Held:
    """A lease in use, and what its renewal needs."""

    lease: Lease
    caller: Caller | None
    used_s: float
    not_before_s: float = 0.0
    renewing: asyncio.Task[None] | None = None


class LeaseHolder:
    """A worker's keys and what it knows about callers. Use one per process.

    Order: `await directory.start()`, `await holder.start()`, ..., `await holder.stop()`.
    """

    def __init__(
        self,
        broker: Broker,
        identity: WorkerIdentity,
        directory: KeyDirectory,
        settings: Settings,
        *,
        clock: Clock = time.time,
        ask_timeout_s: float = ASK_TIMEOUT_S,
    ) -> None:
        """Prepare.

        Args:
            broker: where to ask.
            identity: who asks.
            directory: whom to ask; started and stopped by the caller.
            settings: suite, life of leases and decisions, whether clear tokens are accepted.
            clock: seconds since 1970.
            ask_timeout_s: seconds to wait for an answer of the key service.
        """
        self._identity = identity
        self._directory = directory
        self._settings = settings
        self._clock = clock
        self._asking = Asking(
            broker,
            identity,
            directory,
            SUITES[settings.hpke_suite],
            settings.topic_prefix,
            self._check,
            clock=clock,
            timeout_s=ask_timeout_s,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._held: dict[bytes, _Held] = {}
        self._uids: dict[str, bytes] = {}
        self._retired: list[Lease] = []
        self._decisions: OrderedDict[bytes, Decision] = OrderedDict()
        # Until when a refusal need not be reported again.
        self._reported: OrderedDict[bytes, float] = OrderedDict()
        self._certifying: asyncio.Task[None] | None = None
        self._certify_after_s = 0.0
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    @property
    def role(self) -> Role:
        """The role in this worker's certificate."""
        return self._identity.role

    async def start(self) -> None:
        """Begin to listen for grants; returns when none can be missed. Raises Retry, Fatal."""
        await self._asking.start()
        self._tasks = [
            asyncio.create_task(self._asking.listen(), name="key-grants"),
            asyncio.create_task(self._keep(), name="key-renewals"),
        ]

    async def stop(self) -> None:
        """Stop listening and wipe everything."""
        tasks = [*self._tasks, *(h.renewing for h in self._held.values() if h.renewing)]
        tasks += [self._certifying] if self._certifying else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks = []
        await self._asking.stop()
        self._wipe_all()

    async def lease(
        self,
        index: str | None,
        *,
        uid: bytes | None = None,
        auth: Auth | None = None,
        proof: Proof | None = None,
    ) -> Lease:
        """Return the keys of an index for this worker's role.

        Args:
            index: its name; or None and `uid`.
            uid: 16 bytes.
            auth: credential of a caller, already accepted by `decide`. Without it an ingest or
                query worker gets the lease it has, or else one with the intake key only.
            proof: of a message that shows a sealed credential; the key service checks it.

        Raises:
            Reject: UNKNOWN_INDEX, UNAUTHENTICATED, FORBIDDEN, WRONG_KEY, EXPIRED; Damaged.
            Retry: KEY_UNAVAILABLE.
            Fatal: this worker's certificate has expired, or the holder's tasks ended.
        """
        found = self._current(index, uid, full=auth is not None)
        if found is not None:
            return found.lease
        async with self._lock(lp("lease", index or "", uid or b"")):
            found = self._current(index, uid, full=auth is not None)
            if found is not None:
                return found.lease
            return (await self._acquire(index, uid, _caller(auth, proof))).lease

    async def open_value(
        self,
        kind: Info,
        value: SealedValue,
        *,
        auth: Auth | None = None,
        proof: Proof | None = None,
    ) -> bytes:
        """Open a sealed message of this worker's input topic.

        Args:
            kind: `Info.INGEST_VALUE` or `Info.QUERY_VALUE`.
            value: as decoded.
            auth: the credential of the header `sealstream-auth`, if the message has one.
            proof: of that message.

        Returns:
            The JSON message, whose own credential is still to be decided.

        Raises:
            Reject: EXPIRED, sealed to a key that is not kept; INVALID_MESSAGE; and as `lease`.
            Retry: as `lease`.
        """
        if value.index is None:
            raise Reject(ErrorCode.INVALID_MESSAGE, "a sealed value names its index", field="index")
        lease = await self.lease(value.index, auth=auth, proof=proof)
        wanted = value.key_id_bytes()
        if not lease.has_intake_key(wanted):
            lease = await self._with_intake_key(lease, wanted)
        return open_value(kind, lease.intake_key(wanted), value)

    async def decide(
        self,
        index: str,
        auth: Auth,
        *,
        signature: bytes | None = None,
        signed: tuple[str, bytes | None, bytes] | None = None,
        message_id: str | None = None,
        issued_ms: int | None = None,
    ) -> Decision:
        """Find out who a caller is and what they may do; check that the message is theirs.

        Args:
            index: the index the message names.
            auth: its credential.
            signature: its header `sealstream-sig`.
            signed: topic, key and value of its record, as read.
            message_id: as in the message; needed with a sealed credential.
            issued_ms: as in the message; needed with a sealed credential.

        Raises:
            Reject: UNKNOWN_INDEX, UNAUTHENTICATED, FORBIDDEN, WRONG_KEY, EXPIRED, INVALID_MESSAGE.
            Retry: KEY_UNAVAILABLE.
        """
        self._check_form(auth, message_id, issued_ms)
        # By uid too: a decision about an index says nothing about the next one of that name.
        entry = self._directory.find(index)
        uid = b"" if entry is None else entry.uid
        name = hashlib.sha256(lp(index, uid, auth.sealed or "", auth.token or "")).digest()
        decision = self._decided(name)
        if decision is None:
            async with self._lock(name):
                proof = None if signed is None else Proof.made(signature, *signed[1:])
                decision = self._decided(name) or await self._ask_decision(
                    name, index, _caller(auth, proof)
                )
        if auth.sealed is not None:
            if decision.cnf is None or signed is None:
                raise Reject(ErrorCode.UNAUTHENTICATED, "a sealed credential names no session key")
            verify_message(decision.cnf, signature, *signed)
        return decision

    async def report(
        self, index: str, auth: Auth, scopes: Sequence[Scope], *, proof: Proof | None = None
    ) -> None:
        """Let the key service note that a caller was refused for want of scopes.

        It decides itself, so its audit has the refusal of a caller whose decision was cached; once
        per credential and scopes within the life of a decision. Without an answer nothing is lost
        but the note.

        Args:
            index: the index the message names.
            auth: its credential.
            scopes: what the message needs.
            proof: of that message.
        """
        asked = [scope.value for scope in sorted(set(scopes))]
        name = hashlib.sha256(lp(index, auth.sealed or "", auth.token or "", *asked)).digest()
        now = self._clock()
        if self._reported.get(name, 0.0) > now:
            return
        self._reported[name] = now + self._settings.decision_cache_s
        self._reported.move_to_end(name)
        while len(self._reported) > _MAX_DECISIONS:
            self._reported.popitem(last=False)
        caller = _caller(auth, proof)
        try:
            await self._asking.ask(
                DecisionPayload, kind="decision", index=index, purposes=asked, caller=caller
            )
        except (Reject, Retry) as error:
            log.debug("refusal reported", code=error.code.value)

    async def note_refusals(self, index: str, why: ErrorCode, operations: Sequence[str]) -> bool:
        """Let the audit have operations that this worker refused; return False without an answer.

        Args:
            index: whose operations.
            why: the code they were refused with.
            operations: which they were, in words of the contract.
        """
        purposes = [why.value, *operations]
        try:
            await self._asking.ask(DecisionPayload, kind="refusal", index=index, purposes=purposes)
        except Retry as error:
            log.debug("refusals not noted", code=error.code.value)
            return False
        except Reject as error:
            log.debug("refusals noted", code=error.code.value)
        return True

    async def open_objects(
        self,
        lease: Lease,
        auth: Auth,
        items: Sequence[ObjectRequest],
        *,
        proof: Proof | None = None,
    ) -> list[SecretBytes | None]:
        """Return the object keys of the records the caller may read; None for the others.

        Args:
            lease: of the index the records belong to.
            auth: the caller, already accepted by `decide`.
            items: any number; asked for in batches.
            proof: of the message that shows a sealed credential.

        Raises:
            Reject: as `decide`; Damaged, a record does not open.
            Retry: KEY_UNAVAILABLE.
        """
        keys: list[SecretBytes | None] = []
        for batch in _batches(items):
            packs = list(dict.fromkeys(item.pack_key for item in batch))
            numbers = {pack: number for number, pack in enumerate(packs)}
            objects = [
                ObjectItem(
                    item.object_id,
                    item.generation,
                    item.sealed_sha256,
                    item.record,
                    numbers[item.pack_key],
                )
                for item in batch
            ]
            _, payload = await self._asking.ask(
                ObjectsPayload,
                kind="objects",
                index=lease.index,
                uid=lease.uid,
                caller=_caller(auth, proof),
                objects=objects,
                pack_keys=packs,
            )
            if len(payload.keys) != len(batch):
                raise Reject(ErrorCode.UNAUTHENTICATED, "the grant is for other objects")
            keys += [None if key is None else SecretBytes(key) for key in payload.keys]
            payload.wipe()
        return keys

    async def reseal(self, lease: Lease, job: Job) -> tuple[Job, int]:
        """Let the key service seal records anew, see `workers.objects.reseal`.

        Args:
            lease: of the index.
            job: the object with what is to be sealed anew.

        Returns:
            The object with the answer, and the key generation it is for.

        Raises:
            Reject: FORBIDDEN, this is no index worker; Damaged, something does not open.
            Retry: KEY_UNAVAILABLE.
        """
        _, payload = await self._asking.ask(
            ResealPayload, kind="reseal", index=lease.index, uid=lease.uid, job=job
        )
        return payload.job, payload.generation

    async def tick(self) -> None:
        """Wipe what has ended and start the renewals that are due. Called every second."""
        now = self._clock()
        if self._revoked():
            self._wipe_all()
        self._renew_certificate_when_due(now)
        for lease in [lease for lease in self._retired if lease.expires_s <= now]:
            lease.wipe()
            self._retired.remove(lease)
        for held in list(self._held.values()):
            lease = held.lease
            if lease.expires_s <= now:
                self._drop(held)
            elif (
                (
                    now >= lease.issued_s + RENEW_AT * (lease.expires_s - lease.issued_s)
                    or self._outdated(lease)
                )
                and now >= held.not_before_s
                and now - held.used_s < IDLE_S
                and (held.renewing is None or held.renewing.done())
            ):
                held.renewing = asyncio.create_task(self._renew(held), name="key-renewal")
        metrics.LEASES.set(len(self._held))
        revocations = self._directory.revocations
        for name, decision in list(self._decisions.items()):
            if decision.expires_s <= now or revocations.find("user", decision.caller):
                del self._decisions[name]

    async def settled(self) -> None:
        """Wait until the renewals that were started have ended."""
        renewals = [held.renewing for held in self._held.values() if held.renewing is not None]
        renewals += [self._certifying] if self._certifying is not None else []
        await asyncio.gather(*renewals, return_exceptions=True)

    async def end(self) -> None:
        """Wait until this worker may not go on: it was revoked, or its certificate has ended.

        Raises:
            Fatal: what it was.
        """
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self._check_certificate()
        self._check_tasks()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            await self.tick()
            # An idle worker asks for nothing: it must hear of it all the same.
            self._check_certificate()

    async def _renew(self, held: _Held) -> None:
        lease = held.lease
        try:
            await self._acquire(lease.index, lease.uid, held.caller if lease.full else None)
        except Retry:
            held.not_before_s = self._clock() + _RETRY_S
        except Reject as error:
            log.warning("lease not renewed", code=error.code.value)
            held.not_before_s = lease.expires_s
            if error.code is ErrorCode.UNKNOWN_INDEX:
                self._drop(held)

    def _renew_certificate_when_due(self, now: float) -> None:
        certificate = self._identity.certificate
        life_s = certificate.expires_s - certificate.not_before_s
        if (
            now >= certificate.not_before_s + CERTIFICATE_RENEW_AT * life_s
            and now >= self._certify_after_s
            and (self._certifying is None or self._certifying.done())
        ):
            # Whatever comes of it: not again at once.
            self._certify_after_s = now + _CERTIFICATE_RETRY_S
            self._certifying = asyncio.create_task(self._renew_certificate(), name="certificate")

    async def _renew_certificate(self) -> None:
        """Ask for the next certificate and go on with it; tried again while the old one lives."""
        try:
            _, payload = await self._asking.ask(CertificatePayload, kind="certificate")
            issuer = self._directory.key_service.sign_pub
            self._identity.renew(
                verify_certificate(payload.certificate, issuer, now_s=self._clock())
            )
        except (Retry, Reject) as error:
            log.warning("certificate not renewed", code=error.code.value)
            return
        log.info("certificate renewed", expires_s=self._identity.certificate.expires_s)
        try:
            await asyncio.to_thread(self._identity.save_certificate)
        except OSError as error:
            # In memory it is as good; a restart before the next one needs the old one's rest.
            log.warning("certificate not saved", why=type(error).__name__)

    def _revoked(self) -> bool:
        return self._directory.revocations.covers(self._identity.certificate)

    def _wipe_all(self) -> None:
        for lease in (*(held.lease for held in self._held.values()), *self._retired):
            lease.wipe()
        self._held.clear()
        self._uids.clear()
        self._retired.clear()
        self._decisions.clear()

    def _drop(self, held: _Held) -> None:
        lease = held.lease
        lease.wipe()
        if self._held.get(lease.uid) is held:
            del self._held[lease.uid]
            self._uids.pop(lease.index, None)

    async def _with_intake_key(self, lease: Lease, wanted: bytes) -> Lease:
        """Renew a lease when the directory names an intake key that is newer than it."""
        await self._directory.refresh()
        entry = self._directory.find(lease.index)
        publics = (*entry.ingest_pubs, entry.query_pub) if entry else ()
        if wanted not in map(key_id, publics):
            return lease
        async with self._lock(lp("lease", lease.index, b"")):
            held = self._held.get(lease.uid)
            if held is not None and held.lease is not lease:
                return held.lease
            caller = held.caller if held is not None and lease.full else None
            return (await self._acquire(lease.index, lease.uid, caller)).lease

    def _current(self, index: str | None, uid: bytes | None, *, full: bool) -> _Held | None:
        """Return what is held and still good, and count it as used."""
        wanted = uid if uid is not None else self._uids.get(index or "")
        held = self._held.get(wanted) if wanted is not None else None
        if held is None:
            return None
        lease = held.lease
        self._check_certificate()
        if lease.expires_s <= self._clock() or self._superseded(lease):
            self._drop(held)
            return None
        if full and not lease.full:
            return None
        held.used_s = self._clock()
        return held

    def _superseded(self, lease: Lease) -> bool:
        """Tell whether the directory says that the name was deleted or is another index now."""
        if self._directory.version(lease.index) <= lease.directory_version:
            return False
        entry = self._directory.find(lease.index)
        return entry is None or entry.uid != lease.uid

    def _outdated(self, lease: Lease) -> bool:
        """Tell whether another key generation is the one to write with now."""
        if self._directory.version(lease.index) <= lease.directory_version:
            return False
        entry = self._directory.find(lease.index)
        return entry is not None and entry.generation != lease.generation

    async def _acquire(self, index: str | None, uid: bytes | None, caller: Caller | None) -> _Held:
        full = caller is not None or self.role == "index"
        purposes = (ROLE_PURPOSES if full else INTAKE_PURPOSES)[self.role]
        header, payload = await self._asking.ask(
            LeasePayload,
            kind="lease",
            index=index or "",
            uid=uid or b"",
            purposes=sorted(purposes),
            caller=caller,
        )
        lease = self._lease(header, payload, full=full)
        if (uid is not None and lease.uid != uid) or (index is not None and lease.index != index):
            lease.wipe()
            raise Reject(ErrorCode.UNAUTHENTICATED, "the grant is for another index")
        if lease.purposes != purposes:
            lease.wipe()
            raise Reject(ErrorCode.UNAUTHENTICATED, "the grant carries other keys than asked for")
        return self._keep_lease(lease, caller)

    def _lease(self, header: GrantHeader, payload: LeasePayload, *, full: bool) -> Lease:
        now = self._clock()
        life_s = min(header.expires_ms / 1000 - now, self._settings.lease_s)
        try:
            return build_lease(
                payload,
                role=self.role,
                generation=header.generation,
                issued_s=now,
                expires_s=now + life_s,
                full=full,
            )
        except (ValueError, msgspec.MsgspecError) as error:
            raise Reject(ErrorCode.UNAUTHENTICATED, "the grant is malformed") from error
        finally:
            payload.wipe()

    def _keep_lease(self, lease: Lease, caller: Caller | None) -> _Held:
        before = self._held.get(lease.uid)
        used_s = before.used_s if before is not None else self._clock()
        if before is not None and before.lease.full and not lease.full:
            # Never replace keys by fewer: this one serves its caller and ends.
            self._retired.append(lease)
            return _Held(lease, caller, used_s)
        held = _Held(lease, caller, max(used_s, lease.issued_s) if before is None else used_s)
        if before is not None:
            lease.take_over(before.lease)
            self._retired.append(before.lease)
        self._held[lease.uid] = held
        self._uids[lease.index] = lease.uid
        return held

    def _check_form(self, auth: Auth, message_id: str | None, issued_ms: int | None) -> None:
        if auth.sealed is None:
            if not self._settings.allow_plain_credentials:
                raise Reject(
                    ErrorCode.UNAUTHENTICATED,
                    "tokens in clear are not accepted here: send auth.sealed",
                    field="auth.token",
                )
            return
        for name, value in (("message_id", message_id), ("issued_ms", issued_ms)):
            if value is None:
                raise Reject(ErrorCode.INVALID_MESSAGE, "is required with auth.sealed", field=name)
        if issued_ms is not None and issued_ms > (self._clock() + CLOCK_SKEW_S) * 1000:
            raise Reject(
                ErrorCode.UNAUTHENTICATED, "issued in the future: set the clock", field="issued_ms"
            )

    def _decided(self, name: bytes) -> Decision | None:
        decision = self._decisions.get(name)
        if decision is None or decision.expires_s <= self._clock():
            return None
        self._decisions.move_to_end(name)
        return decision

    async def _ask_decision(self, name: bytes, index: str, caller: Caller | None) -> Decision:
        _, payload = await self._asking.ask(
            DecisionPayload, kind="decision", index=index, caller=caller
        )
        expires_s = min(payload.expires_ms / 1000, self._clock() + self._settings.decision_cache_s)
        decision = Decision(
            caller=payload.caller,
            index=index,
            groups=tuple(payload.groups),
            default_group=payload.default_group,
            scopes=frozenset(Scope(scope) for scope in payload.scopes),
            cnf=payload.cnf,
            expires_s=expires_s,
            group_scopes={
                group: frozenset(Scope(scope) for scope in scopes)
                for group, scopes in payload.group_scopes.items()
            },
        )
        self._decisions[name] = decision
        while len(self._decisions) > _MAX_DECISIONS:
            self._decisions.popitem(last=False)
        return decision

    def _check(self) -> None:
        """Tell whether this worker may ask. Raises Fatal."""
        # First: a task that looked at the certificate before has ended by that.
        self._check_certificate()
        self._check_tasks()

    def _check_tasks(self) -> None:
        for task in self._tasks:
            if task.done():
                raise Fatal(ErrorCode.KEY_UNAVAILABLE, f"the task {task.get_name()} ended") from (
                    None if task.cancelled() else task.exception()
                )

    def _check_certificate(self) -> None:
        """End the process when its certificate has ended: nobody would answer it."""
        if self._revoked():
            self._wipe_all()
            raise Fatal(ErrorCode.FORBIDDEN, "this worker was revoked: enrol it anew")
        if self._clock() >= self._identity.certificate.expires_s:
            raise Fatal(
                ErrorCode.EXPIRED, "this worker's certificate has expired: enrol the worker anew"
            )

    def _lock(self, name: bytes) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


def _caller(auth: Auth | None, proof: Proof | None) -> Caller | None:
    return None if auth is None else Caller(auth.sealed, auth.token, proof)


def _batches(items: Sequence[ObjectRequest]) -> Iterator[list[ObjectRequest]]:
    batch: list[ObjectRequest] = []
    size = 0
    for item in items:
        # Pack keys are counted with every record: an upper bound is enough.
        cost = len(item.record) + len(item.pack_key) + 80
        if batch and (len(batch) == MAX_OBJECTS or size + cost > _MAX_OBJECT_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += cost
    if batch:
        yield batch
