"""Certifying workers: for an administrator, or for whoever has an invitation, once.

A worker makes its key pair itself and signs what it wants to be certified for; the private half
never leaves its machine. An invitation fixes worker id, role and indexes beforehand:

    "slwi1_" + base64url of SST1 of msgpack [id (16 bytes), worker id, role, indexes, expires s]

sealed under the realm's `enrolment` key. `realm/invitations/<id>` is created when it is used, and
remembers for which key: the same worker may ask again (its answer was lost), nobody else.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from dataclasses import dataclass
from typing import Final

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.errors import BadSignature, InvalidKey, OpenFailed
from workers.crypto.info import Info
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import Key
from workers.crypto.sign import SigningKey, VerifyKey
from workers.errors import Reject
from workers.leases.certificate import (
    MAX_LIFE_S,
    Clock,
    Role,
    WorkerCertificate,
    issue_certificate,
)
from workers.leases.enrolment import Terms, terms_parts
from workers.storage import layout
from workers.storage.first import create_first
from workers.storage.store import Store

KIND: Final = "invitations"
_PREFIX: Final = "slwi1_"
_KEEP_MS: Final = 8 * 86_400_000


class _Invitation(msgspec.Struct, array_like=True, frozen=True):
    id: bytes
    worker_id: str
    role: Role
    indexes: list[str]
    expires_s: int


@dataclass(frozen=True, slots=True)
class Invited:
    """An invitation, made."""

    text: str
    expires_s: int


class Enrolment:
    """Issues invitations and certificates."""

    def __init__(
        self, store: Store, key: Key, issuer: SigningKey, *, clock: Clock = time.time
    ) -> None:
        """Prepare.

        Args:
            store: remembers the invitations that were used.
            key: the realm's `enrolment` key.
            issuer: the key service's identity.
            clock: seconds since 1970.
        """
        self._store = store
        self._key = key
        self._issuer = issuer
        self._clock = clock

    def invite(self, terms: Terms, ttl_s: int) -> Invited:
        """Return an invitation for one worker; anybody who has it can enrol as that worker."""
        expires_s = int(self._clock()) + ttl_s
        invitation = _Invitation(
            os.urandom(16), terms.worker_id, terms.role, list(terms.indexes), expires_s
        )
        sealed = seal(
            self._key,
            msgspec.msgpack.encode(invitation),
            purpose=SealPurpose.REALM,
            index_uid=b"",
            object_id=KIND.encode(),
        )
        return Invited(_PREFIX + base64.urlsafe_b64encode(sealed).decode("ascii"), expires_s)

    async def join(self, text: str, sign_pub: bytes, signature: bytes) -> WorkerCertificate:
        """Certify whoever has an invitation, on its terms.

        Raises:
            Reject: UNAUTHENTICATED, no invitation of this realm, or the signature; EXPIRED;
                CONFLICT, another key has used it.
            Retry: STORAGE_UNAVAILABLE.
        """
        invitation = self._open(text)
        if invitation.expires_s <= self._clock():
            raise Reject(ErrorCode.EXPIRED, "the invitation has expired", field="args.invitation")
        terms = Terms(invitation.worker_id, invitation.role, tuple(invitation.indexes))
        _check_signature(terms, sign_pub, signature)
        use = self._used(invitation.id, sign_pub)
        first = await create_first(self._store, layout.realm(KIND, invitation.id), use)
        if first != use and not self._is_used_by(first, invitation.id, sign_pub):
            raise Reject(ErrorCode.CONFLICT, "the invitation was used", field="args.invitation")
        return self._issue(terms, sign_pub)

    def enroll(self, terms: Terms, sign_pub: bytes, signature: bytes) -> WorkerCertificate:
        """Certify a worker for an administrator.

        Raises:
            Reject: UNAUTHENTICATED, not signed by the key that is to be certified.
        """
        _check_signature(terms, sign_pub, signature)
        return self._issue(terms, sign_pub)

    async def sweep(self) -> None:
        """Forget invitations that have long expired. Raises Retry."""
        newest_ms = self._clock() * 1000 - _KEEP_MS
        old = [
            entry.key
            async for entry in self._store.list(layout.realm(KIND))
            if entry.modified_ms < newest_ms
        ]
        if old:
            await self._store.delete(old)

    def _issue(self, terms: Terms, sign_pub: bytes) -> WorkerCertificate:
        return issue_certificate(
            self._issuer,
            worker_id=terms.worker_id,
            role=terms.role,
            indexes=terms.indexes,
            sign_pub=sign_pub,
            life_s=MAX_LIFE_S,
            now_s=self._clock(),
        )

    def _open(self, text: str) -> _Invitation:
        try:
            if not text.startswith(_PREFIX):
                raise ValueError
            sealed = base64.urlsafe_b64decode(text.removeprefix(_PREFIX).encode("ascii"))
            plain = open_sealed(
                self._key,
                sealed,
                purpose=SealPurpose.REALM,
                index_uid=b"",
                object_id=KIND.encode(),
            )
            return msgspec.msgpack.decode(plain, type=_Invitation)
        except (OpenFailed, ValueError, binascii.Error, msgspec.MsgspecError) as error:
            raise Reject(
                ErrorCode.UNAUTHENTICATED,
                "this is no invitation of this realm",
                field="args.invitation",
            ) from error

    def _used(self, invitation_id: bytes, sign_pub: bytes) -> bytes:
        return seal(
            self._key,
            sign_pub,
            purpose=SealPurpose.REALM,
            index_uid=b"",
            object_id=lp(KIND, invitation_id),
        )

    def _is_used_by(self, data: bytes, invitation_id: bytes, sign_pub: bytes) -> bool:
        try:
            found = open_sealed(
                self._key,
                data,
                purpose=SealPurpose.REALM,
                index_uid=b"",
                object_id=lp(KIND, invitation_id),
            )
        except OpenFailed:
            return False
        return found == sign_pub


def _check_signature(terms: Terms, sign_pub: bytes, signature: bytes) -> None:
    try:
        VerifyKey(sign_pub).verify(signature, Info.ENROLMENT, *terms_parts(terms, sign_pub))
    except (BadSignature, InvalidKey) as error:
        raise Reject(
            ErrorCode.UNAUTHENTICATED,
            "the enrolment is not signed by the key that it names",
            field="args.signature",
        ) from error
