"""Merging segments: rows in the order of `seq`, nodes token by token through their codecs.

Pure CPU, for a thread.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ErrorCode
from workers.chain.codec import Codec, Node, Regroup, RowMap
from workers.chain.fresh import Source
from workers.chain.kinds import NodeKind
from workers.chain.retain import Mask, Retained
from workers.chain.rows import FIXED, GroupSet, Rows
from workers.errors import Fatal

_BATCH_BYTES: Final = 256 * 1024
"""Payloads merged at once: decoded, they take some eighty times as much for a moment."""


class MergedRows(NamedTuple):
    """The new document table.

    `table_maps[i]` maps rows of input i to new rows (-1: dropped), `posting_maps[i]` the same
    without rows that stay only as dead floors; `dead` are the new rows that are dead from the
    start.
    """

    rows: Rows
    table_maps: list[RowMap]
    posting_maps: list[RowMap]
    dead: NDArray[np.uint32]


def merge_rows(inputs: Sequence[Rows], retained: Sequence[Retained]) -> MergedRows:
    """Merge document tables, keeping what `retained` says; dead rows lose their payload."""
    kept = [np.flatnonzero(one.keep) for one in retained]
    seqs = np.concatenate([rows.seq[k] for rows, k in zip(inputs, kept, strict=True)])
    order = np.argsort(seqs, kind="stable")
    new_row = np.empty(len(order), np.int64)
    new_row[order] = np.arange(len(order))
    table_maps, posting_maps, start = [], [], 0
    for rows, k, one in zip(inputs, kept, retained, strict=True):
        table_map = np.full(len(rows), -1, np.int64)
        table_map[k] = new_row[start : start + len(k)]
        start += len(k)
        table_maps.append(table_map)
        posting_maps.append(np.where(one.dead, -1, table_map))
    merged = _take(inputs, kept, order)
    dead = np.sort(
        np.concatenate(
            [m[one.keep & one.dead] for m, one in zip(table_maps, retained, strict=True)]
        )
    )
    for row in dead.tolist():
        merged.ids[row], merged.metadata[row], merged.objects[row] = "", b"", b""
    _merge_interned(inputs, kept, order, dead, merged)
    _merge_lengths(inputs, table_maps, merged, dead)
    _merge_vectors(inputs, posting_maps, merged)
    merged.vocabulary = [block for rows in inputs for block in rows.vocabulary]
    return MergedRows(merged, table_maps, posting_maps, dead.astype(np.uint32))


def merge_nodes(
    segments: Sequence[Source],
    maps: Sequence[RowMap],
    codecs: Mapping[NodeKind, Codec],
    regroup: Regroup | None,
    epoch: int,
) -> Iterator[Node]:
    """Yield the nodes of the merged segment.

    Raises:
        Fatal: a kind has no codec here: this process is older than the data. Or CODES of another
            epoch than the output's `epoch` came without `regroup`: readers would look for them
            under the tokens of `epoch` and silently find nothing.
        Damaged: a node or the dictionary does not open.
    """
    regrouped = regroup is not None and regroup.kind == NodeKind.CODES
    chains = _chains(segments, maps, None if regrouped else epoch)
    for kind, of_kind in groupby(chains, key=attrgetter("kind")):
        if regroup is not None and kind == regroup.kind:
            parts = [(one.token, *part) for one in of_kind for part in one.parts]
            for token, payload in regroup.regroup(parts):
                yield Node(kind, token, payload)
            continue
        codec = codecs.get(kind)
        if codec is None:
            raise Fatal(ErrorCode.UNSUPPORTED, f"no codec for {kind.name} nodes; update the worker")
        for batch in _batches(of_kind):
            payloads = codec.merge_many([one.parts for one in batch])
            for one, merged in zip(batch, payloads, strict=True):
                if merged is not None:
                    yield Node(kind, one.token, merged)


class _Chain(NamedTuple):
    """The nodes of one chain, each with the row map of its segment."""

    kind: NodeKind
    token: bytes
    parts: list[tuple[bytes, RowMap]]


def _chains(
    segments: Sequence[Source], maps: Sequence[RowMap], only_epoch: int | None
) -> Iterator[_Chain]:
    """Yield every chain, in the order of kinds and tokens.

    Raises:
        Fatal: CODES of another epoch than `only_epoch`, unless that is None.
    """
    entries = heapq.merge(*([_tag(segment, i) for i, segment in enumerate(segments)]))
    for entry, group in groupby(entries, key=itemgetter(0)):
        kind, token = NodeKind(entry[0]), entry[1:]
        holders = [i for _, i in group]
        several = any(segments[i].ref.epoch != only_epoch for i in holders)
        if kind == NodeKind.CODES and several and only_epoch is not None:
            raise Fatal(ErrorCode.UNSUPPORTED, "vectors of several epochs need a regroup to merge")
        yield _Chain(kind, token, [(segments[i].node(kind, token), maps[i]) for i in holders])


def _batches(chains: Iterable[_Chain]) -> Iterator[list[_Chain]]:
    """Cut chains into batches that a codec decodes at once."""
    batch: list[_Chain] = []
    size = 0
    for one in chains:
        batch.append(one)
        size += sum(len(payload) for payload, _ in one.parts)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tag(segment: Source, i: int) -> Iterator[tuple[bytes, int]]:
    return ((entry, i) for entry in segment.dictionary())


def _take(
    inputs: Sequence[Rows], kept: Sequence[NDArray[np.int64]], order: NDArray[np.int64]
) -> Rows:
    merged = Rows.blank(len(order))
    pairs = list(zip(inputs, kept, strict=True))
    for name in FIXED:
        column: NDArray[Any] = np.concatenate([getattr(rows, name)[k] for rows, k in pairs])
        setattr(merged, name, column[order])
    for name in ("ids", "metadata", "objects"):
        flat = [value for rows, k in pairs for value in _pick(getattr(rows, name), k)]
        setattr(merged, name, [flat[i] for i in order.tolist()])
    return merged


def _pick(values: list[Any], rows: NDArray[np.int64]) -> list[Any]:
    return [values[i] for i in rows.tolist()]


def _merge_interned(
    inputs: Sequence[Rows],
    kept: Sequence[NDArray[np.int64]],
    order: NDArray[np.int64],
    dead: NDArray[np.int64],
    merged: Rows,
) -> None:
    """Renumber group sets and packs, keeping only those that a live row names."""
    alive = np.ones(len(order), bool)
    alive[dead] = False
    sources = np.repeat(np.arange(len(inputs)), [len(k) for k in kept])[order]
    sets: dict[GroupSet, int] = {}
    packs: dict[bytes, int] = {}
    for i, rows in enumerate(inputs):
        mine = sources == i
        _renumber(merged.group_set, mine & alive, rows.group_sets, sets)
        _renumber(merged.pack, mine & alive, rows.packs, packs)
    merged.group_set[dead] = -1
    merged.pack[dead] = -1
    merged.group_sets, merged.packs = list(sets), list(packs)


def _renumber(
    column: NDArray[np.int32], mask: Mask, values: Sequence[Any], known: dict[Any, int]
) -> None:
    rows = np.flatnonzero(mask & (column >= 0))
    used = np.unique(column[rows])
    new = np.zeros(len(values), np.int32)
    for number in used.tolist():
        new[number] = known.setdefault(values[number], len(known))
    column[rows] = new[column[rows]]


def _merge_lengths(
    inputs: Sequence[Rows],
    table_maps: Sequence[RowMap],
    merged: Rows,
    dead: NDArray[np.int64],
) -> None:
    for rows, table_map in zip(inputs, table_maps, strict=True):
        kept = table_map >= 0
        for name, lengths in rows.lengths.items():
            column = merged.lengths.setdefault(name, np.zeros(len(merged), np.uint32))
            column[table_map[kept]] = lengths[kept]
    for column in merged.lengths.values():
        column[dead] = 0


def _merge_vectors(inputs: Sequence[Rows], posting_maps: Sequence[RowMap], merged: Rows) -> None:
    parts = [
        (new[new >= 0], rows.vectors[new >= 0])
        for rows, rowmap in zip(inputs, posting_maps, strict=True)
        if rows.vectors is not None
        for new in (rowmap[rows.vector_rows],)
    ]
    if not any(len(new) for new, _ in parts):
        return
    new = np.concatenate([rows for rows, _ in parts])
    # Mixed precisions only after the index setting changed; the wider one loses nothing.
    vectors = np.concatenate([vectors for _, vectors in parts])
    order = np.argsort(new)
    merged.vector_rows = new[order].astype(np.uint32)
    merged.vectors = vectors[order]
