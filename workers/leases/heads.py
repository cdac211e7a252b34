"""Who may have written a head: a certified index worker for this index."""

from __future__ import annotations

from typing import Protocol

from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.lp import Part
from workers.leases.certificate import verify_certificate
from workers.leases.directory import KeyDirectory
from workers.leases.revocation import HEAD_GRACE_MS


class HeadVerifier(Protocol):
    """Checks who signed a head, as `workers.chain.head` asks for it."""

    def __call__(
        self, certificate: bytes, signature: bytes, parts: tuple[Part, ...], written_ms: int
    ) -> None:
        """Accept the signature. Raises BadSignature, Reject."""
        ...


def head_verifier(directory: KeyDirectory, index: str) -> HeadVerifier:
    """Return the check that a certified index worker for `index` wrote a head.

    The certificate must have been valid when the head was written: a shard without updates keeps
    its last head for longer than a certificate lives. The same goes for revocations.
    """

    def verify(
        certificate: bytes, signature: bytes, parts: tuple[Part, ...], written_ms: int
    ) -> None:
        issuer = directory.key_service.sign_pub
        writer = verify_certificate(certificate, issuer, now_s=written_ms / 1000)
        if writer.role != "index" or not writer.covers(index):
            raise BadSignature("the head was written by a worker of another role or index")
        if directory.revocations.covers(writer, written_ms - HEAD_GRACE_MS):
            raise BadSignature("the head was written by a worker after it was revoked")
        writer.verify_key.verify(signature, Info.HEAD, *parts)

    return verify
