"""AES-256 key wrap with padding, for keys under keys (RFC 5649, NIST SP 800-38F).

KWP authenticates the wrapped key but binds no context: whoever stores a wrapped key puts index,
generation and purpose into the signed envelope around it.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from workers.crypto.errors import OpenFailed
from workers.crypto.secret import Key, SecretBytes, key_view


def wrap(kek: Key, key: Key) -> bytes:
    """Wrap `key` (1 byte or more; 32 bytes give 40) under the 32-byte `kek`.

    Raises:
        InvalidKey: `kek` is not 32 bytes, or `key` is empty.
    """
    return aes_key_wrap_with_padding(bytes(key_view(kek)), bytes(key_view(key, max(1, len(key)))))


def unwrap(kek: Key, wrapped: bytes) -> SecretBytes:
    """Unwrap what `wrap` made.

    Raises:
        InvalidKey: `kek` is not 32 bytes.
        OpenFailed: `wrapped` was changed or made under another key.
    """
    try:
        return SecretBytes(aes_key_unwrap_with_padding(bytes(key_view(kek)), wrapped))
    except InvalidUnwrap as exc:
        raise OpenFailed("the wrapped key does not open") from exc
