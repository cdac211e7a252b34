from __future__ import annotations

from typing import Any

import pytest

from schemas.auth import Auth
from schemas.errors import InvalidMessage
from schemas.ids import DocId, IndexName
from schemas.ingest import IngestOp, IngestRequest, ReplyKey
from schemas.values import Binary

TOKEN = Auth(token="t")


def request(**fields: Any) -> IngestRequest:
    return IngestRequest(**({"index": IndexName("a"), "id": DocId("x"), "auth": TOKEN} | fields))


def test_defaults() -> None:
    made = request()
    assert made.op is IngestOp.UPSERT
    assert made.content_bytes() is None
    assert made.media_type() is None
    assert made.analysed_text() == {}


@pytest.mark.parametrize(
    ("fields", "kind", "data", "analysed"),
    [
        ({"content": "ä"}, "text/plain", "ä".encode(), {"body": "ä"}),
        ({"content": ""}, "text/plain", b"", {"body": ""}),
        ({"content": Binary.of(b"\xff")}, "application/octet-stream", b"\xff", {}),
        ({"content": "{}", "content_type": "application/json"}, "application/json", b"{}", {}),
        (
            {"content": Binary.of(b"hi"), "content_type": "TEXT/html"},
            "TEXT/html",
            b"hi",
            {"body": "hi"},
        ),
        ({"content": "hi", "text": {"title": "t"}}, "text/plain", b"hi", {"title": "t"}),
        ({"content": "hi", "text": {}}, "text/plain", b"hi", {}),
    ],
)
def test_content(fields: dict[str, Any], kind: str, data: bytes, analysed: dict[str, str]) -> None:
    made = request(**fields)
    assert (made.media_type(), made.content_bytes(), made.analysed_text()) == (
        kind,
        data,
        analysed,
    )


def test_text_that_is_not_utf8() -> None:
    made = request(content=Binary.of(b"\xff"), content_type="text/plain")
    with pytest.raises(InvalidMessage) as caught:
        made.analysed_text()
    assert caught.value.field == "content"
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"op": IngestOp.DELETE, "content": "x"}, "content"),
        ({"op": IngestOp.DELETE, "keywords": ["k"]}, "keywords"),
        ({"op": IngestOp.ADD_KEYWORDS}, "keywords"),
        ({"op": IngestOp.ADD_KEYWORDS, "keywords": ["k"], "metadata": {"a": 1}}, "metadata"),
        ({"op": IngestOp.REMOVE_KEYWORDS, "keywords": ["k"], "if_version": 1}, "if_version"),
        ({"content_type": "text/plain"}, "content_type"),
        ({"associated_data": Binary.of(b"")}, "associated_data"),
        ({"auth": Auth(sealed="AAAA")}, "message_id"),
        ({"id": ""}, "id"),
        ({"metadata": {"a": 2**63}}, "metadata.*"),
        ({"metadata": {"a": [1, -(2**63) - 1]}}, "metadata.*"),
    ],
)
def test_rules_hold_for_what_is_built(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        request(**fields)
    assert caught.value.field == field


def test_reply_key() -> None:
    assert ReplyKey().key_bytes() == b""
    assert ReplyKey(public_key="QUJD").key_bytes() == b"ABC"
