"""Ed25519 signatures over `lp`-encoded parts, one domain per message type (RFC 8032).

Invariant: what is signed always starts with the domain, so a signature made for one kind of message
verifies for no other. The table of domains is in `info.py`.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from workers.crypto.errors import BadSignature, InvalidKey
from workers.crypto.info import Info, signed_bytes
from workers.crypto.lp import Part
from workers.crypto.secret import Key, SecretBytes, key_view

SIGNATURE_BYTES = 64


class VerifyKey:
    """A public Ed25519 key; equal and hashable by its 32 bytes."""

    __slots__ = ("_key", "_raw")

    def __init__(self, raw: bytes) -> None:
        """Load a public key of 32 bytes.

        Raises:
            InvalidKey: `raw` is not 32 bytes or not accepted as a point.
        """
        self._raw = bytes(raw)
        try:
            self._key = Ed25519PublicKey.from_public_bytes(self._raw)
        except ValueError as exc:
            raise InvalidKey("not an Ed25519 public key") from exc

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the key."""
        return self._raw

    def __bytes__(self) -> bytes:
        return self._raw

    def verify(self, signature: bytes, domain: Info, *parts: Part) -> None:
        """Check `signature` over `domain` and `parts`.

        Raises:
            BadSignature: The signature was not made by this key over exactly these.
        """
        try:
            self._key.verify(signature, signed_bytes(domain, *parts))
        except InvalidSignature as exc:
            raise BadSignature("the signature does not verify") from exc

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"VerifyKey({fingerprint(self)[:16]}…)"


class SigningKey:
    """A private Ed25519 key."""

    __slots__ = ("_key", "_public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = VerifyKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: Key) -> SigningKey:
        """Load the key of a 32-byte seed.

        Raises:
            InvalidKey: `seed` is not 32 bytes.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(key_view(seed)))

    @property
    def public(self) -> VerifyKey:
        """The public half."""
        return self._public

    def seed(self) -> SecretBytes:
        """Return the 32-byte seed, for storing it sealed or in a file of mode 0600."""
        return SecretBytes(self._key.private_bytes_raw())

    def sign(self, domain: Info, *parts: Part) -> bytes:
        """Sign `parts` in `domain`; returns 64 bytes."""
        return self._key.sign(signed_bytes(domain, *parts))

    def __repr__(self) -> str:
        return f"SigningKey(public={self._public!r})"

    def __reduce__(self) -> str:
        raise TypeError("a SigningKey cannot be pickled or copied")


def fingerprint(key: VerifyKey) -> str:
    """Return the SHA-256 of a public key as hex: what settings pin and people compare."""
    return hashlib.sha256(key.raw).hexdigest()
