"""HPKE (RFC 9180): base mode, one shot, HKDF-SHA-256 and AES-256-GCM.

Claims: only the holder of the private key reads the plaintext, and only under the same `info`. Base
mode says nothing about who sealed: sign where that matters. The default suite is the hybrid of
ML-KEM-768 and X25519 (draft-ietf-hpke-pq), because records can be taken now and opened later.

    public key    suite u8 || raw      raw: X25519 32 bytes; hybrid: ML-KEM-768 1184 || X25519 32
    private key   raw                  X25519 32 bytes; hybrid: ML-KEM seed 64 || X25519 32
    from a seed   raw = HKDF-Expand-SHA-256(seed, "sealstream/1 hpke seed" || lp(suite, label), n)
    ciphertext    enc || AES-256-GCM   overhead 48 bytes for X25519, 1136 for the hybrid
    key id        SHA-256(public key)[:16]

The suite is part of HPKE's key schedule, so a ciphertext never opens under another suite.
"""

from __future__ import annotations

import hashlib
import os
import threading
from enum import IntEnum, unique

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from workers.crypto.errors import InvalidKey, OpenFailed
from workers.crypto.lp import lp
from workers.crypto.secret import Key, SecretBytes, key_view, overwrite

_MLKEM_SEED = 64
_MLKEM_PUBLIC = 1184
_X25519 = 32
_REMEMBERED = 256
# A point of low order gives no secret with this private key, as with any other.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(_X25519))


@unique
class HpkeSuite(IntEnum):
    """The key encapsulation; higher is stronger, so a floor is a comparison."""

    X25519 = 1
    MLKEM768_X25519 = 2


DEFAULT_SUITE = HpkeSuite.MLKEM768_X25519
_SUITES = {
    HpkeSuite.X25519: Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    HpkeSuite.MLKEM768_X25519: Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
}
_PRIVATE_BYTES = {HpkeSuite.X25519: _X25519, HpkeSuite.MLKEM768_X25519: _MLKEM_SEED + _X25519}


class HpkePublicKey:
    """A public key with its suite; equal and hashable by its encoding."""

    __slots__ = ("_encoded", "_key", "suite")

    def __init__(self, suite: HpkeSuite, raw: bytes) -> None:
        """Load the raw public key of a suite.

        Raises:
            InvalidKey: `raw` is no public key of this suite, or a point of low order, to which
                nothing can be sealed: refused here, where a stranger's key comes in, and not where
                the answer goes out.
        """
        self.suite = suite
        self._encoded = bytes([suite]) + raw
        self._key: X25519PublicKey | MLKEM768X25519PublicKey
        try:
            if suite is HpkeSuite.X25519:
                self._key = x25519 = X25519PublicKey.from_public_bytes(raw)
            else:
                x25519 = X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC:])
                self._key = MLKEM768X25519PublicKey(
                    MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC]), x25519
                )
            _PROBE.exchange(x25519)
        except ValueError as exc:
            raise InvalidKey("not a public key of this suite") from exc

    @classmethod
    def decode(cls, data: bytes, *, floor: HpkeSuite = HpkeSuite.X25519) -> HpkePublicKey:
        """Decode what `encode` made.

        Args:
            data: suite byte and raw key.
            floor: the lowest suite accepted.

        Raises:
            InvalidKey: Unknown suite, suite below `floor`, or no key of that suite.
        """
        try:
            suite = HpkeSuite(data[0])
        except (IndexError, ValueError) as exc:
            raise InvalidKey("a public key of an unknown suite") from exc
        if suite < floor:
            raise InvalidKey("a public key of a suite below the floor")
        return cls(suite, bytes(data[1:]))

    def encode(self) -> bytes:
        """Return the suite byte and the raw key: 33 or 1217 bytes."""
        return self._encoded

    def seal(self, info: bytes, plaintext: Key) -> bytes:
        """Seal `plaintext` to this key.

        Args:
            info: what the message is and depends on: `info.info(...)`.
            plaintext: bytes-like or a `SecretBytes`.
        """
        view = key_view(plaintext, len(plaintext))
        return _SUITES[self.suite].encrypt(view, self._key, info)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HpkePublicKey) and self._encoded == other._encoded

    def __hash__(self) -> int:
        return hash(self._encoded)

    def __repr__(self) -> str:
        return f"HpkePublicKey({self.suite.name}, {key_id(self).hex()})"


class HpkePrivateKey:
    """A private key with its suite and public half.

    OpenSSL's copy of it cannot be wiped from Python, only dropped.
    """

    __slots__ = ("_key", "_opened", "_opening", "public", "suite")

    def __init__(self, suite: HpkeSuite, raw: Key) -> None:
        """Load a raw private key: 32 bytes for X25519, 96 for the hybrid.

        Raises:
            InvalidKey: `raw` has another length.
        """
        view = memoryview(key_view(raw, _PRIVATE_BYTES[suite]))
        x25519 = X25519PrivateKey.from_private_bytes(view[-_X25519:])
        public = x25519.public_key().public_bytes_raw()
        self.suite = suite
        self._key: X25519PrivateKey | MLKEM768X25519PrivateKey = x25519
        if suite is HpkeSuite.MLKEM768_X25519:
            mlkem = MLKEM768PrivateKey.from_seed_bytes(view[:_MLKEM_SEED])
            public = mlkem.public_key().public_bytes_raw() + public
            self._key = MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public = HpkePublicKey(suite, public)
        self._opened: dict[bytes, SecretBytes] = {}
        self._opening = threading.Lock()

    @classmethod
    def generate(cls, suite: HpkeSuite = DEFAULT_SUITE) -> HpkePrivateKey:
        """Make a new key."""
        raw = os.urandom(_PRIVATE_BYTES[suite])
        try:
            return cls(suite, raw)
        finally:
            overwrite(raw)

    @classmethod
    def from_seed(cls, suite: HpkeSuite, seed: Key, label: str = "") -> HpkePrivateKey:
        """Derive the key pair of a 32-byte seed; the same arguments always give the same pair.

        Args:
            suite: the suite of the pair.
            seed: 32 bytes, such as a subkey.
            label: keeps pairs apart that come from one seed.

        Raises:
            InvalidKey: `seed` is not 32 bytes.
        """
        info = b"sealstream/1 hpke seed" + lp(suite, label)
        raw = HKDFExpand(SHA256(), _PRIVATE_BYTES[suite], info).derive(key_view(seed))
        try:
            return cls(suite, raw)
        finally:
            overwrite(raw)

    def open(self, info: bytes, ciphertext: bytes) -> bytes:
        """Open what was sealed to this key under the same `info`.

        Raises:
            OpenFailed: Another key or `info`, or changed bytes.
        """
        try:
            return _SUITES[self.suite].decrypt(ciphertext, self._key, info)
        except (InvalidTag, ValueError) as exc:
            raise OpenFailed("a sealed message does not open") from exc

    def open_again(self, info: bytes, ciphertext: bytes) -> SecretBytes:
        """Open as `open`, and remember it while this key lives: the newest `_REMEMBERED`.

        For keys that come with many messages (`shared.py`). Raises as `open`.
        """
        name = hashlib.sha256(lp(info, ciphertext)).digest()
        with self._opening:
            found = self._opened.get(name)
        if found is None:
            opened = self.open(info, ciphertext)
            found = SecretBytes(opened)
            overwrite(opened)
            with self._opening:
                while len(self._opened) >= _REMEMBERED:
                    del self._opened[next(iter(self._opened))]
                self._opened[name] = found
        return found

    def __repr__(self) -> str:
        return f"HpkePrivateKey(public={self.public!r})"

    def __reduce__(self) -> str:
        raise TypeError("an HpkePrivateKey cannot be pickled or copied")


def key_id(public: HpkePublicKey) -> bytes:
    """Return the 16 bytes that name a public key in messages."""
    return hashlib.sha256(public.encode()).digest()[:16]


def seal_to(public: HpkePublicKey, info: bytes, plaintext: Key) -> bytes:
    """Seal `plaintext` to `public`: see `HpkePublicKey.seal`."""
    return public.seal(info, plaintext)


def open_with(private: HpkePrivateKey, info: bytes, ciphertext: bytes) -> bytes:
    """Open what was sealed to `private`: see `HpkePrivateKey.open`."""
    return private.open(info, ciphertext)
