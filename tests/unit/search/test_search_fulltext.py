from __future__ import annotations

import math

import numpy as np
import pytest
from search_kit import Doc, delete, make_index

from schemas.query import TextQuery
from workers.errors import Reject

BODIES = {
    "a": "the quick brown fox jumps over the lazy dog",
    "b": "a quick quick rabbit",
    "c": "dogs and foxes are not rabbits",
    "d": "nothing to see here",
}


@pytest.fixture(params=["one segment", "many segments", "compacted", "three shards"])
async def index(request):
    shards = 3 if request.param == "three shards" else 1
    made = await make_index(shards=shards)
    docs = [Doc(name, {"body": text}) for name, text in BODIES.items()]
    if request.param == "one segment":
        await made.write(*docs)
    else:
        for doc in docs:
            await made.write(doc)
    if request.param == "compacted":
        await made.compact()
    return made


def text(words: str, **options) -> TextQuery:
    return TextQuery(text=words, **options)


async def test_scores_are_those_of_the_formula_whatever_the_segments(index):
    answer = await index.answer(text("quick rabbit"))
    # Lengths without stop words: a 7, b 3, c 3, d 3.
    average = (7 + 3 + 3 + 3) / 4

    def bm25(tf: int, df: int, length: int) -> float:
        idf = math.log1p((4 - df + 0.5) / (df + 0.5))
        return idf * tf / (tf + 1.2 * (0.25 + 0.75 * length / average))

    expected = {
        "a": bm25(1, 2, 7),
        "b": bm25(2, 2, 3) + bm25(1, 2, 3),
        "c": bm25(1, 2, 3),
    }
    found = {one.id: one.score for one in answer.candidates}
    assert found == pytest.approx(expected, rel=1e-5)
    assert [one.id for one in answer.candidates] == sorted(expected, key=lambda i: -expected[i])


async def test_operator_and_wants_every_word(index):
    assert await index.ids(text("quick rabbit", operator="and")) == ["b"]
    assert await index.ids(text("quick unheard", operator="and")) == []


async def test_plain_words_have_no_syntax(index):
    assert set(await index.ids(text('"lazy dog" -fox qui*'))) == {"a", "c"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('"quick brown"', {"a"}),
        ('"brown quick"', set()),
        ('"over the lazy"', {"a"}),
        ('"over lazy"', set()),
        ('"quick quick"', {"b"}),
        ("rabbit -dog", {"b"}),
        ("qui*", {"a", "b"}),
        ("rab* -qui*", {"c"}),
        ("(lazy OR nothing) -fox", {"d"}),
        ("quick AND (rabbit OR lazy)", {"a", "b"}),
        ("dog AND fox AND rabbit", {"c"}),
        ("the", set()),
        ("the AND lazy", {"a"}),
        ("zz*", set()),
        ("quick AND zz*", set()),
    ],
)
async def test_syntax(index, query, expected):
    assert set(await index.ids(text(query, syntax=True))) == expected


async def test_syntax_errors_are_refused_with_their_field(index):
    with pytest.raises(Reject) as caught:
        await index.answer(text('"open', syntax=True))
    assert caught.value.field == "query.text"
    assert caught.value.code == "INVALID_MESSAGE"
    assert "open" not in caught.value.message


async def test_deleted_and_replaced_documents_are_not_found_and_do_not_count(index):
    await index.write(delete("b"))
    await index.write(Doc("a", {"body": "rabbit rabbit"}))
    assert await index.ids(text("quick")) == []
    answer = await index.answer(text("rabbit"))
    assert [one.id for one in answer.candidates] == ["a", "c"]
    idf = math.log1p((3 - 2 + 0.5) / (2 + 0.5))
    average = (2 + 3 + 3) / 3
    expected = idf * 2 / (2 + 1.2 * (0.25 + 0.75 * 2 / average))
    assert answer.candidates[0].score == pytest.approx(expected, rel=1e-5)


async def test_fields_weigh_as_the_query_or_the_index_says():
    index = await make_index(fields={"title": 5.0, "hidden": 0.0})
    await index.write(
        Doc("t", {"title": "solar", "body": "panel"}),
        Doc("b", {"title": "panel", "body": "solar"}),
        Doc("h", {"hidden": "solar", "body": "wind", "title": "wind"}),
    )
    assert await index.ids(text("solar")) == ["t", "b"]
    assert await index.ids(text("solar", fields={"body": 1.0})) == ["b"]
    assert await index.ids(text("solar", fields={"body": 9.0, "title": 1.0})) == ["b", "t"]
    assert await index.ids(text("solar", fields={"missing": 1.0})) == []


async def test_members_see_only_what_their_groups_may_read():
    index = await make_index()
    await index.write(
        Doc("open", {"body": "budget"}, groups=("staff", "board")),
        Doc("secret", {"body": "budget budget"}, groups=("board",)),
    )
    assert await index.ids(text("budget"), "staff") == ["open"]
    assert await index.ids(text("budget"), "staff", top_k=1) == ["open"]
    assert await index.ids(text("budget"), "board") == ["secret", "open"]
    assert await index.ids(text("budget"), "other") == []


async def test_visibility_index_names_denied_documents_and_nothing_else_of_them():
    index = await make_index(visibility="index")
    await index.write(
        Doc("open", {"body": "budget"}, metadata={"year": 1}),
        Doc("secret", {"body": "budget budget"}, metadata={"year": 1}, groups=("board",)),
    )
    found = (await index.answer(text("budget"), "staff")).candidates
    assert [(one.id, one.denied) for one in found] == [("secret", True), ("open", False)]
    assert found[0].score is None
    assert found[1].score is not None
    # A filter must not tell what stands in metadata that the caller may not read.
    assert await index.ids(text("budget"), "staff", where={"year": 1}) == ["open"]


async def test_filters_apply_before_the_cut():
    index = await make_index()
    docs = [Doc(f"d{i}", {"body": "word " * (9 - i)}, metadata={"n": i}) for i in range(9)]
    await index.write(*docs)
    assert await index.ids(text("word"), top_k=2, where={"n": {"$gte": 6}}) == ["d6", "d7"]


async def test_equal_scores_are_ordered_by_id_across_segments():
    index = await make_index(shards=2)
    names = [f"n{i}" for i in range(20)]
    for name in reversed(names):
        await index.write(Doc(name, {"body": "same words"}))
    # Both shards and all segments share one statistic, so all scores are equal.
    assert await index.ids(text("same"), top_k=7) == sorted(names)[:7]
    await index.compact()
    assert await index.ids(text("same"), top_k=7) == sorted(names)[:7]


async def test_prefixes_are_refused_without_the_query_key(index):
    with pytest.raises(Reject) as caught:
        await index.answer(text("qui*", syntax=True), open_vocabulary=None)
    assert caught.value.code == "UNSUPPORTED"


async def test_completions_are_bounded_and_the_answer_says_so():
    index = await make_index(analyzer="simple")
    await index.write(Doc("a", {"body": " ".join(f"word{i:03}" for i in range(300))}))
    answer = await index.answer(text("word*", syntax=True))
    assert [one.id for one in answer.candidates] == ["a"]
    assert len(answer.notes) == 1


async def test_an_empty_index_finds_nothing():
    index = await make_index()
    assert await index.ids(text("anything")) == []
    assert np.isclose((await index.answer(text("anything"))).labels, 0)
