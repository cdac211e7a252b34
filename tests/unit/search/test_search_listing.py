from __future__ import annotations

import pytest
from search_kit import Doc, add, delete, make_index

from schemas.query import CountQuery, FilterOnly, GetQuery, IdsQuery, Include, KeywordQuery
from workers.errors import Reject
from workers.objects.pack import decode_pointer
from workers.search.execute import search
from workers.search.explain import explain
from workers.search.hydrate import hydrate

COUNT = CountQuery(count=True)
IDS = IdsQuery(ids=True)


def listing(**options) -> FilterOnly:
    return FilterOnly(filter_only=True, **options)


@pytest.fixture(params=[1, 3])
async def index(request):
    made = await make_index(shards=request.param)
    for i in range(12):
        metadata = {"year": 2000 - i, "lang": "de" if i % 3 else "en", "tags": [f"t{i}", "all"]}
        groups = ("board",) if i == 5 else ("staff",)
        await made.write(Doc(f"d{i:02}", metadata=metadata, groups=groups))
    return made


async def test_filters_select(index):
    ids = await index.ids(listing(), where={"lang": "en"})
    assert sorted(ids) == ["d00", "d03", "d06", "d09"]
    assert sorted(await index.ids(listing(), where={"tags": "t7"})) == ["d07"]
    assert len(await index.ids(listing(), top_k=3, where={})) == 3
    assert "d05" not in await index.ids(listing(), top_k=100)


async def test_order_by_a_field_both_ways_with_ties_by_id(index):
    await index.write(Doc("zz", metadata={}), Doc("str", metadata={"year": "1999"}))
    ids = await index.ids(listing(order_by="year"), top_k=100)
    assert ids[:3] == ["d11", "d10", "d09"]
    assert ids[-2:] == ["str", "zz"]
    ids = await index.ids(listing(order_by="year", ascending=False), top_k=100)
    assert ids[:3] == ["d00", "d01", "d02"]
    assert ids[-2:] == ["str", "zz"]
    ids = await index.ids(listing(order_by="lang", ascending=False), top_k=5)
    assert ids == ["d00", "d03", "d06", "d09", "d01"]


async def test_order_by_leaves_out_denied_documents():
    index = await make_index(visibility="index")
    await index.write(Doc("a", metadata={"n": 1}, groups=("board",)), Doc("b", metadata={"n": 2}))
    assert await index.ids(listing(order_by="n"), "staff") == ["b"]
    assert set(await index.ids(listing(), "staff")) == {"a", "b"}


async def test_get_keeps_the_order_asked_and_skips_unknown_ids(index):
    await index.write(add("pair", "k"))
    ids = await index.ids(GetQuery(get=["d07", "nope", "d01", "d07", "d05", "pair"]))
    assert ids == ["d07", "d01"]
    await index.write(delete("d07"))
    assert await index.ids(GetQuery(get=["d07", "d01"])) == ["d01"]


async def test_get_under_visibility_index_denies():
    index = await make_index(visibility="index")
    await index.write(Doc("a", groups=("board",)), Doc("b"))
    found = (await index.answer(GetQuery(get=["a", "b"]), "staff")).candidates
    assert [(one.id, one.denied) for one in found] == [("a", True), ("b", False)]


async def test_counting(index):
    assert (await index.answer(COUNT)).count == 11
    assert (await index.answer(COUNT, "board")).count == 1
    assert (await index.answer(COUNT, where={"lang": "en"})).count == 4
    await index.write(delete("d00"), add("pair", "k"))
    assert (await index.answer(COUNT)).count == 10


async def test_counting_all_under_visibility_index():
    index = await make_index(visibility="index")
    await index.write(Doc("a", groups=("board",)), Doc("b"))
    assert (await index.answer(COUNT, "staff")).count == 2
    assert (await index.answer(COUNT, "staff", where={})).count == 1


async def pages(index, k: int) -> list[str]:
    seen: list[str] = []
    cursor = None
    while True:
        answer = await index.answer(IDS, top_k=k, cursor=cursor)
        seen += [one.id for one in answer.candidates]
        cursor = answer.cursor
        if cursor is None:
            return seen


@pytest.mark.parametrize("k", [1, 5, 11, 12])
async def test_pages_cover_every_id_once(index, k):
    seen = await pages(index, k)
    assert len(seen) == 11
    assert set(seen) == {f"d{i:02}" for i in range(12)} - {"d05"}


async def test_paging_survives_writes_and_compaction(index):
    first = await index.answer(IDS, top_k=4)
    await index.write(Doc("later"))
    await index.compact()
    rest = await index.answer(IDS, top_k=100, cursor=first.cursor)
    seen = [one.id for one in (*first.candidates, *rest.candidates)]
    assert len(seen) == len(set(seen)) >= 11


@pytest.mark.parametrize("cursor", ["!", "AAAA", "\u00e9", "kwE="])
async def test_a_bad_cursor_is_refused(index, cursor):
    with pytest.raises(Reject) as caught:
        await index.answer(IDS, cursor=cursor)
    assert caught.value.field == "cursor"


async def test_a_cursor_from_the_future_has_expired():
    old = await make_index()
    await old.write(Doc("a"))
    new = await make_index()
    for name in "abc":
        await new.write(Doc(name))
    cursor = (await new.answer(IDS, top_k=1)).cursor
    with pytest.raises(Reject) as caught:
        await old.answer(IDS, cursor=cursor)
    assert caught.value.code == "EXPIRED"


async def test_hydrate_reads_what_was_asked_and_nothing_of_the_denied():
    index = await make_index(dimension=2, visibility="index")
    await index.write(
        Doc("a", metadata={"n": 1}, vector=(3.0, 4.0)),
        Doc("b", metadata={"n": 2}, groups=("board",)),
        add("c", "k"),
    )
    snapshot = await index.snapshot()
    found = (await index.answer(GetQuery(get=["b", "a"]), "staff")).candidates
    found = found + (await index.answer(KeywordQuery(keyword="k"), "staff")).candidates
    denied, shown, pair = await hydrate(
        snapshot, found, [Include.METADATA, Include.VECTOR, Include.CONTENT, Include.GROUPS]
    )
    assert shown.metadata == {"n": 1}
    assert shown.vector.tolist() == pytest.approx([0.6, 0.8], abs=1e-3)
    assert decode_pointer(shown.pointer).access == b"access"
    assert shown.pack == b"pack"
    assert len(shown.groups) == 1
    assert shown.version == 1
    for bare in (denied, pair):
        assert (bare.metadata, bare.vector, bare.pointer) == (None, None, b"")
    only = await hydrate(snapshot, found, [Include.SCORE])
    assert only[1].metadata is None


async def test_explain_counts_requests_and_says_what_is_learned():
    index = await make_index(padding="standard")
    await index.write(*[Doc(f"d{i}", keywords=("k",)) for i in range(3_000)])
    snapshot = await index.snapshot()
    context = index.context()
    answer = await search(context, snapshot, KeywordQuery(keyword="k"), top_k=None)
    report = explain(index.config, snapshot, [answer])
    assert report["gets"] > 0
    assert report["bytes"] > 0
    assert report["chains"] == 1
    assert report["segments"] == 1
    assert report["estimated_usd"] > 0
    assert any("size classes" in line for line in report["storage_learns"])
    again = await index.snapshot()
    answer = await search(context, again, KeywordQuery(keyword="k"), top_k=None)
    report = explain(index.config, again, [answer])
    assert report["gets"] == 0
    assert report["storage_learns"][0].startswith("nothing")
