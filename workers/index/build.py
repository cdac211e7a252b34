"""From opened update batches of one shard to what the chain writer applies. Pure CPU, no I/O.

The postings of a whole micro-batch are gathered as columns and encoded in a few passes over arrays:
a loop over documents and tokens would cost more than sealing the nodes.

Which node holds what: a keyword's chain gets a row with a sign (+ for upserts and add_keywords, -
for remove_keywords), a term's chain a row with frequency and positions, a centroid's chain the
quantised vectors near it. Metadata and access lists stay in the document table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.errors import ErrorCode
from schemas.index import IndexConfig
from schemas.update import OpKind, UpdateBatch, UpdateOp
from workers.chain.access import AccessChange, Listed
from workers.chain.codec import Node
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.ops import Accepted, PendingOp
from workers.crypto.derive import TokenKind
from workers.errors import Damaged, Reject
from workers.objects.pack import ObjectPointer, decode_pointer, packs_by_uid
from workers.text.postings import TermColumns, build_rows, build_terms
from workers.text.varint import Ints, MalformedPayloadError, decode_varints
from workers.vector.centroids import VectorState
from workers.vector.codes import cluster_nodes

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]

ROW_KINDS: Final = {
    OpKind.UPSERT: RowKind.DOC,
    OpKind.DELETE: RowKind.TOMBSTONE,
    OpKind.ADD_KEYWORDS: RowKind.PAIRS,
    OpKind.REMOVE_KEYWORDS: RowKind.REMOVALS,
}


@dataclass(frozen=True, slots=True)
class Clusters:
    """How vectors are grouped: the centroids, and the chain token of (epoch, cluster)."""

    state: VectorState
    token: Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True, repr=False)
class Checked:
    """An opened batch whose parts fit together, as columns over its own ops and tokens.

    Attributes:
        batch: as opened.
        ops: one for each of `batch.ops`.
        vectors: float32 `(m, d)` of the ops in `vector_ops`, or None.
        vector_ops: int64 `(m,)`.
        term_tokens, term_ops, tfs: int64 `(p,)`, one entry a posting.
        deltas: int64 `(sum(tfs),)`, positions as first and distances.
        word_tokens, word_ops: int64 `(q,)`, one entry a keyword of an op.
        access: access lists to be replaced; then there is nothing else in it.
    """

    batch: UpdateBatch
    ops: list[PendingOp]
    vectors: F32 | None
    vector_ops: Ints
    term_tokens: Ints
    term_ops: Ints
    tfs: Ints
    deltas: Ints
    word_tokens: Ints
    word_ops: Ints
    access: list[AccessChange] = field(default_factory=list)


def check_access(batch: UpdateBatch) -> Checked:
    """Check a batch of the key service, which changes access lists and nothing else.

    Raises:
        Reject: INVALID_MESSAGE.
    """
    changes = []
    for op in batch.ops:
        if op.kind is not OpKind.ACCESS or not op.if_version or not op.access_version:
            raise Reject(
                ErrorCode.INVALID_MESSAGE, "the key service changes access lists and no more"
            )
        listed = Listed(op.if_version, op.access_version, tuple(op.groups))
        changes.append(AccessChange(op.object_id, listed))
    empty = msgspec.structs.replace(batch, tokens=[], token_kinds=b"", ops=[], packs=[])
    none = np.zeros(0, dtype=np.int64)
    return Checked(empty, [], None, none, none, none, none, none, none, none, changes)


def check_batch(batch: UpdateBatch, config: IndexConfig) -> Checked:
    """Check that the parts of a batch fit together and the index, and decode its columns.

    Raises:
        Reject: INVALID_MESSAGE, DIMENSION_MISMATCH, UNSUPPORTED.
    """
    packs = packs_by_uid(batch.packs)
    vector_ops = [number for number, op in enumerate(batch.ops) if op.vector]
    vectors = _vectors(batch, vector_ops, config)
    stored: dict[int, F16 | F32] = {}
    if vectors is not None and config.storage_precision != "int8":
        rows = vectors if config.storage_precision == "float32" else vectors.astype(np.float16)
        stored = dict(zip(vector_ops, rows, strict=True))
    ops = [_pending(op, packs, stored.get(number), config) for number, op in enumerate(batch.ops)]
    terms = _terms(batch)
    words = [(token, number) for number, op in enumerate(batch.ops) for token in op.keywords]
    word_tokens, word_ops = np.array(words, dtype=np.int64).reshape(-1, 2).T
    _check_kinds(batch, terms[0], word_tokens)
    return Checked(
        batch, ops, vectors, np.array(vector_ops, dtype=np.int64), *terms, word_tokens, word_ops
    )


def _vectors(batch: UpdateBatch, vector_ops: Sequence[int], config: IndexConfig) -> F32 | None:
    """Return the vectors of `vector_ops`, float32 `(m, d)`; None if there are none."""
    if not vector_ops:
        return None
    found = [batch.ops[number].vector for number in vector_ops]
    if config.dimension is None or any(len(one) != 4 * config.dimension for one in found):
        raise Reject(ErrorCode.DIMENSION_MISMATCH, "a vector does not fit the index")
    joined = np.frombuffer(b"".join(found), "<f4").reshape(-1, config.dimension)
    if not np.isfinite(joined).all():
        raise Reject(ErrorCode.INVALID_MESSAGE, "a vector is not finite")
    return joined.astype(np.float32, copy=False)


def _pending(
    op: UpdateOp, packs: dict[bytes, bytes], vector: F16 | F32 | None, config: IndexConfig
) -> PendingOp:
    kind = ROW_KINDS.get(op.kind)
    if kind is None:
        raise Reject(ErrorCode.UNSUPPORTED, "an operation of a kind this version does not know")
    pack = b""
    if op.content:
        pointer = _pointer(op.content)
        pack = packs.get(pointer.pack, b"")
        if pointer.object_id != op.object_id or not pack:
            raise Reject(ErrorCode.INVALID_MESSAGE, "an operation points to another's content")
    return PendingOp(
        order=op.order,
        kind=kind,
        id=op.id,
        object_id=op.object_id,
        groups=tuple(op.groups),
        caller_groups=tuple(op.caller_groups),
        # The index's own setting decides, not the word of an ingest worker.
        overwrite_by_scope=op.scope_overwrite and config.overwrite == "scope",
        if_version=op.if_version,
        issued_ms=op.issued_ms,
        metadata=op.metadata,
        object=op.content,
        pack=pack,
        lengths={one.name: one.length for one in op.fields},
        vector=vector,
    )


def _pointer(content: bytes) -> ObjectPointer:
    try:
        return decode_pointer(content)
    except Damaged as error:
        # Written just now by a certified worker: its mistake, not damage of what was stored.
        raise Reject(ErrorCode.INVALID_MESSAGE, error.message) from error


def _terms(batch: UpdateBatch) -> tuple[Ints, Ints, Ints, Ints]:
    """Return tokens, ops, frequencies and position distances of every term posting."""
    fields = [(number, one) for number, op in enumerate(batch.ops) for one in op.fields]
    tokens = np.frombuffer(b"".join(one.terms for _, one in fields), "<u4").astype(np.int64)
    tfs = np.frombuffer(b"".join(one.tfs for _, one in fields), "<u2").astype(np.int64)
    counts = np.array([len(one.terms) // 4 for _, one in fields], dtype=np.int64)
    ops = np.repeat(np.array([number for number, _ in fields], dtype=np.int64), counts)
    try:
        deltas, _ = decode_varints(b"".join(one.positions for _, one in fields))
    except MalformedPayloadError as error:
        raise Reject(ErrorCode.INVALID_MESSAGE, "positions do not decode") from error
    if deltas.size != tfs.sum() or (tfs.size and tfs.min() < 1):
        raise Reject(ErrorCode.INVALID_MESSAGE, "frequencies and positions do not match")
    return tokens, ops, tfs, deltas


def _check_kinds(batch: UpdateBatch, terms: Ints, words: Ints) -> None:
    kinds = np.frombuffer(batch.token_kinds, dtype=np.uint8)
    if np.any(kinds[terms] != TokenKind.TERM) or np.any(kinds[words] != TokenKind.KEYWORD):
        raise Reject(ErrorCode.INVALID_MESSAGE, "a token of another kind than its use")


@dataclass(slots=True, repr=False)
class MicroBatch:
    """The batches of one shard that become one segment.

    `access` are the lists to be replaced. `sources[i]` is what the operation `ops[i]` came from,
    `created_ms` when the newest was made.
    """

    ops: list[PendingOp] = field(default_factory=list)
    sources: list[UpdateOp] = field(default_factory=list)
    vocabulary: list[bytes] = field(default_factory=list)
    created_ms: int = 0
    access: list[AccessChange] = field(default_factory=list)
    _tokens: dict[bytes, int] = field(default_factory=dict)
    _terms: list[tuple[Ints, Ints, Ints, Ints]] = field(default_factory=list)
    _words: list[tuple[Ints, Ints]] = field(default_factory=list)
    _vectors: list[tuple[Ints, F32]] = field(default_factory=list)

    def add(self, checked: Checked) -> None:
        """Append a batch; its operations come after those before it."""
        batch, known, first = checked.batch, self._tokens, len(self.ops)
        numbers = np.fromiter(
            (known.setdefault(token, len(known)) for token in batch.tokens),
            np.int64,
            len(batch.tokens),
        )
        self._terms.append(
            (
                numbers[checked.term_tokens],
                checked.term_ops + first,
                checked.tfs,
                checked.deltas,
            )
        )
        self._words.append((numbers[checked.word_tokens], checked.word_ops + first))
        if checked.vectors is not None:
            self._vectors.append((checked.vector_ops + first, checked.vectors))
        if batch.vocabulary:
            self.vocabulary.append(batch.vocabulary)
        self.ops.extend(checked.ops)
        self.sources.extend(batch.ops)
        self.access.extend(checked.access)
        self.created_ms = max(self.created_ms, batch.created_ms)

    def first_vectors(self) -> F32 | None:
        """Return float32 `(n, d)` vectors of the batch, None if it has none."""
        return self._vectors[0][1] if self._vectors else None

    def nodes(self, accepted: Accepted, clusters: Clusters | None) -> Iterable[Node]:
        """Yield every node of the segment (`workers.chain.ops.NodeBuilder`).

        Args:
            accepted: where the operations went.
            clusters: for indexes with vectors.
        """
        row_of_op = accepted.row_of_op
        tokens = list(self._tokens)
        yield from self._keyword_nodes(tokens, row_of_op)
        yield from self._term_nodes(tokens, row_of_op)
        if clusters is not None and self._vectors:
            yield from self._code_nodes(row_of_op, clusters)

    def _keyword_nodes(self, tokens: list[bytes], row_of_op: Ints) -> Iterable[Node]:
        groups = np.concatenate([part[0] for part in self._words])
        ops = np.concatenate([part[1] for part in self._words])
        removes = np.array([op.kind is RowKind.REMOVALS for op in self.ops], dtype=np.bool_)
        kept = np.flatnonzero(row_of_op[ops] >= 0)
        built = build_rows(groups[kept], row_of_op[ops[kept]], removes[ops[kept]])
        for group, payload in zip(*built, strict=True):
            yield Node(NodeKind.KEYWORD, tokens[int(group)], payload)

    def _term_nodes(self, tokens: list[bytes], row_of_op: Ints) -> Iterable[Node]:
        groups, ops, tfs, deltas = (
            np.concatenate([part[number] for part in self._terms]) for number in range(4)
        )
        rows = row_of_op[ops]
        columns = TermColumns(groups, rows, tfs, deltas)
        if np.any(rows < 0):
            columns = columns.take(np.flatnonzero(rows >= 0))
        for group, payload in zip(*build_terms(columns), strict=True):
            yield Node(NodeKind.TERM, tokens[int(group)], payload)

    def _code_nodes(self, row_of_op: Ints, clusters: Clusters) -> Iterable[Node]:
        rows = row_of_op[np.concatenate([part[0] for part in self._vectors])]
        vectors = np.concatenate([part[1] for part in self._vectors])
        kept = rows >= 0
        if not kept.any():
            return
        epoch = clusters.state.current.number
        where = rows[kept].astype(np.uint32)
        for cluster, payload in cluster_nodes(where, vectors[kept], clusters.state):
            yield Node(NodeKind.CODES, clusters.token(epoch, cluster), payload)


def gather(batches: Sequence[Checked]) -> MicroBatch:
    """Put checked batches together in their order."""
    whole = MicroBatch()
    for checked in batches:
        whole.add(checked)
    return whole
