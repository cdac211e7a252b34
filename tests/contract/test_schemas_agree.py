"""Types, JSON Schemas, the AsyncAPI document and the files in the tree say the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import generate
from schemas.asyncapi import document, to_yaml
from schemas.codec import InvalidMessage, convert, decode, encode, parse
from schemas.ingest import IngestRequest
from schemas.query import QueryRequest
from schemas.registry import CHANNELS, MESSAGES, MessageSpec
from schemas.topics import ALL_TOPICS

DEFS = generate.definitions()
SCHEMAS = {m.name: generate.schema(m.name, m.kind, DEFS) for m in MESSAGES}
VALIDATORS = {name: Draft202012Validator(body) for name, body in SCHEMAS.items()}
SPECS = {m.name: m for m in MESSAGES}
EXAMPLES = [m for m in MESSAGES if m.example is not None]


def test_files_are_up_to_date() -> None:
    assert generate.stale(generate.render()) == []
    assert generate.main(["--check"]) == 0


def test_check_names_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "schemas")
    (tmp_path / "schemas").mkdir()
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "schemas" / "asyncapi.yaml").write_text("asyncapi: 1\n")
    (tmp_path / "schemas" / "json" / "extra.json").write_text("{}")
    (tmp_path / "schemas" / "json" / "ingest-request.json").unlink()
    assert generate.main(["--check"]) == 1
    told = capsys.readouterr().err
    for name in ("asyncapi.yaml", "extra.json", "ingest-request.json"):
        assert f"{name} is not up to date" in told
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert generate.main(["--other"]) == 2


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_valid_2020_12(name: str) -> None:
    assert SCHEMAS[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("spec", EXAMPLES, ids=lambda s: s.name)
def test_examples_are_valid_and_round_trip(spec: MessageSpec) -> None:
    VALIDATORS[spec.name].validate(spec.example)
    message = decode(spec.kind, json.dumps(spec.example).encode())
    written = encode(message)
    assert decode(spec.kind, written) == message
    VALIDATORS[spec.name].validate(json.loads(written))


def set_at(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    node = body
    *outer, last = path.split("/")
    for step in outer:
        node = node[step]
    if value is ...:
        node.pop(last, None)
    else:
        node[last] = value
    return body


INGEST = SPECS["ingest-request"].example or {}
SMALL = {"v": 1, "index": "a", "id": "x", "auth": {"token": "t"}}
UUID = INGEST["groups"][0]
QUERY = SPECS["query-request"].example or {}
ADMIN = SPECS["admin-request"].example or {}

CASES: list[tuple[str, dict[str, Any], str, Any, bool]] = [
    ("ingest-request", INGEST, "op", ..., True),
    ("ingest-request", INGEST, "op", "delete", False),
    ("ingest-request", INGEST, "op", "add_keywords", False),
    ("ingest-request", INGEST, "v", ..., False),
    ("ingest-request", INGEST, "v", 2, False),
    ("ingest-request", INGEST, "auth", {}, False),
    ("ingest-request", INGEST, "auth", {"token": "t", "sealed": None}, True),
    ("ingest-request", INGEST, "auth", {"token": "t", "sealed": "AAAA"}, False),
    ("ingest-request", INGEST, "auth", {"sealed": "AAAA"}, False),
    (
        "ingest-request",
        INGEST | {"message_id": UUID, "issued_ms": 1},
        "auth",
        {"sealed": "AAAA"},
        True,
    ),
    ("ingest-request", INGEST, "vector", {"f32": "AACAPw=="}, True),
    ("ingest-request", INGEST, "vector", [], False),
    ("ingest-request", INGEST, "vector", [True], False),
    ("ingest-request", INGEST, "vector", ["1"], False),
    ("ingest-request", INGEST, "vector", {"f32": "AACAPw==", "x": 1}, False),
    ("ingest-request", INGEST, "content", None, False),
    ("ingest-request", INGEST, "content", {"base64": "QUJD"}, True),
    ("ingest-request", INGEST, "groups", ["x"], False),
    ("ingest-request", INGEST, "metadata", {"$x": 1}, False),
    ("ingest-request", INGEST, "metadata", {"": 1}, False),
    ("ingest-request", INGEST, "metadata", {"a": [1, "b", True, 1.5]}, True),
    ("ingest-request", INGEST, "metadata", {"a": {"b": 1}}, False),
    ("ingest-request", INGEST, "index", "Acme", False),
    ("ingest-request", INGEST, "index", "a\n", False),
    ("ingest-request", INGEST, "index", "a" * 129, False),
    ("ingest-request", INGEST, "if_version", 0, True),
    ("ingest-request", INGEST, "unknown", 1, False),
    ("ingest-request", SMALL, "op", "delete", True),
    ("ingest-request", SMALL, "op", "remove_keywords", False),
    ("ingest-request", SMALL, "content_type", "text/plain", False),
    ("ingest-request", SMALL, "content_type", None, True),
    ("ingest-request", SMALL, "associated_data", {"base64": ""}, False),
    ("ingest-request", SMALL | {"op": "add_keywords"}, "keywords", ["a"], True),
    ("ingest-request", SMALL | {"op": "add_keywords"}, "keywords", [], False),
    (
        "ingest-request",
        SMALL | {"op": "add_keywords", "keywords": ["a"]},
        "if_version",
        1,
        False,
    ),
    ("ingest-request", SMALL | {"op": "delete"}, "if_version", 1, True),
    ("ingest-request", SMALL | {"op": "delete"}, "groups", [UUID], False),
    ("ingest-request", SMALL | {"op": "delete"}, "groups", [], True),
    ("ingest-request", SMALL | {"op": "delete"}, "text", None, True),
    ("query-request", QUERY, "query", ..., False),
    ("query-request", QUERY, "query", {}, False),
    ("query-request", QUERY, "query", {"keyword": "a"}, True),
    ("query-request", QUERY, "query", {"keyword": ""}, False),
    ("query-request", QUERY, "query", {"keyword": "a", "text": "b"}, False),
    ("query-request", QUERY, "query", {"vector": [1.0], "nprobe": 3, "rerank": 0}, True),
    ("query-request", QUERY, "query", {"vector": [1.0], "nprobe": 0}, False),
    ("query-request", QUERY, "query", {"vector": [1.0], "nprobe": 10_000, "rerank": 10_000}, True),
    ("query-request", QUERY, "query", {"vector": [1.0], "nprobe": 10_001}, False),
    ("query-request", QUERY, "query", {"vector": [1.0], "rerank": 10_001}, False),
    ("query-request", QUERY, "query", {"ids": True}, True),
    ("query-request", QUERY, "query", {"ids": False}, False),
    ("query-request", QUERY, "query", {"count": True}, True),
    ("query-request", QUERY, "query", {"get": []}, False),
    ("query-request", QUERY, "query", {"get": ["a"]}, True),
    ("query-request", QUERY, "query", {"filter_only": True, "order_by": "year"}, True),
    ("query-request", QUERY, "query", {"hybrid": {"text": "a", "vector": [1], "alpha": 1}}, True),
    ("query-request", QUERY, "query", {"hybrid": {"text": "a", "vector": [1], "alpha": 2}}, False),
    (
        "query-request",
        QUERY,
        "query",
        {"hybrid": {"text": "a", "vector": [1], "alpha": 0.5, "rrf_k": 60}},
        False,
    ),
    ("query-request", QUERY, "queries", [{"keyword": "a"}], False),
    ("query-request", QUERY | {"query": None}, "queries", [{"keyword": "a"}], True),
    ("query-request", QUERY | {"query": None}, "queries", [], False),
    ("query-request", QUERY | {"query": None}, "queries", [{"keyword": "a"}] * 257, False),
    (
        "query-request",
        QUERY | {"query": None, "cursor": "c"},
        "queries",
        [{"keyword": "a"}],
        False,
    ),
    ("query-request", QUERY, "filter", None, True),
    ("query-request", QUERY, "filter", {}, True),
    ("query-request", QUERY, "filter", {"a": {}}, False),
    ("query-request", QUERY, "filter", {"a": None}, False),
    ("query-request", QUERY, "filter", {"a": {"$regex": "x"}}, False),
    ("query-request", QUERY, "filter", {"a": {"$in": "x"}}, False),
    ("query-request", QUERY, "filter", {"a": {"$gt": True}}, False),
    ("query-request", QUERY, "filter", {"$or": []}, False),
    ("query-request", QUERY, "filter", {"$or": [{"a": 1}, {"$not": {"b": "x"}}]}, True),
    ("query-request", QUERY, "filter", {"$where": "x"}, False),
    ("query-request", QUERY, "reply/topic", "query-result.me", True),
    ("query-request", QUERY, "reply/topic", "query-result.me\n", False),
    ("query-request", QUERY, "reply/topic", "key-grant", False),
    ("query-request", QUERY, "reply/topic", "query-result.dead-letter", False),
    ("query-request", QUERY, "reply/topic", "query-result.x.dead-letter", False),
    ("query-request", QUERY, "reply/topic", "query-result." + "a" * 200, False),
    ("query-request", QUERY, "reply/partition", -1, False),
    ("query-request", QUERY, "include", ["everything"], False),
    ("query-request", QUERY, "include", [], True),
    ("query-request", QUERY, "top_k", 0, False),
    ("query-request", QUERY, "timeout_ms", 0, False),
    ("query-request", QUERY, "request_id", "1", False),
    ("admin-request", ADMIN, "auth", ..., False),
    ("admin-request", ADMIN, "auth", {"index_key": "A" * 43 + "="}, True),
    ("admin-request", ADMIN, "auth", {"sealed": "AAAA"}, False),
    ("admin-request", ADMIN | {"issued_ms": 1}, "auth", {"sealed": "AAAA"}, True),
    ("admin-request", ADMIN, "auth", {"user_id": "u"}, False),
    ("admin-request", ADMIN, "reply", {}, False),
    ("admin-request", ADMIN, "args", ..., False),
    ("admin-request", ADMIN, "op", "index.list", False),
    ("admin-request", ADMIN | {"args": {}}, "op", "index.list", True),
    ("admin-request", ADMIN, "op", "index.explode", False),
    ("admin-request", ADMIN, "args/shards", 0, False),
    ("admin-request", ADMIN, "args/kms/provider", "http", False),
    (
        "admin-request",
        ADMIN | {"auth": None, "args": {"user_id": UUID, "password": "p"}},
        "op",
        "user.login",
        True,
    ),
]


@pytest.mark.parametrize(("name", "body", "path", "value", "valid"), CASES)
def test_rules(name: str, body: dict[str, Any], path: str, value: Any, valid: bool) -> None:
    changed = set_at(body, path, value)
    assert VALIDATORS[name].is_valid(changed) is valid, "the schema"
    assert accepts(name, changed) is valid, "the type"


def accepts(name: str, body: dict[str, Any]) -> bool:
    try:
        decode(SPECS[name].kind, json.dumps(body).encode())
    except InvalidMessage:
        return False
    return True


# Values at the edges of what some field takes; base64 and vectors stay well-formed, because
# a schema cannot see inside them.
_VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        1.5,
        2**31,
        "",
        "a",
        "text/plain",
        "AAAA",
        "upsert",
        "delete",
        "add_keywords",
        "score",
        "query-result.a",
        UUID,
        [],
        ["a"],
        [1],
        [0.5],
        [UUID],
        [{"keyword": "a"}],
        {},
        {"a": 1},
        {"a": "b"},
        {"a": ["b", 1]},
        {"$or": [{"a": 1}]},
        {"base64": "QUJD"},
        {"f32": "AACAPw=="},
        {"token": "t"},
        {"keyword": "a"},
        {"ids": True},
        {"public_key": "AAAA"},
        ...,
    ]
)


@given(
    st.sampled_from(["ingest-request", "query-request", "admin-request"]),
    st.data(),
    st.booleans(),
)
def test_schema_and_type_agree(name: str, data: st.DataObject, small: bool) -> None:
    spec = SPECS[name]
    body = dict(SMALL if small and name == "ingest-request" else spec.example or {})
    fields = st.sampled_from(["v", *spec.kind.__struct_encode_fields__])
    for field, value in data.draw(st.dictionaries(fields, _VALUES, min_size=1, max_size=3)).items():
        body = set_at(body, field, value)
    assert VALIDATORS[name].is_valid(body) is accepts(name, body), body


_NAMES = st.text(min_size=1, max_size=8).filter(lambda s: s[0] != "$")
_SCALARS = (
    st.text(max_size=8)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_F32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def ingest_bodies(draw: st.DrawFn) -> dict[str, Any]:
    body = dict(SMALL) | {"id": draw(st.text(min_size=1, max_size=64))}
    optional: dict[str, st.SearchStrategy[Any]] = {
        "content": st.text(max_size=30),
        "text": st.dictionaries(_NAMES, st.text(max_size=20), max_size=3),
        "keywords": st.lists(st.text(min_size=1, max_size=9), max_size=3),
        "vector": st.lists(_F32, min_size=1, max_size=70),
        "metadata": st.dictionaries(_NAMES, _SCALARS | st.lists(_SCALARS, max_size=3), max_size=3),
        "if_version": st.integers(0, 2**63 - 1),
    }
    for name, strategy in optional.items():
        if draw(st.booleans()):
            body[name] = draw(strategy)
    return body


@given(ingest_bodies(), st.booleans())
def test_ingest_round_trips(body: dict[str, Any], compact: bool) -> None:
    separators = (",", ":") if compact else None
    value = json.dumps(body, separators=separators, ensure_ascii=not compact).encode()
    message = decode(IngestRequest, value)
    assert decode(IngestRequest, encode(message)) == message
    if "vector" in body:
        assert message.vector is not None
        assert message.vector.array.tolist() == body["vector"]
    assert message.metadata == body.get("metadata")
    assert message.text == body.get("text")


@given(
    st.sampled_from(
        [
            {"keyword": "a"},
            {"text": "a b", "fields": {"title": 2.0}, "operator": "and", "syntax": True},
            {"vector": [1.0, -2.5], "nprobe": 8},
            {"hybrid": {"text": "a", "vector": [1.0], "rrf_k": 10}},
            {"filter_only": True, "order_by": "year", "ascending": False},
            {"get": ["a", "b"]},
            {"ids": True},
            {"count": True},
        ]
    ),
    st.booleans(),
)
def test_queries_round_trip(query: dict[str, Any], batch: bool) -> None:
    body = QUERY | ({"query": None, "queries": [query, query]} if batch else {"query": query})
    message = convert(QueryRequest, parse(json.dumps(body).encode()))
    assert decode(QueryRequest, encode(message)) == message
    assert len(message.all_queries()) == (2 if batch else 1)


def test_asyncapi_refers_to_what_exists() -> None:
    body = document()
    messages = body["components"]["messages"]
    assert {c.topic for c in CHANNELS} == {t.name for t in ALL_TOPICS}
    for channel in body["channels"].values():
        for reference in channel["messages"].values():
            assert reference["$ref"].rpartition("/")[2] in messages
    for operation in body["operations"].values():
        assert operation["channel"]["$ref"].rpartition("/")[2] in body["channels"]
    for name, message in messages.items():
        schema = message["payload"].get("schema")
        assert schema is None or (generate.FOLDER / schema["$ref"]).is_file(), name


def test_yaml_reads_back() -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(to_yaml(document())) == document()
    odd = {"y": None, "a b": [[1, "x: # y"], [], {}, {"k": [1]}, "é\n"], "e": {}, "1": 1.5}
    assert yaml.safe_load(to_yaml(odd)) == odd
