from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from schemas.errors import ErrorCode, InvalidMessage
from schemas.position import Order, Source
from schemas.update import (
    OpKind,
    TermField,
    UpdateBatch,
    UpdateEnvelope,
    UpdateOp,
    decode_batch,
    decode_envelope,
    encode_batch,
    encode_envelope,
)


def op(**fields: Any) -> UpdateOp:
    base = {
        "kind": OpKind.UPSERT,
        "order": Order(1, 2, 3),
        "id": "hidden",
        "object_id": bytes(16),
        "op_id": 0,
        "source": Source(topic="plaintext-ingest", partition=2, offset=3),
    }
    return UpdateOp(**(base | fields))


def batch(*ops: UpdateOp, tokens: int = 1) -> UpdateBatch:
    return UpdateBatch(
        tokens=[bytes([n]) * 32 for n in range(tokens)],
        token_kinds=bytes(tokens),
        ops=list(ops),
        created_ms=1,
    )


def envelope(**fields: Any) -> UpdateEnvelope:
    base = {
        "v": 1,
        "index_uid": bytes(16),
        "shard": 0,
        "generation": 1,
        "worker": "ingest-1",
        "certificate": b"c",
        "wrapped_key": b"k",
        "body": b"b",
        "body_sha256": bytes(32),
        "signature": bytes(64),
    }
    return UpdateEnvelope(**(base | fields))


def test_round_trips() -> None:
    field = TermField(
        name="body", length=3, terms=struct.pack("<2I", 0, 1), tfs=struct.pack("<2H", 1, 2)
    )
    made = batch(
        op(keywords=[0, 1], fields=[field], vector=bytes(8), metadata=b"\x80", if_version=3),
        op(kind=OpKind.ACCESS, groups=[bytes(16)], caller_groups=[bytes(16)]),
        tokens=2,
    )
    assert decode_batch(encode_batch(made)) == made
    assert decode_envelope(encode_envelope(envelope())) == envelope()
    stored = envelope(body=None, body_object="updates/1")
    assert decode_envelope(encode_envelope(stored)) == stored


def test_arrays_without_names() -> None:
    assert b"body_sha256" not in encode_envelope(envelope())
    assert isinstance(msgspec.msgpack.decode(encode_batch(batch(op()))), list)


def test_token_indexes_are_checked() -> None:
    for bad in (
        op(keywords=[1]),
        op(fields=[TermField(name="b", length=1, terms=b"\1\0\0\0", tfs=b"\1\0")]),
    ):
        with pytest.raises(InvalidMessage):
            decode_batch(encode_batch(batch(bad)))


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"v": 2}, "v"), ({"body": None}, "body"), ({"body_object": "x"}, "body")],
)
def test_envelopes_that_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        envelope(**fields)
    assert caught.value.field == field


def test_lengths_are_checked() -> None:
    raw = msgspec.msgpack.decode(encode_envelope(envelope()))
    raw[1] = bytes(15)
    with pytest.raises(InvalidMessage):
        decode_envelope(msgspec.msgpack.encode(raw))
    with pytest.raises(InvalidMessage):
        TermField(name="b", length=1, terms=bytes(8), tfs=bytes(2))
    with pytest.raises(InvalidMessage):
        UpdateBatch(tokens=[bytes(32)], token_kinds=b"", ops=[], created_ms=1)


@pytest.mark.parametrize("value", [None, b"", b"\xc1", b"\x91" * 100_000, b"\x90", b"\xdf\xff"])
def test_what_is_no_update(value: bytes | None) -> None:
    for read in (decode_envelope, decode_batch):
        with pytest.raises(InvalidMessage) as caught:
            read(value)
        assert caught.value.__context__ is None


def test_too_large() -> None:
    with pytest.raises(InvalidMessage) as caught:
        encode_envelope(envelope(body=bytes(900_000)))
    assert caught.value.code is ErrorCode.TOO_LARGE
    with pytest.raises(InvalidMessage):
        decode_envelope(bytes(900_001))


def test_nothing_is_shown() -> None:
    assert "hidden" not in repr(batch(op())) + repr(op())
