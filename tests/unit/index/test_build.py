from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.errors import ErrorCode
from schemas.index import IndexConfig
from schemas.position import Order, Source
from schemas.update import OpKind, TermField, UpdateBatch, UpdateOp
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.ops import Accepted
from workers.chain.rows import Rows
from workers.crypto.derive import TokenKind
from workers.errors import Reject
from workers.index.build import Clusters, check_batch, gather
from workers.index.vectors import CodesMerge
from workers.text.postings import decode_positions, decode_rows, decode_terms
from workers.text.varint import encode_varints
from workers.vector.centroids import initial_state
from workers.vector.codes import decode_codes
from workers.vector.metric import Metric

TERM, WORD = TokenKind.TERM, TokenKind.KEYWORD


def op(doc: str, kind: OpKind = OpKind.UPSERT, **more: Any) -> UpdateOp:
    return UpdateOp(
        kind=kind,
        order=Order(1, 0, 0),
        id=doc,
        object_id=doc.encode().ljust(16),
        op_id=0,
        source=Source(topic="t", partition=0, offset=0),
        **more,
    )


def field(*postings: tuple[int, list[int]]) -> TermField:
    return TermField(
        name="body",
        length=sum(len(at) for _, at in postings),
        terms=struct.pack(f"<{len(postings)}I", *(token for token, _ in postings)),
        tfs=struct.pack(f"<{len(postings)}H", *(len(at) for _, at in postings)),
        positions=distances([at for _, at in postings]),
    )


def distances(positions: list[list[int]]) -> bytes:
    deltas = [np.diff(at, prepend=0) for at in positions]
    return encode_varints(np.concatenate([np.zeros(0, np.int64), *deltas]))[0].tobytes()


def batch(tokens: dict[bytes, int], *ops: UpdateOp) -> UpdateBatch:
    return UpdateBatch(
        tokens=[token.ljust(32) for token in tokens],
        token_kinds=bytes(tokens.values()),
        ops=list(ops),
        created_ms=0,
    )


def accepted(*rows: int) -> Accepted:
    return Accepted(np.array(rows, dtype=np.int64), Rows.blank(max(rows) + 1))


CONFIG = IndexConfig()


def test_batches_with_tables_of_their_own_become_one_set_of_chains() -> None:
    first = batch({b"dog": TERM, b"k": WORD}, op("a", fields=[field((0, [0, 4]))], keywords=[1]))
    second = batch(
        {b"k": WORD, b"cat": TERM, b"dog": TERM},
        op("b", fields=[field((2, [2]), (1, [3, 200]))], keywords=[0]),
        op("c", OpKind.REMOVE_KEYWORDS, keywords=[0]),
    )
    whole = gather([check_batch(one, CONFIG) for one in (first, second)])
    nodes = {
        (node.kind, node.token.strip()): node.payload
        for node in whole.nodes(accepted(0, 1, 2), None)
    }
    assert set(nodes) == {
        (NodeKind.TERM, b"dog"),
        (NodeKind.TERM, b"cat"),
        (NodeKind.KEYWORD, b"k"),
    }
    dog = decode_terms(nodes[NodeKind.TERM, b"dog"])
    assert (dog.rows.tolist(), dog.tfs.tolist()) == ([0, 1], [2, 1])
    offsets, places = decode_positions(nodes[NodeKind.TERM, b"cat"])
    assert (offsets.tolist(), places.tolist()) == ([0, 2], [3, 200])
    words = decode_rows(nodes[NodeKind.KEYWORD, b"k"])
    assert words.rows.tolist() == [0, 1, 2]
    assert words.removed.tolist() == [False, False, True]
    assert [one.kind for one in whole.ops] == [RowKind.DOC, RowKind.DOC, RowKind.REMOVALS]
    assert whole.ops[1].lengths == {"body": 3}


def test_operations_without_a_row_leave_no_posting() -> None:
    one = batch(
        {b"dog": TERM, b"k": WORD},
        op("a", fields=[field((0, [0, 1, 2]))], keywords=[1]),
        op("b", fields=[field((0, [7]))], keywords=[1]),
    )
    whole = gather([check_batch(one, CONFIG)])
    nodes = {node.kind: node.payload for node in whole.nodes(accepted(-1, 0), None)}
    assert decode_terms(nodes[NodeKind.TERM]).rows.tolist() == [0]
    assert decode_positions(nodes[NodeKind.TERM])[1].tolist() == [7]
    assert decode_rows(nodes[NodeKind.KEYWORD]).rows.tolist() == [0]


def vector(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", "f4"), ("float16", "f2"), ("int8", None)]
)
def test_vectors_become_codes_and_rows(precision: Any, dtype: str | None) -> None:
    config = IndexConfig(dimension=2, storage_precision=precision)
    one = batch({}, op("a", vector=vector(1, 0)), op("b"), op("c", vector=vector(0, 1)))
    whole = gather([check_batch(one, config)])
    state = initial_state(2, Metric.COSINE)
    clusters = Clusters(state, lambda epoch, cluster: bytes([epoch, cluster]).ljust(32))
    (node,) = whole.nodes(accepted(0, 1, 2), clusters)
    assert node.kind is NodeKind.CODES
    codes = decode_codes(node.payload)
    assert codes.rows.tolist() == [0, 2]
    stored = whole.ops[0].vector
    assert (stored is None) == (dtype is None)
    assert stored is None or stored.dtype == np.dtype(dtype)
    parts = [(node.payload, np.array([5, -1, 6])), (node.payload, np.array([-1, -1, 7]))]
    [merged] = CodesMerge().merge_many([parts])
    assert merged is not None
    assert decode_codes(merged).rows.tolist() == [5, 6, 7]


GOOD = batch({b"dog": TERM, b"k": WORD}, op("a", fields=[field((0, [0, 1]))], keywords=[1]))


def with_op(**change: Any) -> UpdateBatch:
    changed = msgspec.structs.replace(GOOD.ops[0], **change)
    return msgspec.structs.replace(GOOD, ops=[changed])


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (with_op(kind=OpKind.ACCESS), ErrorCode.UNSUPPORTED),
        (with_op(vector=vector(1, 2)), ErrorCode.DIMENSION_MISMATCH),
        (with_op(keywords=[0]), ErrorCode.INVALID_MESSAGE),
        (with_op(fields=[field((1, [0]))]), ErrorCode.INVALID_MESSAGE),
        (with_op(content=b"no pointer"), ErrorCode.INVALID_MESSAGE),
        (
            with_op(fields=[msgspec.structs.replace(field((0, [0, 1])), positions=b"\0")]),
            ErrorCode.INVALID_MESSAGE,
        ),
        (
            with_op(fields=[msgspec.structs.replace(field((0, [0, 1])), positions=b"\0\xff")]),
            ErrorCode.INVALID_MESSAGE,
        ),
        (with_op(fields=[field((0, []))]), ErrorCode.INVALID_MESSAGE),
    ],
)
def test_a_batch_whose_parts_do_not_fit_is_refused(bad: UpdateBatch, code: ErrorCode) -> None:
    check_batch(GOOD, CONFIG)
    with pytest.raises(Reject) as refusal:
        check_batch(bad, CONFIG)
    assert refusal.value.code is code


def test_a_vector_that_is_not_finite_is_refused() -> None:
    bad = with_op(vector=vector(float("nan"), 0))
    with pytest.raises(Reject) as refusal:
        check_batch(bad, IndexConfig(dimension=2))
    assert refusal.value.code is ErrorCode.INVALID_MESSAGE


def test_the_scope_alone_allows_overwriting_only_where_the_index_says_so() -> None:
    claimed = batch({}, op("a", OpKind.DELETE, scope_overwrite=True))
    for setting, allowed in (("members", False), ("scope", True)):
        [pending] = check_batch(claimed, IndexConfig(overwrite=setting)).ops
        assert pending.overwrite_by_scope is allowed
