from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidMessage
from schemas.filter import And, Compare, Filter, FilterOp, Not, Or, parse_filter

EQ, GTE, LT = FilterOp.EQ, FilterOp.GTE, FilterOp.LT


@pytest.mark.parametrize(
    ("value", "tree"),
    [
        ({}, And(())),
        ({"a": 1}, Compare("a", EQ, 1)),
        ({"a": True}, Compare("a", EQ, True)),
        ({"a": {"$gte": 1, "$lt": 2.5}}, And((Compare("a", GTE, 1), Compare("a", LT, 2.5)))),
        ({"a": 1, "b": "x"}, And((Compare("a", EQ, 1), Compare("b", EQ, "x")))),
        ({"$or": [{"a": 1}, {"b": 2}]}, Or((Compare("a", EQ, 1), Compare("b", EQ, 2)))),
        ({"$and": [{"a": 1}]}, And((Compare("a", EQ, 1),))),
        ({"$not": {"a": 1}}, Not(Compare("a", EQ, 1))),
        ({"a": {"$in": []}}, Compare("a", FilterOp.IN, [])),
        ({"a": {"$nin": ["x", 1]}}, Compare("a", FilterOp.NIN, ["x", 1])),
        ({"a": {"$exists": False}}, Compare("a", FilterOp.EXISTS, False)),
        ({"a": {"$prefix": "x"}}, Compare("a", FilterOp.PREFIX, "x")),
        ({"a.b": {"$ne": "x"}}, Compare("a.b", FilterOp.NE, "x")),
    ],
)
def test_trees(value: Any, tree: Filter) -> None:
    assert parse_filter(value) == tree


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (None, "filter"),
        ([], "filter"),
        ({"": 1}, "filter"),
        ({"$where": "1"}, "filter"),
        ({"$gt": 1}, "filter"),
        ({"secret": None}, "filter.*"),
        ({"secret": [1]}, "filter.*"),
        ({"secret": {}}, "filter.*"),
        ({"secret": {"$regex": "x"}}, "filter.*"),
        ({"secret": {"x": 1}}, "filter.*"),
        ({"secret": {"$in": [1, None]}}, "filter.*.$in[1]"),
        ({"secret": {"$in": list(range(10_001))}}, "filter.*.$in"),
        ({"secret": {"$lt": False}}, "filter.*.$lt"),
        ({"secret": {"$eq": 2**63}}, "filter.*.$eq"),
        ({"secret": {"$exists": 1}}, "filter.*.$exists"),
        ({"secret": {"$prefix": ""}}, "filter.*.$prefix"),
        ({"$and": {}}, "filter.$and"),
        ({"$or": [{"a": 1}, {"secret": None}]}, "filter.$or[1].*"),
        ({"$not": [1]}, "filter.$not"),
        ({"$or": [{"a": 1}] * 300}, "filter"),
    ],
)
def test_refusals(value: Any, path: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse_filter(value)
    assert caught.value.field == path
    assert "secret" not in caught.value.message


def test_depth() -> None:
    def nested(depth: int) -> Any:
        value: Any = {"a": 1}
        for _ in range(depth - 1):
            value = {"$not": value}
        return value

    parse_filter(nested(16))
    with pytest.raises(InvalidMessage):
        parse_filter(nested(17))


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "", "$and", "$or", "$not", *FilterOp]), inner, max_size=3
        )
    ),
)


@given(_ANY)
def test_anything_gives_a_tree_or_a_refusal(value: Any) -> None:
    try:
        tree = parse_filter(value)
    except InvalidMessage:
        return
    assert isinstance(tree, And | Or | Not | Compare)
