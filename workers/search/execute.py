"""Answer one query, or a batch of them, on one snapshot of an index.

The caller supplies a context (keys, settings, who asks) and a snapshot, and gets candidates:
places with ids and scores. What a hit shows besides is read by `hydrate`, for the few that are
shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.filter import Filter
from schemas.index import fusion_depth
from schemas.query import (
    CountQuery,
    FilterOnly,
    GetQuery,
    HybridQuery,
    IdsQuery,
    KeywordQuery,
    Query,
    TextQuery,
    VectorQuery,
)
from workers.chain.segment_file import gather_all
from workers.search.context import SearchContext
from workers.search.fulltext import search_text
from workers.search.fuse import fuse
from workers.search.keyword import search_keyword
from workers.search.listing import count, get, list_ids, search_filter
from workers.search.nearest import search_vector, search_vectors
from workers.search.run import Candidate, Run, with_score
from workers.search.snapshot import IndexSnapshot


@dataclass(frozen=True, slots=True)
class Answer:
    """What one query found.

    Attributes:
        candidates: in the order of the answer.
        count: of a count query.
        cursor: of the next page, None where there is none.
        notes: what the caller should know, for `explain`.
        labels: chains that were looked up, for `explain`.
    """

    candidates: list[Candidate] = field(default_factory=list)
    count: int | None = None
    cursor: str | None = None
    notes: tuple[str, ...] = ()
    labels: int = 0


async def search(
    context: SearchContext,
    snapshot: IndexSnapshot,
    query: Query,
    *,
    top_k: int | None,
    condition: Filter | None = None,
    cursor: str | None = None,
) -> Answer:
    """Answer one query.

    Args:
        context: keys, settings and caller.
        snapshot: of all shards.
        query: one of the eight kinds.
        top_k: hits at most; None for all (see `QueryRequest.limit`).
        condition: the filter, None for none.
        cursor: of the page before, for a query of ids.

    Raises:
        Reject: what the query asks cannot be answered; INVALID_MESSAGE, UNSUPPORTED,
            DIMENSION_MISMATCH, EXPIRED.
        Damaged: stored data failed its authentication or does not decode.
        Retry: storage or keys are unavailable.
    """
    run = Run(context, snapshot, condition)
    found, number, following = await _dispatch(run, query, top_k, cursor)
    return Answer(found, number, following, tuple(run.notes), run.labels)


async def search_many(
    context: SearchContext,
    snapshot: IndexSnapshot,
    queries: Sequence[Query],
    *,
    limits: Sequence[int | None],
    condition: Filter | None = None,
) -> list[Answer]:
    """Answer a batch on one snapshot; one answer for each query, in order. Raises as `search`.

    Vector queries of equal limits are scanned together, which is many times faster than one by
    one.
    """
    answers: list[Answer | None] = [None] * len(queries)
    together: dict[int, list[tuple[int, VectorQuery]]] = {}
    alone: list[int] = []
    for index, (query, limit) in enumerate(zip(queries, limits, strict=True)):
        if isinstance(query, VectorQuery) and limit is not None:
            together.setdefault(limit, []).append((index, query))
        else:
            alone.append(index)
    for limit, batch in together.items():
        run = Run(context, snapshot, condition)
        found = await search_vectors(run, [query for _, query in batch], limit)
        for (index, _), candidates in zip(batch, found, strict=True):
            answers[index] = Answer(candidates, None, None, tuple(run.notes), run.labels)
    rest = await gather_all(
        [search(context, snapshot, queries[i], top_k=limits[i], condition=condition) for i in alone]
    )
    for index, answer in zip(alone, rest, strict=True):
        answers[index] = answer
    return [answer for answer in answers if answer is not None]


async def _dispatch(
    run: Run, query: Query, top_k: int | None, cursor: str | None
) -> tuple[list[Candidate], int | None, str | None]:
    every = run.snapshot.documents()
    limit = every if top_k is None else top_k
    match query:
        case KeywordQuery():
            return await search_keyword(run, query, top_k), None, None
        case TextQuery():
            return await search_text(run, query, limit), None, None
        case VectorQuery():
            return await search_vector(run, query, limit), None, None
        case HybridQuery():
            return await _search_hybrid(run, query, limit), None, None
        case FilterOnly():
            return await search_filter(run, query, limit), None, None
        case GetQuery():
            return await get(run, query), None, None
        case IdsQuery():
            page, following = await list_ids(run, limit, cursor)
            return page, None, following
        case CountQuery():
            return [], await count(run), None


async def _search_hybrid(run: Run, query: HybridQuery, k: int) -> list[Candidate]:
    """Fuse the best of both lists by reciprocal ranks; equal scores by id."""
    depth = fusion_depth(k)
    hybrid = query.hybrid
    words, near = await gather_all(
        [
            search_text(run, hybrid.text_query(), depth),
            search_vector(run, hybrid.vector_query(), depth),
        ]
    )
    by_place = {one.place: one for one in (*words, *near)}
    fused = fuse(
        [[one.place for one in words], [one.place for one in near]], hybrid.weights(), hybrid.k()
    )
    fused.sort(key=lambda entry: (-entry[1], by_place[entry[0]].id))
    distances = {one.place: one.distance for one in near}
    return [with_score(by_place[place], score, distances.get(place)) for place, score in fused[:k]]
