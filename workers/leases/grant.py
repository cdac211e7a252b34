"""What the key service answers.

A `key-grant` record: key = worker id, partition = the one asked for, value = one JSON object. Its
clear header says what it answers; `sealed` = base64 of HPKE(ephemeral key of the request;
info = KEY_GRANT or OBJECT_KEYS, header) of a payload; `signature` = Ed25519 by the key service over
(header, sealed). `header` = lp of the fields of `GrantHeader` in their order. A refusal has `deny`
and no `sealed`.

Invariant: a worker takes only what answers a request it has outstanding, digest included, with
the generation and purposes it asked for; and drops the ephemeral key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeVar
from uuid import UUID

import msgspec

from schemas.codec import decode, encode
from schemas.errors import RETRYABLE, ErrorCode, ErrorInfo, InvalidMessage
from schemas.grant import KeyGrant
from schemas.values import decode_base64, encode_base64
from workers.crypto.errors import BadSignature, OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, open_with, seal_to
from workers.crypto.info import Info, info
from workers.crypto.lp import lp
from workers.crypto.secret import overwrite
from workers.crypto.sign import SigningKey, VerifyKey
from workers.errors import Damaged, Reject, Retry, SealstreamError
from workers.leases.certificate import CLOCK_SKEW_S
from workers.leases.request import Job, Kind, RequestBody

P = TypeVar("P", bound=msgspec.Struct)

MAX_LEASE_MS: Final = 3_600_000
_INFOS: Final[dict[Kind, Info]] = {
    "lease": Info.KEY_GRANT,
    "decision": Info.KEY_GRANT,
    "objects": Info.OBJECT_KEYS,
    "certificate": Info.KEY_GRANT,
    "reseal": Info.KEY_GRANT,
}


class KeyItem(msgspec.Struct, array_like=True, frozen=True):
    """One key of a lease.

    Args:
        generation: of the data key; 0 for TAG and INGEST, which have none.
        form: `key` symmetric, `seed` of an HPKE pair, `public` half (encoded).
        suite: HPKE suite of a seed, else 0.
        key: wiped with its payload.
    """

    generation: int
    purpose: str
    form: Literal["key", "seed", "public"]
    suite: int
    key: bytearray

    def __repr__(self) -> str:
        return f"KeyItem({self.generation}, {self.purpose})"


class LeasePayload(msgspec.Struct, array_like=True, frozen=True):
    """Keys of an index for a role.

    Args:
        config: JSON of `IndexConfig`.
        keys: TAG (generation 0), subkeys, seeds of `update` and `query`, encoded public halves.
        ingest: seeds of the private halves that producers seal to, newest first.
        query_public: encoded public half of the current `query` key (it also is in key-directory).
        directory_version: version of the index's entry in key-directory.
    """

    index: str
    uid: bytes
    config: bytes
    partitions: list[int]
    keys: list[KeyItem]
    ingest: list[KeyItem]
    query_public: bytes
    directory_version: int

    def wipe(self) -> None:
        """Overwrite the keys."""
        for item in (*self.keys, *self.ingest):
            overwrite(item.key)

    def __repr__(self) -> str:
        return "LeasePayload()"


class DecisionPayload(msgspec.Struct, array_like=True, frozen=True):
    """Who a caller is. `expires_ms` bounds the reuse of the decision.

    `group_scopes`: what a group lets its members do with documents of that group only.
    """

    caller: str
    groups: list[str]
    default_group: str
    scopes: list[str]
    cnf: bytes | None
    expires_ms: int
    group_scopes: dict[str, list[str]] = {}


class ObjectsPayload(msgspec.Struct, array_like=True, frozen=True):
    """Object keys in the order asked; None where the caller may not read."""

    keys: list[bytearray | None]

    def wipe(self) -> None:
        """Overwrite the keys."""
        for key in self.keys:
            if key is not None:
                overwrite(key)

    def __repr__(self) -> str:
        return f"ObjectsPayload({len(self.keys)})"


class CertificatePayload(msgspec.Struct, array_like=True, frozen=True):
    """The worker's next certificate, encoded."""

    certificate: bytes


class ResealPayload(msgspec.Struct, array_like=True, frozen=True):
    """Where the records lie that were sealed anew, and for which key generation they are."""

    job: Job
    generation: int


Payload = LeasePayload | DecisionPayload | ObjectsPayload | CertificatePayload | ResealPayload


@dataclass(frozen=True, slots=True)
class GrantHeader:
    """The clear part of a grant; what it is bound to."""

    request_id: bytes
    request_sha256: bytes
    to: str
    index: str
    generation: int
    purposes: tuple[str, ...]
    not_before_ms: int
    expires_ms: int
    deny: ErrorInfo | None = None

    def encode(self) -> bytes:
        """Return the bytes that the seal and the signature cover."""
        deny = self.deny
        refusal = lp(deny.code, deny.message, deny.field or "") if deny else b""
        return lp(
            self.request_id,
            self.request_sha256,
            self.to,
            self.index,
            self.generation,
            lp(*self.purposes),
            self.not_before_ms,
            self.expires_ms,
            refusal,
        )


def seal_grant(
    header: GrantHeader, kind: Kind, payload: Payload, ephemeral: HpkePublicKey, signer: SigningKey
) -> bytes:
    """Seal and sign a grant; return the record's value."""
    encoded = header.encode()
    plaintext = msgspec.msgpack.encode(payload)
    sealed = seal_to(ephemeral, info(_INFOS[kind], encoded), plaintext)
    overwrite(plaintext)
    return _wire(header, sealed, signer.sign(Info.KEY_GRANT, encoded, sealed))


def sign_denial(header: GrantHeader, signer: SigningKey) -> bytes:
    """Sign a refusal; return the record's value."""
    return _wire(header, b"", signer.sign(Info.KEY_GRANT, header.encode(), b""))


def _wire(header: GrantHeader, sealed: bytes, signature: bytes) -> bytes:
    return encode(
        KeyGrant(
            request_id=str(UUID(bytes=header.request_id)),
            request_sha256=header.request_sha256.hex(),
            to=header.to,
            index=header.index,
            generation=header.generation,
            purposes=list(header.purposes),
            not_before_ms=header.not_before_ms,
            expires_ms=header.expires_ms,
            deny=header.deny,
            sealed=encode_base64(sealed) if sealed else None,
            signature=encode_base64(signature),
        )
    )


@dataclass(frozen=True, slots=True)
class SignedGrant:
    """A grant that the pinned key service signed; not yet matched with a request."""

    header: GrantHeader
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that waits for its grant."""

    body: RequestBody
    sha256: bytes
    ephemeral: HpkePrivateKey


def verify_grant(value: bytes | None, service: VerifyKey) -> SignedGrant:
    """Check the signature of a grant.

    Raises:
        Reject: UNAUTHENTICATED, not signed by the key service; INVALID_MESSAGE.
    """
    try:
        wire = decode(KeyGrant, value)
        header = GrantHeader(
            request_id=UUID(wire.request_id).bytes,
            request_sha256=bytes.fromhex(wire.request_sha256),
            to=wire.to,
            index=wire.index,
            generation=wire.generation,
            purposes=tuple(wire.purposes),
            not_before_ms=wire.not_before_ms,
            expires_ms=wire.expires_ms,
            deny=wire.deny,
        )
        sealed = decode_base64(wire.sealed, "sealed") if wire.sealed else b""
        signature = decode_base64(wire.signature, "signature")
        service.verify(signature, Info.KEY_GRANT, header.encode(), sealed)
    except InvalidMessage as error:
        raise Reject(ErrorCode.INVALID_MESSAGE, error.message, field=error.field) from error
    except BadSignature as error:
        raise Reject(
            ErrorCode.UNAUTHENTICATED, "the grant is not signed by the key service"
        ) from error
    return SignedGrant(header, sealed)


def open_grant(grant: SignedGrant, pending: Pending, payload_type: type[P], *, now_s: float) -> P:
    """Match a grant with its request and open it.

    Raises:
        Reject: UNAUTHENTICATED, it answers something else; EXPIRED, too late; or the refusal of
            the key service (Damaged for DAMAGED).
        Retry: a refusal that may go away.
    """
    header, body = grant.header, pending.body
    now_ms = int(now_s * 1000)
    _check_match(header, pending)
    if header.deny is not None:
        raise denial(header.deny)
    # A certificate belongs to no index, so to no generation.
    least = 0 if body.kind == "certificate" else 1
    if header.generation < least or body.generation not in (0, header.generation):
        raise _mismatch("another key generation")
    if header.purposes != tuple(body.purposes):
        raise _mismatch("other purposes")
    if header.expires_ms - header.not_before_ms > MAX_LEASE_MS:
        raise _mismatch("an unknown life")
    if now_ms >= header.expires_ms:
        raise Reject(ErrorCode.EXPIRED, "the grant has expired")
    if now_ms < header.not_before_ms - CLOCK_SKEW_S * 1000:
        raise _mismatch("a time to come")
    try:
        plaintext = open_with(
            pending.ephemeral, info(_INFOS[body.kind], header.encode()), grant.sealed
        )
        try:
            return msgspec.msgpack.decode(plaintext, type=payload_type)
        finally:
            overwrite(plaintext)
    except (OpenFailed, msgspec.MsgspecError) as error:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the grant does not open") from error


def denial(deny: ErrorInfo) -> SealstreamError:
    """Return the error that a refusal stands for."""
    if deny.code is ErrorCode.DAMAGED:
        return Damaged(deny.code, deny.message, field=deny.field)
    if deny.code in RETRYABLE:
        return Retry(deny.code, deny.message, field=deny.field)
    return Reject(deny.code, deny.message, field=deny.field)


def _check_match(header: GrantHeader, pending: Pending) -> None:
    body = pending.body
    if header.request_id != body.request_id or header.request_sha256 != pending.sha256:
        raise _mismatch("another request")
    if header.to != body.worker_id:
        raise _mismatch("another worker")
    # Asked by uid alone, the name is news; the payload repeats the uid.
    if body.index and header.index != body.index:
        raise _mismatch("another index")


def _mismatch(what: str) -> Reject:
    return Reject(ErrorCode.UNAUTHENTICATED, f"the grant is for {what}")
