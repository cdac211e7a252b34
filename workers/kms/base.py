"""What every key management system offers: wrap and unwrap 32-byte keys, bound to a context.

Claims: a wrapped key opens only in the KMS, under the same key id and the same context; so a
wrapped key moved to another index, or used for another purpose, does not open. The context is not
secret. It is `{"index": index uid as hex, "purpose": ..., ...}`, or `{"purpose": ...}` for keys of
the realm.

The caller keeps `key id`, `version` and `context` beside the wrapped key, and opens the result of
`rewrap` once before it drops the old one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from schemas.errors import ErrorCode
from workers.crypto.lp import lp
from workers.crypto.secret import SecretBytes
from workers.errors import Reject

DEADLINE_S = 2.0
_KEY_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Wrapped(NamedTuple):
    """A wrapped key and the version of the KMS key that wrapped it."""

    data: bytes
    version: str


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What a KMS says about a key.

    Attributes:
        provider: the name of the KMS.
        key_id: the key's id in it.
        version: the version that wraps now.
        min_version: the lowest version that still opens.
        binds_context: whether the key authenticates the context.
    """

    provider: str
    key_id: str
    version: str
    min_version: str
    binds_context: bool


class Kms(Protocol):
    """A key management system; every call has a deadline of 2 s and may run concurrently.

    All methods raise `KmsUnavailable`, `KmsDenied` and `KmsKeyDisabled` (all `Retry`), `KmsKeyGone`
    (`Reject`), and `Reject(INVALID_MESSAGE)` for a malformed key id.
    """

    @property
    def name(self) -> str:
        """The provider's name, as in `kms: {provider}` of `index.create`."""

    @property
    def default_key(self) -> str:
        """The id of the key that the spec of `open_kms` named."""

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        """Wrap `plaintext` under the newest version of a key.

        Raises:
            Reject: UNSUPPORTED: this key cannot bind a context.
        """

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        """Open a wrapped key.

        Raises:
            Damaged: It was changed, or wrapped under another key or context.
        """

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        """Move a wrapped key to the newest version of its KMS key, inside the KMS where it can.

        Raises:
            Damaged: It was changed, or wrapped under another key or context.
        """

    async def describe(self, key_id: str) -> KeyInfo:
        """Say which versions of a key exist and what it can do."""

    async def aclose(self) -> None:
        """Give connections back and wipe what is held."""


def check_key_id(key_id: str) -> str:
    """Return `key_id` if it can stand in a URL or file name; it may come from an admin request.

    Raises:
        Reject: INVALID_MESSAGE.
    """
    if not _KEY_ID.fullmatch(key_id):
        raise malformed_key_id("a KMS key id has 1 to 128 letters, digits, '.', '_' or '-'")
    return key_id


def malformed_key_id(message: str) -> Reject:
    """Make the `Reject` for a key id that this KMS cannot have."""
    return Reject(ErrorCode.INVALID_MESSAGE, message, field="kms.key_id")


def context_bytes(context: Mapping[str, str]) -> bytes:
    """Encode a context so that its order does not matter and no two contexts share an encoding."""
    parts = [part for item in sorted(context.items()) for part in item]
    return lp("sealstream/1 kms", *parts)
