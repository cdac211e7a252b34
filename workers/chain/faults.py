"""The two errors that this package raises, made in one place."""

from __future__ import annotations

from schemas.errors import ErrorCode
from workers.errors import Damaged, Fenced


def damaged(message: str) -> Damaged:
    """Make the error for stored data that is not what was written."""
    return Damaged(ErrorCode.DAMAGED, message)


def fenced(message: str) -> Fenced:
    """Make the error for a shard that another writer has published."""
    return Fenced(ErrorCode.CONFLICT, message)
