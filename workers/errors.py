"""Errors, classed by what the runtime must do next.

    SealstreamError
    ├── Retry      process the same input again, later: something outside is unavailable
    ├── Reject     this input can never succeed: dead letter, and an error result to the sender
    │   └── Damaged    stored data failed its authentication: as Reject, and an alert
    ├── Fenced     another writer owns the shard: drop its state, load it again
    ├── Reread     records were passed over that can be worked on now: read them again
    └── Fatal      the process cannot go on: exit, let the supervisor start it anew

A message says what to do. It never carries plaintext, keys or tokens.
"""

from __future__ import annotations

from schemas.errors import RETRYABLE, ErrorCode, ErrorInfo


class SealstreamError(Exception):
    """Any failure this project names.

    Args:
        code: the code of the contract, as callers will see it.
        message: what to do about it; no plaintext, keys or tokens.
        field: path of the field that caused it, when there is one.
    """

    def __init__(self, code: ErrorCode | str, message: str, *, field: str | None = None) -> None:
        super().__init__(code, message, field)
        self.code = ErrorCode(code)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        at = f" (field {self.field})" if self.field else ""
        return f"{self.code.value}: {self.message}{at}"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.code, self.message), {"field": self.field}

    def info(self) -> ErrorInfo:
        """Return this error as it is sent in results and dead letters."""
        return ErrorInfo(
            code=self.code,
            message=self.message,
            field=self.field,
            retryable=self.code in RETRYABLE,
        )


class Retry(SealstreamError):  # noqa: N818 - named by what to do
    """Raised when a dependency is unavailable: the same input is tried again with back-off."""


class Reject(SealstreamError):  # noqa: N818 - named by what to do
    """Raised when an input can never succeed: it is dead-lettered and its sender is told."""


class Damaged(Reject):
    """Raised with `DAMAGED` when stored data does not authenticate: damaged or swapped."""


class Fenced(SealstreamError):  # noqa: N818 - named by what to do
    """Raised with `CONFLICT` when another writer published the shard: state held here is stale."""


class Reread(SealstreamError):  # noqa: N818 - named by what to do
    """Raised when a partition must be read again from where its state ends."""


class Fatal(SealstreamError):  # noqa: N818 - named by what to do
    """Raised when the process must exit: its configuration or identity cannot work."""
