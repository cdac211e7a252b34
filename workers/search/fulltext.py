"""Answer text queries: BM25 over all shards, with one statistic for the whole index."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from schemas.errors import ErrorCode
from schemas.query import TextQuery
from workers.chain.segment_file import both, gather_all
from workers.errors import Damaged
from workers.search.matching import (
    Payloads,
    Rarity,
    SegmentLeaves,
    match,
    rarity,
    read_leaves,
    score_rows,
)
from workers.search.plan import Node, TextPlan, plan_text, prefixes
from workers.search.run import Candidate, Run, Scored
from workers.search.snapshot import RowNumbers
from workers.search.words import complete_prefixes
from workers.text.analyzer import get_analyzer
from workers.text.varint import MalformedPayloadError

_THREAD_BYTES: Final = 128 * 1024
"""From so many bytes of payload on, decoding and scoring go to a thread (about 2 ms)."""

Place = tuple[int, int]
T = TypeVar("T")


async def search_text(run: Run, query: TextQuery, k: int) -> list[Candidate]:
    """Return the `k` best documents for a text query, best first, ties by id.

    Raises:
        Reject: INVALID_MESSAGE, the query does not parse; UNSUPPORTED, what it asks is not kept.
    """
    plan = await _plan(run, query)
    if plan.root is None or not plan.weights:
        return []
    payloads = await _look_up(run, plan)
    heavy = sum(len(p) for one in payloads.values() for p in one.values()) >= _THREAD_BYTES
    found = await _cpu(heavy, lambda: _read(run, plan, payloads))
    stats = {field: run.snapshot.field_stats(field) for field in plan.weights}
    config = run.context.config
    rare = rarity(plan, list(found.values()), stats, config.bm25_k1, config.bm25_b)
    root = plan.root
    scored = await gather_all(
        [_score(run, plan, root, place, leaves, rare, heavy) for place, leaves in found.items()]
    )
    return await run.rank(scored, k)


def field_weights(run: Run, asked: dict[str, float]) -> dict[str, float]:
    """Return the weight of each searched field that the index has.

    Args:
        run: the query.
        asked: fields and weights of the query; empty for all fields with the index's weights.
    """
    names = run.snapshot.field_names()
    if asked:
        return {name: asked[name] for name in names if name in asked}
    return {name: run.context.config.fields.get(name, 1.0) for name in names}


async def _plan(run: Run, query: TextQuery) -> TextPlan:
    analyzer = get_analyzer(run.context.config.analyzer)
    completions: dict[str, list[str]] = {}
    if query.syntax:
        wanted = prefixes(query.text, query.operator, analyzer)
        completions = await complete_prefixes(run, wanted)
    return plan_text(
        query.text,
        analyzer=analyzer,
        operator=query.operator,
        syntax=query.syntax,
        weights=field_weights(run, query.fields),
        complete=lambda prefix: completions[prefix],
    )


async def _look_up(run: Run, plan: TextPlan) -> dict[Place, Payloads]:
    requests = plan.requests(run.context.tokens)
    wanted = list(requests.values())
    run.labels += len(wanted)
    shards = run.snapshot.shards
    nodes = await gather_all([shard.lookup(wanted) for shard in shards])
    out: dict[Place, dict[tuple[str, str], bytes]] = {}
    for number, found in enumerate(nodes):
        for key, request in requests.items():
            for segment, payload in found[request]:
                out.setdefault((number, segment), {})[key] = payload
    return dict(out)


def _read(run: Run, plan: TextPlan, payloads: dict[Place, Payloads]) -> dict[Place, SegmentLeaves]:
    try:
        return {
            (number, segment): read_leaves(plan, one, run.snapshot.shards[number].live(segment))
            for (number, segment), one in payloads.items()
        }
    except (MalformedPayloadError, IndexError) as error:
        raise Damaged(ErrorCode.DAMAGED, "postings of this index do not decode") from error


async def _score(
    run: Run,
    plan: TextPlan,
    root: Node,
    place: Place,
    found: SegmentLeaves,
    rare: Rarity,
    heavy: bool,
) -> Scored:
    number, segment = place
    chosen = np.flatnonzero(await _cpu(heavy, lambda: match(root, found)))
    rows = found.rows[chosen]
    mask, columns = await both(
        run.mask(number, segment, rows), _lengths(run, number, segment, rows, plan.weights)
    )
    chosen, rows = chosen[mask], rows[mask]
    lengths = {field: column[mask] for field, column in columns.items()}
    scores = await _cpu(heavy, lambda: score_rows(plan, root, found, chosen, lengths, rare))
    return Scored(number, segment, rows, scores)


async def _lengths(
    run: Run, number: int, segment: int, rows: RowNumbers, fields: Collection[str]
) -> dict[str, npt.NDArray[np.uint32]]:
    columns = run.columns[number]
    return {field: await columns.lengths(segment, field, rows) for field in fields}


async def _cpu(heavy: bool, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if heavy else work()
