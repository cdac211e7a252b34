"""Tokens: who the caller is, and data with an expiry. Opaque to everybody but the key service.

    "slid1_" ‖ base64url, unpadded, of SST1(realm key `identity-token`, msgpack
              [identity id, issued s, expires s, epoch], purpose IDENTITY_TOKEN, no index,
              object id "identity-token")
    "slap1_" ‖ base64url, unpadded, of SST1(realm key `app-token`, msgpack
              [data, is text, issued s, expires s], purpose APP_TOKEN, no index,
              object id "app-token")

An identity token says who, never what they may do. The two kinds differ in key, purpose and
prefix, so neither can be taken for the other or minted with its key.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, TypeVar

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.errors import OpenFailed
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import Key
from workers.errors import Reject

PREFIX: Final = "slid1_"
APP_PREFIX: Final = "slap1_"
_OBJECT_ID = b"identity-token"
_APP_OBJECT_ID = b"app-token"

T = TypeVar("T", bound=msgspec.Struct)


class TokenBody(msgspec.Struct, array_like=True, frozen=True):
    """What an identity token says; times in seconds since 1970.

    `epoch`: how often the identity's password had been changed when the token was made.
    """

    identity_id: str
    issued_s: int
    expires_s: int
    epoch: int = 0


class AppTokenBody(msgspec.Struct, array_like=True, frozen=True):
    """What an application token says; times in seconds since 1970."""

    data: bytes
    is_text: bool
    issued_s: int
    expires_s: int

    def __repr__(self) -> str:
        return "AppTokenBody()"


def make_token(key: Key, identity_id: str, *, now_s: float, life_s: int, epoch: int = 0) -> str:
    """Make an identity token.

    Args:
        key: the realm's `identity-token` key, 32 bytes.
        identity_id: whom it stands for.
        now_s: seconds since 1970.
        life_s: seconds until it expires.
        epoch: of the identity's password.
    """
    body = TokenBody(identity_id, int(now_s), int(now_s) + life_s, epoch)
    return PREFIX + _sealed(key, body, SealPurpose.IDENTITY_TOKEN, _OBJECT_ID)


def open_token(key: Key, token: str, *, now_s: float) -> TokenBody:
    """Open an identity token and check that it is still good.

    Raises:
        Reject: UNAUTHENTICATED, not made under `key`; EXPIRED.
    """
    body = _opened(key, token, PREFIX, SealPurpose.IDENTITY_TOKEN, _OBJECT_ID, TokenBody)
    if body is None:
        # Not chained to its cause, which may hold the token.
        raise Reject(
            ErrorCode.UNAUTHENTICATED, "this is no identity token of this realm", field="auth"
        )
    if now_s >= body.expires_s:
        raise Reject(ErrorCode.EXPIRED, "the identity token has expired: log in", field="auth")
    return body


def make_app_token(key: Key, data: bytes, *, is_text: bool, now_s: float, ttl_s: int) -> str:
    """Make an application token: `data`, sealed, until `ttl_s` seconds from now.

    Args:
        key: the realm's `app-token` key, 32 bytes.
        data: what it carries.
        is_text: whether `data` is UTF-8 that was given as text.
        now_s: seconds since 1970.
        ttl_s: seconds until it expires.
    """
    body = AppTokenBody(data, is_text, int(now_s), int(now_s) + ttl_s)
    return APP_PREFIX + _sealed(key, body, SealPurpose.APP_TOKEN, _APP_OBJECT_ID)


def open_app_token(key: Key, token: str, *, now_s: float) -> AppTokenBody:
    """Open an application token and check that it is still good.

    Raises:
        Reject: INVALID_MESSAGE, not made under `key`; EXPIRED.
    """
    body = _opened(key, token, APP_PREFIX, SealPurpose.APP_TOKEN, _APP_OBJECT_ID, AppTokenBody)
    if body is None:
        raise Reject(
            ErrorCode.INVALID_MESSAGE,
            "this is no application token of this realm",
            field="args.token",
        )
    if now_s >= body.expires_s:
        raise Reject(ErrorCode.EXPIRED, "the token has expired", field="args.token")
    return body


def _sealed(key: Key, body: msgspec.Struct, purpose: SealPurpose, object_id: bytes) -> str:
    sealed = seal(
        key, msgspec.msgpack.encode(body), purpose=purpose, index_uid=b"", object_id=object_id
    )
    return urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")


def _opened(
    key: Key, token: str, prefix: str, purpose: SealPurpose, object_id: bytes, kind: type[T]
) -> T | None:
    try:
        if not token.startswith(prefix):
            return None
        text = token.removeprefix(prefix)
        sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        plain = open_sealed(key, sealed, purpose=purpose, index_uid=b"", object_id=object_id)
        return msgspec.msgpack.decode(plain, type=kind)
    except (OpenFailed, ValueError, binascii.Error, msgspec.MsgspecError):
        return None
