"""What the JSON Schemas say beyond types: rules between fields, and values of our own kinds.

Each entry is merged into the definition of its name. The code that enforces a rule stands with
the type; `tests/contract/test_schemas_agree.py` checks that both say the same.
"""

from __future__ import annotations

from typing import Any, Final

from schemas.admin import ARGS, UNAUTHENTICATED_OPS, AdminOp, NoArgs
from schemas.filter import MAX_IN_VALUES
from schemas.index import MAX_DIMENSION
from schemas.query import MAX_TOPIC_CHARS, QUERY_KINDS, REPLY_TOPIC_PATTERN

Json = dict[str, Any]


def ref(name: str) -> Json:
    """Return a reference to the definition `name`."""
    return {"$ref": f"#/$defs/{name}"}


def _given(*names: str) -> Json:
    """Match objects in which each of `names` is there and not null."""
    return {
        "type": "object",
        "required": list(names),
        "properties": {n: {"not": {"type": "null"}} for n in names},
    }


def _absent(*names: str) -> Json:
    """Match objects in which none of `names` is there, but as null or an empty list."""
    return {"properties": {n: {"anyOf": [{"type": "null"}, _EMPTY]} for n in names}}


_EMPTY: Final[Json] = {"type": "array", "maxItems": 0}
_SCALAR: Final[Json] = {"type": ["string", "number", "boolean"]}
_ORDERED: Final[Json] = {"type": ["string", "number"]}
_SEVERAL: Final[Json] = {"type": "array", "items": _SCALAR, "maxItems": MAX_IN_VALUES}
_NAME: Final[Json] = {"minLength": 1, "maxLength": 128, "pattern": r"^[^$]"}

_SIGNED: Final[Json] = {
    "if": {"properties": {"auth": _given("sealed")}, "required": ["auth"]},
    "then": _given("message_id", "issued_ms"),
}
_ONLY_UPSERT: Final = (
    "content",
    "content_type",
    "associated_data",
    "text",
    "vector",
    "metadata",
    "groups",
)

DEFINITIONS: Final[dict[str, Json]] = {
    "Query": {
        "title": "Query",
        "description": "One kind of query; the key that is present says which.",
        "oneOf": [ref(kind.__name__) for kind in QUERY_KINDS],
    },
    "Vector": {
        "title": "Vector",
        "description": "Finite numbers that fit float32, as a list or packed little-endian.",
        "oneOf": [
            {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 1,
                "maxItems": MAX_DIMENSION,
            },
            {
                "type": "object",
                "properties": {
                    "f32": {"type": "string", "minLength": 8, "contentEncoding": "base64"}
                },
                "required": ["f32"],
                "additionalProperties": False,
            },
        ],
    },
    "Filter": {
        "title": "Filter",
        "description": "Conditions that all hold: connectives, and fields of the metadata.",
        "type": "object",
        "properties": {
            "$and": {"type": "array", "items": ref("Filter"), "minItems": 1},
            "$or": {"type": "array", "items": ref("Filter"), "minItems": 1},
            "$not": ref("Filter"),
        },
        "propertyNames": {"anyOf": [{"enum": ["$and", "$or", "$not"]}, _NAME]},
        "additionalProperties": {"anyOf": [_SCALAR, ref("Condition")]},
    },
    "Condition": {
        "title": "Condition",
        "type": "object",
        "properties": {
            "$eq": _SCALAR,
            "$ne": _SCALAR,
            "$gt": _ORDERED,
            "$gte": _ORDERED,
            "$lt": _ORDERED,
            "$lte": _ORDERED,
            "$in": _SEVERAL,
            "$nin": _SEVERAL,
            "$exists": {"type": "boolean"},
            "$prefix": {"type": "string", "minLength": 1},
        },
        "minProperties": 1,
        "additionalProperties": False,
    },
}
"""Definitions that no struct gives."""

MERGED: Final[dict[str, Json]] = {
    "Auth": {"oneOf": [_given("sealed"), _given("token")]},
    "Credential": {
        "oneOf": [_given("token"), _given("index_key"), _given("user_id", "user_key")],
    },
    "AdminAuth": {
        "anyOf": [
            _given("sealed"),
            _given("token"),
            _given("user_id", "user_key"),
            _given("index_key"),
        ]
    },
    "IngestRequest": {
        "allOf": [
            _SIGNED,
            {
                "if": {"not": _given("content")},
                "then": _absent("content_type", "associated_data"),
            },
            {
                "if": {"properties": {"op": {"const": "delete"}}, "required": ["op"]},
                "then": _absent(*_ONLY_UPSERT, "keywords"),
            },
            {
                "if": {
                    "properties": {"op": {"enum": ["add_keywords", "remove_keywords"]}},
                    "required": ["op"],
                },
                "then": {
                    "allOf": [
                        _absent(*_ONLY_UPSERT, "if_version"),
                        {"required": ["keywords"], "properties": {"keywords": {"minItems": 1}}},
                    ]
                },
            },
        ],
    },
    "Reply": {
        "properties": {"topic": {"pattern": REPLY_TOPIC_PATTERN, "maxLength": MAX_TOPIC_CHARS}}
    },
    "Hybrid": {"not": _given("alpha", "rrf_k")},
    "QueryRequest": {
        "allOf": [
            _SIGNED,
            {
                "oneOf": [
                    _given("query"),
                    {"required": ["queries"], "properties": {"queries": {"minItems": 1}}},
                ]
            },
            {
                "if": _given("cursor"),
                "then": {"properties": {"queries": {"maxItems": 0}}},
            },
        ],
        "properties": {"filter": {"anyOf": [ref("Filter"), {"type": "null"}]}},
    },
    "AdminRequest": {
        "allOf": [
            {
                "if": {"properties": {"auth": _given("sealed")}, "required": ["auth"]},
                "then": _given("issued_ms"),
            },
            {
                "if": {
                    "not": {
                        "properties": {
                            "op": {"enum": sorted(op.value for op in UNAUTHENTICATED_OPS)}
                        }
                    },
                },
                "then": _given("auth"),
            },
            {"properties": {"reply": _given("public_key")}},
            *(
                {
                    "if": {"properties": {"op": {"const": op.value}}, "required": ["op"]},
                    "then": {
                        "properties": {"args": ref(ARGS[op].__name__)},
                        **({} if ARGS[op] is NoArgs else {"required": ["args"]}),
                    },
                }
                for op in AdminOp
            ),
        ],
    },
}
"""What is merged into the definitions of structs."""

NAMED_KEYS: Final = frozenset({"text", "metadata", "fields"})
"""Objects whose keys the sender chooses: names of fields."""

NAME: Final = _NAME
