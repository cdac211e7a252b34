"""Identity tokens: proof of who the caller is, opaque to everybody but the key service.

    "slid1_" ‖ base64url, unpadded, of SST1(realm key `identity-token`, msgpack
              [identity id, issued s, expires s], purpose IDENTITY_TOKEN, no index,
              object id "identity-token")

The token says who, never what they may do. It has a key, a purpose and a prefix of its own: an
application token (`app-token`) cannot be made into one.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, NamedTuple

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.errors import OpenFailed
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import Key
from workers.errors import Reject

PREFIX: Final = "slid1_"
_OBJECT_ID = b"identity-token"


class TokenBody(NamedTuple):
    """What a token says; times in seconds since 1970."""

    identity_id: str
    issued_s: int
    expires_s: int


def make_token(key: Key, identity_id: str, *, now_s: float, life_s: int) -> str:
    """Make an identity token.

    Args:
        key: the realm's `identity-token` key, 32 bytes.
        identity_id: whom it stands for.
        now_s: seconds since 1970.
        life_s: seconds until it expires.
    """
    body = msgspec.msgpack.encode((identity_id, int(now_s), int(now_s) + life_s))
    sealed = seal(
        key, body, purpose=SealPurpose.IDENTITY_TOKEN, index_uid=b"", object_id=_OBJECT_ID
    )
    return PREFIX + urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")


def open_token(key: Key, token: str, *, now_s: float) -> TokenBody:
    """Open an identity token and check that it is still good.

    Raises:
        Reject: UNAUTHENTICATED, not made under `key`; EXPIRED.
    """
    try:
        if not token.startswith(PREFIX):
            raise ValueError
        text = token.removeprefix(PREFIX)
        sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        plain = open_sealed(
            key, sealed, purpose=SealPurpose.IDENTITY_TOKEN, index_uid=b"", object_id=_OBJECT_ID
        )
        body = TokenBody(*msgspec.msgpack.decode(plain, type=tuple[str, int, int]))
    except (OpenFailed, ValueError, binascii.Error, msgspec.MsgspecError):
        # Not chained: the cause may hold the token.
        raise Reject(
            ErrorCode.UNAUTHENTICATED, "this is no identity token of this realm", field="auth"
        ) from None
    if now_s >= body.expires_s:
        raise Reject(ErrorCode.EXPIRED, "the identity token has expired: log in", field="auth")
    return body
