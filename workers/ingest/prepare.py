"""From authorised requests of one index to sealed contents and update batches. Pure CPU, no I/O.

Ordering rule: the operations of one shard keep the order of their records, within a batch and from
one batch to the next. A record that breaks a rule of its index is refused by itself; the others go
on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from schemas.errors import ErrorCode, InvalidMessage
from schemas.index import IndexConfig
from schemas.ingest import IngestOp, IngestRequest
from schemas.position import Order, Source
from schemas.update import OpKind, TermField, UpdateBatch, UpdateOp
from workers.crypto.derive import Prf, TokenKind, shard_of
from workers.crypto.hpke import HpkePublicKey
from workers.crypto.lp import lp
from workers.crypto.secret import Key
from workers.crypto.token_cache import TokenCache
from workers.errors import Reject
from workers.ingest.authorize import may_overwrite
from workers.ingest.incoming import Incoming, Refused
from workers.leases.lease import Decision
from workers.objects.envelope import ENVELOPE_OVERHEAD_BYTES
from workers.objects.pack import Content, PackBuilder, PackObject, encode_pointer, packs_by_uid
from workers.objects.results import decode_reply_key
from workers.text.analyzer import Analyzer, get_analyzer
from workers.text.varint import encode_varints
from workers.text.vocabulary import PAD_BYTES, SentWords
from workers.vector.metric import Metric
from workers.vector.metric import prepare as prepare_vector

_KINDS: Final = {
    IngestOp.UPSERT: OpKind.UPSERT,
    IngestOp.DELETE: OpKind.DELETE,
    IngestOp.ADD_KEYWORDS: OpKind.ADD_KEYWORDS,
    IngestOp.REMOVE_KEYWORDS: OpKind.REMOVE_KEYWORDS,
}
_OBJECT_ID_BYTES: Final = 16
# Bytes of an operation beyond its variable parts, and of a token, in the encoded batch.
_OP_BYTES: Final = 160
_TOKEN_BYTES: Final = 35
_MAX_GROUPS: Final = 256


@dataclass(frozen=True, slots=True)
class Authorised:
    """A request whose caller is known and has the scopes."""

    incoming: Incoming
    decision: Decision


class IndexKeys:
    """What an ingest worker derives from an index's tag key. Lives no longer than its lease.

    Safe to use from several threads.
    """

    def __init__(self, tag: Key) -> None:
        self.tokens = TokenCache(tag)
        self._prf = Prf(tag)
        self._groups: dict[str, bytes] = {}

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

    def clear(self) -> None:
        """Forget words, groups and their tokens."""
        self.tokens.clear()
        self._groups.clear()


@dataclass(frozen=True, slots=True)
class IndexContext:
    """One index as `prepare` sees it.

    Attributes:
        uid: 16 bytes.
        config: its settings.
        generation: of `object_public`.
        partitions: partition of index-update per shard.
        stream: id of the source topic's stream (`Order.stream`).
        keys: derivations of its tag key.
        sent: words sent to each shard.
    """

    uid: bytes
    config: IndexConfig
    generation: int
    partitions: tuple[int, ...]
    stream: int
    object_public: HpkePublicKey
    keys: IndexKeys
    sent: dict[int, SentWords]


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes: of a document's content, and of a record of index-update."""

    content_bytes: int
    record_bytes: int


@dataclass(frozen=True, slots=True)
class PreparedUpdate:
    """One record of index-update before it is sealed.

    Attributes:
        shard, partition: where it goes.
        batch: its operations; without vocabulary.
        words: new words of the batch, for the vocabulary.
        members: what each operation came from, in order.
    """

    shard: int
    partition: int
    batch: UpdateBatch
    words: frozenset[str]
    members: tuple[Authorised, ...]


@dataclass(slots=True)
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
    analyzer = get_analyzer(context.config.analyzer)
    shards: dict[int, _ShardBatches] = {}
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
                draft = _draft(item, number, object_id, shard, context, analyzer, packs)
            except (InvalidMessage, Reject) as error:
                incoming = item.incoming
                done.refused.append(
                    Refused(incoming.record, error.info(), request, incoming.sealed)
                )
                continue
            batches = shards.get(shard)
            if batches is None:
                sent = context.sent.setdefault(shard, SentWords())
                batches = shards[shard] = _ShardBatches(limits.record_bytes, now_ms, sent)
            batches.add(item, draft)
        done.packs, wrapped = packs.finish()
    finally:
        packs.wipe()
    by_uid = packs_by_uid(wrapped)
    for shard, batches in sorted(shards.items()):
        done.updates.extend(batches.finish(shard, context.partitions[shard], by_uid))
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


@dataclass(frozen=True, slots=True)
class _Draft:
    """An operation whose tokens are not numbered yet."""

    op: UpdateOp
    pack: bytes
    keywords: list[bytes]
    fields: list[_DraftField]
    words: list[str]
    size: int


@dataclass(frozen=True, slots=True)
class _DraftField:
    name: str
    length: int
    terms: list[bytes]
    tfs: bytes
    positions: bytes


def _draft(
    item: Authorised,
    number: int,
    object_id: bytes,
    shard: int,
    context: IndexContext,
    analyzer: Analyzer,
    packs: PackBuilder,
) -> _Draft:
    incoming, decision = item.incoming, item.decision
    request, record = incoming.request, incoming.record
    keys = context.keys
    keywords = keys.tokens.tokens(TokenKind.KEYWORD, "", dict.fromkeys(request.keywords))
    fields: list[_DraftField] = []
    words: list[str] = []
    content = metadata = vector = pack = b""
    groups: list[bytes] = []
    if request.op is IngestOp.UPSERT:
        fields, words = _analyse(request.analysed_text(), analyzer, keys)
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
        order=Order(context.stream, record.partition, record.offset),
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
    size += len(record.topic) + 5 * len(keywords)
    for one in fields:
        size += len(one.name) * 4 + 24 + 6 * len(one.terms) + len(one.positions)
    return _Draft(op, pack, keywords, fields, words, size)


def _overwriting(
    request: IngestRequest, decision: Decision, context: IndexContext
) -> tuple[bool, list[bytes]]:
    """Return what the index worker checks when the document exists.

    An upsert by a caller without the scope Update carries no groups at all, so that it can only
    create.
    """
    if request.op is IngestOp.UPSERT and not may_overwrite(decision):
        return False, []
    by_scope = context.config.overwrite == "scope"
    return by_scope, [context.keys.group(group) for group in decision.groups]


def _vector_bytes(request: IngestRequest, config: IndexConfig) -> bytes:
    if request.vector is None:
        return b""
    prepared = prepare_vector(request.vector.array, Metric(config.metric))
    return prepared.astype("<f4", copy=False).tobytes()


def _analyse(
    texts: dict[str, str], analyzer: Analyzer, keys: IndexKeys
) -> tuple[list[_DraftField], list[str]]:
    fields: list[_DraftField] = []
    words: list[str] = []
    for name, text in texts.items():
        found = analyzer.analyze_field(text)
        if not found.terms:
            continue
        fields.append(
            _DraftField(
                name=name,
                length=found.length,
                terms=keys.tokens.tokens(TokenKind.TERM, name, found.terms),
                tfs=struct.pack(f"<{len(found.tfs)}H", *found.tfs),
                positions=_delta_positions(found.positions),
            )
        )
        words.extend(found.words)
    return fields, words


def _delta_positions(positions: list[list[int]]) -> bytes:
    """Encode per term the first position and the distances that follow, as varints."""
    flat = np.fromiter((at for one in positions for at in one), np.int64)
    counts = np.fromiter(map(len, positions), np.int64, len(positions))
    deltas = np.diff(flat, prepend=0)
    starts = np.cumsum(counts) - counts
    deltas[starts] = flat[starts]
    return encode_varints(deltas)[0].tobytes()


class _ShardBatches:
    """Collect the operations of one shard; cut a batch before its record would be too large."""

    def __init__(self, record_bytes: int, now_ms: int, sent: SentWords) -> None:
        # Padding and seal of the vocabulary come on top of its words.
        self._limit = record_bytes - ENVELOPE_OVERHEAD_BYTES - PAD_BYTES
        self._now_ms = now_ms
        self._sent = sent
        self._done: list[_Open] = []
        self._open = _Open()

    def add(self, item: Authorised, draft: _Draft) -> None:
        words = self._sent.new(draft.words)
        cost = self._open.cost(draft, words)
        if self._open.members and self._open.size + cost > self._limit:
            self._done.append(self._open)
            self._open = _Open()
            cost = self._open.cost(draft, words)
        self._open.append(item, draft, words, cost)

    def finish(
        self, shard: int, partition: int, packs: dict[bytes, bytes]
    ) -> Iterable[PreparedUpdate]:
        for one in (*self._done, self._open):
            batch = UpdateBatch(
                tokens=list(one.tokens),
                token_kinds=bytes(one.kinds),
                ops=one.ops,
                packs=[packs[uid] for uid in one.packs],
                created_ms=self._now_ms,
            )
            yield PreparedUpdate(shard, partition, batch, frozenset(one.words), tuple(one.members))


# A wrapped pack key: uid, generation, hybrid encapsulation, key, framing.
_PACK_BYTES: Final = 1300


class _Open:
    """A batch that is being filled."""

    def __init__(self) -> None:
        self.tokens: dict[bytes, int] = {}
        self.kinds = bytearray()
        self.ops: list[UpdateOp] = []
        self.packs: dict[bytes, None] = {}
        self.words: set[str] = set()
        self.members: list[Authorised] = []
        self.size = 0

    def cost(self, draft: _Draft, words: set[str]) -> int:
        """Return how many bytes `draft` would add: an upper bound."""
        known = self.tokens
        new = sum(token not in known for token in draft.keywords)
        for one in draft.fields:
            new += sum(token not in known for token in one.terms)
        size = draft.size + new * _TOKEN_BYTES
        size += sum(4 * len(word) + 4 for word in words if word not in self.words)
        return size + (_PACK_BYTES if draft.pack and draft.pack not in self.packs else 0)

    def append(self, item: Authorised, draft: _Draft, words: set[str], cost: int) -> None:
        """Number the tokens of `draft` and take it in."""
        fields = [
            TermField(
                name=one.name,
                length=one.length,
                terms=struct.pack(f"<{len(one.terms)}I", *self._number(one.terms, TokenKind.TERM)),
                tfs=one.tfs,
                positions=one.positions,
            )
            for one in draft.fields
        ]
        keywords = self._number(draft.keywords, TokenKind.KEYWORD)
        self.ops.append(msgspec.structs.replace(draft.op, keywords=keywords, fields=fields))
        if draft.pack:
            self.packs[draft.pack] = None
        self.words |= words
        self.members.append(item)
        self.size += cost

    def _number(self, tokens: list[bytes], kind: TokenKind) -> list[int]:
        known, kinds = self.tokens, self.kinds
        numbers = []
        for token in tokens:
            number = known.get(token)
            if number is None:
                number = known[token] = len(known)
                kinds.append(kind)
            numbers.append(number)
        return numbers
