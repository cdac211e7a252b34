"""What the tests of `workers.chain` share: keys, a signer, a trivial codec, a batch maker."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.position import Order
from workers.chain.codec import Node, RowMap
from workers.chain.head import HeadSigner
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.ops import Accepted, PendingBatch, PendingOp
from workers.chain.reader import ShardReader
from workers.chain.writer import ShardWriter
from workers.crypto.info import Info
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey, VerifyKey
from workers.storage.cache import BlockCache
from workers.storage.memory import MemoryStore

INDEX = bytes(range(16))
GROUP = b"g" * 16
DTYPE = np.dtype([("row", "<u4"), ("plus", "u1")])


def keys(generation: int) -> SecretBytes:
    return SecretBytes(hashlib.sha256(b"segment" + bytes([generation])).digest())


@dataclass
class Clock:
    ms: int = 1_000_000_000

    def __call__(self) -> int:
        return self.ms


_KEY = SigningKey.from_seed(bytes(32))
SIGNER = HeadSigner("index-1", _KEY, _KEY.public.raw)


def verify(certificate: bytes, signature: bytes, parts: tuple, written_ms: int) -> None:
    VerifyKey(_KEY.public.raw).verify(signature, Info.HEAD, *parts)
    assert certificate == _KEY.public.raw


class Keywords:
    """Payload = records (row, plus) sorted by row."""

    kind = NodeKind.KEYWORD

    def merge_many(self, chains: Sequence[Sequence[tuple[bytes, RowMap]]]) -> list[bytes | None]:
        return [self._merge(parts) for parts in chains]

    def _merge(self, parts: Sequence[tuple[bytes, RowMap]]) -> bytes | None:
        out = []
        for payload, rowmap in parts:
            table = np.frombuffer(payload, DTYPE).copy()
            new = rowmap[table["row"]]
            table["row"] = np.maximum(new, 0)
            out.append(table[new >= 0])
        merged = np.sort(np.concatenate(out), order="row")
        return merged.tobytes() if len(merged) else None


CODECS = {NodeKind.KEYWORD: Keywords()}


def token(word: str) -> bytes:
    return hashlib.sha256(word.encode()).digest()


def oid(name: str) -> bytes:
    return hashlib.sha256(b"id" + name.encode()).digest()[:16]


@dataclass
class Op:
    """An operation in the words of the tests."""

    kind: RowKind
    name: str
    words: tuple[str, ...] = ()
    source: int = 0
    offset: int = 0
    options: dict = field(default_factory=dict)

    def pending(self) -> PendingOp:
        defaults = {
            "groups": (GROUP,) if self.kind == RowKind.DOC else (),
            "caller_groups": (GROUP,),
        }
        return PendingOp(
            order=Order(1, self.source, self.offset),
            kind=self.kind,
            id=self.name,
            object_id=oid(self.name),
            **(defaults | self.options),
        )


def keyword_nodes(ops: Sequence[Op]) -> Callable[[Accepted], Iterator[Node]]:
    def build(accepted: Accepted) -> Iterator[Node]:
        by_word: dict[str, list[tuple[int, int]]] = {}
        for op, row in zip(ops, accepted.row_of_op.tolist(), strict=True):
            if row >= 0:
                for word in set(op.words):
                    by_word.setdefault(word, []).append((row, op.kind != RowKind.REMOVALS))
        for word, pairs in by_word.items():
            yield Node(NodeKind.KEYWORD, token(word), np.array(sorted(pairs), DTYPE).tobytes())

    return build


def batch(offset: int, ops: Sequence[Op], **options) -> PendingBatch:
    return PendingBatch(offset, [op.pending() for op in ops], keyword_nodes(ops), **options)


def make_writer(store: MemoryStore, clock: Clock, **options) -> ShardWriter:
    return ShardWriter(store, INDEX, 0, keys, SIGNER, verify, CODECS, clock_ms=clock, **options)


def make_reader(store: MemoryStore, cache: BlockCache | None = None) -> ShardReader:
    return ShardReader(store.view(read_only=True), cache, INDEX, 0, keys, verify)


async def search(reader: ShardReader, word: str) -> list[str]:
    """Return the ids of a keyword, in the order of arrival."""
    snapshot = await reader.refresh()
    return await search_in(snapshot, word)


async def search_in(snapshot, word: str) -> list[str]:
    request = (NodeKind.KEYWORD, token(word))
    nodes = (await snapshot.lookup([request]))[request]
    postings = []
    for segment, payload in nodes:
        table = np.frombuffer(payload, DTYPE)
        postings.append((segment, table["row"].astype(np.int64), table["plus"].astype(bool)))
    hits = await snapshot.resolve_pairs(postings)
    return [(await snapshot.ids(s, np.array([r])))[0] for s, r in hits]
