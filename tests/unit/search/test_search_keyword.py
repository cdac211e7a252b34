from __future__ import annotations

import pytest
from search_kit import Doc, add, delete, make_index, remove

from schemas.query import KeywordQuery


def keyword(word: str) -> KeywordQuery:
    return KeywordQuery(keyword=word)


async def found(index, word: str, *groups: str, **options) -> list[str]:
    return await index.ids(keyword(word), *groups, **({"top_k": None} | options))


@pytest.mark.parametrize("shards", [1, 3])
async def test_the_worked_example_of_a_searchable_index(shards):
    index = await make_index(shards=shards)
    await index.write(add("id1", "keyword1", "keyword2", "keyword3"))
    await index.write(add("id2", "keyword2", "keyword3"))
    await index.write(add("id3", "keyword3", "keyword4"))
    assert await found(index, "keyword2") == ["id1", "id2"]
    assert await found(index, "keyword3") == ["id1", "id2", "id3"]
    await index.write(remove("id2", "keyword3"))
    assert await found(index, "keyword3") == ["id1", "id3"]
    await index.compact()
    assert await found(index, "keyword3") == ["id1", "id3"]
    assert await found(index, "unknown") == []


async def test_results_come_in_order_of_arrival_and_once():
    index = await make_index()
    await index.write(add("c", "k"), add("a", "k"))
    await index.write(add("b", "k"))
    await index.write(add("c", "k", "other"))
    assert sorted(await found(index, "k")) == ["a", "b", "c"]
    assert (await found(index, "k"))[:2] == ["a", "b"]
    assert await found(index, "k", top_k=1) == ["a"]


async def test_of_one_source_the_higher_offset_wins_whatever_arrives_last():
    index = await make_index()
    await index.write(remove("x", "k", source=3, offset=20))
    await index.write(add("x", "k", source=3, offset=10))
    assert await found(index, "k") == []
    await index.write(add("x", "k", source=4, offset=1))
    assert await found(index, "k") == ["x"]


async def test_an_upsert_replaces_the_pairs_of_its_id():
    index = await make_index()
    await index.write(add("x", "old"))
    await index.write(Doc("x", keywords=("new",)))
    assert await found(index, "old") == []
    assert await found(index, "new") == ["x"]
    await index.write(delete("x"))
    assert await found(index, "new") == []


async def test_a_pair_shows_the_document_of_its_id_and_obeys_its_access_list():
    index = await make_index()
    await index.write(Doc("x", {"body": "text"}, metadata={"year": 1999}, groups=("board",)))
    await index.write(add("x", "tagged"), add("loose", "tagged"))
    answer = await index.answer(keyword("tagged"), "board", top_k=None)
    assert [(one.id, one.document) for one in answer.candidates] == [("x", True), ("loose", False)]
    assert await found(index, "tagged", "staff") == ["loose"]
    assert await found(index, "tagged", "board", where={"year": 1999}) == ["x"]
    assert await found(index, "tagged", "board", where={"year": {"$exists": False}}) == ["loose"]


async def test_visibility_index_marks_what_is_denied():
    index = await make_index(visibility="index")
    await index.write(Doc("x", keywords=("k",), groups=("board",)), Doc("y", keywords=("k",)))
    answer = await index.answer(keyword("k"), "staff", top_k=None)
    assert [(one.id, one.denied) for one in answer.candidates] == [("x", True), ("y", False)]
    assert await found(index, "k", "staff", where={"a": {"$exists": False}}) == ["y"]


async def test_keywords_are_exact():
    index = await make_index()
    await index.write(Doc("x", keywords=("Running Shoes",)))
    assert await found(index, "Running Shoes") == ["x"]
    assert await found(index, "running shoes") == []


async def test_ten_thousand_postings_of_many_segments():
    index = await make_index()
    for start in range(0, 10_000, 2_000):
        await index.write(*[add(f"id{i}", "big") for i in range(start, start + 2_000)])
    expected = [f"id{i}" for i in range(10_000)]
    assert await found(index, "big") == expected
    await index.compact()
    assert await found(index, "big") == expected
