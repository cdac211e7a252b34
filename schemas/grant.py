"""key-request and key-grant as they lie in Kafka. `workers/leases` knows what is inside."""

from __future__ import annotations

from schemas.errors import ErrorInfo
from schemas.ids import Count, Hex16Field, Hex32Field, UuidField
from schemas.message import Answer, Request
from schemas.values import Base64, decode_base64


class KeyRequest(Request, frozen=True, kw_only=True):
    """A signed request, HPKE-sealed to the key service's key `key_id`."""

    key_id: Hex16Field
    sealed: Base64

    def __post_init__(self) -> None:
        decode_base64(self.sealed, "sealed")


class KeyGrant(Answer, frozen=True, kw_only=True):
    """The answer: clear header, keys sealed to the request's ephemeral key, signature.

    `deny`: why nothing is granted; then there is no `sealed`. `signature` covers header and
    `sealed`.
    """

    request_id: UuidField
    request_sha256: Hex32Field
    to: str
    index: str
    generation: Count
    purposes: list[str]
    not_before_ms: Count
    expires_ms: Count
    deny: ErrorInfo | None = None
    sealed: Base64 | None = None
    signature: Base64

    def __post_init__(self) -> None:
        decode_base64(self.signature, "signature")
        if self.sealed is not None:
            decode_base64(self.sealed, "sealed")
