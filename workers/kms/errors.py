"""How a KMS says no. Each error is a `Retry` or a `Reject` of `workers.errors`.

    Retry   KEY_UNAVAILABLE
    ├── KmsUnavailable    unreachable, too slow, throttled, sealed or overloaded
    ├── KmsDenied         reachable, and it refuses our credentials or policy
    └── KmsKeyDisabled    the key is there, and switched off or waiting for its deletion
    Reject
    ├── KmsKeyGone        NOT_FOUND: the key, or the version that wrapped, does not exist any more
    └── (no class)        UNSUPPORTED: this key cannot do it; INVALID_MESSAGE: a malformed key id
    Damaged               DAMAGED: the wrapped key was changed, or belongs to another context or key
    Fatal                 the settings cannot work

What an operator can mend is a `Retry`: an expired token or a key disabled by mistake must stop the
pipeline, not send its records to the dead letters. No message carries an answer's body, a token or
a key.
"""

from __future__ import annotations

from schemas.errors import ErrorCode
from workers.errors import Damaged, Fatal, Reject, Retry


class KmsUnavailable(Retry):
    """Raised when the KMS cannot be asked now; keys already cached stay usable for their time."""


class KmsDenied(Retry):
    """Raised when the KMS refuses us; an operator must renew the token or mend the policy."""


class KmsKeyDisabled(Retry):
    """Raised when a KMS key is disabled or awaits deletion; an operator can switch it on again."""


class KmsKeyGone(Reject):
    """Raised when a KMS key or its version is gone: what it wrapped cannot be opened any more."""


def unavailable(message: str) -> KmsUnavailable:
    """Make a `KmsUnavailable`."""
    return KmsUnavailable(ErrorCode.KEY_UNAVAILABLE, message)


def foreign_answer() -> KmsUnavailable:
    """Make the `KmsUnavailable` for an answer that no KMS of this kind gives."""
    return unavailable("the KMS gave an answer that is not its own: is something in between?")


def unreachable(cause: BaseException) -> KmsUnavailable:
    """Make the `KmsUnavailable` for a failed connection; names the cause's class, not its text."""
    return unavailable(
        f"the KMS cannot be reached ({type(cause).__name__}): check its address and TLS"
    )


def denied(message: str) -> KmsDenied:
    """Make a `KmsDenied`."""
    return KmsDenied(ErrorCode.KEY_UNAVAILABLE, message)


def key_disabled(message: str = "the KMS key is disabled or awaits deletion") -> KmsKeyDisabled:
    """Make a `KmsKeyDisabled`."""
    return KmsKeyDisabled(ErrorCode.KEY_UNAVAILABLE, message)


def key_gone(message: str = "the KMS key, or the version that wrapped this, is gone") -> KmsKeyGone:
    """Make a `KmsKeyGone`."""
    return KmsKeyGone(ErrorCode.NOT_FOUND, message, field="kms.key_id")


def key_unsuitable(message: str = "the KMS cannot wrap with this key") -> Reject:
    """Make the `Reject` for a key of the wrong kind."""
    return Reject(ErrorCode.UNSUPPORTED, message, field="kms.key_id")


def wrap_damaged() -> Damaged:
    """Make the `Damaged` for a wrapped key that does not open."""
    return Damaged(
        ErrorCode.DAMAGED,
        "a wrapped key does not open: changed, or wrapped for another key or context",
    )


def misconfigured(message: str) -> Fatal:
    """Make the `Fatal` for settings that cannot work."""
    return Fatal(ErrorCode.KEY_UNAVAILABLE, message)
