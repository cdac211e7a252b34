"""Walk a whole index and check that everything its heads name opens and fits together.

Checked for each shard: the head (seal, signature), the deletion bitmaps, every live segment (its
SHA-256, every column, every node of its dictionary, every payload), the centroids, the packs that
live documents point to (the bytes have the SHA-256 of their pointer), and the counts of the head
against the rows. Contents are not opened: only the key service can hand out their keys.

Damage is collected, not raised: one damaged node must not hide another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from workers.chain.head import Head, VerifyWriter, open_head
from workers.chain.kinds import NodeKind, RowKind, SegmentKeys
from workers.chain.reader import load_dead
from workers.chain.rows import Rows
from workers.chain.segment_file import SegmentFile, SegmentGone
from workers.chain.whole import WholeSegment
from workers.errors import Damaged
from workers.objects.pack import ObjectPointer, Place, decode_pointer, read_sealed
from workers.search.filter import decode_metadata
from workers.search.snapshot import Mask
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.store import Store
from workers.text.postings import decode_rows, decode_terms
from workers.vector.codes import decode_codes
from workers.vector.store import VectorKeys, load_state

_POINTERS_AT_ONCE: Final = 256
_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not open or does not fit. `where` is an object key of the store."""

    where: str
    what: str


@dataclass(slots=True)
class Report:
    """What was checked. `ok` when nothing was wrong."""

    shards: int = 0
    segments: int = 0
    rows: int = 0
    documents: int = 0
    nodes: int = 0
    contents: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything opened and fitted together."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Verifier:
    """What verification needs.

    Attributes:
        store: read-only credentials suffice.
        index_uid: of the index.
        segment_keys: `segment` subkeys by generation.
        vector_keys: `vector` subkeys by generation.
        verify_writer: checks who signed a head.
        progress: told after each segment how many were checked and how many there are.
    """

    store: Store
    index_uid: bytes
    segment_keys: SegmentKeys
    vector_keys: VectorKeys
    verify_writer: VerifyWriter
    progress: Callable[[int, int], None] | None = None


async def verify_index(verifier: Verifier, shards: Sequence[int]) -> Report:
    """Check the given shards of an index.

    Raises:
        Retry: the store or a key is unavailable; nothing can be said then.
    """
    report = Report()
    for shard in shards:
        await _verify_shard(verifier, shard, report)
    return report


async def _verify_shard(verifier: Verifier, shard: int, report: Report) -> None:
    """Check one shard; start over when it moves on under the check."""
    for attempt in range(_ATTEMPTS):
        part = Report(shards=1)
        head = await _head(verifier, shard, part)
        if head is None:
            break
        try:
            await _walk(verifier, head, part)
        except (SegmentGone, NotFound) as error:
            what = f"an object that the head names is missing ({type(error).__name__})"
            part.problems.append(Problem(layout.head(verifier.index_uid, shard), what))
        if part.ok or attempt + 1 == _ATTEMPTS:
            break
        # What a newer head dropped may be swept any time: it is no damage that it is gone.
        again = await _head(verifier, shard, Report())
        if again is None or again.version == head.version:
            break
    for name in ("shards", "segments", "rows", "documents", "nodes", "contents", "bytes"):
        setattr(report, name, getattr(report, name) + getattr(part, name))
    report.problems += part.problems


async def _head(verifier: Verifier, shard: int, report: Report) -> Head | None:
    key = layout.head(verifier.index_uid, shard)
    try:
        stored = await verifier.store.get(key)
    except NotFound:
        # A shard that was never written has no head.
        return None
    try:
        opened = await asyncio.to_thread(
            open_head,
            stored.data,
            verifier.index_uid,
            shard,
            verifier.segment_keys,
            verifier.verify_writer,
        )
    except Damaged as error:
        report.problems.append(Problem(key, error.message))
        return None
    return opened.head


async def _walk(verifier: Verifier, head: Head, report: Report) -> None:
    uid, store = verifier.index_uid, verifier.store
    try:
        await load_state(store, verifier.vector_keys, uid, head.shard, head.vector)
    except Damaged as error:
        report.problems.append(Problem(layout.head(uid, head.shard), error.message))
    documents, lengths = 0, dict.fromkeys(head.stats.fields, 0)
    whole = True
    for ref, deletes in zip(head.segments, head.deletes, strict=True):
        where = layout.segment(uid, head.shard, ref.uid)
        report.segments += 1
        report.bytes += ref.size
        try:
            dead = await load_dead(store, uid, head.shard, ref, deletes, verifier.segment_keys)
            file = SegmentFile(store, None, uid, head.shard, ref, verifier.segment_keys)
            loaded = await file.load_whole()
            live = np.ones(ref.rows, dtype=np.bool_)
            live[dead] = False
            rows = await asyncio.to_thread(_check_segment, loaded, live, where, report)
        except Damaged as error:
            report.problems.append(Problem(where, error.message))
            whole = False
            continue
        alive = live & (rows.kind == RowKind.DOC)
        documents += int(alive.sum())
        for name, column in rows.lengths.items():
            lengths[name] = lengths.get(name, 0) + int(column[alive].sum())
        await _check_contents(verifier, rows, alive, where, report)
        if verifier.progress is not None:
            verifier.progress(report.segments, len(head.segments))
    report.documents += documents
    if whole:
        _check_counts(head, documents, lengths, layout.head(uid, head.shard), report)


def _check_segment(file: SegmentFile, live: Mask, where: str, report: Report) -> Rows:
    """Open every part of a segment. Pure CPU."""
    segment = WholeSegment(file.ref, file.data, file.seals())
    rows = segment.rows()
    report.rows += len(rows)
    for row in np.flatnonzero(live).tolist():
        try:
            decode_metadata(rows.metadata[row])
        except Damaged as error:
            report.problems.append(Problem(where, error.message))
    for entry in segment.dictionary():
        report.nodes += 1
        try:
            kind = NodeKind(entry[0])
            largest = _largest_row(kind, segment.node(kind, entry[1:]))
        except Damaged as error:
            report.problems.append(Problem(where, error.message))
        except ValueError as error:
            report.problems.append(Problem(where, f"a node does not decode: {error}"))
        else:
            if largest >= len(rows):
                report.problems.append(Problem(where, "a node names a row that does not exist"))
    return rows


def _largest_row(kind: NodeKind, payload: bytes) -> int:
    if kind is NodeKind.TERM:
        return int(decode_terms(payload).rows[-1])
    if kind is NodeKind.CODES:
        return int(decode_codes(payload).rows.max(initial=0))
    return int(decode_rows(payload).rows[-1])


async def _check_contents(
    verifier: Verifier, rows: Rows, alive: Mask, where: str, report: Report
) -> None:
    pointers: list[ObjectPointer] = []
    for row in np.flatnonzero(alive).tolist():
        if not rows.objects[row]:
            continue
        try:
            pointer = decode_pointer(rows.objects[row])
        except Damaged as error:
            report.problems.append(Problem(where, error.message))
            continue
        if pointer.object_id != rows.object_id[row].tobytes():
            report.problems.append(Problem(where, "a document points to another's content"))
        elif pointer.place != Place.NONE:
            pointers.append(pointer)
    for start in range(0, len(pointers), _POINTERS_AT_ONCE):
        await _check_pointers(verifier, pointers[start : start + _POINTERS_AT_ONCE], report)


async def _check_pointers(
    verifier: Verifier, pointers: list[ObjectPointer], report: Report
) -> None:
    """Check sealed contents together; if one is wrong, find out which."""
    try:
        sealed = await read_sealed(verifier.store, verifier.index_uid, pointers)
    except (Damaged, NotFound) as error:
        if len(pointers) > 1:
            half = len(pointers) // 2
            await _check_pointers(verifier, pointers[:half], report)
            await _check_pointers(verifier, pointers[half:], report)
            return
        what = error.message if isinstance(error, Damaged) else "the pack is missing"
        where = layout.pack(verifier.index_uid, pointers[0].pack)
        report.problems.append(Problem(where, what))
        return
    report.contents += len(sealed)
    report.bytes += sum(map(len, sealed))


def _check_counts(
    head: Head, documents: int, lengths: dict[str, int], where: str, report: Report
) -> None:
    if documents != head.stats.docs:
        report.problems.append(Problem(where, "the number of documents is not that of the rows"))
    stated = {name: counts.total_length for name, counts in head.stats.fields.items()}
    if any(stated.get(name, 0) != total for name, total in lengths.items()):
        report.problems.append(Problem(where, "the lengths of a text field do not add up"))
