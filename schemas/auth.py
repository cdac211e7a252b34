"""Credentials: what a message shows, and what is inside a sealed one.

`Credential` is the plaintext of `Auth.sealed`; only the key service can open it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from schemas.errors import InvalidMessage
from schemas.ids import IndexField
from schemas.message import Part, Request
from schemas.values import Base64, decode_base64

INDEX_KEY_BYTES: Final = 32
SESSION_KEY_BYTES: Final = 32
MAX_CREDENTIAL_CHARS: Final = 32_768
"""Of a token: SAML responses with certificates and many groups have 5 to 30 thousand."""

Token = Annotated[str, Meta(min_length=1, max_length=MAX_CREDENTIAL_CHARS)]
UnixSeconds = Annotated[int, Meta(ge=0, le=2**40, description="Seconds since 1970, UTC.")]


class Scope(StrEnum):
    """What a caller may do: the nine scopes of CYBERCRYPT D1."""

    ENCRYPT = "Encrypt"
    DECRYPT = "Decrypt"
    UPDATE = "Update"
    DELETE = "Delete"
    CREATE_TOKEN = "CreateToken"  # noqa: S105 - the name of a scope
    GET_TOKEN_CONTENTS = "GetTokenContents"  # noqa: S105 - the name of a scope
    GET_ACCESS_GROUPS = "GetAccessGroups"
    MODIFY_ACCESS_GROUPS = "ModifyAccessGroups"
    INDEX = "Index"


class Auth(Part, frozen=True, kw_only=True):
    """A credential: exactly one of `sealed` and `token`.

    `sealed`: base64 of HPKE to the key service, holding a `Credential`. `token`: an identity
    token in clear, only where the setting `allow_plain_credentials` is true.
    """

    sealed: Base64 | None = None
    token: Token | None = None

    def __post_init__(self) -> None:
        if (self.sealed is None) == (self.token is None):
            raise InvalidMessage("exactly one of sealed and token is needed")
        if self.sealed is not None:
            decode_base64(self.sealed, "sealed")

    def sealed_bytes(self) -> bytes | None:
        """Return the HPKE ciphertext, or None if the credential is a plain token."""
        return None if self.sealed is None else decode_base64(self.sealed, "sealed")


class Credential(Request, frozen=True, kw_only=True):
    """Plaintext of a sealed credential: one of `token`, `index_key`, `user_id` + `user_key`.

    `index`: the only index it is good for; absent for requests that name none.
    `scopes`: what it may be used for; empty asks for all that the caller has.
    `exp`: when it ends. `cnf`: base64 of the Ed25519 session key that signs its messages.
    """

    token: Token | None = None
    index_key: Base64 | None = None
    user_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    user_key: Base64 | None = None
    index: IndexField | None = None
    scopes: list[Scope] = []
    exp: UnixSeconds
    cnf: Base64

    def __post_init__(self) -> None:
        kinds = (self.token, self.index_key, self.user_key)
        if sum(kind is not None for kind in kinds) != 1:
            raise InvalidMessage("exactly one of token, index_key and user_key is needed")
        if (self.user_id is None) != (self.user_key is None):
            raise InvalidMessage("user_id and user_key belong together", "user_id")
        if self.index_key is not None:
            check_index_key(self.index_key, "index_key")
        if self.user_key is not None:
            decode_base64(self.user_key, "user_key")
        if len(decode_base64(self.cnf, "cnf")) != SESSION_KEY_BYTES:
            raise InvalidMessage("must hold an Ed25519 public key of 32 bytes", "cnf")


def check_index_key(text: str, field: str) -> bytes:
    """Return the 32 bytes of an index key.

    Raises:
        InvalidMessage: not base64, or not exactly 32 bytes.
    """
    key = decode_base64(text, field)
    if len(key) != INDEX_KEY_BYTES:
        raise InvalidMessage(f"an index key is exactly {INDEX_KEY_BYTES} bytes", field)
    return key
