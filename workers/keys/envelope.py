"""The KMS envelope of an index: how to come by its KEK. Persisted, signed, never secret.

Object `<uid>/keys/envelope/<epoch>`, one JSON object: the members of `Envelope` and `signature`
(base64), Ed25519 by the key service over lp(domain, canonical JSON of the other members). So it
cannot be changed, and one of another index is noticed by its `index_uid`.

`commitment` = HMAC-SHA-512(KEK, lp("kek commitment", index uid, epoch))[:32], hex: tells a wrong
key before anything is opened with it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Any, Final, Literal

import msgspec
import orjson

from schemas.errors import ErrorCode
from workers.crypto.derive import prf
from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey, VerifyKey
from workers.errors import Damaged

EPOCH: Final = 0
"""Of the first KEK of an index. Later ones have the time they were made, in milliseconds."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in an envelope.

    Args:
        index_uid: hex.
        epoch: number of the KEK.
        provider: name of the KMS; `none`: the caller keeps the KEK.
        key_id: of the KMS key.
        region: of the KMS, where it has one.
        wrap_version: version of the KMS key that wrapped.
        wrapped: base64 of the wrapped KEK; empty for `none`.
        commitment: hex.
        version: counts how often the same KEK was wrapped anew.
    """

    v: Literal[1] = 1
    index_uid: str
    epoch: int
    provider: str
    key_id: str
    region: str | None = None
    wrap_version: str
    wrapped: str
    commitment: str
    created_ms: int
    version: int = 0

    def wrapped_bytes(self) -> bytes:
        """Return the wrapped KEK."""
        return base64.b64decode(self.wrapped, validate=True)

    def is_of(self, kek: SecretBytes) -> bool:
        """Tell whether `kek` is the key this envelope commits to."""
        found = commitment(kek, bytes.fromhex(self.index_uid), self.epoch)
        return hmac.compare_digest(found, self.commitment)


def commitment(kek: SecretBytes, index_uid: bytes, epoch: int) -> str:
    """Return the commitment to a KEK, hex."""
    return prf(kek, "kek commitment", index_uid, epoch)[:32].hex()


def kms_context(index_uid: bytes, epoch: int) -> dict[str, str]:
    """Return what the KMS binds a wrapped KEK to."""
    return {"index": index_uid.hex(), "purpose": "kek", "epoch": str(epoch)}


def sign_envelope(envelope: Envelope, signer: SigningKey) -> bytes:
    """Return the object's bytes."""
    members: dict[str, Any] = msgspec.to_builtins(envelope)
    signature = signer.sign(Info.ENVELOPE, _canonical(members))
    members["signature"] = base64.b64encode(signature).decode("ascii")
    return _canonical(members)


def open_envelope(
    data: bytes, index_uid: bytes, epoch: int, signer: VerifyKey, *, least: int = 0
) -> Envelope:
    """Verify an envelope; `least` is the lowest version that is accepted.

    Raises:
        Damaged: changed, not signed by this key service, of another index or epoch, or older than
            `least`: put back.
    """
    try:
        members = orjson.loads(data)
        signature = base64.b64decode(members.pop("signature"), validate=True)
        signer.verify(signature, Info.ENVELOPE, _canonical(members))
        envelope = msgspec.convert(members, Envelope)
    except (
        BadSignature,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        binascii.Error,
        msgspec.MsgspecError,
    ) as error:
        raise damaged() from error
    if envelope.index_uid != index_uid.hex() or envelope.epoch != epoch:
        raise damaged()
    if envelope.version < least:
        raise damaged()
    return envelope


def damaged() -> Damaged:
    """Return the error for stored keys that are not what they should be."""
    return Damaged(
        ErrorCode.DAMAGED, "the stored keys of the index do not open: damaged or exchanged"
    )


def _canonical(members: dict[str, Any]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
