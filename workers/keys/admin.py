"""Administrative operations on indexes.

An admin-request comes sealed to the key service as a whole. Order: open -> replay -> who asks ->
operation -> audit -> result, sealed to `reply.public_key` and signed. The audit has the intent of
every change before the change is begun (`decision` = `none`) and its outcome before it is told.

A request is good for `LIFE_S` after its `issued_ms`; copies within that time are refused. The
operations are idempotent besides: a create that is delivered again finds its own request id in the
catalog, a delete goes on where it stopped.

Create:  keys -> catalog entry (conditional: of two creators one wins) -> directory -> result
Delete:  catalog entry `deleting` -> directory -> keys -> data -> catalog entry gone -> result
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast
from uuid import UUID

import structlog

from schemas.admin import AdminOp, AdminRequest, AdminResult, IndexArgs, IndexCreate, KmsChoice
from schemas.auth import Scope
from schemas.codec import decode, encode, to_plain
from schemas.errors import ErrorCode, InvalidMessage
from schemas.sealed import SealedValue
from schemas.topics import CONTENT_SEALED, HEADER_CONTENT_TYPE, HEADER_SIGNATURE
from schemas.values import decode_base64
from workers.crypto.derive import Purpose
from workers.crypto.errors import CryptoError
from workers.crypto.hpke import HpkePublicKey, HpkeSuite, key_id
from workers.crypto.info import Info, info
from workers.crypto.sign import SigningKey
from workers.errors import Damaged, Reject, Retry
from workers.kafka.broker import Producer, Record
from workers.keys.audit import Audit
from workers.keys.callers import Callers, Principal
from workers.keys.catalog import PROVIDER_NONE, IndexRecord, unknown_index
from workers.keys.hierarchy import FIRST_GENERATION
from workers.keys.indexes import Indexes
from workers.keys.keyring import KeyRing
from workers.keys.policy import check_owner
from workers.keys.publish import Publisher
from workers.keys.replay import ReplayWindow
from workers.keys.service_keys import ServiceKeys
from workers.kms.base import Kms, check_key_id
from workers.leases.certificate import CLOCK_SKEW_S, Clock
from workers.leases.credential import verify_message
from workers.leases.directory import KEY_SERVICE_KEY, PublicKey
from workers.runtime.lastresort import unexpected
from workers.storage import layout
from workers.storage.store import Store
from workers.telemetry import metrics

LIFE_S: Final = 600
_DELETE_BATCH: Final = 500

Result = dict[str, Any]
Partitions = Callable[[], Awaitable[int]]

log = structlog.get_logger("keys.admin")


class _Unfinished(Retry):
    """Raised when a change was begun and could not be ended: the same record goes on with it."""


class Admin:
    """Runs one admin-request at a time, any number concurrently."""

    def __init__(
        self,
        *,
        store: Store,
        kms: Kms,
        indexes: Indexes,
        callers: Callers,
        keys: ServiceKeys,
        publisher: Publisher,
        audit: Audit,
        producer: Producer,
        signer: SigningKey,
        suite: HpkeSuite,
        results: str,
        partitions: Partitions,
        allow_plain: bool,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            store: where indexes lie.
            kms: wraps the KEKs of new indexes.
            indexes: catalog and keys.
            callers: who asks.
            keys: open requests.
            publisher: writes key-directory.
            audit: takes every operation.
            producer: writes results.
            signer: the key service's identity.
            suite: HPKE suite of new indexes.
            results: topic admin-result, with prefix.
            partitions: returns the number of partitions of index-update.
            allow_plain: accept requests without `issued_ms` (the local stack).
            clock: seconds since 1970.
        """
        self._store = store
        self._kms = kms
        self._indexes = indexes
        self._callers = callers
        self._keys = keys
        self._publisher = publisher
        self._audit = audit
        self._producer = producer
        self._signer = signer
        self._suite = suite
        self._results = results
        self._partitions = partitions
        self._allow_plain = allow_plain
        self._clock = clock
        self._replays = ReplayWindow()

    def expire(self) -> None:
        """Forget requests that are no longer good. Called every second."""
        self._replays.expire(self._clock())

    async def handle(self, record: Record) -> None:
        """Run one record of admin-request.

        Raises:
            Reject: for the dead letters: it cannot be opened, is a copy or too old, and is not
                answered; or this service failed on it, and that is its answer too.
            Retry: safe to repeat with the same record.
        """
        request, reply = self._open(record)
        self._admit(request, record)
        failure: Reject | None = None
        try:
            result = await self._run(request, record)
            answer = AdminResult(request_id=request.request_id, status="ok", result=result)
        except Reject as error:
            if isinstance(error, Damaged):
                metrics.DAMAGED.inc(what="keys")
            answer = AdminResult(request_id=request.request_id, status="error", error=error.info())
            await self._note(request, decision="deny", why=error.code)
        except _Unfinished:
            raise
        except Retry as error:
            # The caller decides whether to try again; nothing here waits for a KMS to come back.
            log.warning("admin operation not possible now", code=error.code.value)
            answer = AdminResult(request_id=request.request_id, status="error", error=error.info())
        except Exception as error:
            failure = unexpected(error, record)
            answer = AdminResult(
                request_id=request.request_id, status="error", error=failure.info()
            )
            await self._note(request, decision="deny", why=failure.code)
        metrics.GRANTS.inc(kind="admin", decision="grant" if answer.error is None else "deny")
        await self._answer(request, reply, answer)
        if failure is not None:
            raise failure

    def _open(self, record: Record) -> tuple[AdminRequest, HpkePublicKey]:
        try:
            sealed = decode(SealedValue, record.value)
            private = self._keys.find(sealed.key_id_bytes())
            if private is None:
                raise Reject(ErrorCode.EXPIRED, "sealed to a key of the key service that is gone")
            plain = private.open(info(Info.ADMIN_REQUEST), sealed.ciphertext())
            request = decode(AdminRequest, plain)
            key = decode_base64(request.reply.public_key or "", "reply.public_key")
            return request, HpkePublicKey.decode(key)
        except InvalidMessage as error:
            raise Reject(error.code, error.message, field=error.field) from error
        except (CryptoError, ValueError) as error:
            raise Reject(
                ErrorCode.INVALID_MESSAGE, "the admin-request does not open, or its reply key"
            ) from error

    def _admit(self, request: AdminRequest, record: Record) -> None:
        now = self._clock()
        issued_s = now if request.issued_ms is None else request.issued_ms / 1000
        if request.issued_ms is None and not self._allow_plain:
            raise Reject(ErrorCode.INVALID_MESSAGE, "is required", field="issued_ms")
        if issued_s > now + CLOCK_SKEW_S:
            raise Reject(
                ErrorCode.UNAUTHENTICATED, "issued in the future: set the clock", field="issued_ms"
            )
        if issued_s + LIFE_S < now:
            raise Reject(ErrorCode.EXPIRED, "the admin-request is too old", field="issued_ms")
        expires_s = issued_s + LIFE_S + CLOCK_SKEW_S
        if not self._replays.admit(UUID(request.request_id).bytes, record, expires_s):
            raise Reject(ErrorCode.CONFLICT, "a copy of an admin-request that was seen")

    async def _answer(
        self, request: AdminRequest, reply: HpkePublicKey, answer: AdminResult
    ) -> None:
        sealed = reply.seal(info(Info.ADMIN_RESULT, request.request_id), encode(answer))
        value = encode(SealedValue.of(sealed, key_id=key_id(reply), suite=reply.suite))
        key = request.request_id.encode()
        signature = self._signer.sign(Info.ADMIN_RESULT, key, value)
        await self._producer.send_and_wait(
            self._results,
            value,
            key=key,
            headers=(
                (HEADER_CONTENT_TYPE, CONTENT_SEALED.encode()),
                (HEADER_SIGNATURE, signature),
            ),
        )

    async def _run(self, request: AdminRequest, record: Record) -> Result:
        run = {
            AdminOp.INDEX_CREATE: self._create,
            AdminOp.INDEX_DESCRIBE: self._describe,
            AdminOp.INDEX_LIST: self._list,
            AdminOp.INDEX_DELETE: self._delete,
        }.get(request.op)
        if run is None or request.auth is None:
            raise Reject(
                ErrorCode.UNSUPPORTED, "this operation is not offered by this version", field="op"
            )
        try:
            arguments = request.arguments()
        except InvalidMessage as error:
            raise Reject(error.code, error.message, field=error.field) from error
        index = arguments.index if isinstance(arguments, IndexArgs) else ""
        found = await self._indexes.catalog.find(index) if index else None
        uid = found[0].uid if found else None
        principal = await self._callers.of_admin(request.auth, index, uid)
        if principal.cnf is not None:
            signature = record.header(HEADER_SIGNATURE)
            verify_message(principal.cnf, signature, record.topic, record.key, record.value or b"")
        return await run(request, principal, found)

    async def _note(
        self,
        request: AdminRequest,
        *,
        decision: str = "none",
        why: ErrorCode | None = None,
        caller: Principal | None = None,
    ) -> None:
        """Write the audit record of a step. Raises Retry."""
        index = request.args.get("index")
        await self._audit.write(
            request.op.value,
            decision=cast("Any", decision),
            why=why,
            request_id=request.request_id,
            caller=caller.id if caller else None,
            index=index if isinstance(index, str) else None,
        )

    # --- operations -------------------------------------------------------------------------------

    async def _create(
        self, request: AdminRequest, principal: Principal, found: tuple[IndexRecord, str] | None
    ) -> Result:
        arguments = cast("IndexCreate", request.arguments())
        if Scope.INDEX not in principal.scopes:
            raise Reject(ErrorCode.FORBIDDEN, "the caller lacks the scope Index", field="auth")
        if arguments.index == KEY_SERVICE_KEY:
            raise Reject(ErrorCode.INVALID_MESSAGE, "this name is reserved", field="args.index")
        if found is None:
            record = await self._make(request, arguments, principal)
        elif found[0].request_id == request.request_id and found[0].owner == principal.id:
            # This very request, delivered again after a crash before its answer.
            record = found[0]
        else:
            raise Reject(
                ErrorCode.INDEX_EXISTS, "there is an index of this name", field="args.index"
            )
        with _begun():
            await self._publisher.index(record)
            await self._note(request, decision="grant", caller=principal)
        return _description(record)

    async def _make(
        self, request: AdminRequest, arguments: IndexCreate, principal: Principal
    ) -> IndexRecord:
        key_name = self._kms_key(arguments.kms, principal)
        await self._note(request, caller=principal)
        uid = os.urandom(16)
        ring = await self._indexes.hierarchy.create(
            uid, key_id=key_name, suite=self._suite, index_key=principal.index_key
        )
        try:
            record = await self._record(request, arguments, principal, ring, key_name)
            await self._indexes.catalog.create(record)
        except Reject:
            await self._indexes.hierarchy.destroy(uid)
            raise
        return record

    def _kms_key(self, choice: KmsChoice | None, principal: Principal) -> str:
        """Return the KMS key for a new index; "" if its callers keep the key.

        Raises:
            Reject: WRONG_KEY, UNSUPPORTED, INVALID_MESSAGE.
        """
        if choice is not None and choice.provider == PROVIDER_NONE:
            if principal.index_key is None:
                raise Reject(
                    ErrorCode.WRONG_KEY,
                    "with provider none the caller keeps the key: send 32 bytes as index_key",
                    field="auth.index_key",
                )
            return ""
        if principal.index_key is not None:
            raise Reject(
                ErrorCode.INVALID_MESSAGE,
                "an index_key goes with the provider none",
                field="args.kms.provider",
            )
        if choice is None:
            return self._kms.default_key
        if choice.provider != self._kms.name or choice.region is not None:
            raise Reject(
                ErrorCode.UNSUPPORTED,
                f"this key service wraps keys with: none, {self._kms.name}",
                field="args.kms.provider",
            )
        return check_key_id(choice.key_id) if choice.key_id else self._kms.default_key

    async def _record(
        self,
        request: AdminRequest,
        arguments: IndexCreate,
        principal: Principal,
        ring: KeyRing,
        key_name: str,
    ) -> IndexRecord:
        now_ms = int(self._clock() * 1000)
        version = self._indexes.next_version(arguments.index)
        ring.check()
        query = ring.pair(FIRST_GENERATION, Purpose.QUERY).public
        return IndexRecord(
            version=version,
            nonce=os.urandom(16),
            index=arguments.index,
            uid=ring.uid,
            config=arguments.config(),
            partitions=await self._assign(arguments.shards),
            owner=principal.id,
            owner_group=principal.default_group,
            provider=self._kms.name if principal.index_key is None else PROVIDER_NONE,
            key_id=key_name,
            generation=FIRST_GENERATION,
            ingest_keys=[PublicKey.of(k.public, now_ms) for k in ring.newest_ingest_first()],
            query_key=PublicKey.of(query, now_ms),
            created_ms=now_ms,
            request_id=request.request_id,
        )

    async def _assign(self, shards: int) -> list[int]:
        """Give every shard a partition of index-update, in turn after those given before.

        Raises:
            Retry: KEY_UNAVAILABLE, the topic does not exist.
        """
        count = await self._partitions()
        if count == 0:
            raise Retry(
                ErrorCode.KEY_UNAVAILABLE, "the topic index-update is missing: run topics apply"
            )
        given = sum(entry.shards for entry in self._indexes.directory.indexes())
        return [(given + shard) % count for shard in range(shards)]

    async def _describe(
        self, request: AdminRequest, principal: Principal, found: tuple[IndexRecord, str] | None
    ) -> Result:
        if found is None or found[0].state != "live":
            raise unknown_index()
        await self._indexes.prove(found[0], principal.index_key)
        await self._note(request, decision="grant", caller=principal)
        return _description(found[0])

    async def _list(
        self, request: AdminRequest, principal: Principal, _: tuple[IndexRecord, str] | None
    ) -> Result:
        records = [r async for r in self._indexes.catalog.records() if r.state == "live"]
        await self._note(request, decision="grant", caller=principal)
        records.sort(key=lambda record: record.index)
        return {"indexes": [_summary(record) for record in records]}

    async def _delete(
        self, request: AdminRequest, principal: Principal, found: tuple[IndexRecord, str] | None
    ) -> Result:
        if found is None:
            raise unknown_index()
        record, etag = found
        if record.state == "live":
            # Once it is deleting, its keys may be gone: who asked was proved before.
            await self._indexes.prove(record, principal.index_key)
        check_owner(principal, record, principal.index_key)
        issued_ms = request.issued_ms
        if issued_ms is not None and issued_ms + CLOCK_SKEW_S * 1000 < record.created_ms:
            # A copy, sent where the first one was not seen: another instance, or after a restart.
            raise Reject(ErrorCode.CONFLICT, "issued before this index was made", field="issued_ms")
        await self._note(request, caller=principal)
        with _begun():
            if record.state == "live":
                record = await self._indexes.change(record, etag, state="deleting")
            await self._publisher.index(record)
            await self._indexes.hierarchy.destroy(record.uid)
            await self._delete_data(record.uid)
            await self._indexes.catalog.remove(record.index)
            self._indexes.forget(record.index)
            await self._note(request, decision="grant", caller=principal)
        return {"index": record.index, "deleted": True}

    async def _delete_data(self, uid: bytes) -> None:
        batch: list[str] = []
        async for entry in self._store.list(layout.index_prefix(uid)):
            batch.append(entry.key)
            if len(batch) == _DELETE_BATCH:
                await self._store.delete(batch)
                batch = []
        if batch:
            await self._store.delete(batch)


@contextmanager
def _begun() -> Iterator[None]:
    """Let a Retry reach the runtime, which gives the same record again."""
    try:
        yield
    except Retry as error:
        raise _Unfinished(error.code, error.message) from error


def _summary(record: IndexRecord) -> Result:
    """Return a line of a list of indexes."""
    return {
        "index": record.index,
        "shards": record.config.shards,
        "dimension": record.config.dimension,
        "metric": record.config.metric,
        "kms": record.provider,
        "created_ms": record.created_ms,
    }


def _description(record: IndexRecord) -> Result:
    """Return what callers may know about an index."""
    return {
        "index": record.index,
        "uid": record.uid.hex(),
        "config": to_plain(record.config),
        "partitions": record.partitions,
        "generation": record.generation,
        "kms": {"provider": record.provider, "key_id": record.key_id or None},
        "created_ms": record.created_ms,
    }
