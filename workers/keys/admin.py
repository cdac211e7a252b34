"""Run admin-requests.

An admin-request comes sealed to the key service as a whole. Order: open -> replay -> who asks ->
operation -> audit -> result, sealed to `reply.public_key` and signed. The audit has the intent of
every change before the change is begun (`decision` = `none`) and its outcome before it is told;
refusals too.

A request is good for `LIFE_S` after its `issued_ms`; copies within that time are refused: by
memory, and, where something is changed, by what `once.py` remembers for all instances.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import structlog

from schemas.admin import UNAUTHENTICATED_OPS, AdminOp, AdminRequest, AdminResult, IndexArgs
from schemas.codec import decode, encode
from schemas.errors import ErrorCode, InvalidMessage
from schemas.message import Part
from schemas.sealed import SealedValue
from schemas.topics import CONTENT_SEALED, HEADER_CONTENT_TYPE, HEADER_SIGNATURE
from schemas.values import decode_base64
from workers.crypto.errors import CryptoError
from workers.crypto.hpke import HpkePublicKey, key_id
from workers.crypto.info import Info, info
from workers.crypto.sign import SigningKey
from workers.errors import Damaged, Reject, Retry
from workers.kafka.broker import Producer, Record
from workers.keys.asked import Asked, Operation, Result, Unfinished
from workers.keys.audit import Audit
from workers.keys.callers import Callers
from workers.keys.catalog import Catalog
from workers.keys.once import Once
from workers.keys.replay import ReplayWindow
from workers.keys.service_keys import ServiceKeys
from workers.leases.certificate import CLOCK_SKEW_S, Clock
from workers.leases.credential import verify_message
from workers.runtime.lastresort import unexpected
from workers.telemetry import metrics

LIFE_S: Final = 600

log = structlog.get_logger("keys.admin")


class Admin:
    """Runs one admin-request at a time, any number concurrently."""

    def __init__(
        self,
        *,
        operations: Mapping[AdminOp, Operation],
        catalog: Catalog,
        callers: Callers,
        keys: ServiceKeys,
        once: Once,
        audit: Audit,
        producer: Producer,
        signer: SigningKey,
        results: str,
        allow_plain: bool,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            operations: what runs each op; others are not offered.
            catalog: knows the indexes that requests name.
            callers: who asks.
            keys: open requests.
            once: remembers what was begun.
            audit: takes every operation.
            producer: writes results.
            signer: the key service's identity.
            results: topic admin-result, with prefix.
            allow_plain: accept requests without `issued_ms` (the local stack).
            clock: seconds since 1970.
        """
        self._operations = operations
        self._catalog = catalog
        self._callers = callers
        self._keys = keys
        self._once = once
        self._audit = audit
        self._producer = producer
        self._signer = signer
        self._results = results
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
        asked = Asked(
            request=request,
            record=record,
            arguments=self._arguments(request),
            found=None,
            audit=self._audit,
            once=self._once,
            expires_s=self._until(request),
        )
        try:
            self._admit(asked)
        except Reject as error:
            await asked.note("deny", error.code)
            raise
        failure: Reject | None = None
        try:
            result = await self._run(asked)
            answer = AdminResult(request_id=request.request_id, status="ok", result=result)
        except Reject as error:
            if isinstance(error, Damaged):
                metrics.DAMAGED.inc(what="keys")
            answer = AdminResult(request_id=request.request_id, status="error", error=error.info())
            await asked.note("deny", error.code)
        except Unfinished:
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
            await asked.note("deny", failure.code)
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

    def _arguments(self, request: AdminRequest) -> Part:
        try:
            return request.arguments()
        except InvalidMessage as error:
            raise Reject(error.code, error.message, field=error.field) from error

    def _until(self, request: AdminRequest) -> float:
        """Return until when a request is good, seconds since 1970."""
        issued_s = self._clock() if request.issued_ms is None else request.issued_ms / 1000
        return issued_s + LIFE_S + CLOCK_SKEW_S

    def _admit(self, asked: Asked) -> None:
        now, issued_ms = self._clock(), asked.request.issued_ms
        if issued_ms is None and not self._allow_plain:
            raise Reject(ErrorCode.INVALID_MESSAGE, "is required", field="issued_ms")
        if issued_ms is not None and issued_ms / 1000 > now + CLOCK_SKEW_S:
            raise Reject(
                ErrorCode.UNAUTHENTICATED, "issued in the future: set the clock", field="issued_ms"
            )
        if asked.expires_s < now + CLOCK_SKEW_S:
            raise Reject(ErrorCode.EXPIRED, "the admin-request is too old", field="issued_ms")
        request_id = UUID(asked.request.request_id).bytes
        if not self._replays.admit(request_id, asked.record, asked.expires_s):
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

    async def _run(self, asked: Asked) -> Result:
        request = asked.request
        run = self._operations.get(request.op)
        if run is None:
            raise Reject(
                ErrorCode.UNSUPPORTED, "this operation is not offered by this version", field="op"
            )
        if isinstance(asked.arguments, IndexArgs):
            asked.found = await self._catalog.find(asked.arguments.index)
        if request.op in UNAUTHENTICATED_OPS:
            asked.claimed = str(request.args.get("user_id"))
        else:
            await self._authenticate(asked)
        result = await run(asked)
        await asked.grant()
        return result

    async def _authenticate(self, asked: Asked) -> None:
        """Find out who asks, and that a sealed credential is theirs."""
        request, record = asked.request, asked.record
        if request.auth is None:
            raise Reject(ErrorCode.UNAUTHENTICATED, "no credential", field="auth")
        index = asked.arguments.index if isinstance(asked.arguments, IndexArgs) else ""
        found = asked.found[0] if asked.found else None
        principal = await self._callers.of_admin(request.auth, index, found)
        if principal.cnf is not None:
            signature = record.header(HEADER_SIGNATURE)
            verify_message(principal.cnf, signature, record.topic, record.key, record.value or b"")
        asked.caller = principal
        self._callers.check_revoked(principal)
