"""Every message: its type, its topic, who writes and who reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from schemas import topics
from schemas.admin import AdminRequest, AdminResult
from schemas.audit import AuditRecord, Revocation
from schemas.auth import Credential
from schemas.deadletter import DeadLetter
from schemas.directory import DirectoryFloor, DirectoryIndex, DirectoryKeyService
from schemas.event import IndexEvent
from schemas.grant import KeyGrant, KeyRequest
from schemas.index import IndexConfig
from schemas.ingest import IngestRequest, IngestResult
from schemas.query import QueryRequest, QueryResult
from schemas.sealed import SealedValue

Kind = type[msgspec.Struct]


@dataclass(frozen=True, slots=True)
class MessageSpec:
    """One type of message.

    Args:
        name: file name of its schema.
        kind: its type.
        example: a message as a producer would write it; the contract tests decode each.
    """

    name: str
    kind: Kind
    example: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Channel:
    """One topic.

    Args:
        key: what the record key is.
        messages: names of the messages it carries.
        sent_by, read_by: workers, or `clients`, `admins`, `operators`.
    """

    topic: str
    key: str
    messages: tuple[str, ...]
    sent_by: tuple[str, ...]
    read_by: tuple[str, ...]


_UUID: Final = "018f6b1e-7c3a-7e51-9d2b-3f6f2f0c8a11"
_SHA: Final = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
_KEY: Final = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="

MESSAGES: Final[tuple[MessageSpec, ...]] = (
    MessageSpec(
        "ingest-request",
        IngestRequest,
        {
            "v": 1,
            "op": "upsert",
            "index": "acme/docs",
            "id": "doc-1",
            "auth": {"token": "<identity token>"},
            "content": "The quick brown fox",
            "content_type": "text/plain",
            "associated_data": {"base64": "c291cmNlPW1haWw="},
            "text": {"title": "Fox", "body": "The quick brown fox"},
            "keywords": ["keyword1"],
            "vector": [0.1, 0.2],
            "metadata": {"lang": "en", "year": 1999, "tags": ["a", "b"]},
            "groups": [_UUID],
        },
    ),
    MessageSpec(
        "ingest-result",
        IngestResult,
        {
            "v": 1,
            "index": "acme/docs",
            "id": "doc-1",
            "op": "upsert",
            "status": "accepted",
            "object_id": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
            "version": 1,
            "position": {"shard": 0, "partition": 3, "offset": 123},
            "source": {"topic": "plaintext-ingest", "partition": 1, "offset": 7},
        },
    ),
    MessageSpec(
        "index-event",
        IndexEvent,
        {
            "v": 1,
            "index": "acme/docs",
            "shard": 0,
            "version": 42,
            "applied": {"partition": 3, "offset": 123},
            "documents": 1000,
            "segments": 4,
            "head_sha256": _SHA,
            "uid": _SHA[:32],
            "signature": _KEY,
        },
    ),
    MessageSpec(
        "query-request",
        QueryRequest,
        {
            "v": 1,
            "request_id": _UUID,
            "index": "acme/docs",
            "auth": {"token": "<identity token>"},
            "query": {"text": "quick fox", "operator": "and"},
            "top_k": 10,
            "filter": {"year": {"$gte": 1990}, "lang": {"$in": ["en"]}},
            "include": ["score", "metadata"],
            "min_position": [{"shard": 0, "offset": 123}],
            "timeout_ms": 5000,
            "reply": {"topic": "query-result", "partition": 0, "public_key": _KEY},
            "explain": False,
        },
    ),
    MessageSpec(
        "query-result",
        QueryResult,
        {
            "v": 1,
            "request_id": _UUID,
            "status": "ok",
            "hits": [{"id": "doc-1", "score": 1.5, "metadata": {"lang": "en"}}],
            "snapshot": [{"shard": 0, "version": 42}],
            "took_ms": 3.2,
        },
    ),
    MessageSpec(
        "sealed-value",
        SealedValue,
        {
            "v": 1,
            "index": "acme/docs",
            "key_id": "000102030405060708090a0b0c0d0e0f",
            "suite": 2,
            "sealed": _KEY,
        },
    ),
    MessageSpec(
        "credential",
        Credential,
        {
            "v": 1,
            "token": "<identity token>",
            "index": "acme/docs",
            "scopes": ["Encrypt", "Index"],
            "exp": 1900000000,
            "cnf": _KEY,
        },
    ),
    MessageSpec(
        "admin-request",
        AdminRequest,
        {
            "v": 1,
            "request_id": _UUID,
            "auth": {"token": "<identity token>"},
            "op": "index.create",
            "args": {"index": "acme/docs", "dimension": 384, "kms": {"provider": "local"}},
            "reply": {"public_key": _KEY},
        },
    ),
    MessageSpec(
        "admin-result",
        AdminResult,
        {"v": 1, "request_id": _UUID, "status": "ok", "result": {"index": "acme/docs"}},
    ),
    MessageSpec(
        "dead-letter",
        DeadLetter,
        {
            "v": 1,
            "error": {"code": "INVALID_MESSAGE", "message": "is required", "field": "id"},
            "source": {
                "topic": "plaintext-ingest",
                "partition": 1,
                "offset": 7,
                "timestamp_ms": 1763740800000,
            },
            "sha256": _SHA,
            "digest": "hmac-sha256",
            "size": 512,
            "attempts": 1,
            "failed_ms": 1763740800123,
        },
    ),
    MessageSpec("key-request", KeyRequest),
    MessageSpec("key-grant", KeyGrant),
    MessageSpec("directory-key-service", DirectoryKeyService),
    MessageSpec("directory-index", DirectoryIndex),
    MessageSpec("directory-floor", DirectoryFloor),
    MessageSpec("revocation", Revocation),
    MessageSpec("audit-record", AuditRecord),
    MessageSpec("index-config", IndexConfig),
)

_DOCUMENT: Final = "`<index>/<id>`; sealed: `<index>/<32 hex digits, stable per document>`"

CHANNELS: Final[tuple[Channel, ...]] = (
    Channel(
        topics.PLAINTEXT_INGEST,
        _DOCUMENT,
        ("ingest-request", "sealed-value"),
        ("clients",),
        ("ingest",),
    ),
    Channel(
        topics.INGEST_RESULT,
        "as the request",
        ("ingest-result", "sealed-value"),
        ("ingest", "index"),
        ("clients",),
    ),
    Channel(
        topics.INDEX_UPDATE,
        "`<index uid>/<shard>`; the partition is the one in key-directory",
        ("index-update",),
        ("ingest", "keys"),
        ("index",),
    ),
    Channel(
        topics.INDEX_EVENT,
        "`<index>/<shard>`",
        ("index-event",),
        ("index",),
        ("query", "keys", "clients"),
    ),
    Channel(
        topics.QUERY_REQUEST,
        "any; `<index>#<n>` keeps caches warm",
        ("query-request", "sealed-value"),
        ("clients",),
        ("query",),
    ),
    Channel(
        topics.QUERY_RESULT,
        "request id",
        ("query-result", "sealed-value"),
        ("query",),
        ("clients",),
    ),
    Channel(
        topics.KEY_REQUEST,
        "worker id",
        ("key-request",),
        ("ingest", "index", "query"),
        ("keys",),
    ),
    Channel(
        topics.KEY_GRANT,
        "worker id",
        ("key-grant",),
        ("keys",),
        ("ingest", "index", "query"),
    ),
    Channel(
        topics.KEY_DIRECTORY,
        "`key-service`, index, or `#<name>` of a floor",
        ("directory-key-service", "directory-index", "directory-floor"),
        ("keys",),
        ("ingest", "index", "query", "clients"),
    ),
    Channel(
        topics.KEY_REVOCATION,
        "`<kind>/<principal>`",
        ("revocation",),
        ("keys",),
        ("ingest", "index", "query"),
    ),
    Channel(
        topics.KEY_AUDIT,
        "key-service instance",
        ("audit-record",),
        ("keys",),
        ("operators",),
    ),
    Channel(topics.ADMIN_REQUEST, "request id", ("sealed-value",), ("admins",), ("keys",)),
    Channel(
        topics.ADMIN_RESULT,
        "request id",
        ("sealed-value",),
        ("keys",),
        ("admins",),
    ),
    *(
        Channel(
            topics.dead_letter(name),
            "digest of the source record's key",
            ("dead-letter",),
            (worker,),
            ("operators",),
        )
        for name, worker in (
            (topics.PLAINTEXT_INGEST, "ingest"),
            (topics.INDEX_UPDATE, "index"),
            (topics.QUERY_REQUEST, "query"),
            (topics.KEY_REQUEST, "keys"),
            (topics.ADMIN_REQUEST, "keys"),
        )
    ),
)
