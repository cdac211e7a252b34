"""Encode, decode and merge the payloads of chain nodes that hold postings.

Rows are positions in the document table of one segment. A payload is a run of varints (`varint`):

TERM payload (`TermCodec`): which rows hold a term, how often, and where

    flags     1   2 = this version, +1 if positions follow
    n         1   postings, >= 1
    m         1   bytes of the two columns below
    rows      n   first row, then the distance to the one before (>= 1)
    tfs       n   occurrences, >= 1
    positions sum(tfs)   for each posting the first word position, then distances (>= 1)

KEYWORD, META and GROUP payload (`RowsCodec`): rows with a sign

    flags     1   2 = this version
    n         1   postings, >= 1
    rows      n   (distance << 1) | removed; the first distance is the row itself

Everything works on whole arrays: `build_terms` and `build_rows` encode all nodes of a micro-batch
in a few passes, `merge_many` thousands of tokens of a compaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from workers.chain.kinds import NodeKind
from workers.text.varint import (
    Bytes,
    Ints,
    MalformedPayloadError,
    bounds,
    decode_varints,
    encode_varints,
    ranges,
    read_varint,
    varint_sizes,
)

_VERSION: Final = 2
_POSITIONS: Final = 1
"""Below this size one token is merged by a loop, above it by numpy."""

Part = tuple[bytes, npt.NDArray[np.int64]]
"""A payload and its row map: int64 `(rows of its segment,)`, new row or -1 for dropped."""


@dataclass(frozen=True, slots=True)
class TermPostings:
    """One decoded TERM payload: int64 `(n,)` rows, increasing, and their frequencies."""

    rows: Ints
    tfs: Ints


@dataclass(frozen=True, slots=True)
class RowPostings:
    """One decoded KEYWORD payload: int64 `(n,)` rows, increasing, and bool `(n,)` removed."""

    rows: Ints
    removed: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TermColumns:
    """Postings of many terms as columns, one entry a posting.

    Attributes:
        groups: int64 `(p,)`, which term each posting belongs to, any numbering.
        rows: int64 `(p,)`.
        tfs: int64 `(p,)`, >= 1.
        deltas: int64 `(sum(tfs),)`: for each posting its first position, then the distances
            between positions; None where positions are not kept.
    """

    groups: Ints
    rows: Ints
    tfs: Ints
    deltas: Ints | None

    def take(self, order: Ints) -> TermColumns:
        """Return the postings at the indexes `order` (int64 `(k,)`), in that order."""
        deltas = self.deltas
        if deltas is not None:
            starts = np.cumsum(self.tfs) - self.tfs
            deltas = deltas[ranges(starts[order], self.tfs[order])]
        return TermColumns(self.groups[order], self.rows[order], self.tfs[order], deltas)


def build_terms(columns: TermColumns) -> tuple[Ints, list[bytes]]:
    """Encode every TERM node of a micro-batch.

    Args:
        columns: postings in any order; at most one for each (group, row).

    Returns:
        The distinct groups in increasing order, and the payload of each.
    """
    if not columns.rows.size:
        return np.empty(0, dtype=np.int64), []
    ordered = columns.take(_order(columns.groups, columns.rows))
    starts = _group_starts(ordered.groups)
    return ordered.groups[starts], _encode_terms(ordered, starts)


def build_rows(
    groups: Ints, rows: Ints, removed: npt.NDArray[np.bool_] | None = None
) -> tuple[Ints, list[bytes]]:
    """Encode every KEYWORD, META or GROUP node of a micro-batch.

    Args:
        groups: int64 `(p,)`, which token each posting belongs to, any numbering.
        rows: int64 `(p,)`; at most one posting for each (group, row).
        removed: bool `(p,)`, true for a posting that removes; None for none.

    Returns:
        The distinct groups in increasing order, and the payload of each.
    """
    if not rows.size:
        return np.empty(0, dtype=np.int64), []
    order = _order(groups, rows)
    groups, rows = groups[order], rows[order]
    signs = np.zeros(rows.size, dtype=np.int64) if removed is None else removed[order].astype("i8")
    starts = _group_starts(groups)
    return groups[starts], _encode_rows(rows, signs, starts)


def decode_terms(payload: bytes) -> TermPostings:
    """Decode rows and frequencies of one TERM payload; the positions are left alone.

    Raises:
        MalformedPayloadError: if the payload is not one.
    """
    _, count, at, end = _term_header(payload)
    values, _ = decode_varints(memoryview(payload)[at:end])
    if values.size != 2 * count:
        raise MalformedPayloadError("a TERM payload holds another number of postings than it says")
    return TermPostings(np.cumsum(values[:count]), values[count:])


def has_positions(payload: bytes) -> bool:
    """Say whether a TERM payload holds positions."""
    return bool(payload[0] & _POSITIONS)


def decode_positions(payload: bytes) -> tuple[Ints, Ints]:
    """Decode the positions of one TERM payload.

    Returns:
        int64 `(n + 1,)` offsets and int64 positions: those of posting i are
        `positions[offsets[i]:offsets[i + 1]]`, increasing.

    Raises:
        MalformedPayloadError: if the payload has none.
    """
    flags, _, _, end = _term_header(payload)
    tfs = decode_terms(payload).tfs
    offsets = bounds(tfs)
    deltas, _ = decode_varints(memoryview(payload)[end:])
    if not flags & _POSITIONS or deltas.size != offsets[-1]:
        raise MalformedPayloadError("a TERM payload has no positions or another number of them")
    return offsets, segmented_cumsum(deltas, offsets)


def decode_rows(payload: bytes) -> RowPostings:
    """Decode one KEYWORD, META or GROUP payload.

    Raises:
        MalformedPayloadError: if the payload is not one.
    """
    values, _ = decode_varints(payload)
    if values.size < 3 or values[0] != _VERSION or values[1] != values.size - 2:
        raise MalformedPayloadError("not a payload of rows of this version")
    return RowPostings(np.cumsum(values[2:] >> 1), (values[2:] & 1).astype(np.bool_))


def segmented_cumsum(values: Ints, offsets: Ints) -> Ints:
    """Return the running sum of `values`, starting anew at each of `offsets[:-1]`."""
    total = np.cumsum(values)
    starts = offsets[:-1]
    before = np.where(starts > 0, total[np.maximum(starts - 1, 0)], 0) if total.size else starts
    out: Ints = total - np.repeat(before, np.diff(offsets))
    return out


@dataclass(slots=True)
class TermCodec:
    """Merge TERM payloads (a chain `Codec`)."""

    kind: NodeKind = NodeKind.TERM

    def merge_many(self, tokens: Sequence[Sequence[Part]]) -> list[bytes | None]:
        """Merge the payloads of many terms in one go; one result for each, in order."""
        out: list[bytes | None] = [None] * len(tokens)
        full = [all(part[0][0] & _POSITIONS for part in parts) for parts in tokens]
        for positions in (True, False):
            chosen = [i for i, has in enumerate(full) if has is positions and tokens[i]]
            if not chosen:
                continue
            columns, source, maps = _decode_parts([tokens[i] for i in chosen], positions)
            rows = _map_rows(columns.rows, source, maps)
            kept = np.flatnonzero(rows >= 0)
            columns = TermColumns(columns.groups, rows, columns.tfs, columns.deltas).take(kept)
            for group, payload in zip(*build_terms(columns), strict=True):
                out[chosen[int(group)]] = payload
        return out


@dataclass(slots=True)
class RowsCodec:
    """Merge KEYWORD, META or GROUP payloads (a chain `Codec`)."""

    kind: NodeKind = NodeKind.KEYWORD

    def merge_many(self, tokens: Sequence[Sequence[Part]]) -> list[bytes | None]:
        """Merge the payloads of many tokens in one go; one result for each, in order."""
        flat = [(i, part) for i, parts in enumerate(tokens) for part in parts]
        out: list[bytes | None] = [None] * len(tokens)
        if not flat:
            return out
        values, first = _decode_all([part[0] for _, part in flat])
        counts = values[first + 1]
        if np.any(values[first] != _VERSION) or np.any(
            first + 2 + counts != np.append(first[1:], values.size)
        ):
            raise MalformedPayloadError("not a payload of rows of this version")
        at = ranges(first + 2, counts)
        source = np.repeat(np.arange(len(flat)), counts)
        rows = segmented_cumsum(values[at] >> 1, bounds(counts))
        rows = _map_rows(rows, source, [part[1] for _, part in flat])
        kept = np.flatnonzero(rows >= 0)
        groups = np.array([i for i, _ in flat], dtype=np.int64)[source]
        built = build_rows(groups[kept], rows[kept], (values[at] & 1).astype(np.bool_)[kept])
        for group, payload in zip(*built, strict=True):
            out[int(group)] = payload
        return out


def _order(groups: Ints, rows: Ints) -> Ints:
    key = (groups << 32) | rows
    if np.all(key[1:] > key[:-1]):
        return np.arange(key.size, dtype=np.int64)
    return np.argsort(key, kind="stable")


def _group_starts(groups: Ints) -> Ints:
    fresh = np.ones(groups.size, dtype=np.bool_)
    fresh[1:] = groups[1:] != groups[:-1]
    return np.flatnonzero(fresh)


def _deltas(rows: Ints, starts: Ints) -> Ints:
    out = np.empty_like(rows)
    out[0] = rows[0]
    out[1:] = rows[1:] - rows[:-1]
    out[starts] = rows[starts]
    return out


def _slices(data: Bytes, cuts: Ints) -> list[bytes]:
    whole, at = data.tobytes(), cuts.tolist()
    return [whole[a:b] for a, b in pairwise(at)]


def _encode_terms(columns: TermColumns, starts: Ints) -> list[bytes]:
    rows, tfs, deltas = columns.rows, columns.tfs, columns.deltas
    total = rows.size
    counts = np.diff(np.append(starts, total))
    occurrences = np.add.reduceat(tfs, starts) if deltas is not None else np.zeros_like(counts)
    widths = 3 + 2 * counts + occurrences
    begin = np.cumsum(widths) - widths
    values = np.empty(int(widths.sum()), dtype=np.int64)
    at_rows = ranges(begin + 3, counts)
    at_tfs = at_rows + np.repeat(counts, counts)
    values[begin] = _VERSION | (_POSITIONS if deltas is not None else 0)
    values[begin + 1] = counts
    values[begin + 2] = 0
    values[at_rows] = _deltas(rows, starts)
    values[at_tfs] = tfs
    if deltas is not None:
        values[ranges(begin + 3 + 2 * counts, occurrences)] = deltas
    sizes = varint_sizes(values)
    values[begin + 2] = np.add.reduceat(sizes[at_rows] + sizes[at_tfs], starts)
    sizes[begin + 2] = varint_sizes(values[begin + 2])
    data, offsets = encode_varints(values, sizes)
    return _slices(data, np.append(offsets[begin], offsets[-1]))


def _encode_rows(rows: Ints, signs: Ints, starts: Ints) -> list[bytes]:
    counts = np.diff(np.append(starts, rows.size))
    widths = 2 + counts
    begin = np.cumsum(widths) - widths
    values = np.empty(int(widths.sum()), dtype=np.int64)
    values[begin] = _VERSION
    values[begin + 1] = counts
    values[ranges(begin + 2, counts)] = (_deltas(rows, starts) << 1) | signs
    data, offsets = encode_varints(values)
    return _slices(data, np.append(offsets[begin], offsets[-1]))


def _term_header(payload: bytes) -> tuple[int, int, int, int]:
    """Return flags, number of postings, and where the columns begin and end."""
    if not payload or payload[0] & ~_POSITIONS != _VERSION:
        raise MalformedPayloadError("not a TERM payload of this version")
    count, at = read_varint(payload, 1)
    size, at = read_varint(payload, at)
    if not count or at + size > len(payload):
        raise MalformedPayloadError("a TERM payload is cut off")
    return payload[0], count, at, at + size


def _decode_all(payloads: Sequence[bytes]) -> tuple[Ints, Ints]:
    """Return the varints of all payloads and the index of the first one of each."""
    values, starts = decode_varints(b"".join(payloads))
    sizes = np.array([len(payload) for payload in payloads], dtype=np.int64)
    first = np.searchsorted(starts, np.cumsum(sizes) - sizes)
    if first[-1] + 2 > values.size or np.any(np.diff(first) < 3):
        raise MalformedPayloadError("a payload of postings is too short")
    return values, first


def _decode_parts(
    tokens: Sequence[Sequence[Part]], positions: bool
) -> tuple[TermColumns, Ints, list[npt.NDArray[np.int64]]]:
    """Return the postings of all parts, which part each is from, and the parts' row maps."""
    flat = [(i, part) for i, parts in enumerate(tokens) for part in parts]
    values, first = _decode_all([part[0] for _, part in flat])
    if np.any(values[first] & ~_POSITIONS != _VERSION):
        raise MalformedPayloadError("not a TERM payload of this version")
    counts = values[first + 1]
    at = ranges(first + 3, counts)
    rows = segmented_cumsum(values[at], bounds(counts))
    tfs = values[at + np.repeat(counts, counts)]
    deltas = None
    if positions:
        occurrences = np.add.reduceat(tfs, np.cumsum(counts) - counts)
        deltas = values[ranges(first + 3 + 2 * counts, occurrences)]
    source = np.repeat(np.arange(len(flat)), counts)
    groups = np.array([i for i, _ in flat], dtype=np.int64)[source]
    return TermColumns(groups, rows, tfs, deltas), source, [part[1] for _, part in flat]


def _map_rows(rows: Ints, source: Ints, maps: Sequence[npt.NDArray[np.int64]]) -> Ints:
    """Return the new row of each posting; parts of one segment share one row map object."""
    distinct: dict[int, int] = {}
    base: list[int] = []
    tables: list[npt.NDArray[np.int64]] = []
    size = 0
    for table in maps:
        if id(table) not in distinct:
            distinct[id(table)] = size
            tables.append(table)
            size += table.size
        base.append(distinct[id(table)])
    whole = np.concatenate(tables) if len(tables) > 1 else tables[0]
    out: Ints = whole[rows + np.array(base, dtype=np.int64)[source]]
    return out
