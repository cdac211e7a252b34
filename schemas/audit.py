"""key-audit and key-revocation: what the key service says about its own decisions."""

from __future__ import annotations

from typing import Literal

from schemas.errors import ErrorCode
from schemas.ids import Count, Hex32Field
from schemas.message import Answer
from schemas.values import Base64


class AuditRecord(Answer, frozen=True, kw_only=True):
    """One decision of one key-service instance.

    `prev`, `hash`: the chain, `hash = SHA-256("sealstream/1 audit" ‖ prev ‖ record)`.
    `signature`: on checkpoints (`event` is `checkpoint` or `stop`), over `hash`.
    """

    seq: Count
    ts_ms: Count
    instance: str
    event: str
    request_id: str | None = None
    worker: str | None = None
    caller: str | None = None
    index: str | None = None
    generation: int | None = None
    purposes: list[str] = []
    decision: Literal["grant", "deny", "none"] = "none"
    why: ErrorCode | None = None
    policy_epoch: Count = 0
    request_sha256: Hex32Field | None = None
    prev: Hex32Field
    hash: Hex32Field
    signature: Base64 | None = None


class Revocation(Answer, frozen=True, kw_only=True):
    """A principal whose keys, tokens and decisions end now. Key: `<kind>/<principal>`."""

    principal: str
    kind: Literal["user", "user_key", "worker", "token"]
    policy_epoch: Count
    revoked_ms: Count
    signature: Base64
