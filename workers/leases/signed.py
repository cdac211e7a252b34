"""Signatures that workers put on what they write for others to read: results and events.

A record carries the header `sealstream-sig` (Ed25519 by the worker over key and value as produced,
alone or together with other records: `workers/crypto/together.py`; domain as in
`workers.crypto.info`) and the header `sealstream-certificate`: the worker's certificate. Who has
pinned the key service can verify both without asking anybody.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from schemas.errors import ErrorCode
from schemas.topics import HEADER_SIGNATURE
from workers.crypto.errors import CryptoError
from workers.crypto.info import Info
from workers.crypto.sign import VerifyKey
from workers.crypto.together import sign_together, verify
from workers.errors import Reject
from workers.kafka.broker import Headers, Record
from workers.leases.certificate import Role, WorkerCertificate, WorkerIdentity, verify_certificate
from workers.leases.revocation import Revocations

HEADER_CERTIFICATE: Final = "sealstream-certificate"


@lru_cache(maxsize=256)
def _verified(encoded: bytes, service: VerifyKey) -> WorkerCertificate:
    """Verify a certificate once: few workers sign many records."""
    return verify_certificate(encoded, service)


def signature_headers(identity: WorkerIdentity, kind: Info, key: bytes, value: bytes) -> Headers:
    """Sign a record as a worker; return the two headers."""
    return (
        (HEADER_SIGNATURE, identity.signing_key.sign(kind, key, value)),
        (HEADER_CERTIFICATE, identity.certificate.encoded),
    )


def headers_together(
    identity: WorkerIdentity, kind: Info, records: Sequence[tuple[bytes, bytes]]
) -> list[Headers]:
    """Sign records, (key, value) each, as a worker; return the two headers of each."""
    certificate = (HEADER_CERTIFICATE, identity.certificate.encoded)
    signatures = sign_together(identity.signing_key, kind, records)
    return [((HEADER_SIGNATURE, signature), certificate) for signature in signatures]


def verify_record(
    record: Record,
    service: VerifyKey,
    roles: tuple[Role, ...],
    kind: Info,
    *,
    index: str | None = None,
    revocations: Revocations,
) -> WorkerCertificate:
    """Check that a certified worker of one of `roles` signed a record.

    Args:
        record: as read.
        service: the key service's verify key.
        roles: who may have written it.
        kind: the domain of the signature.
        index: what the record is about, if that is known: the certificate must cover it.
        revocations: what a revoked worker wrote counts no more, whenever it wrote it.

    Raises:
        Reject: UNAUTHENTICATED, a header is missing or does not verify; EXPIRED, the certificate.
    """
    signature = record.header(HEADER_SIGNATURE)
    encoded = record.header(HEADER_CERTIFICATE)
    if signature is None or encoded is None:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the record is not signed by a worker")
    certificate = _verified(encoded, service)
    if time.time() >= certificate.expires_s:
        raise Reject(ErrorCode.EXPIRED, "the record is signed under an expired certificate")
    if revocations.covers(certificate):
        raise Reject(ErrorCode.UNAUTHENTICATED, "the record is signed by a worker that was revoked")
    if certificate.role not in roles:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the record is signed by a worker of another role")
    if index is not None and not certificate.covers(index):
        raise Reject(
            ErrorCode.UNAUTHENTICATED, "the record is signed by a worker for other indexes"
        )
    try:
        parts = (record.key or b"", record.value or b"")
        verify(certificate.verify_key, signature, kind, *parts)
    except CryptoError as error:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the record's signature does not verify") from error
    return certificate
