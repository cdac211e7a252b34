"""Why a token does not count, or cannot be looked at: for the log. Who brings it is told less."""

from __future__ import annotations

from enum import StrEnum

from schemas.errors import ErrorCode
from workers.errors import Reject, Retry


class Why(StrEnum):
    """Classes of refusals; `deploy/ACCESS.md` says what an operator does about each."""

    MALFORMED = "malformed"
    """Not of the form that is asked for: garbage, or a document that could be read in two ways."""
    TYPE = "type"
    """Made for something else: another kind of token, another version."""
    ALGORITHM = "algorithm"
    """Signed in a way that is not accepted."""
    UNSIGNED = "unsigned"
    ENCRYPTED = "encrypted"
    UNKNOWN_SIGNER = "unknown-signer"
    """Signed with a key that the issuer does not name: rotated, or of somebody else."""
    CHANGED = "changed"
    """What was signed is not what is there."""
    SIGNATURE = "signature"
    """By a known key, as it says, but it is not: forged, or damaged."""
    ISSUER = "issuer"
    AUDIENCE = "audience"
    RECIPIENT = "recipient"
    CONDITION = "condition"
    EXPIRED = "expired"
    FUTURE = "future"
    SUBJECT = "subject"
    """Does not say who the caller is in the way that is asked for."""


class Refused(Reject):
    """Raised when a token of another identity provider does not count.

    Args:
        why: for the log.
        message: for the caller.
        code: for the caller.
    """

    def __init__(self, why: Why, message: str, code: ErrorCode = ErrorCode.UNAUTHENTICATED) -> None:
        super().__init__(code, message, field="auth")
        self.why = why

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.why, self.message, self.code)


class Unavailable(Retry):
    """Raised when tokens of another identity provider cannot be looked at now: KEY_UNAVAILABLE.

    Callers are told that alone: what is the matter with the provider, or with what the settings say
    of it, is for who runs the key service.

    Args:
        why: for the log.
    """

    def __init__(self, why: str) -> None:
        super().__init__(
            ErrorCode.KEY_UNAVAILABLE,
            "the identity provider is unavailable: its tokens cannot be checked now, try again",
        )
        self.why = why

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.why,)
