"""What the index worker tells the world: how far a shard is, and which operations it refused.

Both are sent after the head is published and acknowledged before the offset is committed. A crash
in between loses no index-event: every start sends one cumulative event per shard. Nor a late
`rejected`: the head notes what was refused, and who opens it tells it again (`telling.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from schemas.codec import encode
from schemas.errors import ErrorInfo
from schemas.event import Applied, IndexEvent
from schemas.ids import IndexName
from schemas.ingest import IngestOp, IngestResult
from schemas.topics import (
    CONTENT_JSON,
    HEADER_CONTENT_TYPE,
    INDEX_EVENT,
    INGEST_RESULT,
    with_prefix,
)
from schemas.update import OpKind, UpdateOp
from schemas.values import encode_base64
from workers.crypto.info import Info
from workers.kafka.broker import Producer
from workers.leases.certificate import WorkerIdentity
from workers.leases.signed import signature_headers
from workers.objects.results import Answer, Outgoing, ResultTopic, encode_results

_OPS = {
    OpKind.UPSERT: IngestOp.UPSERT,
    OpKind.DELETE: IngestOp.DELETE,
    OpKind.ADD_KEYWORDS: IngestOp.ADD_KEYWORDS,
    OpKind.REMOVE_KEYWORDS: IngestOp.REMOVE_KEYWORDS,
}

Refusals = list[tuple[UpdateOp, ErrorInfo]]
"""Operations that are not applied, each with the reason."""


@dataclass(frozen=True, slots=True)
class ShardPosition:
    """A shard's head as an index-event says it."""

    index: str
    uid: bytes
    shard: int
    partition: int
    version: int
    applied: int
    documents: int
    segments: int
    head_sha256: bytes


class Emitter:
    """Sends index-events and late results. One per process."""

    def __init__(
        self,
        producer: Producer,
        identity: WorkerIdentity,
        topic_prefix: str,
        result_partitions: int = 0,
    ) -> None:
        self._producer = producer
        self._identity = identity
        self._events = with_prefix(topic_prefix, INDEX_EVENT)
        self._results = ResultTopic(
            producer, with_prefix(topic_prefix, INGEST_RESULT), result_partitions
        )

    async def event(self, position: ShardPosition) -> None:
        """Say how far a shard is; returns when that is acknowledged. Raises Retry."""
        one = encode_event(position, self._identity)
        await self._producer.send_and_wait(
            self._events, one.value, key=one.key, headers=one.headers
        )

    async def rejected(self, index: str, refused: Sequence[tuple[UpdateOp, ErrorInfo]]) -> None:
        """Send a late `rejected` for each operation. Raises Retry."""
        if not refused:
            return
        answers = [_answer(index, op, error) for op, error in refused]
        results = await asyncio.to_thread(encode_results, answers, self._identity)
        await self._results.send(results)


def _answer(index: str, op: UpdateOp, error: ErrorInfo) -> Answer:
    result = IngestResult(
        index=index,
        id=op.id,
        op=_OPS[op.kind],
        status="rejected",
        object_id=op.object_id.hex(),
        error=error,
        source=op.source,
    )
    return Answer(result, op.request_key, op.reply_key)


def encode_event(position: ShardPosition, identity: WorkerIdentity) -> Outgoing:
    """Encode and sign an index-event.

    `signature` in the event covers (record key, the event without `signature`); the headers sign
    the record as it is (`workers/leases/signed.py`).
    """
    key = f"{position.index}/{position.shard}".encode()
    event = IndexEvent(
        index=IndexName(position.index),
        shard=position.shard,
        version=position.version,
        applied=Applied(partition=position.partition, offset=position.applied),
        documents=position.documents,
        segments=position.segments,
        head_sha256=position.head_sha256.hex(),
        uid=position.uid.hex(),
        worker=identity.worker_id,
    )
    signature = identity.signing_key.sign(Info.INDEX_EVENT, key, encode(event))
    value = encode(msgspec.structs.replace(event, signature=encode_base64(signature)))
    headers = signature_headers(identity, Info.INDEX_EVENT, key, value)
    return Outgoing(key, value, ((HEADER_CONTENT_TYPE, CONTENT_JSON.encode()), *headers))
