"""Whatever bytes come in, decoding refuses them with its own error and quotes none of them."""

from __future__ import annotations

import json
import traceback
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import InvalidMessage, decode, field_names
from schemas.errors import ErrorCode
from schemas.filter import FilterOp
from schemas.ingest import IngestRequest
from schemas.registry import MESSAGES
from schemas.update import decode_batch, decode_envelope

# An index-config lies inside other messages; alone, `{}` is one.
KINDS = [m.kind for m in MESSAGES if m.name != "index-config"]
SECRET = "s3cr3t-Zq"
GOOD = {"v": 1, "index": "a", "id": "x", "auth": {"token": SECRET}, "content": SECRET}


def refusal(value: bytes | None, kind: type = IngestRequest, **options: Any) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        decode(kind, value, **options)
    return caught.value


def good_with(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b"\x00",
        b"null",
        b"[]",
        b"1",
        b'"text"',
        b"{",
        b"{}",
        b"{}{}",
        b"\xff\xfe{\x00}\x00",
        b'\xef\xbb\xbf{"v":1}',
        b'{"v":1,"index":"\xff"}',
        b'{"v":1,"index":"\xed\xa0\x80"}',
        b'{"v":1,"index":"\\ud800"}',
        b'{"v":1,"id":"a\x00b"}',
        b'{"v":NaN}',
        b'{"v":1,"index":Infinity}',
        b'{"v":1,"index":-Infinity}',
        b'{"v":1e999}',
        b'{"v":1,"index":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"v":1,"index":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"v":1,"index":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"v":1,"index":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    ],
    ids=lambda v: repr(v[:20]) if v else repr(v),
)
def test_malformed(kind: type, value: bytes | None) -> None:
    assert refusal(value, kind).code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize("version", [b"2", b"0", b"-1", b"true", b"1.0", b'"1"', b"null", b"[1]"])
def test_another_version(version: bytes) -> None:
    assert refusal(b'{"v":' + version + b"}").field == "v"


def test_no_version() -> None:
    assert refusal(b'{"index":"a"}').field == "v"


def test_too_large() -> None:
    error = refusal(good_with(content="x" * 2000), max_bytes=1000)
    assert error.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (b'{"v":1,"index":"a","id":"x","id":"y","auth":{"token":"t"}}', "id"),
        (b'{"v":1,"index":"a","id":"x","auth":{"token":"t","token":"u"}}', "token"),
        (b'{"v":1,"index":"a","id":"x","auth":{"token":"t"},"metadata":{"k":1,"k":2}}', None),
        (b'{"v":1,"index":"a","id":"x","auth":{"token":"t"},"text":{"k":"a:","k":":"}}', None),
        # The colon that is missing is made up for by an escaped one.
        (b'{"v":1,"index":"a","id":"\\u003a","auth":{"token":"t"},"op":"delete","op":1}', "op"),
        (b'{"v":1,"index":"a","id":"\\u003A","auth":{"token":"t"},"op":"delete","op":1}', "op"),
        (b'{"v":1,"v" : 1,"index":"a","id":"x","auth":{"token":"t"}}', "v"),
        (b'{"v":1,"index":"a","id":"x","auth":{"token":"t"},"vector":[1],"vector":[1]}', "vector"),
    ],
)
def test_doubled_keys(value: bytes, field: str | None) -> None:
    error = refusal(value)
    assert "twice" in error.message
    assert error.field == field


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "9" * 40])
def test_integers_beyond_64_bits(number: str) -> None:
    body = json.dumps(GOOD | {"metadata": {"n": 12345}}).replace("12345", number)
    assert "64 bits" in refusal(body.encode()).message
    compact = body.replace(" ", "")
    assert "64 bits" in refusal(compact.encode()).message


def test_integers_beyond_63_bits() -> None:
    error = refusal(good_with(metadata={"n": 2**63}))
    assert (error.field, "64 bits" in error.message) == ("metadata.*", True)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({SECRET: 1}, None),
        ({f"x` - at `$.{SECRET}": 1}, None),
        ({"auth": {"token": SECRET, SECRET: 1}}, "auth"),
        ({"op": SECRET}, "op"),
        ({"index": SECRET}, "index"),
        ({"id": ""}, "id"),
        ({"id": SECRET * 100}, "id"),
        ({"id": [SECRET]}, "id"),
        ({"content": {"base64": SECRET}}, "content.base64"),
        ({"content": {"base64": "QUI"}}, "content.base64"),
        ({"content": 7}, "content"),
        ({"content_type": SECRET}, "content_type"),
        ({"text": {SECRET: 1}}, "text.*"),
        ({"text": {"$" + SECRET: "a"}}, "text"),
        ({"keywords": SECRET}, "keywords"),
        ({"keywords": ["a", ""]}, "keywords[1]"),
        ({"keywords": ["a", None]}, "keywords[1]"),
        ({"metadata": {SECRET: {"a": 1}}}, "metadata.*"),
        ({"metadata": {SECRET: None}}, "metadata.*"),
        ({"metadata": {SECRET: [[SECRET]]}}, "metadata.*[0]"),
        ({"metadata": {"$" + SECRET: 1}}, "metadata"),
        ({"metadata": {"": 1}}, "metadata"),
        ({"vector": []}, "vector"),
        ({"vector": [True]}, "vector"),
        ({"vector": [1, "2"]}, "vector"),
        ({"vector": [1, None]}, "vector"),
        ({"vector": [1, [2]]}, "vector"),
        ({"vector": [1e39]}, "vector"),
        ({"vector": [0.5] * 100 + [{SECRET: 1}]}, "vector"),
        ({"vector": SECRET}, "vector"),
        ({"vector": {"f32": SECRET}}, "vector.f32"),
        ({"vector": {"f32": "AAAA"}}, "vector.f32"),
        ({"vector": {"f32": ""}}, "vector"),
        ({"vector": {"f32": "AADAfw=="}}, "vector"),
        ({"vector": {"f32": "AAAAAA==", SECRET: 1}}, "vector"),
        ({"groups": [SECRET]}, "groups[0]"),
        ({"if_version": -1}, "if_version"),
        ({"if_version": 1.5}, "if_version"),
        ({"if_version": True}, "if_version"),
        ({"reply": {"public_key": SECRET}}, "reply.public_key"),
        ({"issued_ms": 2**60}, "issued_ms"),
    ],
)
def test_path_and_silence(fields: dict[str, Any], path: str | None) -> None:
    error = refusal(good_with(**fields))
    assert error.field == path
    assert_silent(error)


def assert_silent(error: InvalidMessage) -> None:
    """Nothing of the message: not in the error, not in what a traceback would print."""
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.info())
    assert SECRET not in shown
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


def test_an_unknown_key_cannot_pose_as_a_path() -> None:
    error = refusal(good_with(**{"x` - at `$.query.top_k": 1}))
    assert set((error.field or "query").replace("[", ".").split(".")) <= field_names()


def test_a_message_that_is_right_shows_nothing() -> None:
    message = decode(IngestRequest, good_with())
    assert repr(message) == "IngestRequest(op, index, id, auth, content)"
    assert SECRET not in repr(message.auth)


@given(st.binary(max_size=200))
def test_any_bytes(value: bytes) -> None:
    for kind in KINDS:
        try:
            decode(kind, value)
        except InvalidMessage:
            continue
    for read in (decode_envelope, decode_batch):
        with pytest.raises(InvalidMessage):
            read(value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.sampled_from(MESSAGES), st.data())
def test_any_json_in_any_field(spec: Any, data: st.DataObject) -> None:
    fields = list(spec.kind.__struct_encode_fields__)
    name = data.draw(st.sampled_from(fields))
    body = {**(spec.example or {}), "v": 1, name: data.draw(_JSON)}
    path = ""
    try:
        decode(spec.kind, json.dumps(body).encode())
    except InvalidMessage as error:
        path = error.field or ""
    steps = path.replace("[", ".").replace("]", "").split(".")
    known = field_names() | {"", "*", "f32", "$and", "$or", "$not", *FilterOp}
    assert all(s in known or s.isdigit() for s in steps), path


@given(
    st.dictionaries(
        st.text(max_size=6), st.text(max_size=12) | st.floats(allow_nan=False, allow_infinity=False)
    ),
    st.booleans(),
)
def test_no_false_alarm_on_keys(metadata: dict[str, Any], compact: bool) -> None:
    names = {("k" + k.replace("\x00", ""))[:20]: v for k, v in metadata.items()}
    body = GOOD | {"metadata": names}
    value = orjson.dumps(body) if compact else json.dumps(body).encode()
    assert decode(IngestRequest, value).metadata == (names or {})
