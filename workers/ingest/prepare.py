"""From authorised requests of one index to sealed contents and update batches. Pure CPU, no I/O.

Ordering rule: the operations of one shard keep the order of their records, within a batch and from
one batch to the next. A record that breaks a rule of its index is refused by itself; the others go
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from schemas.errors import ErrorCode, InvalidMessage
from schemas.index import IndexConfig
from schemas.ingest import IngestOp, IngestRequest
from schemas.position import Order, Source
from schemas.update import OpKind, UpdateOp
from workers.crypto.derive import Prf, shard_of
from workers.crypto.hpke import HpkePublicKey
from workers.crypto.lp import lp
from workers.crypto.secret import Key
from workers.crypto.token_cache import TokenCache
from workers.errors import Reject
from workers.ingest.authorize import callers_groups
from workers.ingest.batches import Authorised, Draft, PreparedUpdate, ShardBatches
from workers.ingest.incoming import Refused
from workers.ingest.words import IndexWords
from workers.leases.lease import Decision
from workers.objects.pack import Content, PackBuilder, PackObject, encode_pointer, packs_by_uid
from workers.objects.results import decode_reply_key
from workers.vector.metric import Metric
from workers.vector.metric import prepare as prepare_vector

_KINDS: Final = {
    IngestOp.UPSERT: OpKind.UPSERT,
    IngestOp.DELETE: OpKind.DELETE,
    IngestOp.ADD_KEYWORDS: OpKind.ADD_KEYWORDS,
    IngestOp.REMOVE_KEYWORDS: OpKind.REMOVE_KEYWORDS,
}
_OBJECT_ID_BYTES: Final = 16
# Bytes of an operation beyond its variable parts in the encoded batch.
_OP_BYTES: Final = 160
_MAX_GROUPS: Final = 256


class IndexKeys:
    """What an ingest worker derives from an index's tag key. Lives no longer than its lease.

    Safe to use from several threads.
    """

    def __init__(self, tag: Key) -> None:
        self.tokens = TokenCache(tag)
        self._prf = Prf(tag)
        self._groups: dict[str, bytes] = {}
        self._words: IndexWords | None = None

    def object_id(self, doc_id: str) -> bytes:
        """Return the 16-byte object id of a document id (`derive.object_id`)."""
        return self._prf.digest(lp("object", doc_id))[:_OBJECT_ID_BYTES]

    def group(self, group_id: str) -> bytes:
        """Return the 16-byte token of a group (`derive.group_token`)."""
        found = self._groups.get(group_id)
        if found is None:
            found = self._prf.digest(lp("group", group_id))[:_OBJECT_ID_BYTES]
            if len(self._groups) < 100_000:
                self._groups[group_id] = found
        return found

    def words(self, analyzer: str) -> IndexWords:
        """Return what is remembered of the index's words."""
        words = self._words
        if words is None or words.full or words.lexicon.analyzer != analyzer:
            words = self._words = IndexWords(analyzer, self._prf)
        return words

    def clear(self) -> None:
        """Forget words, groups and their tokens."""
        self.tokens.clear()
        self._groups.clear()
        self._words = None


@dataclass(frozen=True, slots=True, repr=False)
class IndexContext:
    """One index as `prepare` sees it.

    Attributes:
        uid: 16 bytes.
        config: its settings.
        generation: of `object_public`.
        partitions: partition of index-update per shard.
        stream: id of the source topic's stream (`Order.stream`).
        keys: derivations of its tag key.
    """

    uid: bytes
    config: IndexConfig
    generation: int
    partitions: tuple[int, ...]
    stream: int
    object_public: HpkePublicKey
    keys: IndexKeys


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes: of a document's content, and of a record of index-update."""

    content_bytes: int
    record_bytes: int


@dataclass(slots=True, repr=False)
class Prepared:
    """What a micro-batch of one index became: `packs` must be durable before `updates` go."""

    packs: list[PackObject] = field(default_factory=list)
    updates: list[PreparedUpdate] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


def prepare(
    items: Sequence[Authorised], context: IndexContext, limits: Limits, *, now_ms: int
) -> Prepared:
    """Turn the authorised requests of one index into packs and update batches.

    Args:
        items: in the order of their records.
        context: the index.
        limits: sizes.
        now_ms: milliseconds since 1970.
    """
    done = Prepared()
    drafts: dict[int, list[Draft]] = {}
    packs = PackBuilder(
        index_uid=context.uid,
        generation=context.generation,
        object_public=context.object_public,
        created_ms=now_ms,
    )
    try:
        for number, item in enumerate(items):
            request = item.incoming.request
            object_id = context.keys.object_id(request.id)
            shard = shard_of(object_id, context.config.shards)
            try:
                check_request(request, context.config, limits)
                draft = _draft(item, number, object_id, shard, context, packs)
            except (InvalidMessage, Reject) as error:
                incoming = item.incoming
                done.refused.append(
                    Refused(incoming.record, error.info(), request, incoming.sealed)
                )
                continue
            drafts.setdefault(shard, []).append(draft)
        done.packs, wrapped = packs.finish()
    finally:
        packs.wipe()
    by_uid = packs_by_uid(wrapped)
    words = context.keys.words(context.config.analyzer)
    for shard, of_shard in sorted(drafts.items()):
        batches = ShardBatches(
            shard,
            of_shard,
            record_bytes=limits.record_bytes,
            keywords=context.keys.tokens,
            words=words,
        )
        done.updates.extend(batches.batches(context.partitions[shard], by_uid, now_ms))
    return done


def check_request(request: IngestRequest, config: IndexConfig, limits: Limits) -> None:
    """Check a request against the settings of its index.

    Raises:
        Reject: DIMENSION_MISMATCH, TOO_LARGE, INVALID_MESSAGE.
    """
    if request.vector is not None:
        given = request.vector.array.shape[0]
        if config.dimension is None:
            raise Reject(
                ErrorCode.DIMENSION_MISMATCH,
                "this index was created without a dimension: it takes no vectors",
                field="vector",
            )
        if given != config.dimension:
            raise Reject(
                ErrorCode.DIMENSION_MISMATCH,
                f"the vector has {given} numbers, the index takes {config.dimension}",
                field="vector",
            )
    if request.reply is not None and (reply_key := request.reply.key_bytes()):
        decode_reply_key(reply_key)
    if len(request.groups) > _MAX_GROUPS:
        raise Reject(
            ErrorCode.TOO_LARGE,
            f"an access list takes at most {_MAX_GROUPS} groups",
            field="groups",
        )
    content = request.content_bytes()
    if content is not None and len(content) > limits.content_bytes:
        raise Reject(
            ErrorCode.TOO_LARGE,
            f"the content has more than {limits.content_bytes} bytes",
            field="content",
        )


def _draft(
    item: Authorised,
    number: int,
    object_id: bytes,
    shard: int,
    context: IndexContext,
    packs: PackBuilder,
) -> Draft:
    incoming, decision = item.incoming, item.decision
    request, record = incoming.request, incoming.record
    keys = context.keys
    texts: dict[str, str] = {}
    content = metadata = vector = pack = b""
    groups: list[bytes] = []
    if request.op is IngestOp.UPSERT:
        texts = request.analysed_text()
        metadata = msgspec.msgpack.encode(request.metadata) if request.metadata else b""
        vector = _vector_bytes(request, context.config)
        access = list(dict.fromkeys((decision.default_group, *map(str.lower, request.groups))))
        groups = [keys.group(group) for group in access]
        data = request.content_bytes()
        associated = request.associated_data
        pointer = packs.add(
            object_id,
            Content(data, request.media_type() or "", associated.decode() if associated else b""),
            access,
            (shard, context.partitions[shard]),
        )
        content, pack = encode_pointer(pointer), pointer.pack
    by_scope, callers = _overwriting(request, decision, context)
    op = UpdateOp(
        kind=_KINDS[request.op],
        order=Order(context.stream, record.partition, incoming.order_offset),
        id=request.id,
        object_id=object_id,
        op_id=number,
        metadata=metadata,
        vector=vector,
        content=content,
        groups=groups,
        caller_groups=callers,
        if_version=request.if_version,
        issued_ms=request.issued_ms or 0,
        source=Source(topic=record.topic, partition=record.partition, offset=record.offset),
        reply_key=request.reply.key_bytes() if request.reply is not None else b"",
        scope_overwrite=by_scope,
        request_key=record.key or b"",
    )
    size = _OP_BYTES + len(metadata) + len(vector) + len(content) + 4 * len(request.id)
    size += 16 * (len(groups) + len(callers)) + len(op.reply_key) + len(op.request_key)
    size += len(record.topic)
    return Draft(item, op, pack, list(dict.fromkeys(request.keywords)), texts, size)


def _overwriting(
    request: IngestRequest, decision: Decision, context: IndexContext
) -> tuple[bool, list[bytes]]:
    """Return what the index worker checks when the document exists.

    A caller who may do this only with documents of some groups is never let through by the index's
    setting `overwrite: scope`: that is for scopes of one's own. One without the scope for anything
    (an upsert without Update) carries no groups at all, so that it can only create.
    """
    groups = callers_groups(request, decision)
    by_scope = context.config.overwrite == "scope" and groups == decision.groups
    return by_scope, [context.keys.group(group) for group in groups]


def _vector_bytes(request: IngestRequest, config: IndexConfig) -> bytes:
    if request.vector is None:
        return b""
    prepared = prepare_vector(request.vector.array, Metric(config.metric))
    return prepared.astype("<f4", copy=False).tobytes()
