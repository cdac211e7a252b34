"""What a worker asks the key service, and how it is sealed.

A `key-request` record: key = worker id, value = JSON `{"v": 1, "key_id", "sealed"}`, `sealed` =
base64 of HPKE(key service; info = KEY_REQUEST, worker id) of lp(body, signature), signature =
Ed25519 by the worker over the body. The body (msgpack array, the fields of `RequestBody`) carries
the certificate, so the key service keeps no list of workers.

The kinds:

    lease      keys of an index for the worker's role; `purposes` as `LeasePurpose`
    decision   who a caller is and what they may do with the index; `purposes` names scopes without
               which the answer is a refusal
    objects    object keys of the records the caller may read
    certificate  the next certificate of this worker, before the present one ends
    reseal     access records and words, under the current key generation; for index workers. What
               is to be sealed anew lies in an object of the index, `Job`, and so does the answer
    refusal    nothing: this worker refused operations, `purposes` says why and which; the audit
               is to have it
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from schemas.codec import decode, encode
from schemas.errors import ErrorCode, InvalidMessage
from schemas.grant import KeyRequest
from schemas.values import decode_base64, encode_base64
from workers.crypto.errors import BadSignature, CryptoError
from workers.crypto.hpke import HpkePrivateKey, open_with, seal_to
from workers.crypto.info import Info, info
from workers.crypto.lp import lp, unlp
from workers.crypto.sign import VerifyKey
from workers.errors import Reject
from workers.leases.certificate import (
    CLOCK_SKEW_S,
    WorkerCertificate,
    WorkerIdentity,
    verify_certificate,
)
from workers.leases.credential import Proof
from workers.leases.directory import KeyServiceEntry

MAX_REQUEST_LIFE_MS: Final = 30_000
MAX_OBJECTS: Final = 512
VERSION: Final = 1

Kind = Literal["lease", "decision", "objects", "certificate", "reseal", "refusal"]


class Caller(msgspec.Struct, array_like=True, frozen=True):
    """A caller's credential as it came in a message: one of the two.

    `proof`: of that message; without it a sealed credential counts for nothing.
    """

    sealed: str | None
    token: str | None
    proof: Proof | None = None

    def __repr__(self) -> str:
        return "Caller()"


class ObjectItem(msgspec.Struct, array_like=True, frozen=True):
    """One record to open; `pack` is an index into `RequestBody.pack_keys`."""

    object_id: bytes
    generation: int
    sealed_sha256: bytes
    record: bytes
    pack: int


class Job(msgspec.Struct, array_like=True, frozen=True):
    """An object in the index's folder of bodies: its uid, 16 bytes, and SHA-256."""

    uid: bytes
    sha256: bytes


class RequestBody(msgspec.Struct, array_like=True, frozen=True):
    """The body of a key-request.

    Args:
        index, uid: by name, by 16-byte uid (the other one empty), or both.
        generation: 0 asks for the current one and all that can still be read.
        ephemeral: encoded HPKE key the answer is sealed to; used once.
    """

    v: int
    kind: Kind
    request_id: bytes
    worker_id: str
    certificate: bytes
    reply_partition: int
    index: str
    uid: bytes
    generation: int
    purposes: list[str]
    ephemeral: bytes
    issued_ms: int
    expires_ms: int
    caller: Caller | None = None
    objects: list[ObjectItem] = []
    pack_keys: list[bytes] = []
    job: Job | None = None

    def __repr__(self) -> str:
        return f"RequestBody({self.kind})"


@dataclass(frozen=True, slots=True)
class OpenedRequest:
    """A request whose signature and certificate were verified.

    Attributes:
        sha256: digest of the record's value; the grant repeats it.
    """

    body: RequestBody
    certificate: WorkerCertificate
    sha256: bytes


def seal_request(body: RequestBody, identity: WorkerIdentity, service: KeyServiceEntry) -> bytes:
    """Sign and seal a request; return the record's value."""
    raw = msgspec.msgpack.encode(body)
    plaintext = lp(raw, identity.signing_key.sign(Info.KEY_REQUEST, raw))
    sealed = seal_to(service.hpke_pub, info(Info.KEY_REQUEST, body.worker_id), plaintext)
    return encode(KeyRequest(key_id=service.hpke_key_id.hex(), sealed=encode_base64(sealed)))


def open_request(
    record_key: bytes | None,
    value: bytes | None,
    *,
    private_key: Callable[[bytes], HpkePrivateKey | None],
    issuer: VerifyKey,
    now_s: float,
) -> OpenedRequest:
    """Open and verify a key-request.

    Args:
        record_key: key of the record, the worker's id.
        value: value of the record.
        private_key: returns the key service's private key of an id, or None.
        issuer: who signs certificates: the key service itself.
        now_s: time to check against, seconds since 1970.

    Raises:
        Reject: UNAUTHENTICATED, not opened, not signed or not certified; EXPIRED, the request or
            the certificate; INVALID_MESSAGE, malformed. None of these can be answered safely
            unless the signature was verified, so the caller answers none.
    """
    try:
        wire = decode(KeyRequest, value)
        key = private_key(bytes.fromhex(wire.key_id))
        worker_id = (record_key or b"").decode()
        if key is None:
            raise Reject(ErrorCode.EXPIRED, "sealed to a key of the key service that is gone")
        plaintext = open_with(
            key, info(Info.KEY_REQUEST, worker_id), decode_base64(wire.sealed, "sealed")
        )
        raw, signature = unlp(plaintext, count=2)
        if not isinstance(raw, bytes) or not isinstance(signature, bytes):
            raise InvalidMessage("a request is a body and a signature")
        body = msgspec.msgpack.decode(raw, type=RequestBody)
    except InvalidMessage as error:
        raise Reject(ErrorCode.INVALID_MESSAGE, error.message, field=error.field) from error
    except CryptoError as error:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the request does not open") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise Reject(ErrorCode.INVALID_MESSAGE, "the request is malformed") from error
    certificate = verify_certificate(body.certificate, issuer, now_s=now_s)
    try:
        certificate.verify_key.verify(signature, Info.KEY_REQUEST, raw)
    except BadSignature as error:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the request's signature is wrong") from error
    if not body.worker_id == certificate.worker_id == worker_id:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the request names another worker")
    _check_terms(body, now_s)
    return OpenedRequest(body, certificate, hashlib.sha256(value or b"").digest())


def _check_terms(body: RequestBody, now_s: float) -> None:
    now_ms = int(now_s * 1000)
    if body.v != VERSION or len(body.request_id) != 16 or len(body.uid) not in (0, 16):
        raise Reject(ErrorCode.INVALID_MESSAGE, "the request has unknown terms")
    if not 0 < body.expires_ms - body.issued_ms <= MAX_REQUEST_LIFE_MS:
        raise Reject(ErrorCode.INVALID_MESSAGE, "a request lives at most 30 s")
    if now_ms >= body.expires_ms:
        raise Reject(ErrorCode.EXPIRED, "the request has expired")
    if body.issued_ms > now_ms + CLOCK_SKEW_S * 1000:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the request is from the future")
    if len(body.objects) > MAX_OBJECTS or len(body.pack_keys) > MAX_OBJECTS:
        raise Reject(ErrorCode.TOO_LARGE, f"a request opens at most {MAX_OBJECTS} objects")
