"""What the tests of `workers.search` share: a small index written by the real chain writer."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from schemas.filter import parse_filter
from schemas.index import IndexConfig
from schemas.position import Order
from workers.chain.codec import Node
from workers.chain.head import HeadSigner
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.ops import Accepted, PendingBatch, PendingOp
from workers.chain.reader import ShardReader
from workers.chain.writer import ShardWriter
from workers.crypto.derive import TokenKind, centroid_token, group_token, object_id, shard_of
from workers.crypto.info import Info
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey, VerifyKey
from workers.crypto.token_cache import TokenCache
from workers.objects.pack import ObjectPointer, Place, encode_pointer
from workers.search.cache import DecodedCache
from workers.search.context import SearchContext
from workers.search.execute import Answer, search, search_many
from workers.search.snapshot import IndexSnapshot
from workers.storage.cache import BlockCache
from workers.storage.memory import MemoryStore
from workers.text.analyzer import get_analyzer
from workers.text.postings import RowsCodec, TermCodec, TermColumns, build_rows, build_terms
from workers.text.vocabulary import build_vocabulary
from workers.vector.centroids import VectorState, initial_state
from workers.vector.codes import CodesCodec, cluster_nodes
from workers.vector.metric import Metric, prepare
from workers.vector.store import load_state, save_state
from workers.vector.training import retrain

UID = bytes(range(16))
PACK = b"p" * 16
SEALED = b"sealed content"
TAG = SecretBytes(b"t" * 32)
_KEY = SigningKey.from_seed(bytes(32))
_SIGNER = HeadSigner("index-1", _KEY, _KEY.public.raw)


def secret(purpose: str, generation: int) -> SecretBytes:
    return SecretBytes(hashlib.sha256(f"{purpose}{generation}".encode()).digest())


def segment_keys(generation: int) -> SecretBytes:
    return secret("segment", generation)


def vector_keys(generation: int) -> SecretBytes:
    return secret("vector", generation)


def verify(certificate: bytes, signature: bytes, parts: tuple, written_ms: int) -> None:
    VerifyKey(_KEY.public.raw).verify(signature, Info.HEAD, *parts)


def group(name: str) -> bytes:
    return group_token(TAG, name)


def toy_seal(words: bytes) -> bytes:
    """Stand in for HPKE: what matters here is that lists are opaque to the chain."""
    return hmac.digest(b"query", words, "sha256") + words


def toy_open(blob: bytes) -> bytes:
    assert hmac.digest(b"query", blob[32:], "sha256") == blob[:32]
    return blob[32:]


@dataclass
class Doc:
    """One operation in the words of the tests."""

    id: str
    text: dict[str, str] = field(default_factory=dict)
    keywords: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    vector: Any = None
    groups: tuple[str, ...] = ("staff",)
    kind: RowKind = RowKind.DOC
    source: int = 0
    offset: int | None = None
    packed: bool = False


def add(doc_id: str, *keywords: str, **options: Any) -> Doc:
    return Doc(doc_id, keywords=keywords, kind=RowKind.PAIRS, **options)


def remove(doc_id: str, *keywords: str, **options: Any) -> Doc:
    return Doc(doc_id, keywords=keywords, kind=RowKind.REMOVALS, **options)


def delete(doc_id: str, **options: Any) -> Doc:
    return Doc(doc_id, kind=RowKind.TOMBSTONE, **options)


class Index:
    """An index of one or more shards in memory, and queries on it."""

    def __init__(self, **config: Any) -> None:
        self.config = IndexConfig(**({"padding": "off"} | config))
        self.store = MemoryStore()
        self.cache = DecodedCache(64 << 20)
        self.tokens = TokenCache(TAG)
        self.states: dict[int, VectorState] = {}
        self.generation = 1
        self._offset = -1
        self._source_offset = -1
        self._now = 1_000
        self.writers = [self._writer(shard) for shard in range(self.config.shards)]
        self.readers = [
            ShardReader(
                self.store.view(read_only=True),
                BlockCache(16 << 20),
                UID,
                shard,
                segment_keys,
                verify,
            )
            for shard in range(self.config.shards)
        ]

    @property
    def metric(self) -> Metric:
        return Metric(self.config.metric)

    def _writer(self, shard: int) -> ShardWriter:
        return ShardWriter(
            self.store,
            UID,
            shard,
            segment_keys,
            _SIGNER,
            verify,
            {
                NodeKind.KEYWORD: RowsCodec(),
                NodeKind.TERM: TermCodec(),
            },
            padding=self.config.padding,
            clock_ms=lambda: self._now,
        )

    async def load(self) -> Index:
        for writer in self.writers:
            await writer.load()
        return self

    async def write(self, *docs: Doc) -> None:
        """Apply one micro-batch."""
        self._now += 1
        for shard, writer in enumerate(self.writers):
            mine = [d for d in docs if shard_of(object_id(TAG, d.id), self.config.shards) == shard]
            if not mine:
                continue
            vectors = [self._prepared(doc) for doc in mine if doc.vector is not None]
            if vectors and shard not in self.states:
                state = initial_state(self.config.dimension, self.metric, np.stack(vectors))
                await self._publish_state(shard, state)
            self._offset += 1
            ops = [self._op(doc) for doc in mine]
            words = {word for doc in mine for word in self._words(doc)}
            state = self.states.get(shard)
            published = await writer.apply(
                PendingBatch(
                    self._offset,
                    ops,
                    lambda accepted, mine=mine, shard=shard: self._nodes(mine, shard, accepted),
                    vocabulary=[toy_seal(build_vocabulary(words))] if words else [],
                    epoch=state.current.number if state else 0,
                )
            )
            assert not any(outcome.error for outcome in published.outcomes)

    async def train(self) -> None:
        """Train every shard on all of its vectors, and regroup them."""
        for shard, writer in enumerate(self.writers):
            snapshot = await self.readers[shard].refresh()
            parts = [await snapshot.vectors(i) for i in range(snapshot.segments)]
            sample = np.concatenate([vectors for _, vectors in parts]).astype(np.float32)
            state = retrain(self.states[shard], sample, len(sample))
            ref = await save_state(
                self.store, vector_keys(self.generation), UID, shard, self.generation, state
            )
            await writer.compact(
                everything=True,
                regroup=self.codec(state),
                epoch=state.current.number,
                vector=ref,
            )
            self.states[shard] = state

    async def compact(self) -> None:
        for shard, writer in enumerate(self.writers):
            state = self.states.get(shard)
            await writer.compact(
                everything=True,
                regroup=self.codec(state) if state else None,
                epoch=state.current.number if state else None,
            )

    async def rotate(self) -> None:
        """Write under the next key generation from now on."""
        self.generation += 1
        for writer in self.writers:
            writer.use_generation(self.generation)

    def codec(self, state: VectorState) -> CodesCodec:
        generation = self.generation
        return CodesCodec(state, lambda e, c: centroid_token(vector_keys(generation), e, c))

    async def snapshot(self) -> IndexSnapshot:
        return IndexSnapshot(
            UID, tuple([(await reader.refresh()).measured() for reader in self.readers])
        )

    def context(self, *groups: str, **changes: Any) -> SearchContext:
        generations = range(1, self.generation + 1)

        async def centroids(shard: Any) -> VectorState | None:
            return await load_state(self.store, vector_keys, UID, shard.shard, shard.vector)

        values: dict[str, Any] = {
            "config": self.config,
            "tokens": self.tokens,
            "object_id": lambda doc_id: object_id(TAG, doc_id),
            "groups": frozenset(group(name) for name in groups or ("staff",)),
            "cache": self.cache,
            "centroid_tokens": lambda e, c: [
                centroid_token(vector_keys(g), e, c) for g in generations
            ],
            "centroids": centroids,
            "open_vocabulary": toy_open,
        }
        return SearchContext(**(values | changes))

    async def answer(
        self,
        query: Any,
        *groups: str,
        top_k: int | None = 10,
        where: dict[str, Any] | None = None,
        cursor: str | None = None,
        **changes: Any,
    ) -> Answer:
        return await search(
            self.context(*groups, **changes),
            await self.snapshot(),
            query,
            top_k=top_k,
            condition=None if where is None else parse_filter(where),
            cursor=cursor,
        )

    async def ids(self, query: Any, *groups: str, **options: Any) -> list[str]:
        return [one.id for one in (await self.answer(query, *groups, **options)).candidates]

    async def answers(self, queries: Sequence[Any], **options: Any) -> list[Answer]:
        return await search_many(self.context(), await self.snapshot(), queries, **options)

    async def _publish_state(self, shard: int, state: VectorState) -> None:
        ref = await save_state(
            self.store, vector_keys(self.generation), UID, shard, self.generation, state
        )
        await self.writers[shard].publish_state(vector=ref)
        self.states[shard] = state

    def _prepared(self, doc: Doc) -> np.ndarray:
        return prepare(np.asarray(doc.vector, dtype=np.float32), self.metric)

    def _words(self, doc: Doc) -> list[str]:
        analyzer = get_analyzer(self.config.analyzer)
        words = [word for text in doc.text.values() for word in analyzer.words(text)]
        return [word for word in words if analyzer.term(word)]

    def _places(self, text: str) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for token in get_analyzer(self.config.analyzer).positioned(text):
            places.setdefault(token.term, []).append(token.position)
        return places

    def _pointer(self, doc: Doc) -> bytes:
        return encode_pointer(
            ObjectPointer(
                v=1,
                place=Place.PACK if doc.packed else Place.NONE,
                object_id=object_id(TAG, doc.id),
                generation=1,
                pack=PACK,
                offset=0,
                length=len(SEALED) if doc.packed else 0,
                inline=b"",
                sha256=hashlib.sha256(SEALED if doc.packed else b"").digest(),
                content_type="text/plain",
                associated_data=b"",
                access=b"access",
            )
        )

    def _op(self, doc: Doc) -> PendingOp:
        self._source_offset += 1
        offset = self._source_offset if doc.offset is None else doc.offset
        vector = None
        if doc.vector is not None and self.config.storage_precision != "int8":
            vector = self._prepared(doc).astype(self.config.storage_precision)
        return PendingOp(
            order=Order(1, doc.source, offset),
            kind=doc.kind,
            id=doc.id,
            object_id=object_id(TAG, doc.id),
            groups=tuple(map(group, doc.groups)) if doc.kind == RowKind.DOC else (),
            caller_groups=tuple(map(group, doc.groups)),
            overwrite_by_scope=True,
            metadata=msgspec.msgpack.encode(doc.metadata) if doc.metadata else b"",
            object=self._pointer(doc) if doc.kind == RowKind.DOC else b"",
            pack=b"pack" if doc.kind == RowKind.DOC else b"",
            lengths={
                name: sum(map(len, self._places(text).values())) for name, text in doc.text.items()
            },
            vector=vector,
        )

    def _nodes(self, docs: list[Doc], shard: int, accepted: Accepted) -> list[Node]:
        rows = accepted.row_of_op.tolist()
        known: dict[bytes, int] = {}
        terms: list[tuple[int, int, int]] = []
        deltas: list[int] = []
        words: list[tuple[int, int, bool]] = []
        vectors = [
            (row, self._prepared(doc))
            for doc, row in zip(docs, rows, strict=True)
            if doc.vector is not None and row >= 0
        ]
        for doc, row in zip(docs, rows, strict=True):
            if row < 0:
                continue
            for keyword in sorted(set(doc.keywords)):
                token = self.tokens.token(TokenKind.KEYWORD, "", keyword)
                number = known.setdefault(token, len(known))
                words.append((number, row, doc.kind == RowKind.REMOVALS))
            for name, text in doc.text.items():
                for term, places in self._places(text).items():
                    token = self.tokens.token(TokenKind.TERM, name, term)
                    terms.append((known.setdefault(token, len(known)), row, len(places)))
                    deltas += np.diff(places, prepend=0).tolist()
        tokens = list(known)
        nodes: list[Node] = []
        if words:
            groups, where, gone = (np.array(column) for column in zip(*words, strict=True))
            for number, payload in zip(*build_rows(groups, where, gone), strict=True):
                nodes.append(Node(NodeKind.KEYWORD, tokens[int(number)], payload))
        if terms:
            columns = [np.array(column, dtype=np.int64) for column in zip(*terms, strict=True)]
            built = build_terms(TermColumns(*columns, np.array(deltas, dtype=np.int64)))
            for number, payload in zip(*built, strict=True):
                nodes.append(Node(NodeKind.TERM, tokens[int(number)], payload))
        if vectors:
            state = self.states[shard]
            where = np.array([row for row, _ in vectors], dtype=np.uint32)
            for cluster, payload in cluster_nodes(
                where, np.stack([one for _, one in vectors]), state
            ):
                token = centroid_token(vector_keys(self.generation), state.current.number, cluster)
                nodes.append(Node(NodeKind.CODES, token, payload))
        return nodes


async def make_index(**config: Any) -> Index:
    return await Index(**config).load()
