"""Topics: names, partitions, retention, and who reads them how.

Only work topics are read by consumer groups. Every other topic is read by each worker that
needs it, with explicit assignment (`broadcast`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PLAINTEXT_INGEST: Final = "plaintext-ingest"
INGEST_RESULT: Final = "ingest-result"
INDEX_UPDATE: Final = "index-update"
INDEX_EVENT: Final = "index-event"
QUERY_REQUEST: Final = "query-request"
QUERY_RESULT: Final = "query-result"
KEY_REQUEST: Final = "key-request"
KEY_GRANT: Final = "key-grant"
KEY_DIRECTORY: Final = "key-directory"
KEY_REVOCATION: Final = "key-revocation"
KEY_AUDIT: Final = "key-audit"
ADMIN_REQUEST: Final = "admin-request"
ADMIN_RESULT: Final = "admin-result"

DEAD_LETTER_SUFFIX: Final = ".dead-letter"

CONTENT_JSON: Final = "application/json"
CONTENT_SEALED: Final = "application/vnd.sealstream.sealed"
HEADER_CONTENT_TYPE: Final = "content-type"
HEADER_TRACEPARENT: Final = "traceparent"
HEADER_SIGNATURE: Final = "sealstream-sig"
HEADER_REPLY: Final = "sealstream-reply"
"""`<request id>/<partition>` of a sealed query: where to say that it cannot be opened."""
HEADER_REPLAY: Final = "sealstream-replay"
"""Offset at which a replayed record first stood: its place in the order of operations."""

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How a topic is made.

    Args:
        name: without the prefix of the deployment.
        partitions: how many at creation. That of `index-update` must never change: shards are
            assigned to its partitions for good.
        retention_ms: milliseconds a record is kept; None keeps it (compacted topics).
        compacted: keep the newest record of each key.
        mode: `group` for work shared by a consumer group, `broadcast` for all others.
        broker_time: records bear the time at which the broker took them, not one that the producer
            chose: by it the certificate of who wrote an index-update is judged, and what is left of
            a query's time.
    """

    name: str
    partitions: int
    retention_ms: int | None
    compacted: bool
    mode: Literal["group", "broadcast"]
    broker_time: bool = False


def dead_letter(name: str) -> str:
    """Return the name of the dead-letter topic of `name`."""
    return name + DEAD_LETTER_SUFFIX


def with_prefix(prefix: str, name: str) -> str:
    """Return `name` as this deployment calls it."""
    return prefix + name


_MAIN: Final = (
    TopicSpec(PLAINTEXT_INGEST, 4, _DAY_MS, compacted=False, mode="group"),
    TopicSpec(INGEST_RESULT, 4, _DAY_MS, compacted=False, mode="broadcast"),
    TopicSpec(INDEX_UPDATE, 4, 7 * _DAY_MS, compacted=False, mode="group", broker_time=True),
    TopicSpec(INDEX_EVENT, 1, None, compacted=True, mode="broadcast"),
    TopicSpec(QUERY_REQUEST, 4, _HOUR_MS, compacted=False, mode="group", broker_time=True),
    TopicSpec(QUERY_RESULT, 4, _HOUR_MS, compacted=False, mode="broadcast"),
    TopicSpec(KEY_REQUEST, 2, _HOUR_MS, compacted=False, mode="group"),
    TopicSpec(KEY_GRANT, 4, _HOUR_MS, compacted=False, mode="broadcast"),
    TopicSpec(KEY_DIRECTORY, 1, None, compacted=True, mode="broadcast"),
    TopicSpec(KEY_REVOCATION, 1, None, compacted=True, mode="broadcast"),
    TopicSpec(KEY_AUDIT, 1, 90 * _DAY_MS, compacted=False, mode="broadcast"),
    TopicSpec(ADMIN_REQUEST, 1, _HOUR_MS, compacted=False, mode="group"),
    TopicSpec(ADMIN_RESULT, 1, _HOUR_MS, compacted=False, mode="broadcast"),
)

ALL_TOPICS: Final[tuple[TopicSpec, ...]] = (
    *_MAIN,
    *(
        TopicSpec(dead_letter(t.name), 1, 7 * _DAY_MS, compacted=False, mode="broadcast")
        for t in _MAIN
        if t.mode == "group"
    ),
)
"""Everything `sealstream topics apply` creates."""

GROUP_TOPICS: Final[tuple[str, ...]] = tuple(t.name for t in _MAIN if t.mode == "group")
