"""Match and score one segment against a text plan. Pure CPU.

Per segment every leaf becomes, for each field, a pair (rows, frequencies). The tree is evaluated
over the union of these rows, so the cost follows the postings and not the size of the segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.errors import ErrorCode
from workers.errors import Reject
from workers.search.plan import At, Node, Sequence, Synonyms, Term, TextPlan
from workers.search.snapshot import Mask, RowNumbers
from workers.text.bm25 import FieldStats, idf, score_with_idf
from workers.text.postings import (
    TermPostings,
    decode_positions,
    decode_terms,
    has_positions,
)
from workers.vector.metric import F32

Payloads = Mapping[tuple[str, str], bytes]
"""TERM payloads of one segment by (field, term)."""
LeafPostings = dict[tuple[int, str], TermPostings]
"""Postings of one segment by (leaf, field)."""
_EMPTY = np.empty(0, dtype=np.int64)
_SPARSE: Final = 16


@dataclass(frozen=True, slots=True)
class SegmentLeaves:
    """What one segment holds of a plan.

    Attributes:
        leaves: postings by (leaf, field); pairs without any are absent.
        live: number of live rows of each.
        term_live: live rows of each (field, term) that a phrase needs the rarity of.
        rows: int64 `(u,)`, union of all rows, increasing.
        places: where in `rows` each posting of `leaves` stands, int64.
    """

    leaves: LeafPostings
    live: dict[tuple[int, str], int]
    term_live: dict[tuple[str, str], int]
    rows: RowNumbers
    places: dict[tuple[int, str], RowNumbers]


@dataclass(frozen=True, slots=True)
class Rarity:
    """Index-wide numbers that scores need: idf by (leaf, field), statistics by field."""

    idf: Mapping[tuple[int, str], float]
    stats: Mapping[str, FieldStats]
    k1: float
    b: float


def read_leaves(plan: TextPlan, payloads: Payloads, live: Mask) -> SegmentLeaves:
    """Decode what one segment holds of a plan.

    Raises:
        MalformedPayloadError: a payload is not what it should be.
        Reject: UNSUPPORTED, a phrase over an index without positions.
    """
    decoded = {key: decode_terms(payload) for key, payload in payloads.items()}
    leaves: LeafPostings = {}
    term_live: dict[tuple[str, str], int] = {}
    for number, leaf in enumerate(plan.leaves):
        for field in plan.weights:
            if isinstance(leaf, Term):
                found = decoded.get((field, leaf.term))
            elif isinstance(leaf, Synonyms):
                found = _union([decoded[field, t] for t in leaf.terms if (field, t) in decoded])
            else:
                for term in leaf.terms:
                    if (field, term) in decoded:
                        term_live[field, term] = int(live[decoded[field, term].rows].sum())
                found = _phrase(leaf, field, payloads, decoded)
            if found is not None and found.rows.size:
                leaves[number, field] = found
    counts = {key: int(live[found.rows].sum()) for key, found in leaves.items()}
    return SegmentLeaves(leaves, counts, term_live, *_union_of(leaves, live.size))


def rarity(
    plan: TextPlan,
    segments: list[SegmentLeaves],
    stats: Mapping[str, FieldStats],
    k1: float,
    b: float,
) -> Rarity:
    """Return the index-wide idf of every leaf: a phrase counts as the sum of its terms."""
    out: dict[tuple[int, str], float] = {}
    for number, leaf in enumerate(plan.leaves):
        for field in plan.weights:
            docs = stats[field].docs
            if isinstance(leaf, Sequence):
                out[number, field] = sum(
                    idf(sum(one.term_live.get((field, term), 0) for one in segments), docs)
                    for term in leaf.terms
                )
            else:
                out[number, field] = idf(
                    sum(one.live.get((number, field), 0) for one in segments), docs
                )
    return Rarity(out, stats, k1, b)


def match(root: Node, found: SegmentLeaves) -> Mask:
    """Return bool `(u,)`: which rows of the union match the tree."""
    if isinstance(root, At):
        mask = np.zeros(found.rows.size, dtype=np.bool_)
        for (number, _), places in found.places.items():
            if number == root.leaf:
                mask[places] = True
        return mask
    masks = [match(part, found) for part in root.parts]
    joined = np.logical_and if root.operator == "and" else np.logical_or
    mask = np.asarray(joined.reduce(masks), dtype=np.bool_)
    for part in root.excluded:
        mask &= ~match(part, found)
    return mask


def score_rows(
    plan: TextPlan,
    root: Node,
    found: SegmentLeaves,
    chosen: RowNumbers,
    lengths: Mapping[str, npt.NDArray[np.uint32]],
    rare: Rarity,
) -> F32:
    """Score rows that matched.

    Args:
        plan: of the query.
        root: its tree.
        found: of the segment.
        chosen: int64 `(k,)`, increasing indexes into `found.rows`.
        lengths: length of each field in each of the chosen rows.
        rare: index-wide numbers.

    Returns:
        float32 `(k,)`; what does not match (part of) the tree adds nothing.
    """
    kept = np.full(found.rows.size, -1, dtype=np.int64)
    kept[chosen] = np.arange(chosen.size)
    return _scored(plan, root, found, chosen.size, kept, lengths, rare)[1]


def _scored(
    plan: TextPlan,
    node: Node,
    found: SegmentLeaves,
    size: int,
    kept: RowNumbers,
    lengths: Mapping[str, npt.NDArray[np.uint32]],
    rare: Rarity,
) -> tuple[Mask, F32]:
    """Return which of the `size` chosen rows match a node, and their scores.

    `kept[i]` is the number of row i of the union among the chosen ones, -1 if it is not chosen.
    """
    mask = np.zeros(size, dtype=np.bool_)
    total = np.zeros(size, dtype=np.float32)
    if isinstance(node, At):
        leaf = plan.leaves[node.leaf]
        boost = leaf.boost if isinstance(leaf, Term) else 1
        for field, weight in plan.weights.items():
            postings = found.leaves.get((node.leaf, field))
            if postings is None:
                continue
            places, tfs = kept[found.places[node.leaf, field]], postings.tfs
            if size < found.rows.size:
                present = places >= 0
                places, tfs = places[present], tfs[present]
            part = score_with_idf(
                tfs,
                lengths[field][places],
                rarity=rare.idf[node.leaf, field],
                average_length=rare.stats[field].average_length,
                k1=rare.k1,
                b=rare.b,
            )
            total[places] += part * np.float32(weight * boost)
            mask[places] = True
        return mask, total
    parts = [_scored(plan, part, found, size, kept, lengths, rare) for part in node.parts]
    joined = np.logical_and if node.operator == "and" else np.logical_or
    mask = np.asarray(joined.reduce([one for one, _ in parts]), dtype=np.bool_)
    for _, scores in parts:
        total += scores
    for unwanted in node.excluded:
        mask &= ~_scored(plan, unwanted, found, size, kept, lengths, rare)[0]
    total[~mask] = 0
    return mask, total


def _union_of(
    leaves: LeafPostings, rows: int
) -> tuple[RowNumbers, dict[tuple[int, str], RowNumbers]]:
    """Return the union of all rows, and the places of each leaf's rows in it."""
    total = sum(found.rows.size for found in leaves.values())
    if not total:
        return _EMPTY, {}
    if total * _SPARSE < rows:
        union = np.unique(np.concatenate([found.rows for found in leaves.values()]))
        return union, {key: np.searchsorted(union, one.rows) for key, one in leaves.items()}
    # One pass over the segment's rows is cheaper than sorting, unless there are very few postings.
    held = np.zeros(rows, dtype=np.bool_)
    for one in leaves.values():
        held[one.rows] = True
    union = np.flatnonzero(held)
    place = np.empty(rows, dtype=np.int64)
    place[union] = np.arange(union.size)
    return union, {key: place[one.rows] for key, one in leaves.items()}


def _union(postings: list[TermPostings]) -> TermPostings | None:
    if len(postings) < 2:
        return postings[0] if postings else None
    rows, place = np.unique(np.concatenate([one.rows for one in postings]), return_inverse=True)
    tfs = np.zeros(rows.size, dtype=np.int64)
    np.add.at(tfs, place, np.concatenate([one.tfs for one in postings]))
    return TermPostings(rows, tfs)


def _phrase(
    leaf: Sequence,
    field: str,
    payloads: Payloads,
    decoded: Mapping[tuple[str, str], TermPostings],
) -> TermPostings | None:
    """Return the rows in which the terms stand in sequence, and how often."""
    keys = [(field, term) for term in leaf.terms]
    if any(key not in decoded for key in keys):
        return None
    rows = decoded[keys[0]].rows
    for key in keys[1:]:
        rows = np.intersect1d(rows, decoded[key].rows, assume_unique=True)
    starts: npt.NDArray[np.int64] | None = None
    for key, offset in zip(keys, leaf.offsets, strict=True):
        if not has_positions(payloads[key]):
            raise Reject(ErrorCode.UNSUPPORTED, "this index keeps no positions: no phrases")
        offsets, positions = decode_positions(payloads[key])
        owner = np.repeat(decoded[key].rows, np.diff(offsets))
        inside = np.isin(owner, rows) & (positions >= offset)
        # Row and position of the phrase's first word in one number, so that sets of them intersect.
        begun = (owner[inside] << 32) | (positions[inside] - offset)
        starts = begun if starts is None else np.intersect1d(starts, begun)
    if starts is None or not starts.size:
        return None
    held, counts = np.unique(starts >> 32, return_counts=True)
    return TermPostings(held, counts.astype(np.int64))
