"""Error codes of the contract, and the two ways an error travels: as data and as a refusal."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class ErrorCode(StrEnum):
    """Why a message was refused. The names are binding."""

    INVALID_MESSAGE = "INVALID_MESSAGE"
    UNKNOWN_INDEX = "UNKNOWN_INDEX"
    INDEX_EXISTS = "INDEX_EXISTS"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    WRONG_KEY = "WRONG_KEY"
    EXPIRED = "EXPIRED"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    DIMENSION_MISMATCH = "DIMENSION_MISMATCH"
    TOO_LARGE = "TOO_LARGE"
    UNSUPPORTED = "UNSUPPORTED"
    DAMAGED = "DAMAGED"
    KEY_UNAVAILABLE = "KEY_UNAVAILABLE"
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    OVERLOADED = "OVERLOADED"


RETRYABLE: frozenset[ErrorCode] = frozenset(
    {
        ErrorCode.KEY_UNAVAILABLE,
        ErrorCode.STORAGE_UNAVAILABLE,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.OVERLOADED,
    }
)
"""Codes after which the same message may be sent again unchanged."""


class ErrorInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as results and dead letters carry it. Never quotes the message it is about."""

    code: ErrorCode
    message: str
    field: str | None = None
    retryable: bool = False


class InvalidMessage(ValueError):  # noqa: N818 - the name callers know
    """Raised when bytes or values break the contract.

    Args:
        message: what is wrong and what is expected; never a value or a key the sender chose.
        field: path of the field, e.g. `query.top_k`; a key the sender chose is written `*`.
        code: `INVALID_MESSAGE`, or the code that says it better (`TOO_LARGE`).
    """

    def __init__(
        self,
        message: str,
        field: str | None = None,
        code: ErrorCode = ErrorCode.INVALID_MESSAGE,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return InvalidMessage, (self.message, self.field, self.code)

    def info(self) -> ErrorInfo:
        """Return this refusal as it is sent in results and dead letters."""
        return ErrorInfo(
            code=self.code,
            message=self.message,
            field=self.field,
            retryable=self.code in RETRYABLE,
        )
