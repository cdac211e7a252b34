"""What a store has asked for: in its own statistics, and in the metrics of the process."""

from __future__ import annotations

import time
from typing import Literal

from workers.storage.errors import AccessDenied
from workers.storage.store import StoreStats
from workers.telemetry import metrics

Verb = Literal["get", "put", "delete", "list"]


def count(stats: StoreStats, verb: Verb, requests: int = 1) -> None:
    """Count requests."""
    setattr(stats, f"{verb}s", getattr(stats, f"{verb}s") + requests)
    metrics.STORE_REQUESTS.inc(requests, verb=verb)


def denied(key: str) -> AccessDenied:
    """Count a request that was denied, and make its error."""
    metrics.STORE_DENIED.inc()
    metrics.STORE_DENIED_AT.set(time.time())
    return AccessDenied(key)


def received(stats: StoreStats, size: int) -> None:
    """Count bytes that were read."""
    stats.bytes_in += size
    metrics.STORE_BYTES.inc(size, direction="in")


def sent(stats: StoreStats, size: int) -> None:
    """Count bytes that were written."""
    stats.bytes_out += size
    metrics.STORE_BYTES.inc(size, direction="out")
