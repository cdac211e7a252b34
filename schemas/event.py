"""index-event: how far a shard has applied its updates. A hint; heads are the truth."""

from __future__ import annotations

from schemas.ids import Count, Hex32Field, IndexField
from schemas.message import Answer, AnswerPart
from schemas.position import Partition, ShardNumber
from schemas.values import Base64


class Applied(AnswerPart, frozen=True, kw_only=True):
    """The last index-update that the head contains. `offset` -1: none yet."""

    partition: Partition
    offset: int


class IndexEvent(Answer, frozen=True, kw_only=True):
    """State of one shard after a publication, signed by its writer.

    `signature`: base64 of the writer's signature over the other fields.
    """

    index: IndexField
    shard: ShardNumber
    version: Count
    applied: Applied
    documents: Count
    segments: Count
    head_sha256: Hex32Field
    worker: str | None = None
    signature: Base64 | None = None
