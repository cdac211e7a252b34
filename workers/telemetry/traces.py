"""W3C trace context: read `traceparent`, continue it in what we produce. No exporter.

| field | characters | meaning |
|---|---|---|
| version | 2 hex | `00`; higher ones are read as far as known, `ff` is invalid |
| trace id | 32 hex | not all zero |
| parent id | 16 hex | not all zero |
| flags | 2 hex | bit 0: sampled |

https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

HEADER = "traceparent"

_FORMAT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One step of a trace. Ids are lower-case hex; they say nothing about the message."""

    trace_id: str
    span_id: str
    flags: int = 0

    @classmethod
    def new(cls) -> TraceContext:
        """Begin a trace."""
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    @classmethod
    def parse(cls, header: bytes | None) -> TraceContext | None:
        """Return the context a header names; None if there is none or it is invalid."""
        found = _FORMAT.fullmatch(header) if header is not None else None
        if found is None:
            return None
        version, trace_id, span_id, flags, rest = found.groups()
        if version == b"ff" or (version == b"00" and rest is not None):
            return None
        if not trace_id.strip(b"0") or not span_id.strip(b"0"):
            return None
        return cls(trace_id.decode(), span_id.decode(), int(flags, 16))

    def child(self) -> TraceContext:
        """Return the next step of the same trace."""
        return TraceContext(self.trace_id, secrets.token_hex(8), self.flags)

    def header(self) -> tuple[str, bytes]:
        """Return the record header that carries it."""
        return HEADER, f"00-{self.trace_id}-{self.span_id}-{self.flags & 1:02x}".encode()


def continue_from(header: bytes | None) -> TraceContext:
    """Return the next step after `header`, or a new trace."""
    parent = TraceContext.parse(header)
    return TraceContext.new() if parent is None else parent.child()
