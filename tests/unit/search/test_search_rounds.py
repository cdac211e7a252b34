"""How many GETs of a first search wait for one another: each such round costs a round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from search_kit import UID, Doc, Index, add, make_index, segment_keys, vector_keys, verify

from schemas.query import Include, KeywordQuery, TextQuery, VectorQuery
from schemas.values import Vector
from workers.chain import segment, segment_file
from workers.chain.reader import ShardReader
from workers.search.execute import search
from workers.search.hydrate import hydrate
from workers.search.snapshot import IndexSnapshot
from workers.storage.cache import BlockCache
from workers.storage.memory import MemoryStore
from workers.storage.store import Stored
from workers.vector.store import load_state

_TURNS = 50
"""How often the event loop turns while a GET is under way: all that it does not hold up begins."""


class Rounds:
    """A store that counts GETs and rounds of them; those under way together are one round."""

    def __init__(self, store: MemoryStore) -> None:
        self.gets = self.rounds = 0
        self._running = 0
        self._store = store

    async def get(self, key: str) -> Stored:
        await self._count()
        return await self._store.get(key)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        await self._count()
        return await self._store.get_range(key, start, length)

    async def _count(self) -> None:
        self.gets += 1
        self.rounds += self._running == 0
        self._running += 1
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._running -= 1


@pytest.fixture(autouse=True)
def _ranges_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have segments of a few rows stored and read as large ones are."""
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)


async def cold(
    index: Index, query: Any, *, top_k: int | None = 10, include: Sequence[Include] = ()
) -> tuple[list[str], Rounds]:
    """Answer a query with nothing in memory; return the ids and what was counted."""
    counted: Any = Rounds(index.store)
    index.cache.clear()
    reader = ShardReader(counted, BlockCache(16 << 20), UID, 0, segment_keys, verify)
    snapshot = IndexSnapshot(UID, (await reader.refresh(),))
    assert snapshot.shards[0].segments == len(index.writers[0].head.segments) > 1

    async def centroids(shard: Any) -> Any:
        return await load_state(counted, vector_keys, UID, shard.shard, shard.vector)

    context = index.context(centroids=centroids)
    found = (await search(context, snapshot, query, top_k=top_k)).candidates
    await hydrate(snapshot, found, include)
    return [one.id for one in found], counted


@pytest.mark.parametrize("padding", ["off", "standard", "strict"])
async def test_a_keyword_of_many_pairs_takes_three_rounds(padding: str) -> None:
    index = await make_index(padding=padding)
    for batch in range(3):
        await index.write(*(add(f"{batch}-{i}", "all") for i in range(1500)))
    ids, counted = await cold(index, KeywordQuery(keyword="all"), top_k=None)
    assert ids == [f"{batch}-{i}" for batch in range(3) for i in range(1500)]
    # The head; buckets, directories and large nodes; the columns of the rows.
    assert counted.rounds == 3


async def test_a_keyword_of_documents_takes_three_rounds() -> None:
    index = await make_index()
    for batch in range(3):
        await index.write(*(Doc(f"{batch}-{i}", keywords=("all",)) for i in range(20)))
    ids, counted = await cold(index, KeywordQuery(keyword="all"))
    assert len(ids) == 10
    assert counted.rounds == 3


async def test_pairs_beside_documents_take_three_rounds_more() -> None:
    index = await make_index()
    await index.write(*(Doc(f"{i}") for i in range(20)))
    await index.write(*(add(f"{i}", "all") for i in range(5, 30)))
    ids, counted = await cold(index, KeywordQuery(keyword="all"), top_k=None)
    assert ids == [f"{i}" for i in range(5, 30)]
    # Which documents have the ids of the pairs; whether they may be read; what they are called.
    assert counted.rounds == 6


async def test_words_take_four_rounds_and_what_hits_show_one_more() -> None:
    index = await make_index()
    for batch in range(3):
        await index.write(
            *(Doc(f"{batch}-{i}", {"body": "one word"}, metadata={"n": i}) for i in range(20))
        )
    ids, counted = await cold(index, TextQuery(text="word"))
    assert len(ids) == 10
    # The head; buckets and directories; access lists and lengths; ids.
    assert counted.rounds == 4
    _, counted = await cold(
        index, TextQuery(text="word"), include=[Include.CONTENT, Include.METADATA]
    )
    assert counted.rounds == 5


@pytest.mark.parametrize("segments", [2, 5])
async def test_the_rounds_of_a_vector_query_do_not_rise_with_the_segments(segments: int) -> None:
    index = await make_index(dimension=8, storage_precision="int8")
    random = np.random.default_rng(1)
    vectors = random.standard_normal((20 * segments, 8)).astype(np.float32)
    for batch in range(segments):
        rows = range(20 * batch, 20 * batch + 20)
        await index.write(*(Doc(f"{i}", vector=vectors[i]) for i in rows))
    ids, counted = await cold(index, VectorQuery(vector=Vector(vectors[7])))
    assert ids[0] == "7"
    # The head; directories; access lists; buckets; large nodes, if any; ids.
    assert counted.rounds <= 6


@pytest.mark.parametrize(
    ("include", "blocks"),
    [
        ([], 0),
        # Pointers, packs, which pack is whose, versions; and, if asked, which list is whose, lists.
        ([Include.CONTENT], 4),
        ([Include.CONTENT, Include.GROUPS], 6),
    ],
)
async def test_what_hits_show_is_read_where_it_is_asked_for(include: Any, blocks: int) -> None:
    index = await make_index()
    await index.write(*(Doc(f"{i}", keywords=("all",), packed=True) for i in range(20)))
    found = (await index.answer(KeywordQuery(keyword="all"))).candidates
    await hydrate(await index.snapshot(), found, include)
    warm = await index.snapshot()
    shown = await hydrate(warm, found, include)
    assert {bool(one.groups) for one in shown} == {Include.GROUPS in include}
    stats = warm.shards[0].stats
    assert (stats.gets, stats.cache_hits) == (0, blocks)
