"""Bind a context where a KMS only wraps a key: Azure Key Vault, PKCS#11.

RSA-OAEP and AES-KWP authenticate no context. So the KMS wraps a random key, the *carrier*, used
once; under the carrier the plaintext is a sealed object (`crypto.seal`, purpose `KMS_BOUND`) whose
object id is the provider, the KMS key's id and its version, and whose associated data is the
context. Without the KMS the carrier does not open; with another context, or said to be of another
key, the sealed object does not.

    0  "SKB1"   4 version bytes u8   5 version (ASCII)
    .. carrier bytes u16 big endian   .. carrier, as the KMS wrapped it   .. sealed object

What this does not give: with an RSA key, who knows its public half can make a wrapped key that
opens. The signed envelope, with the commitment to the key in it, is what refuses that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from workers.crypto.errors import OpenFailed
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import SecretBytes
from workers.kms.base import context_bytes
from workers.kms.errors import wrap_damaged

_MAGIC = b"SKB1"
_VERSION = re.compile(rb"[A-Za-z0-9-]{1,128}")
_MAX_BYTES = 64 * 1024


class KeyVersion(NamedTuple):
    """One version of one KMS key."""

    provider: str
    key_id: str
    version: str

    @property
    def encoded(self) -> bytes:
        """The key version as bytes, unlike those of any other."""
        return lp(*self)


class Parts(NamedTuple):
    """A wrapped key, taken apart; nothing of it is authentic yet."""

    version: str
    carrier: bytes
    sealed: bytes


def join(
    key: KeyVersion,
    carrier: SecretBytes,
    wrapped_carrier: bytes,
    plaintext: SecretBytes,
    context: Mapping[str, str],
) -> bytes:
    """Seal `plaintext` under `carrier` and put everything that opening needs beside it.

    Args:
        key: what wrapped the carrier.
        carrier: 32 random bytes, used for nothing else; stays the caller's to wipe.
        wrapped_carrier: the carrier as the KMS wrapped it.
        plaintext: what is to be wrapped.
        context: what it is bound to.
    """
    sealed = seal(
        carrier,
        plaintext.view(),
        purpose=SealPurpose.KMS_BOUND,
        index_uid=b"",
        object_id=key.encoded,
        associated_data=context_bytes(context),
    )
    version = key.version.encode("ascii")
    return b"".join(
        (
            _MAGIC,
            bytes((len(version),)),
            version,
            len(wrapped_carrier).to_bytes(2, "big"),
            wrapped_carrier,
            sealed,
        )
    )


def split(wrapped: bytes) -> Parts:
    """Take a wrapped key apart.

    Raises:
        Damaged: It was not made by `join`.
    """
    if len(wrapped) > _MAX_BYTES or wrapped[:4] != _MAGIC or len(wrapped) < 7:
        raise wrap_damaged()
    carrier_at = 5 + wrapped[4] + 2
    version = wrapped[5 : carrier_at - 2]
    sealed_at = carrier_at + int.from_bytes(wrapped[carrier_at - 2 : carrier_at], "big")
    if not _VERSION.fullmatch(version) or not carrier_at < sealed_at < len(wrapped):
        raise wrap_damaged()
    return Parts(version.decode("ascii"), wrapped[carrier_at:sealed_at], wrapped[sealed_at:])


def open_bound(
    key: KeyVersion, carrier: SecretBytes, sealed: bytes, context: Mapping[str, str]
) -> SecretBytes:
    """Open what `join` sealed.

    Raises:
        Damaged: It was changed, or sealed for another key, version or context.
    """
    try:
        return SecretBytes(
            open_sealed(
                carrier,
                sealed,
                purpose=SealPurpose.KMS_BOUND,
                index_uid=b"",
                object_id=key.encoded,
                associated_data=context_bytes(context),
            )
        )
    except (OpenFailed, ValueError):
        raise wrap_damaged() from None
