"""Every kind of search on the running stack, against answers computed here."""

from __future__ import annotations

import math
import operator
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from stack_kit import QUERY_S, Stack, connect, ids, new_name

from schemas.errors import ErrorCode
from schemas.ingest import IngestResult
from schemas.query import Hit, QueryResult
from schemas.values import Vector
from workers.client import Client
from workers.errors import Reject

# Words without stop words and with nothing to stem.
BODIES = {
    "a": "red fox red hill",
    "b": "red hill blue lake blue sky",
    "c": "green lake",
    "d": "fox lake green blue fox red tree dark moon",
    "e": "moon",
    "f": "dark red fox hill dark",
}
KEYWORDS = {"a": ["even", "x"], "b": ["odd"], "c": ["even"], "d": ["odd", "x"], "e": ["even"]}
METADATA: dict[str, dict[str, Any]] = {
    "a": {"year": 1999, "lang": "en", "open": True, "tags": ["p", "q"]},
    "b": {"year": 2001, "lang": "de", "open": False, "tags": ["q"]},
    "c": {"year": 2001, "lang": "en-GB", "open": True, "price": 0.5},
    "d": {"year": 2010, "lang": "fr", "open": False, "price": -1.5},
    "e": {"year": 1984, "lang": "en"},
    "f": {"lang": "de", "tags": []},
}
VECTORS = {
    name: np.random.default_rng(number).normal(size=8).astype(np.float32)
    for number, name in enumerate(BODIES)
}
ASKED = np.random.default_rng(99).normal(size=8).astype(np.float32)
EVERYTHING = ["score", "distance", "metadata", "content", "associated_data", "vector", "groups"]


class Library:
    """An index with the documents above, and a client."""

    def __init__(self, client: Client, index: str, done: list[IngestResult]) -> None:
        self.client = client
        self.index = index
        self.done = done

    async def query(self, query: Any, **options: Any) -> QueryResult:
        return await self.client.query(
            self.index, query, **{"after": self.done, "timeout_s": QUERY_S, **options}
        )

    async def ids(self, query: Any, **options: Any) -> list[str]:
        return ids((await self.query(query, **options)).hits)


def operations(index: str) -> list[dict[str, Any]]:
    return [
        {
            "op": "upsert",
            "index": index,
            "id": name,
            "content": body,
            "associated_data": f"about {name}".encode(),
            "text": {"body": body, "title": f"title{name} moon"},
            "keywords": KEYWORDS.get(name, []),
            "vector": VECTORS[name],
            "metadata": METADATA[name],
        }
        for name, body in BODIES.items()
    ]


async def fill(client: Client, index: str, **config: Any) -> Library:
    await client.create_index(index, dimension=8, storage_precision="float32", **config)
    # One after the other: the order of ingestion is part of the answers; between shards it is the
    # order in which they were applied.
    done = []
    for operation in operations(index):
        operation.pop("index")
        operation.pop("op")
        id_ = operation.pop("id")
        done.append(await client.ingest(index, id_, wait="searchable", **operation))
    return Library(client, index, done)


@pytest.fixture(scope="module")
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with connect(stack) as one:
        yield one


@pytest.fixture(scope="module")
async def library(client: Client) -> Library:
    return await fill(client, new_name("library"))


@pytest.fixture(scope="module")
async def sharded(client: Client) -> Library:
    return await fill(client, new_name("sharded"), shards=3)


# --- what the answers should be ------------------------------------------------------------------


def bm25(words: list[str], bodies: dict[str, str] = BODIES) -> dict[str, float]:
    """Lucene's BM25 over one field."""
    tokens = {name: body.split() for name, body in bodies.items()}
    average = sum(map(len, tokens.values())) / len(tokens)
    scores: Counter[str] = Counter()
    for word in words:
        holding = [name for name, one in tokens.items() if word in one]
        idf = math.log(1 + (len(tokens) - len(holding) + 0.5) / (len(holding) + 0.5))
        for name in holding:
            tf = tokens[name].count(word)
            norm = 1.2 * (1 - 0.75 + 0.75 * len(tokens[name]) / average)
            scores[name] += idf * tf / (tf + norm)
    return dict(scores)


def best(scores: dict[str, float], k: int = 10) -> list[str]:
    return sorted(scores, key=lambda name: (-scores[name], name))[:k]


def nearness(metric: str, query: np.ndarray = ASKED) -> dict[str, float]:
    """Score of every vector; what is higher is nearer."""

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.linalg.norm(vector)

    score: dict[str, Callable[[np.ndarray], float]] = {
        "cosine": lambda x: float(unit(x) @ unit(query)),
        "dot": lambda x: float(x @ query),
        "euclidean": lambda x: -float(np.sum((x - query) ** 2)),
    }
    return {name: score[metric](vector) for name, vector in VECTORS.items()}


def distance(metric: str, score: float) -> float:
    if metric == "euclidean":
        return math.sqrt(-score)
    return 1 - score if metric == "cosine" else -score


def fused(lists: list[list[str]], weights: list[float], k: int = 60) -> dict[str, float]:
    scores: Counter[str] = Counter()
    for ranked, weight in zip(lists, weights, strict=True):
        for rank, name in enumerate(ranked, start=1):
            scores[name] += weight / (k + rank)
    return dict(scores)


def assert_ranked(hits: list[Hit], scores: dict[str, float], k: int = 10) -> None:
    assert ids(hits) == best(scores, k)
    assert [hit.score for hit in hits] == pytest.approx(
        [scores[hit.id] for hit in hits], rel=1e-4, abs=1e-6
    )


BODY_ONLY = {"fields": {"body": 1.0}}


# --- keywords and text ---------------------------------------------------------------------------


async def test_keyword(library: Library) -> None:
    assert await library.ids({"keyword": "even"}) == ["a", "c", "e"]
    assert await library.ids({"keyword": "odd"}) == ["b", "d"]
    assert await library.ids({"keyword": "even"}, top_k=2) == ["a", "c"]
    # Exact: not a word of the text, not another case, not a prefix.
    for other in ("red", "Even", "eve", "nothing"):
        assert await library.ids({"keyword": other}) == []


async def test_text_is_bm25(library: Library) -> None:
    for text in ("red", "blue lake", "fox red dark", "dark moon hill"):
        hits = (await library.query({"text": text, **BODY_ONLY})).hits
        assert_ranked(hits, bm25(text.split()))
    assert await library.ids({"text": "nothing"}) == []
    # Analysed: case and English endings do not matter.
    assert await library.ids({"text": "FOXES"}) == best(bm25(["fox"]))


async def test_text_operator_and_top_k(library: Library) -> None:
    both = {name: score for name, score in bm25(["red", "hill"]).items() if name in "abf"}
    hits = (await library.query({"text": "red hill", "operator": "and", **BODY_ONLY})).hits
    assert_ranked(hits, both)
    hits = (await library.query({"text": "red hill", **BODY_ONLY}, top_k=2)).hits
    assert_ranked(hits, bm25(["red", "hill"]), 2)


async def test_text_fields(library: Library) -> None:
    assert await library.ids({"text": "titlec"}) == ["c"]
    assert await library.ids({"text": "titlec", **BODY_ONLY}) == []
    titles = {name: f"title{name} moon" for name in BODIES}
    weighted = {"text": "moon", "fields": {"body": 1.0, "title": 3.0}}
    body, title = bm25(["moon"]), bm25(["moon"], titles)
    assert_ranked(
        (await library.query(weighted)).hits,
        {name: body.get(name, 0.0) + 3.0 * title[name] for name in titles},
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"red hill"', {"a", "b"}),
        ('"hill red"', set()),
        ('"blue lake"', {"b"}),
        ("red -fox", {"b"}),
        ('red -"red hill"', {"d", "f"}),
        ("gre*", {"c", "d"}),
        ("mo* -dark", {"e"}),
        ("(green AND lake) -(moon OR sky)", {"c"}),
        ("fox AND (green OR hill)", {"a", "d", "f"}),
        ('"dark moon" OR sky', {"b", "d"}),
    ],
)
async def test_text_syntax(
    library: Library, sharded: Library, text: str, expected: set[str]
) -> None:
    query = {"text": text, "syntax": True, **BODY_ONLY}
    assert set(await library.ids(query)) == expected
    assert set(await sharded.ids(query)) == expected


async def test_without_syntax_nothing_means_anything(library: Library) -> None:
    assert await library.ids({"text": '"hill" -red*', **BODY_ONLY}) == best(bm25(["hill", "red"]))


async def test_wrong_syntax_is_refused(library: Library) -> None:
    for text in ('"red', "(red", "-red"):
        with pytest.raises(Reject) as refused:
            await library.query({"text": text, "syntax": True})
        assert refused.value.code is ErrorCode.INVALID_MESSAGE


# --- vectors and hybrid --------------------------------------------------------------------------


async def test_vector(library: Library) -> None:
    expected = nearness("cosine")
    hits = (await library.query({"vector": ASKED}, include=["score", "distance"])).hits
    assert_ranked(hits, expected)
    assert [hit.distance for hit in hits] == pytest.approx(
        [distance("cosine", expected[hit.id]) for hit in hits], rel=1e-4
    )
    as_list = {"vector": [float(number) for number in ASKED]}
    assert await library.ids(as_list, top_k=3) == best(expected, 3)
    assert await library.ids({"vector": VECTORS["c"] * 5}, top_k=1) == ["c"]


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
async def test_other_metrics(client: Client, metric: str) -> None:
    index = new_name(metric)
    await client.create_index(index, dimension=8, metric=metric, storage_precision="float32")
    done = [await client.ingest(index, name, vector=one) for name, one in VECTORS.items()]
    expected = nearness(metric)
    result = await client.query(
        index, {"vector": ASKED}, include=["score", "distance"], after=done, timeout_s=QUERY_S
    )
    assert_ranked(result.hits, expected)
    assert [hit.distance for hit in result.hits] == pytest.approx(
        [distance(metric, expected[hit.id]) for hit in result.hits], rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("precision", ["float16", "int8"])
async def test_narrow_vectors_keep_the_order(client: Client, precision: str) -> None:
    index = new_name(precision)
    await client.create_index(index, dimension=8, storage_precision=precision)
    done = [await client.ingest(index, name, vector=one) for name, one in VECTORS.items()]
    result = await client.query(index, {"vector": ASKED}, after=done, timeout_s=QUERY_S)
    expected = nearness("cosine")
    assert ids(result.hits) == best(expected)
    assert [hit.score for hit in result.hits] == pytest.approx(
        [expected[hit.id] for hit in result.hits], abs=0.02
    )


async def test_hybrid(library: Library) -> None:
    vector = Vector.of(ASKED).to_json()
    lists = [best(bm25(["red", "moon"])), best(nearness("cosine"))]
    half = {"text": "red moon", "vector": vector, **BODY_ONLY}
    for more, weights, k in (
        ({}, [0.5, 0.5], 60),
        ({"alpha": 0.2}, [0.8, 0.2], 60),
        ({"rrf_k": 5}, [0.5, 0.5], 5),
    ):
        hits = (await library.query({"hybrid": {**half, **more}})).hits
        assert_ranked(hits, fused(lists, weights, k))
    found = await library.client.search(
        library.index, "red moon", vector=ASKED, alpha=1.0, top_k=1, timeout_s=QUERY_S
    )
    assert ids(found.hits) == best(nearness("cosine"), 1)


# --- filters and lists ---------------------------------------------------------------------------


def values(name: str, field: str) -> list[Any]:
    value = METADATA[name].get(field, [])
    return value if isinstance(value, list) else [value]


def where(field: str, compare: Callable[[Any, Any], bool], value: Any) -> set[str]:
    return {n for n in METADATA if any(compare(one, value) for one in values(n, field))}


ALL = set(METADATA)
FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, ALL),
    ({"lang": "en"}, where("lang", operator.eq, "en")),
    ({"year": {"$eq": 2001}}, where("year", operator.eq, 2001)),
    ({"lang": {"$ne": "en"}}, ALL - where("lang", operator.eq, "en")),
    ({"year": {"$gt": 1999}}, where("year", operator.gt, 1999)),
    ({"year": {"$gte": 1999, "$lt": 2010}}, {"a", "b", "c"}),
    ({"price": {"$lte": 0.5}}, where("price", operator.le, 0.5)),
    ({"price": {"$lt": 0}}, {"d"}),
    ({"lang": {"$in": ["fr", "de"]}}, {"b", "d", "f"}),
    ({"lang": {"$nin": ["fr", "de"]}}, {"a", "c", "e"}),
    ({"tags": "q"}, {"a", "b"}),
    ({"open": True}, {"a", "c"}),
    ({"open": {"$exists": False}}, {"e", "f"}),
    ({"price": {"$exists": True}}, {"c", "d"}),
    ({"lang": {"$prefix": "en"}}, {"a", "c", "e"}),
    ({"$and": [{"year": 2001}, {"open": False}]}, {"b"}),
    ({"$or": [{"year": 1984}, {"lang": "fr"}]}, {"d", "e"}),
    ({"$not": {"lang": {"$prefix": "en"}}}, {"b", "d", "f"}),
    ({"year": 2001, "lang": "de"}, {"b"}),
    ({"nothing": 1}, set()),
]


@pytest.mark.parametrize("shards", [1, 3])
async def test_filters(library: Library, sharded: Library, shards: int) -> None:
    where_ = library if shards == 1 else sharded
    for condition, expected in FILTERS:
        assert set(await where_.ids({"filter_only": True}, filter=condition)) == expected, condition
        counted = await where_.query({"count": True}, filter=condition)
        assert counted.count == len(expected), condition


async def test_filters_with_every_kind_of_query(library: Library) -> None:
    even = {"year": {"$lt": 2001}}  # a, e
    assert await library.ids({"keyword": "even"}, filter=even) == ["a", "e"]
    assert set(await library.ids({"text": "red moon"}, filter=even)) == {"a", "e"}
    near = [name for name in best(nearness("cosine")) if name in "ae"]
    assert await library.ids({"vector": ASKED}, filter=even) == near
    assert await library.ids({"vector": ASKED}, filter=even, top_k=1) == near[:1]
    hybrid = {"hybrid": {"text": "red moon", "vector": Vector.of(ASKED).to_json()}}
    assert set(await library.ids(hybrid, filter=even)) == {"a", "e"}
    assert await library.ids({"ids": True}, filter=even) == ["a", "e"]
    assert await library.ids({"get": ["e", "d", "a"]}, filter=even) == ["e", "a"]


@pytest.mark.parametrize("shards", [1, 3])
async def test_filter_only_in_order(library: Library, sharded: Library, shards: int) -> None:
    where_ = library if shards == 1 else sharded
    by_year = {"filter_only": True, "order_by": "year"}
    assert await where_.ids(by_year) == ["e", "a", "b", "c", "d", "f"]
    assert await where_.ids({**by_year, "ascending": False}) == ["d", "b", "c", "a", "e", "f"]
    assert await where_.ids(by_year, top_k=3) == ["e", "a", "b"]


async def test_get(library: Library, sharded: Library) -> None:
    for where_ in (library, sharded):
        assert await where_.ids({"get": ["d", "nobody", "a", "d"]}) == ["d", "a"]


@pytest.mark.parametrize("shards", [1, 3])
async def test_ids_in_pages(library: Library, sharded: Library, shards: int) -> None:
    where_ = library if shards == 1 else sharded
    seen, cursor = [], None
    for _ in range(4):
        page = await where_.query({"ids": True}, top_k=2, cursor=cursor)
        seen.append(ids(page.hits))
        cursor = page.cursor
        if cursor is None:
            break
    assert [len(page) for page in seen] == [2, 2, 2]
    listed = [name for page in seen for name in page]
    assert sorted(listed) == sorted(BODIES)
    if shards == 1:
        assert listed == list(BODIES)
    paged = where_.client.ids(where_.index, top_k=4, timeout_s=QUERY_S)
    assert sorted([name async for name in paged]) == sorted(BODIES)
    with pytest.raises(Reject) as refused:
        await where_.query({"ids": True}, cursor="AAAA")
    assert refused.value.code is ErrorCode.INVALID_MESSAGE


async def test_count(library: Library, sharded: Library) -> None:
    for where_ in (library, sharded):
        assert (await where_.query({"count": True})).count == len(BODIES)
        assert (
            await where_.client.count(where_.index, filter={"lang": "de"}, timeout_s=QUERY_S) == 2
        )


async def test_shards_answer_as_one(library: Library, sharded: Library) -> None:
    """Statistics of text are those of the whole index, so the scores do not depend on shards."""
    assert len((await sharded.query({"count": True})).snapshot) == 3
    for query in (
        {"text": "red moon lake", **BODY_ONLY},
        {"vector": ASKED},
        {"hybrid": {"text": "red", "vector": Vector.of(ASKED).to_json()}},
        {"keyword": "even"},
    ):
        one, three = await library.query(query), await sharded.query(query)
        assert ids(one.hits) == ids(three.hits)
        assert [h.score for h in one.hits] == pytest.approx([h.score for h in three.hits])


async def test_batch(library: Library) -> None:
    queries = [
        {"keyword": "even"},
        {"text": "fox", **BODY_ONLY},
        {"vector": ASKED},
        {"count": True},
        {"get": ["f"]},
        {"keyword": "nothing"},
    ]
    result = await library.query(queries, top_k=2, include=["score", "content"])
    assert result.hits == []
    assert result.results is not None
    assert [ids(one.hits) for one in result.results] == [
        ["a", "c"],
        best(bm25(["fox"]), 2),
        best(nearness("cosine"), 2),
        [],
        ["f"],
        [],
    ]
    assert [one.count for one in result.results] == [None, None, None, len(BODIES), None, None]
    assert result.results[4].hits[0].content == BODIES["f"]
    # One filter is for all of them.
    filtered = await library.query(queries, filter={"lang": "de"})
    assert filtered.results is not None
    assert [sorted(ids(one.hits)) for one in filtered.results] == [
        [],
        ["f"],
        ["b", "f"],
        [],
        ["f"],
        [],
    ]


# --- what hits carry -----------------------------------------------------------------------------


async def test_include_gives_what_was_asked_for_and_nothing_else(library: Library) -> None:
    query = {"vector": VECTORS["b"]}
    [bare] = (await library.query(query, top_k=1, include=[])).hits
    assert bare.id == "b"
    fields = ["score", "distance", "metadata", "content", "associated_data", "vector", "groups"]
    assert [getattr(bare, field) for field in fields] == [None] * len(fields)
    [default] = (await library.query(query, top_k=1)).hits
    assert default.score == pytest.approx(1.0, abs=1e-5)
    for include in EVERYTHING:
        [hit] = (await library.query(query, top_k=1, include=[include])).hits
        present = {field for field in fields if getattr(hit, field) is not None}
        assert present == {include}
    [full] = (await library.query(query, top_k=1, include=EVERYTHING)).hits
    assert full.metadata == METADATA["b"]
    assert full.content == BODIES["b"]
    assert full.content_type == "text/plain"
    assert full.associated_data is not None
    assert full.associated_data.decode() == b"about b"
    assert full.vector is not None
    stored = VECTORS["b"] / np.linalg.norm(VECTORS["b"])
    assert np.allclose(full.vector.array, stored, atol=1e-6)
    assert full.groups
    assert full.version == 1


CONTENTS = {
    "empty": b"",
    "nul": b"\x00",
    "small": bytes(range(256)),
    "4 KiB and more": os.urandom(4096 + 77),
    "400 KiB": os.urandom(400 * 1024),
}


async def test_binary_and_large_contents(client: Client) -> None:
    index = new_name("contents")
    await client.create_index(index)
    text = "grüße 🌍 " * 30_000  # about 400 KiB of UTF-8
    done = [
        await client.ingest(index, name, content=content, associated_data=os.urandom(40))
        for name, content in CONTENTS.items()
    ]
    done.append(await client.ingest(index, "text", content=text, content_type="text/markdown"))
    for name, content in CONTENTS.items():
        [hit] = (
            await client.query(
                index, {"get": [name]}, include=["content"], after=done, timeout_s=QUERY_S
            )
        ).hits
        assert hit.content_type == "application/octet-stream"
        assert hit.content is not None
        assert not isinstance(hit.content, str)
        assert hit.content.decode() == content, name
    [hit] = await client.get(index, ["text"], include=["content"], timeout_s=QUERY_S)
    assert (hit.content_type, hit.content) == ("text/markdown", text)
    found = await client.search(index, "grüsse", timeout_s=QUERY_S)
    assert ids(found.hits) == ["text"]


async def test_a_content_above_the_limit_is_refused(client: Client) -> None:
    index = new_name("contents")
    await client.create_index(index)
    with pytest.raises(Reject) as refused:
        await client.ingest(index, "big", content=bytes(512 * 1024 + 1))
    assert refused.value.code is ErrorCode.TOO_LARGE
    for content in ("x" * (512 * 1024), bytes(512 * 1024)):
        done = await client.ingest(index, "just fits", content=content)
        assert done.status == "accepted"


async def test_explain(library: Library) -> None:
    result = await library.query({"text": "red fox"}, explain=True)
    assert result.explain is not None
    assert result.explain["documents"] == len(BODIES)
    assert result.explain["shards"] == 1
    assert result.explain["chains"] >= 2
    for name in ("gets", "bytes", "cache_hits", "segments", "estimated_usd"):
        assert result.explain[name] >= 0
    assert result.explain["storage_learns"]
    assert result.took_ms is not None
    assert result.took_ms > 0
    assert (await library.query({"text": "red fox"})).explain is None


# --- changes -------------------------------------------------------------------------------------


async def test_upsert_replaces_the_whole_document(client: Client) -> None:
    index = new_name("changes")
    await client.create_index(index, dimension=2)
    first = await client.ingest(
        index,
        "doc",
        content="old words",
        keywords=["old", "both"],
        vector=[1.0, 0.0],
        metadata={"state": "old"},
    )
    before = await client.search(index, keyword="old", after=[first], timeout_s=QUERY_S)
    assert ids(before.hits) == ["doc"]
    second = await client.ingest(index, "doc", content="new words", keywords=["new", "both"])
    assert first.object_id == second.object_id

    async def found(query: Any, **options: Any) -> list[str]:
        result = await client.query(index, query, after=[second], timeout_s=QUERY_S, **options)
        return ids(result.hits)

    assert await found({"keyword": "old"}) == []
    assert await found({"keyword": "new"}) == ["doc"]
    assert await found({"keyword": "both"}) == ["doc"]
    assert await found({"text": "old"}) == []
    assert await found({"text": "new"}) == ["doc"]
    assert await found({"vector": np.array([1, 0], "f4")}) == []
    assert await found({"filter_only": True}, filter={"state": "old"}) == []
    assert await client.count(index, timeout_s=QUERY_S) == 1
    [hit] = await client.get(index, ["doc"], include=["content", "metadata"], timeout_s=QUERY_S)
    assert (hit.content, hit.version) == ("new words", 2)
    assert not hit.metadata


async def test_delete_removes_document_and_pairs(client: Client) -> None:
    index = new_name("changes")
    await client.create_index(index)
    await client.ingest(index, "gone", content="words", keywords=["k"])
    await client.ingest(index, "stays", content="words", keywords=["k"])
    await client.add_keywords(index, "gone", ["later"])
    done = await client.delete(index, "gone")
    for query in ({"keyword": "k"}, {"text": "words"}, {"ids": True}, {"get": ["gone", "stays"]}):
        result = await client.query(index, query, after=[done], timeout_s=QUERY_S)
        assert ids(result.hits) == ["stays"], query
    assert ids((await client.search(index, keyword="later", timeout_s=QUERY_S)).hits) == []
    again = await client.ingest(index, "gone", content="back", keywords=["k"], wait="searchable")
    result = await client.search(index, keyword="k", after=[again], timeout_s=QUERY_S)
    assert ids(result.hits) == ["stays", "gone"]


async def test_if_version(client: Client) -> None:
    index = new_name("changes")
    await client.create_index(index)

    async def put(content: str, version: int) -> IngestResult:
        return await client.ingest(
            index, "doc", content=content, if_version=version, wait="searchable"
        )

    async def conflict(content: str, version: int) -> None:
        with pytest.raises(Reject) as refused:
            await put(content, version)
        assert refused.value.code is ErrorCode.CONFLICT

    async def content() -> Any:
        [hit] = await client.get(index, ["doc"], include=["content"], timeout_s=QUERY_S)
        return hit.content

    await put("one", 0)
    await conflict("not created twice", 0)
    assert await content() == "one"
    await put("two", 1)
    await conflict("too late", 1)
    assert await content() == "two"
    with pytest.raises(Reject) as refused:
        await client.delete(index, "doc", if_version=1, wait="searchable")
    assert refused.value.code is ErrorCode.CONFLICT
    await client.delete(index, "doc", if_version=2, wait="searchable")
    assert await client.count(index, timeout_s=QUERY_S) == 0


async def test_min_position_reads_what_was_written(client: Client) -> None:
    """A query that names a position waits for it; one that will never come runs into its time."""
    index = new_name("positions")
    await client.create_index(index)
    for number in range(5):
        done = await client.ingest(index, "doc", content=f"text{number}")
        [hit] = (
            await client.query(
                index, {"get": ["doc"]}, include=["content"], after=[done], timeout_s=QUERY_S
            )
        ).hits
        assert hit.content == f"text{number}"


async def test_streaming_many(client: Client) -> None:
    index = new_name("many")
    await client.create_index(index, shards=3)
    sent = [
        {"op": "upsert", "index": index, "id": f"doc-{n:03}", "content": f"number{n} common"}
        for n in range(300)
    ]
    results = [one async for one in client.ingest_many(sent, wait="searchable")]
    assert [one.id for one in results] == [f"doc-{n:03}" for n in range(300)]
    assert {one.status for one in results} == {"accepted"}
    assert {one.position.shard for one in results if one.position} == {0, 1, 2}
    assert await client.count(index, timeout_s=QUERY_S) == 300
    queries = [{"text": f"number{n}"} for n in range(0, 300, 10)]
    batch = await client.query(index, queries, after=results, timeout_s=QUERY_S)
    assert batch.results is not None
    assert [ids(one.hits) for one in batch.results] == [[f"doc-{n:03}"] for n in range(0, 300, 10)]
