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


class KmsDenied(Retry):
    """Raised when the KMS refuses us; an operator must renew the token or mend the policy."""


class KmsKeyGone(Reject):
    """Raised when a KMS key or its version is gone: what it wrapped cannot be opened any more."""


def unavailable(message: str) -> KmsUnavailable:
    """Make a `KmsUnavailable`."""
    return KmsUnavailable(ErrorCode.KEY_UNAVAILABLE, message)


def denied(message: str) -> KmsDenied:
    """Make a `KmsDenied`."""
    return KmsDenied(ErrorCode.KEY_UNAVAILABLE, message)


def key_gone(message: str) -> KmsKeyGone:
    """Make a `KmsKeyGone`."""
    return KmsKeyGone(ErrorCode.NOT_FOUND, message, field="kms.key_id")
