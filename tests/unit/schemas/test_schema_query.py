from __future__ import annotations

from typing import Any

import pytest

from schemas.auth import Auth
from schemas.errors import InvalidMessage
from schemas.ids import DocId, IndexName
from schemas.index import DEFAULT_PAGE, DEFAULT_TOP_K, fusion_depth
from schemas.query import (
    CountQuery,
    FilterOnly,
    GetQuery,
    Hybrid,
    IdsQuery,
    Include,
    KeywordQuery,
    Query,
    QueryRequest,
    Reply,
    TextQuery,
    VectorQuery,
    requires_sealed_reply,
)
from schemas.values import Vector

UUID = "018f6b1e-7c3a-7e51-9d2b-3f6f2f0c8a11"


def request(**fields: Any) -> QueryRequest:
    base = {"request_id": UUID, "index": IndexName("a"), "auth": Auth(token="t")}
    return QueryRequest(**(base | {"query": KeywordQuery(keyword="k")} | fields))


@pytest.mark.parametrize(
    ("query", "limit"),
    [
        (KeywordQuery(keyword="k"), None),
        (GetQuery(get=[DocId("a")]), None),
        (CountQuery(count=True), None),
        (IdsQuery(ids=True), DEFAULT_PAGE),
        (TextQuery(text="a"), DEFAULT_TOP_K),
        (VectorQuery(vector=Vector.of([1.0])), DEFAULT_TOP_K),
        (FilterOnly(filter_only=True), DEFAULT_TOP_K),
    ],
)
def test_limits(query: Query, limit: int | None) -> None:
    assert request(query=query).limit(query) == limit
    assert request(query=query, top_k=3).limit(query) == 3


def test_defaults() -> None:
    made = request()
    assert made.include == [Include.SCORE]
    assert made.reply.topic == "query-result"
    assert made.timeout_ms == 5000
    assert made.parsed_filter() is None
    assert (fusion_depth(5), fusion_depth(50)) == (100, 500)


@pytest.mark.parametrize(
    ("include", "key", "needed"),
    [
        ([Include.SCORE, Include.DISTANCE, Include.GROUPS], None, False),
        ([Include.ASSOCIATED_DATA], None, False),
        ([Include.CONTENT], None, True),
        ([Include.METADATA], None, True),
        ([Include.VECTOR], None, True),
        ([Include.VECTOR], "QUJD", False),
    ],
)
def test_requires_sealed_reply(include: list[Include], key: str | None, needed: bool) -> None:
    made = request(include=include, reply=Reply(public_key=key))
    assert requires_sealed_reply(made) is needed


def test_hybrid_defaults() -> None:
    hybrid = Hybrid(text="a", vector=Vector.of([1.0]), nprobe=4, operator="and")
    assert hybrid.weights() == (0.5, 0.5)
    assert hybrid.k() == 60
    assert hybrid.text_query() == TextQuery(text="a", operator="and")
    assert hybrid.vector_query() == VectorQuery(vector=Vector.of([1.0]), nprobe=4)
    assert Hybrid(text="a", vector=Vector.of([1.0]), alpha=0.75).weights() == (0.25, 0.75)
    assert Hybrid(text="a", vector=Vector.of([1.0]), rrf_k=7).k() == 7


@pytest.mark.parametrize(
    "topic",
    ["", "query-results", "query-result.", "query-result.a/b", "x.query-result", "key-grant"],
)
def test_reply_topics(topic: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        Reply(topic=topic)
    assert caught.value.field == "topic"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"queries": [KeywordQuery(keyword="k")]}, "query"),
        ({"query": None}, "query"),
        ({"query": None, "queries": [KeywordQuery(keyword="k")], "cursor": "c"}, "cursor"),
        ({"auth": Auth(sealed="AAAA"), "message_id": UUID}, "issued_ms"),
        ({"filter": {"a": {"$gt": [1]}}}, "filter.*.$gt"),
    ],
)
def test_rules_hold_for_what_is_built(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        request(**fields)
    assert caught.value.field == field


def test_nothing_is_shown() -> None:
    made = request(query=TextQuery(text="hidden"), filter={"hidden": 1})
    assert "hidden" not in repr(made) + repr(made.query) + repr(made.parsed_filter())
