"""One query in flight: the snapshot, the columns, the filter, and who asks.

`Run.mask` is the only place where it is decided which rows a query may use.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from schemas.filter import Filter
from workers.chain.segment_file import both, gather_all
from workers.search.columns import ShardColumns
from workers.search.context import SearchContext
from workers.search.snapshot import IndexSnapshot, Mask, RowNumbers
from workers.vector.metric import F32

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One document (or one keyword pair without a document) of an answer.

    Attributes:
        shard: index into `IndexSnapshot.shards`.
        segment: number of its segment in that shard.
        row: its row there.
        id: document id.
        score: higher is better; None where the query does not score.
        distance: by the metric of the index; None where there is none.
        denied: the caller may not read it: nothing but the id may be given.
        document: false for a keyword pair without a document.
    """

    shard: int
    segment: int
    row: int
    id: str
    score: float | None = None
    distance: float | None = None
    denied: bool = False
    document: bool = True

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands: (shard, segment, row)."""
        return self.shard, self.segment, self.row


@dataclass(frozen=True, slots=True)
class Scored:
    """Scored rows of one segment: int64 `(n,)` rows, float32 `(n,)` scores."""

    shard: int
    segment: int
    rows: RowNumbers
    scores: F32


@dataclass(slots=True)
class Run:
    """A query over a snapshot.

    Attributes:
        context: settings, tokens, caller.
        snapshot: the shards.
        condition: the filter, None for none.
        columns: one for each shard.
        notes: what the caller should know about the answer, for `explain`.
        labels: chains that were looked up.
    """

    context: SearchContext
    snapshot: IndexSnapshot
    condition: Filter | None = None
    columns: list[ShardColumns] = field(init=False)
    notes: list[str] = field(default_factory=list)
    labels: int = 0

    def __post_init__(self) -> None:
        uid, cache = self.snapshot.index_uid, self.context.cache
        config = self.context.config
        width = 4 if config.storage_precision == "float32" else 2
        size = width * (config.dimension or 0)
        self.columns = [ShardColumns(uid, shard, cache, size) for shard in self.snapshot.shards]

    def places(self) -> list[tuple[int, int]]:
        """Return (shard, segment) of every live segment."""
        return [
            (number, segment)
            for number, shard in enumerate(self.snapshot.shards)
            for segment in range(shard.segments)
        ]

    async def mask(self, shard: int, segment: int, rows: RowNumbers) -> Mask:
        """Return bool `(k,)`: which of `rows` are live and may be used by this query.

        A row that the caller may not read never passes a filter, also where such rows are named as
        denied: or the filter would tell what stands in their metadata.
        """
        columns = self.columns[shard]
        live = self.snapshot.shards[shard].live(segment)
        mask = live[rows]
        if self.context.members_only or self.condition is not None:
            mask = mask & (await columns.allowed(segment, self.context.groups))[rows]
        if self.condition is not None and mask.any():
            chosen = np.flatnonzero(mask)
            mask[chosen] = await columns.filtered(segment, self.condition, rows[chosen])
        return mask

    async def usable(self, places: list[tuple[int, int, int]]) -> list[bool]:
        """Say for each (shard, segment, row) whether it may be used by this query. See `mask`."""
        return [bool(one) for one in await self._by_segment(places, self.mask)]

    async def readable(self, places: list[tuple[int, int, int]]) -> list[bool]:
        """Say for each (shard, segment, row) whether the caller is in its access list."""

        async def allowed(shard: int, segment: int, rows: RowNumbers) -> Mask:
            mask = await self.columns[shard].allowed(segment, self.context.groups)
            return np.asarray(mask[rows])

        return [bool(one) for one in await self._by_segment(places, allowed)]

    async def name(
        self, places: list[tuple[int, int, int]], scores: list[float | None] | None = None
    ) -> list[Candidate]:
        """Return candidates for rows, in the order given, with ids and denials."""
        ids, readable = await both(self._ids(places), self._shown(places))
        return [
            Candidate(
                *place,
                id=ids[index],
                score=scores[index] if scores is not None and readable[index] else None,
                denied=not readable[index],
            )
            for index, place in enumerate(places)
        ]

    async def _ids(self, places: list[tuple[int, int, int]]) -> list[str]:
        async def ids(shard: int, segment: int, rows: RowNumbers) -> list[str]:
            return await self.columns[shard].ids(segment, rows)

        return await self._by_segment(places, ids)

    async def _by_segment(
        self,
        places: list[tuple[int, int, int]],
        read: Callable[[int, int, RowNumbers], Coroutine[Any, Any, Iterable[T]]],
    ) -> list[T]:
        """Read a value for each place, all segments at once."""
        by_segment: dict[tuple[int, int], list[int]] = {}
        for index, (shard, segment, _) in enumerate(places):
            by_segment.setdefault((shard, segment), []).append(index)
        found = await gather_all(
            [
                read(shard, segment, np.array([places[i][2] for i in chosen], dtype=np.int64))
                for (shard, segment), chosen in by_segment.items()
            ]
        )
        out: dict[int, T] = {}
        for chosen, values in zip(by_segment.values(), found, strict=True):
            out.update(zip(chosen, values, strict=True))
        return [out[index] for index in range(len(places))]

    async def _shown(self, places: list[tuple[int, int, int]]) -> list[bool]:
        """Return false for each place that is to be named as denied."""
        return [True] * len(places) if self.context.members_only else await self.readable(places)

    async def rank(self, scored: list[Scored], k: int) -> list[Candidate]:
        """Return the `k` best rows, best first; equal scores by id."""
        return (await self.rank_many([scored], k))[0]

    async def rank_many(self, queries: list[list[Scored]], k: int) -> list[list[Candidate]]:
        """Rank the rows of several queries, reading their ids together.

        Everything that ties with the last one takes part, so that the ids decide and not the
        order of segments, which compaction changes.
        """
        chosen = [_leaders(scored, k) for scored in queries]
        distinct = list({place: None for one in chosen for place in one})
        named = dict(zip(distinct, await self.name(distinct), strict=True))
        out = []
        for one in chosen:
            order = sorted(one.items(), key=lambda entry: (-entry[1], named[entry[0]].id))[:k]
            out.append([with_score(named[place], score) for place, score in order])
        return out


def _leaders(scored: list[Scored], k: int) -> dict[tuple[int, int, int], float]:
    """Return the scores of the `k` best rows and of all that tie with the last."""
    scored = [one for one in scored if one.rows.size]
    if not scored or k <= 0:
        return {}
    every = np.concatenate([one.scores for one in scored])
    bar = np.partition(every, every.size - k)[every.size - k] if k < every.size else every.min()
    out: dict[tuple[int, int, int], float] = {}
    for one in scored:
        chosen = np.flatnonzero(one.scores >= bar)
        rows, scores = one.rows[chosen].tolist(), one.scores[chosen].tolist()
        for row, score in zip(rows, scores, strict=True):
            out[one.shard, one.segment, row] = score
    return out


def with_score(
    candidate: Candidate, score: float | None, distance: float | None = None
) -> Candidate:
    """Return the candidate with a score and distance, which a denied one does not get."""
    if candidate.denied:
        return candidate
    return Candidate(
        candidate.shard,
        candidate.segment,
        candidate.row,
        candidate.id,
        score,
        distance,
        candidate.denied,
        candidate.document,
    )
