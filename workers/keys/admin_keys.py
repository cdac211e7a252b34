"""Administrative operations on keys, workers and revocations.

    key.rotate       who administers the index
    key.status       who administers the index
    index.shred      who administers the index
    key.revoke       administrators (members of the realm administrator's group)
    worker.invite    administrators
    worker.enroll    administrators
    worker.join      who has an invitation; no other credential

Revoking a worker also changes the data keys of the indexes it served: what a thief has copied of
them opens nothing that is written from then on, and nothing at all once the change has ended.
"""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import Any, cast

from schemas.admin import (
    AdminOp,
    KeyRevoke,
    KeyRotate,
    WorkerEnroll,
    WorkerInvite,
    WorkerJoin,
)
from schemas.codec import to_plain
from schemas.errors import ErrorCode
from schemas.values import decode_base64, encode_base64
from workers.crypto.secret import SecretBytes
from workers.errors import Reject, Retry, SealstreamError
from workers.keys.asked import Asked, Operation, Result, begun
from workers.keys.catalog import PROVIDER_NONE, IndexRecord, unknown_index
from workers.keys.enrolment import Enrolment
from workers.keys.indexes import Indexes
from workers.keys.keyring import KeyRing
from workers.keys.lifecycle import Lifecycle
from workers.keys.policy import check_administrator, check_owner
from workers.keys.publish import Publisher
from workers.keys.revocations import RevocationLog
from workers.keys.user_keys import UserKeys
from workers.leases.certificate import Clock, WorkerCertificate
from workers.leases.enrolment import Terms
from workers.leases.revocation import Kind


class KeyOperations:
    """Runs the operations on keys and workers."""

    def __init__(
        self,
        *,
        indexes: Indexes,
        user_keys: UserKeys,
        publisher: Publisher,
        lifecycle: Lifecycle,
        revocations: RevocationLog,
        enrolment: Enrolment,
        administrators: str,
        clock: Clock = time.time,
    ) -> None:
        """Prepare; `administrators` is the group whose members administer the realm."""
        self._indexes = indexes
        self._user_keys = user_keys
        self._publisher = publisher
        self._lifecycle = lifecycle
        self._revocations = revocations
        self._enrolment = enrolment
        self._administrators = administrators
        self._clock = clock

    @property
    def operations(self) -> dict[AdminOp, Operation]:
        """What runs each op."""
        return {
            AdminOp.KEY_ROTATE: self._rotate,
            AdminOp.KEY_STATUS: self._status,
            AdminOp.KEY_REVOKE: self._revoke,
            AdminOp.WORKER_INVITE: self._invite,
            AdminOp.WORKER_ENROLL: self._enroll,
            AdminOp.WORKER_JOIN: self._join,
        }

    # --- keys of an index -------------------------------------------------------------------------

    async def _rotate(self, asked: Asked) -> Result:
        arguments = cast("KeyRotate", asked.arguments)
        level = arguments.level
        record, etag = await self._owned(asked)
        new_key = _new_index_key(arguments, record)
        # A key that is changed is asked of the KMS, whatever is cached: during an outage nothing
        # is changed.
        ring = await self._indexes.open(
            record, index_key=asked.principal.index_key, fresh=asked.principal.index_key is None
        )
        hierarchy = self._indexes.hierarchy
        await asked.begin()
        with begun():
            if level == "dek":
                record = await self._lifecycle.begin(record, etag, ring)
            elif level == "kek":
                record = await self._change_kek(record, etag, ring, new_key)
            else:
                envelope = await hierarchy.rewrap(record)
                record = await self._indexes.change(record, etag, envelope=envelope.version)
            await self._publisher.index(record)
            await asked.grant()
        return {"index": record.index, "level": level, **_keys(record)}

    async def _change_kek(
        self, record: IndexRecord, etag: str, ring: KeyRing, new_key: SecretBytes | None
    ) -> IndexRecord:
        """Change a KEK. `new_key`: the next one, where callers keep it."""
        hierarchy, user_keys = self._indexes.hierarchy, self._user_keys
        epoch = await hierarchy.new_epoch(record, ring, new_key)
        if new_key is not None:
            await user_keys.reseal(record, new_key, epoch=epoch, keep=[record.epoch])
        record = await self._indexes.change(record, etag, epoch=epoch, envelope=0)
        hierarchy.forget(record.uid)
        if new_key is not None:
            # Leases are renewed from it: workers ask without a caller.
            await self._indexes.open(record, index_key=new_key)
            # Once more, for those that were made meanwhile.
            await user_keys.reseal(record, new_key, epoch=epoch, keep=[])
        await hierarchy.stored.drop_epochs(record)
        return record

    async def _status(self, asked: Asked) -> Result:
        record, _ = await self._owned(asked)
        ring = await self._indexes.open(record, index_key=asked.principal.index_key)
        result = {"index": record.index, "uid": record.uid.hex(), **_keys(record)}
        if record.rotation is not None:
            shards = await self._lifecycle.status(record, ring)
            result["rotation"]["shards"] = [
                {
                    "shard": one.shard,
                    "version": one.version,
                    "segments_left": one.segments,
                    "bytes_left": one.size,
                    "done": one.done,
                }
                for one in shards
            ]
        return result

    async def _owned(self, asked: Asked) -> tuple[IndexRecord, str]:
        """Return the index and its ETag, if the caller may administer it."""
        if asked.found is None or asked.found[0].state != "live":
            raise unknown_index()
        record, etag = asked.found
        await self._indexes.prove(record, asked.principal.index_key)
        check_owner(asked.principal, record, asked.principal.index_key)
        return record, etag

    # --- workers ----------------------------------------------------------------------------------

    async def _revoke(self, asked: Asked) -> Result:
        arguments = cast("KeyRevoke", asked.arguments)
        self._check_administrator(asked)
        kind, _, principal = arguments.principal.partition("/")
        await asked.begin()
        with begun():
            revocation = await self._revocations.revoke(cast("Kind", kind), principal)
            rotated = await self._rotate_all(arguments.indexes or ["*"]) if kind == "worker" else {}
            await asked.grant()
        return {
            "principal": arguments.principal,
            "policy_epoch": revocation.policy_epoch,
            "revoked_ms": revocation.revoked_ms,
            "rotated": rotated,
            # The principal is revoked all the same: that must not wait for a name to be right.
            "unmatched": [
                glob
                for glob in arguments.indexes
                if not any(fnmatchcase(index, glob) for index in rotated)
            ],
        }

    async def _rotate_all(self, globs: list[str]) -> dict[str, str]:
        """Change the data keys of some indexes; return what became of each."""
        done: dict[str, str] = {}
        async for record in self._indexes.catalog.records(_pass_over):
            if record.state != "live" or not any(fnmatchcase(record.index, g) for g in globs):
                continue
            try:
                found = await self._indexes.catalog.find(record.index)
                if found is None:
                    continue
                ring = await self._indexes.open(found[0])
                await self._lifecycle.begin(*found, ring)
                done[record.index] = "begun"
            except (Reject, Retry) as error:
                done[record.index] = error.code.value
        return done

    async def _invite(self, asked: Asked) -> Result:
        arguments = cast("WorkerInvite", asked.arguments)
        self._check_administrator(asked)
        await asked.begin()
        made = self._enrolment.invite(_terms(arguments), arguments.ttl_s)
        return {
            "invitation": made.text,
            "worker_id": arguments.worker_id,
            "expires_ms": made.expires_s * 1000,
        }

    async def _enroll(self, asked: Asked) -> Result:
        arguments = cast("WorkerEnroll", asked.arguments)
        self._check_administrator(asked)
        await asked.begin()
        sign_pub = decode_base64(arguments.sign_pub, "args.sign_pub")
        signature = decode_base64(arguments.signature, "args.signature")
        return _certificate(self._enrolment.enroll(_terms(arguments), sign_pub, signature))

    async def _join(self, asked: Asked) -> Result:
        arguments = cast("WorkerJoin", asked.arguments)
        asked.claimed = "invitation"
        sign_pub = decode_base64(arguments.sign_pub, "args.sign_pub")
        signature = decode_base64(arguments.signature, "args.signature")
        certificate = await self._enrolment.join(arguments.invitation, sign_pub, signature)
        asked.claimed = f"worker/{certificate.worker_id}"
        return _certificate(certificate)

    def _check_administrator(self, asked: Asked) -> None:
        check_administrator(asked.principal, self._administrators)


def _new_index_key(arguments: KeyRotate, record: IndexRecord) -> SecretBytes | None:
    """Return the KEK that a caller brings, who keeps it; None where a KMS does.

    Raises:
        Reject: UNSUPPORTED, a KMS keeps the key, or none does; INVALID_MESSAGE, no key is brought.
    """
    key = arguments.new_index_key_bytes()
    if record.provider != PROVIDER_NONE:
        if key is not None:
            raise Reject(
                ErrorCode.UNSUPPORTED,
                "a KMS keeps the key of this index: it makes the next one",
                field="args.new_index_key",
            )
        return None
    if arguments.level == "kms":
        raise Reject(
            ErrorCode.UNSUPPORTED, "its callers keep the key of this index", field="args.level"
        )
    if arguments.level == "kek" and key is None:
        raise Reject(
            ErrorCode.INVALID_MESSAGE,
            "the callers of this index keep its key: send the next one",
            field="args.new_index_key",
        )
    return None if key is None else SecretBytes(key)


def _terms(arguments: WorkerInvite | WorkerEnroll) -> Terms:
    return Terms(arguments.worker_id, arguments.role, tuple(arguments.indexes))


def _certificate(certificate: WorkerCertificate) -> Result:
    return {
        "worker_id": certificate.worker_id,
        "role": certificate.role,
        "indexes": list(certificate.indexes),
        "certificate": encode_base64(certificate.encoded),
        "expires_ms": certificate.expires_s * 1000,
    }


def _keys(record: IndexRecord) -> dict[str, Any]:
    """Return what may be told of an index's keys."""
    return {
        "generation": record.generation,
        "generations": sorted(record.readable),
        "epoch": record.epoch,
        "envelope": record.envelope,
        "kms": {"provider": record.provider, "key_id": record.key_id or None},
        "rotation": None if record.rotation is None else to_plain(record.rotation),
    }


def _pass_over(_error: SealstreamError) -> None:
    """Let a damaged entry, which is reported every hour, not keep others from being changed."""
