"""What a worker signs when it wants to be certified: nobody is certified for another's key.

Signature: Ed25519 by the worker's new key, domain ENROLMENT, over (worker id, role, indexes,
public key).
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.crypto.info import Info
from workers.crypto.lp import Part, lp
from workers.crypto.sign import SigningKey
from workers.leases.certificate import Role


@dataclass(frozen=True, slots=True)
class Terms:
    """What a worker is certified for: its id, its one role, and indexes as globs."""

    worker_id: str
    role: Role
    indexes: tuple[str, ...]


def sign_terms(terms: Terms, key: SigningKey) -> bytes:
    """Return the signature of a worker over what it wants, 64 bytes."""
    return key.sign(Info.ENROLMENT, *terms_parts(terms, key.public.raw))


def terms_parts(terms: Terms, sign_pub: bytes) -> tuple[Part, ...]:
    """Return the parts that the signature covers."""
    return (terms.worker_id, terms.role, lp(*terms.indexes), sign_pub)
