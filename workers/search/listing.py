"""Answer the queries that list documents: by filter, by id, all ids in pages, and their number."""

from __future__ import annotations

import asyncio
import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from schemas.errors import ErrorCode
from schemas.query import FilterOnly, GetQuery
from workers.chain.segment_file import gather_all
from workers.crypto.derive import shard_of
from workers.errors import Reject
from workers.search.filter import MISSING, order_keys
from workers.search.run import Candidate, Run
from workers.search.snapshot import RowNumbers

_CURSOR_VERSION: Final = 1

_Keyed = tuple[tuple[int, Any], tuple[int, int, int]]
"""An order key and a place."""


class _Cursor(Struct, frozen=True, array_like=True):
    """Where a page ended: the arrival number of its last document, and the versions it saw."""

    v: int
    shard: int
    seq: int
    versions: list[int]


async def search_filter(run: Run, query: FilterOnly, k: int) -> list[Candidate]:
    """Return the first `k` documents that the filter lets through.

    Ordered by the named metadata field (`filter.order_keys`), equal values by id; without a field
    in order of arrival, shard by shard.
    """
    rows = await _matching(run)
    if query.order_by is not None:
        return await _ordered(run, rows, query.order_by, query.ascending, k)
    chosen: list[tuple[int, int, int]] = []
    for number in range(len(run.snapshot.shards)):
        if len(chosen) >= k:
            break
        chosen += [place for _, place in await _by_arrival(run, rows, number, -1, k - len(chosen))]
    return await run.name(chosen)


async def get(run: Run, query: GetQuery) -> list[Candidate]:
    """Return the documents of the given ids, in their order, each once; unknown ones are absent."""
    ids = list(dict.fromkeys(query.get))
    shards = run.snapshot.shards
    numbers = {shard.shard: number for number, shard in enumerate(shards)}
    wanted: dict[int, list[tuple[int, bytes]]] = {}
    for index, doc_id in enumerate(ids):
        object_id = run.context.object_id(doc_id)
        number = numbers.get(shard_of(object_id, run.context.config.shards))
        if number is not None:
            wanted.setdefault(number, []).append((index, object_id))
    groups = list(wanted.items())
    found = await gather_all(
        [shards[number].find_ids([one for _, one in entries]) for number, entries in groups]
    )
    places = {
        index: (number, *place)
        for (number, entries), rows in zip(groups, found, strict=True)
        for (index, _), place in zip(entries, rows, strict=True)
        if place is not None
    }
    asked = [places[index] for index in sorted(places)]
    usable = await run.usable(asked)
    return await run.name([place for place, yes in zip(asked, usable, strict=True) if yes])


async def list_ids(run: Run, k: int, cursor: str | None) -> tuple[list[Candidate], str | None]:
    """Return one page of documents in order of arrival, and the cursor of the next page.

    Paging goes on over newer versions of the index: every document that existed when it began and
    was not changed meanwhile comes exactly once; one that was changed may come again.

    Args:
        run: the query in flight.
        k: documents of a page.
        cursor: of the page before; None for the first one.

    Raises:
        Reject: INVALID_MESSAGE, not a cursor; EXPIRED, the index is not the one it was made for.
    """
    after = _read_cursor(run, cursor)
    rows = await _matching(run)
    entries: list[tuple[int, tuple[int, int, int]]] = []
    for number in range(after.shard, len(run.snapshot.shards)):
        start = after.seq if number == after.shard else -1
        entries += await _by_arrival(run, rows, number, start, k + 1 - len(entries))
        if len(entries) > k:
            break
    page = await run.name([place for _, place in entries[:k]])
    if len(entries) <= k:
        return page, None
    seq, (number, _, _) = entries[k - 1]
    versions = [version for _, version in run.snapshot.versions()]
    packed = msgspec.msgpack.encode(_Cursor(_CURSOR_VERSION, number, seq, versions))
    return page, urlsafe_b64encode(packed).decode()


async def count(run: Run) -> int:
    """Return how many documents the caller may see, after the filter.

    Under `visibility: index` and without a filter it is the number of all documents.
    """
    if not run.context.members_only and run.condition is None:
        return run.snapshot.documents()
    rows = await _matching(run)
    return sum(one.size for one in rows.values())


async def _matching(run: Run) -> dict[tuple[int, int], RowNumbers]:
    """Return the rows of live documents that the query may use, by (shard, segment)."""
    places = run.places()
    found = await gather_all([_matching_rows(run, number, segment) for number, segment in places])
    return dict(zip(places, found, strict=True))


async def _matching_rows(run: Run, number: int, segment: int) -> RowNumbers:
    rows = np.flatnonzero(await run.columns[number].documents(segment))
    return rows[await run.mask(number, segment, rows)]


async def _by_arrival(
    run: Run, rows: dict[tuple[int, int], RowNumbers], number: int, after: int, k: int
) -> list[tuple[int, tuple[int, int, int]]]:
    """Return (seq, place) of the first `k` rows of a shard that arrived after `after`."""
    entries: list[tuple[int, tuple[int, int, int]]] = []
    for segment in range(run.snapshot.shards[number].segments):
        chosen = rows[number, segment]
        if not chosen.size:
            continue
        seqs = (await run.columns[number].sequence(segment))[chosen]
        later = np.flatnonzero(seqs > after)
        if later.size > k:
            later = later[np.argpartition(seqs[later], k)[:k]]
        entries += [
            (seq, (number, segment, row))
            for seq, row in zip(seqs[later].tolist(), chosen[later].tolist(), strict=True)
        ]
    return sorted(entries)[:k]


async def _ordered(
    run: Run,
    rows: dict[tuple[int, int], RowNumbers],
    name: str,
    ascending: bool,
    k: int,
) -> list[Candidate]:
    if not run.context.members_only:
        # The order would tell what stands in the metadata of documents that are denied.
        rows = {
            (number, segment): chosen[
                (await run.columns[number].allowed(segment, run.context.groups))[chosen]
            ]
            for (number, segment), chosen in rows.items()
        }
    keyed: list[_Keyed] = []
    for (number, segment), chosen in rows.items():
        if not chosen.size:
            continue
        columns = await run.columns[number].metadata(segment)
        keys = await asyncio.to_thread(order_keys, columns, name, ascending=ascending)
        keyed += [(keys[row], (number, segment, row)) for row in chosen.tolist()]
    keyed = await asyncio.to_thread(_sorted, keyed, ascending)
    end = min(k, len(keyed))
    # What equals the last one stays in, so that the ids decide.
    while 0 < end < len(keyed) and keyed[end][0] == keyed[end - 1][0]:
        end += 1
    named = await run.name([place for _, place in keyed[:end]])
    by_place = {one.place: one for one in named}
    keyed = sorted(keyed[:end], key=lambda one: by_place[one[1]].id)
    return [by_place[place] for _, place in _sorted(keyed, ascending)[:k]]


def _sorted(keyed: list[_Keyed], ascending: bool) -> list[_Keyed]:
    """Return the entries by class, then by value in the asked direction; stable."""
    out: list[_Keyed] = []
    for rank in range(MISSING + 1):
        part = [entry for entry in keyed if entry[0][0] == rank]
        out += sorted(part, key=lambda entry: entry[0][1], reverse=not ascending)
    return out


def _read_cursor(run: Run, cursor: str | None) -> _Cursor:
    versions = [version for _, version in run.snapshot.versions()]
    if cursor is None:
        return _Cursor(_CURSOR_VERSION, 0, -1, versions)
    try:
        packed = urlsafe_b64decode(cursor.encode("ascii"))
        found = msgspec.msgpack.decode(packed, type=_Cursor)
    except (UnicodeEncodeError, binascii.Error, msgspec.MsgspecError):
        raise Reject(ErrorCode.INVALID_MESSAGE, "is not a cursor", field="cursor") from None
    if found.v != _CURSOR_VERSION or not 0 <= found.shard < max(1, len(versions)):
        raise Reject(ErrorCode.INVALID_MESSAGE, "is not a cursor of this index", field="cursor")
    if len(found.versions) != len(versions) or _older(versions, found.versions):
        raise Reject(
            ErrorCode.EXPIRED, "the index is not the one this cursor was made for: start anew"
        )
    return found


def _older(now: Sequence[int], then: Sequence[int]) -> bool:
    return any(a < b for a, b in zip(now, then, strict=True))
