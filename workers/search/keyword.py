"""Answer keyword queries: every identifier of an exact keyword, in order of arrival.

A posting says that a row added or removed the keyword. Per (keyword, id) the statements of one
source (stream, partition) are ordered by offset, those of different sources by arrival; the last
one decides (`ShardSnapshot.resolve_pairs`).
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import numpy as np

from schemas.errors import ErrorCode
from schemas.query import KeywordQuery
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.segment_file import both, gather_all
from workers.crypto.derive import TokenKind
from workers.errors import Damaged
from workers.search.filter import build_columns, evaluate
from workers.search.run import Candidate, Run
from workers.search.snapshot import Request, RowNumbers, ShardSnapshot
from workers.text.postings import decode_rows
from workers.text.varint import MalformedPayloadError

Place = tuple[int, int]


async def search_keyword(run: Run, query: KeywordQuery, k: int | None) -> list[Candidate]:
    """Return the identifiers of a keyword, in order of arrival.

    Args:
        run: the query in flight.
        query: the keyword.
        k: at most so many, the first to arrive; None for all.
    """
    token = run.context.tokens.token(TokenKind.KEYWORD, "", query.keyword)
    request = (NodeKind.KEYWORD, token)
    run.labels += 1
    numbers = range(len(run.snapshot.shards))
    found = await gather_all([_shard(run, number, request) for number in numbers])
    if len(found) == 1:
        merged = [candidate for _, candidate in found[0]]
    else:
        # Arrival times of one shard rise with `seq`; between shards they are all there is.
        keyed = [
            (arrived, number, place, candidate)
            for number, one in enumerate(found)
            for place, (arrived, candidate) in enumerate(one)
        ]
        keyed.sort(key=lambda entry: entry[:3])
        merged = [entry[3] for entry in keyed]
    return merged if k is None else merged[:k]


async def _shard(run: Run, number: int, request: Request) -> list[tuple[int, Candidate]]:
    """Return (arrival in ms, candidate) of one shard, by arrival."""
    shard = run.snapshot.shards[number]
    payloads = (await shard.lookup([request]))[request]
    try:
        decoded = [(segment, decode_rows(payload)) for segment, payload in payloads]
    except MalformedPayloadError as error:
        raise Damaged(ErrorCode.DAMAGED, "postings of this index do not decode") from error
    holding, _ = await both(
        shard.resolve_pairs([(i, one.rows, ~one.removed) for i, one in decoded]),
        _read_ahead(run, number, [(i, one.rows) for i, one in decoded]),
    )
    if not holding:
        return []
    documents = await _documents(run, number, holding)
    visible, arrivals = await both(
        _visible(run, number, documents), _arrivals(run, number, holding)
    )
    kept = [index for index, seen in enumerate(visible) if seen]
    # A pair without a document is named by its own row, the others by the document's.
    places = [documents[index] or holding[index] for index in kept]
    named = await run.name([(number, *place) for place in places])
    out = []
    for index, candidate in zip(kept, named, strict=True):
        if documents[index] is None:
            candidate = Candidate(*candidate.place, candidate.id, document=False)
        out.append((arrivals[index], candidate))
    return out


async def _read_ahead(run: Run, number: int, postings: list[tuple[int, RowNumbers]]) -> None:
    """Read what is asked of all rows of a keyword but the few that turn out not to hold it.

    Only so that these reads do not wait for others: what is read is in the caches then.
    """
    shard, columns = run.snapshot.shards[number], run.columns[number]
    alive = [(i, rows[shard.live(i)[rows]]) for i, rows in postings]
    reads: list[Coroutine[Any, Any, object]] = [columns.ids(i, rows) for i, rows in alive]
    if shard.shard_stats.docs:
        reads += [columns.allowed(i, run.context.groups) for i, rows in alive if rows.size]
    await gather_all(reads)


async def _documents(run: Run, number: int, holding: list[Place]) -> list[Place | None]:
    """Return the live document of each place: itself, another row of the same id, or None."""
    shard = run.snapshot.shards[number]
    if not shard.shard_stats.pairs:
        return list(holding)
    out: list[Place | None] = [None] * len(holding)
    if not shard.shard_stats.docs:
        return out
    for segment, indexes, rows in _by_segment(holding):
        # `resolve_pairs` has just read them: they come from the cache.
        documents = await shard.kinds(segment, rows) == RowKind.DOC
        for index, is_document in zip(indexes, documents.tolist(), strict=True):
            if is_document:
                out[index] = holding[index]
    pairs = [index for index, place in enumerate(out) if place is None]
    if pairs:
        found = await shard.find_ids(await _object_ids(shard, [holding[i] for i in pairs]))
        for index, place in zip(pairs, found, strict=True):
            out[index] = place
    return out


async def _visible(run: Run, number: int, documents: list[Place | None]) -> list[bool]:
    """Say for each pair whether the caller gets to see it, and the filter lets it through."""
    seen = iter(await run.usable([(number, *place) for place in documents if place is not None]))
    out = [True if place is None else next(seen) for place in documents]
    if run.condition is not None and None in documents:
        bare = bool(evaluate(run.condition, build_columns([b""]))[0])
        out = [bare if place is None else one for place, one in zip(documents, out, strict=True)]
    return out


async def _arrivals(run: Run, number: int, holding: list[Place]) -> list[int]:
    """Return the arrival times (ms), never falling; zeros where one shard needs no merging."""
    if len(run.snapshot.shards) == 1:
        return [0] * len(holding)
    shard = run.snapshot.shards[number]
    times = np.zeros(len(holding), dtype=np.int64)
    parts = _by_segment(holding)
    origins = await gather_all([shard.origins(segment, rows) for segment, _, rows in parts])
    for (_, indexes, _), origin in zip(parts, origins, strict=True):
        times[indexes] = origin["applied_ms"]
    return [int(one) for one in np.maximum.accumulate(times)]


async def _object_ids(shard: ShardSnapshot, places: list[Place]) -> list[bytes]:
    """Return the object id of each place."""
    out = [b""] * len(places)
    for segment, indexes, rows in _by_segment(places):
        for index, one in zip(indexes, await shard.object_ids(segment, rows), strict=True):
            out[index] = one.tobytes()
    return out


def _by_segment(places: list[Place]) -> list[tuple[int, list[int], RowNumbers]]:
    """Return for each segment which places are in it, and their rows."""
    found: dict[int, list[int]] = {}
    for index, (segment, _) in enumerate(places):
        found.setdefault(segment, []).append(index)
    return [
        (segment, indexes, np.array([places[i][1] for i in indexes], dtype=np.int64))
        for segment, indexes in found.items()
    ]
