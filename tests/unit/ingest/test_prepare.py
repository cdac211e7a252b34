from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.auth import Scope
from schemas.codec import decode
from schemas.errors import ErrorCode
from schemas.index import IndexConfig
from schemas.ingest import IngestRequest
from schemas.update import OpKind, encode_batch
from workers.crypto.derive import TokenKind, chain_token, group_token, object_id, shard_of
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.errors import Reject
from workers.ingest.authorize import check_scopes
from workers.ingest.batches import Authorised
from workers.ingest.incoming import Incoming
from workers.ingest.prepare import IndexContext, IndexKeys, Limits, Prepared, prepare
from workers.kafka.broker import Record
from workers.leases.lease import Decision
from workers.text.varint import decode_varints

TAG = b"t" * 32
MINE = "00000000-0000-4000-8000-00000000000a"
OTHER = "00000000-0000-4000-8000-00000000000B"
PUBLIC = HpkePrivateKey.generate(HpkeSuite.X25519).public


def decision(*scopes: Scope) -> Decision:
    return Decision(
        caller="c",
        index="i",
        groups=(MINE,),
        default_group=MINE,
        scopes=frozenset(scopes or Scope),
        cnf=None,
        expires_s=0.0,
    )


def item(offset: int, doc: str, *, who: Decision | None = None, **body: Any) -> Authorised:
    value = json.dumps({"v": 1, "index": "i", "id": doc, "auth": {"token": "t"}, **body}).encode()
    record = Record("plaintext-ingest", 2, offset, 0, f"i/{doc}".encode(), value)
    return Authorised(
        Incoming(record, decode(IngestRequest, value), False, None, offset), who or decision()
    )


def context(**config: Any) -> IndexContext:
    made = IndexConfig(**config)
    return IndexContext(
        uid=b"u" * 16,
        config=made,
        generation=1,
        partitions=tuple(range(made.shards)),
        stream=9,
        object_public=PUBLIC,
        keys=IndexKeys(TAG),
    )


def run(*items: Authorised, record_bytes: int = 900_000, **config: Any) -> Prepared:
    limits = Limits(content_bytes=1000, record_bytes=record_bytes)
    return prepare(items, context(**config), limits, now_ms=5)


def test_an_upsert_becomes_one_operation() -> None:
    done = run(
        item(
            3,
            "doc",
            content="x",
            text={"body": "dogs and a dog", "empty": "the"},
            keywords=["k", "k"],
            metadata={"year": 1999},
            groups=[OTHER],
        )
    )
    (update,) = done.updates
    (op,) = update.batch.ops
    assert (op.order.stream, op.order.partition, op.order.offset) == (9, 2, 3)
    assert op.object_id == object_id(TAG, "doc")
    assert op.groups == [group_token(TAG, MINE), group_token(TAG, OTHER.lower())]
    assert op.caller_groups == [group_token(TAG, MINE)]
    assert msgspec.msgpack.decode(op.metadata) == {"year": 1999}
    assert [update.batch.tokens[n] for n in op.keywords] == [
        chain_token(TAG, TokenKind.KEYWORD, "", "k")
    ]
    (body,) = op.fields
    assert (body.name, body.length) == ("body", 2)
    numbers = np.frombuffer(body.terms, "<u4")
    assert [update.batch.tokens[n] for n in numbers] == [
        chain_token(TAG, TokenKind.TERM, "body", "dog")
    ]
    assert np.frombuffer(body.tfs, "<u2").tolist() == [2]
    assert decode_varints(body.positions)[0].tolist() == [0, 3]
    assert sorted(update.words.spell()) == ["dog", "dogs"]
    assert bytes(update.batch.token_kinds) == bytes([TokenKind.TERM, TokenKind.KEYWORD])


def test_operations_keep_their_order_and_their_shard() -> None:
    done = run(*(item(n, f"d{n % 7}", op="delete") for n in range(40)), shards=3)
    seen = []
    for update in done.updates:
        assert update.partition == update.shard
        offsets = [op.order.offset for op in update.batch.ops]
        assert offsets == sorted(offsets)
        assert all(shard_of(op.object_id, 3) == update.shard for op in update.batch.ops)
        assert all(op.kind is OpKind.DELETE and not op.content for op in update.batch.ops)
        seen += offsets
    assert sorted(seen) == list(range(40))


def test_batches_stay_below_the_limit_of_a_record() -> None:
    rng = np.random.default_rng(1)
    words = [f"word{n}" for n in range(2000)]
    items = [item(n, f"d{n}", content=" ".join(rng.choice(words, 90))) for n in range(80)]
    done = run(*items, record_bytes=65_536)
    sizes = [len(encode_batch(update.batch)) for update in done.updates]
    assert len(sizes) > 2
    assert max(sizes) < 65_536 - 8192
    assert min(sizes[:-1]) > 30_000
    flat = [op.order.offset for update in done.updates for op in update.batch.ops]
    assert flat == list(range(80))
    # Each batch is whole: it has the pack keys and tokens that its operations name.
    assert all(len(update.batch.packs) == 1 for update in done.updates)


@pytest.mark.parametrize(
    ("body", "config", "code"),
    [
        ({"vector": [1, 2]}, {}, ErrorCode.DIMENSION_MISMATCH),
        ({"vector": [1, 2]}, {"dimension": 3}, ErrorCode.DIMENSION_MISMATCH),
        ({"content": "x" * 1001}, {}, ErrorCode.TOO_LARGE),
        ({"content": {"base64": "/w=="}, "content_type": "text/plain"}, {}, "INVALID_MESSAGE"),
        ({"content": "x", "groups": [MINE] * 300}, {}, ErrorCode.TOO_LARGE),
        ({"content": "x", "reply": {"public_key": "AAAA"}}, {}, ErrorCode.INVALID_MESSAGE),
    ],
)
def test_what_breaks_a_rule_is_refused_alone(
    body: dict[str, Any], config: dict[str, Any], code: ErrorCode
) -> None:
    done = run(item(0, "good"), item(1, "bad", **body), item(2, "also good"), **config)
    (refused,) = done.refused
    assert refused.error.code == code
    assert refused.record.offset == 1
    (update,) = done.updates
    assert [op.id for op in update.batch.ops] == ["good", "also good"]


def test_vectors_are_normalised_for_cosine_alone() -> None:
    for metric, expected in (("cosine", [0.6, 0.8]), ("euclidean", [3.0, 4.0]), ("dot", [3, 4])):
        done = run(item(0, "d", vector=[3, 4]), dimension=2, metric=metric)
        vector = np.frombuffer(done.updates[0].batch.ops[0].vector, "<f4")
        np.testing.assert_allclose(vector, expected, rtol=1e-6)


def test_without_the_scope_update_an_upsert_can_only_create() -> None:
    creator = decision(Scope.ENCRYPT)
    done = run(item(0, "d", who=creator), item(1, "d"))
    first, second = done.updates[0].batch.ops
    assert (first.caller_groups, first.scope_overwrite) == ([], False)
    assert (len(second.caller_groups), second.scope_overwrite) == (1, False)
    done = run(item(0, "d", who=creator), item(1, "d"), overwrite="scope")
    assert [op.scope_overwrite for op in done.updates[0].batch.ops] == [False, True]


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        ({}, {Scope.ENCRYPT}),
        ({"keywords": ["k"]}, {Scope.ENCRYPT, Scope.INDEX}),
        ({"op": "delete"}, {Scope.DELETE}),
        ({"op": "add_keywords", "keywords": ["k"]}, {Scope.INDEX}),
        ({"op": "remove_keywords", "keywords": ["k"]}, {Scope.INDEX}),
    ],
)
def test_each_operation_takes_its_scopes(body: dict[str, Any], needed: set[Scope]) -> None:
    request = item(0, "d", **body).incoming.request
    check_scopes(request, decision(*needed))
    for scope in needed:
        rest = decision(*(set(Scope) - {scope}))
        with pytest.raises(Reject) as refusal:
            check_scopes(request, rest)
        assert refusal.value.code is ErrorCode.FORBIDDEN


def test_no_repr_shows_what_a_document_says() -> None:
    one = item(0, "d", content="secret", keywords=["secret"])
    done = run(one)
    assert "secret" not in repr(one)
    assert "secret" not in repr(done)
    assert "secret" not in repr(done.updates)
