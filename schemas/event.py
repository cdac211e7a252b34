"""index-event: how far a shard has applied its updates. A hint; heads are the truth."""

from __future__ import annotations

from schemas.ids import Count, Hex16Field, Hex32Field, IndexField
from schemas.message import Answer, AnswerPart
from schemas.position import Partition, ShardNumber
from schemas.values import Base64


class Applied(AnswerPart, frozen=True, kw_only=True):
    """The last index-update that the head contains. `offset` -1: none yet."""

    partition: Partition
    offset: int


class IndexEvent(Answer, frozen=True, kw_only=True):
    """State of one shard after a publication, signed by its writer.

    `uid`: of the index: a name may be given again, and versions then begin anew.
    `signature`: base64 of the writer's signature over the other fields.
    """

    index: IndexField
    shard: ShardNumber
    version: Count
    applied: Applied
    documents: Count
    segments: Count
    head_sha256: Hex32Field
    uid: Hex16Field | None = None
    worker: str | None = None
    signature: Base64 | None = None
