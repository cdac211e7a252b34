"""key-directory: public keys and places, signed by the key service. Written by it alone.

Record keys: `key-service`, the name of each index, and `#<name>` for floors. `signature` covers
record key and all other members; `workers/leases/directory.py` says how.
"""

from __future__ import annotations

from typing import Literal

from schemas.ids import Count, Hex16Field, IndexField
from schemas.message import Answer, AnswerPart
from schemas.values import Base64


class DirectoryKey(AnswerPart, frozen=True, kw_only=True):
    """An HPKE public key: `key` is base64 of its suite byte and raw bytes."""

    key: Base64
    created_ms: Count = 0


class DirectoryKeyService(Answer, frozen=True, kw_only=True):
    """The key service: `sign_key` is what settings pin; `hpke_keys` newest first.

    `streams`: stream id of each source topic (`Order.stream`).
    """

    kind: Literal["key-service"]
    version: Count
    expires_ms: Count
    sign_key: Base64
    hpke_keys: list[DirectoryKey]
    streams: dict[str, int] = {}
    signature: Base64


class DirectoryIndex(Answer, frozen=True, kw_only=True):
    """An index: `partitions[shard]` is that shard's partition of index-update.

    Seal plaintext-ingest to the first of `ingest_keys` and query-request to `query_key`.
    """

    kind: Literal["index"]
    version: Count
    expires_ms: Count
    index: IndexField
    uid: Hex16Field
    deleted: bool = False
    shards: Count = 0
    partitions: list[Count] = []
    generation: Count = 0
    ingest_keys: list[DirectoryKey] = []
    query_key: DirectoryKey | None = None
    signature: Base64


class DirectoryFloor(Answer, frozen=True, kw_only=True):
    """The lowest version that the key service accepts of one of its own records. For itself."""

    kind: Literal["floor"]
    version: Count
    signature: Base64
