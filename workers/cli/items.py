"""What a source of `sealstream ingest` gives: operations, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.errors import ErrorCode, ErrorInfo


@dataclass(frozen=True, slots=True)
class Item:
    """One operation, or why there is none.

    Attributes:
        where: file and line or row, for people.
        operation: a plaintext-ingest body as `Client.ingest_many` takes it.
        error: what is wrong with it.
    """

    where: str
    operation: dict[str, Any] | None = None
    error: ErrorInfo | None = None

    @classmethod
    def wrong(
        cls,
        where: str,
        message: str,
        *,
        field: str | None = None,
        code: ErrorCode = ErrorCode.INVALID_MESSAGE,
    ) -> Item:
        """Return an item that cannot be ingested."""
        return cls(where, error=ErrorInfo(code=code, message=message, field=field))


Block = list[Item]
