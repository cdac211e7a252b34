"""What the primitives of this package refuse.

These carry no code of the contract: only the layer above knows whether a blob that does not open is
`DAMAGED` (a leased key), `WRONG_KEY` (a key that a caller supplied) or `UNAUTHENTICATED` (a
message). The texts are constants: they never quote a key, a plaintext or stored bytes.

    CryptoError
    ├── OpenFailed      something sealed or wrapped does not open
    ├── BadSignature    a signature does not verify
    ├── InvalidKey      a key has the wrong length, suite or form (also a ValueError)
    └── KeyWiped        a key was wiped before its use: no word about what it should open
"""

from __future__ import annotations


class CryptoError(Exception):
    """Base of everything `workers.crypto` raises on purpose."""


class OpenFailed(CryptoError):  # noqa: N818 - the layers above read it as an event
    """Sealed bytes do not open: another key or context, changed, or below the floor."""


class BadSignature(CryptoError):  # noqa: N818 - as above
    """A signature does not verify for this key, domain and message."""


class InvalidKey(CryptoError, ValueError):  # noqa: N818 - as above
    """A key has the wrong length, an unknown or refused suite, or no valid point in it."""


class KeyWiped(CryptoError):  # noqa: N818 - as above
    """A secret was used after `wipe()`: its lease ended, say.

    Not a ValueError, on purpose: who takes one for damaged data would blame the data for this.
    """
