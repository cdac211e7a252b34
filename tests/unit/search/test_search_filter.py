from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from schemas.filter import FilterOp, parse_filter
from workers.errors import Damaged
from workers.search.filter import build_columns, decode_metadata, evaluate, order_keys

ROWS = [
    {"year": 1990, "lang": "en", "tags": ["a", "b"], "flag": True},
    {"year": 2001.5, "lang": "de", "tags": [], "flag": False},
    {"year": "1995", "lang": "english"},
    {"tags": ["b", 3, False], "big": 2**53 + 1},
    {},
    {"year": [1980, 2010], "big": 2**53, "lang": ""},
]


def select(where, rows=ROWS) -> list[int]:
    packed = [msgspec.msgpack.encode(row) if row else b"" for row in rows]
    return np.flatnonzero(evaluate(parse_filter(where), build_columns(packed))).tolist()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"year": 1990}, [0]),
        ({"year": {"$eq": 1990.0}}, [0]),
        ({"year": {"$ne": 1990}}, [1, 2, 3, 4, 5]),
        ({"year": {"$gt": 1985}}, [0, 1, 5]),
        ({"year": {"$gte": 2001.5}}, [1, 5]),
        ({"year": {"$lt": 1985}}, [5]),
        ({"year": {"$lte": 1990}}, [0, 5]),
        # Two conditions may be satisfied by different elements of a list.
        ({"year": {"$gt": 2000, "$lt": 1985}}, [5]),
        # Classes do not mix: the year "1995" is a string.
        ({"year": {"$gt": "1990"}}, [2]),
        ({"year": {"$lt": "2"}}, [2]),
        ({"year": {"$in": [1980, "1995"]}}, [2, 5]),
        ({"year": {"$in": []}}, []),
        ({"year": {"$nin": [1980, "1995"]}}, [0, 1, 3, 4]),
        ({"year": {"$exists": True}}, [0, 1, 2, 5]),
        ({"year": {"$exists": False}}, [3, 4]),
        ({"tags": {"$exists": True}}, [0, 1, 3]),
        ({"tags": "b"}, [0, 3]),
        ({"tags": {"$ne": "b"}}, [1, 2, 4, 5]),
        ({"tags": 3}, [3]),
        ({"flag": True}, [0]),
        ({"flag": {"$eq": 1}}, []),
        ({"flag": {"$in": [False]}}, [1]),
        ({"tags": False}, [3]),
        ({"tags": 0}, []),
        ({"lang": {"$prefix": "en"}}, [0, 2]),
        ({"lang": {"$prefix": "z"}}, []),
        ({"lang": {"$gte": "e", "$lt": "f"}}, [0, 2]),
        ({"lang": {"$lt": "de"}}, [5]),
        ({"big": 2**53 + 1}, [3]),
        ({"big": 2**53}, [5]),
        ({"big": {"$gt": 2**53}}, [3]),
        ({"year": {"$lt": 2**60}}, [0, 1, 5]),
        ({"missing": {"$gt": 1}}, []),
        ({"missing": {"$ne": 1}}, [0, 1, 2, 3, 4, 5]),
        ({"$or": [{"lang": "de"}, {"flag": True}]}, [0, 1]),
        ({"$and": [{"lang": "en"}, {"flag": True}]}, [0]),
        ({"$not": {"lang": {"$exists": True}}}, [3, 4]),
        ({"lang": "en", "year": 1991}, []),
    ],
)
def test_semantics(where, expected):
    assert select(where) == expected


def reference(where, row) -> bool:
    """A second reading of the semantics, one row and one operator at a time."""
    results = []
    for name, inner in where.items():
        if name in ("$and", "$or"):
            parts = [reference(part, row) for part in inner]
            results.append(all(parts) if name == "$and" else any(parts))
            continue
        if name == "$not":
            results.append(not reference(inner, row))
            continue
        present = name in row
        values = row[name] if present else []
        values = values if isinstance(values, list) else [values]

        def same(a, b) -> bool:
            return kind(a) == kind(b) and a == b

        for op, want in inner.items():
            like = [v for v in values if kind(v) == kind(want)]
            results.append(
                {
                    "$eq": lambda v=values, w=want: any(same(x, w) for x in v),
                    "$ne": lambda v=values, w=want: not any(same(x, w) for x in v),
                    "$in": lambda v=values, w=want: any(same(x, y) for x in v for y in w),
                    "$nin": lambda v=values, w=want: not any(same(x, y) for x in v for y in w),
                    "$gt": lambda v=like, w=want: any(x > w for x in v),
                    "$gte": lambda v=like, w=want: any(x >= w for x in v),
                    "$lt": lambda v=like, w=want: any(x < w for x in v),
                    "$lte": lambda v=like, w=want: any(x <= w for x in v),
                    "$prefix": lambda v=like, w=want: any(x.startswith(w) for x in v),
                    "$exists": lambda p=present, w=want: p is w,
                }[op]()
            )
    return all(results)


def kind(value) -> str:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else "string"


def test_agrees_with_a_plain_reading_on_random_filters():
    chance = random.Random(7)
    pool = [0, 1, 1.0, 2.5, -3, True, False, "", "a", "ab", "b", 2**53, 2**53 + 1, 2**62]

    def row():
        out = {}
        for name in "xyz":
            if chance.random() < 0.7:
                several = [chance.choice(pool) for _ in range(chance.randrange(4))]
                out[name] = several if chance.random() < 0.5 else chance.choice(pool)
        return out

    def condition(depth=0):
        if depth < 3 and chance.random() < 0.3:
            which = chance.choice(["$and", "$or", "$not"])
            if which == "$not":
                return {which: condition(depth + 1)}
            return {which: [condition(depth + 1) for _ in range(chance.randrange(1, 4))]}
        op = chance.choice(list(FilterOp)).value
        value = {
            "$in": lambda: [chance.choice(pool) for _ in range(3)],
            "$nin": lambda: [chance.choice(pool) for _ in range(3)],
            "$exists": lambda: chance.random() < 0.5,
            "$prefix": lambda: chance.choice(["a", "ab", "c"]),
            "$eq": lambda: chance.choice(pool),
            "$ne": lambda: chance.choice(pool),
        }.get(op, lambda: chance.choice([v for v in pool if not isinstance(v, bool)]))()
        return {chance.choice("xyz"): {op: value}}

    rows = [row() for _ in range(60)]
    for _ in range(400):
        where = condition()
        assert select(where, rows) == [i for i, r in enumerate(rows) if reference(where, r)], where


def test_order_keys():
    columns = build_columns([msgspec.msgpack.encode(row) if row else b"" for row in ROWS])
    assert order_keys(columns, "year", ascending=True) == [
        (0, 1990),
        (0, 2001.5),
        (1, "1995"),
        (3, 0),
        (3, 0),
        (0, 1980),
    ]
    assert order_keys(columns, "year", ascending=False)[5] == (0, 2010)
    assert order_keys(columns, "tags", ascending=True)[3] == (0, 3)
    assert order_keys(columns, "nothing", ascending=True) == [(3, 0)] * 6


# What an ingest worker wrote: it must not end the query worker, which serves other indexes too.
@pytest.mark.parametrize(
    "packed",
    [
        b"\xc1",
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode({"a": {"b": 1}}),
        msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(5, b"x")}),
        b"\x81\xa1a" + b"\x91" * 100_000,
    ],
)
def test_metadata_that_nobody_could_have_sent_is_damage(packed: bytes) -> None:
    with pytest.raises(Damaged):
        decode_metadata(packed)
