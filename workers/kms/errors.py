"""How a KMS says no. Each error is a `Retry` or a `Reject` of `workers.errors`.

    Retry   KEY_UNAVAILABLE
    ├── KmsUnavailable    unreachable, too slow, sealed, overloaded or misconfigured
    └── KmsDenied         reachable, and it refuses our credentials or policy
    Reject
    └── KmsKeyGone        NOT_FOUND: the key, or the version that wrapped, does not exist any more
    Damaged               DAMAGED: the wrapped key was changed, or belongs to another context or key

A refusal for our own credentials is a `Retry`: an expired token must stop the pipeline, not send
its records to the dead letters. No message carries an answer's body, a token or a key.
"""

from __future__ import annotations

from schemas.errors import ErrorCode
from workers.errors import Reject, Retry


class KmsUnavailable(Retry):
    """Raised when the KMS cannot be asked now; keys already cached stay usable for their time."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.KEY_UNAVAILABLE, message)


class KmsDenied(Retry):
    """Raised when the KMS refuses us; an operator must renew the token or mend the policy."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.KEY_UNAVAILABLE, message)


class KmsKeyGone(Reject):
    """Raised when a KMS key or its version is gone: what it wrapped cannot be opened any more."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.NOT_FOUND, message, field="kms.key_id")
