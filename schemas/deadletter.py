"""Dead letters: one per refused record, with its place and never its content.

Key: digest of the source record's key. The record itself stays in the source topic, from which
`dlq replay` reads it again and keeps its order.
"""

from __future__ import annotations

from typing import Literal

from schemas.errors import ErrorInfo
from schemas.ids import Count, Hex32Field
from schemas.message import Answer
from schemas.position import Source


class DeadLetterSource(Source, frozen=True, kw_only=True):
    """The refused record. `timestamp_ms`: its Kafka timestamp; -1 if it has none."""

    timestamp_ms: int


class DeadLetter(Answer, frozen=True, kw_only=True):
    """Why a record was refused.

    Args:
        sha256: digest of the value, hex: SHA-256 of what was sealed; of clear values an HMAC, so
            that nobody can guess the content.
        size: bytes of the value.
        attempts: how often it was tried.
    """

    error: ErrorInfo
    source: DeadLetterSource
    sha256: Hex32Field
    digest: Literal["sha256", "hmac-sha256"] = "sha256"
    size: Count
    attempts: Count
    failed_ms: Count
