"""Who may have written a head: a certified index worker for this index."""

from __future__ import annotations

from collections.abc import Callable

from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.lp import Part
from workers.leases.certificate import verify_certificate
from workers.leases.directory import KeyDirectory

HeadVerifier = Callable[[bytes, bytes, tuple[Part, ...], int], None]
"""(certificate, signature, signed parts, written_ms); raises BadSignature or Reject."""


def head_verifier(directory: KeyDirectory, index: str) -> HeadVerifier:
    """Return the check of a head's writer, as `workers.chain.head` asks for it.

    The certificate must have been valid when the head was written: a shard without updates keeps
    its last head for longer than a certificate lives.
    """

    def verify(
        certificate: bytes, signature: bytes, parts: tuple[Part, ...], written_ms: int
    ) -> None:
        issuer = directory.key_service.sign_pub
        writer = verify_certificate(certificate, issuer, now_s=written_ms / 1000)
        if writer.role != "index" or not writer.covers(index):
            raise BadSignature("the head was written by a worker of another role or index")
        writer.verify_key.verify(signature, Info.HEAD, *parts)

    return verify
