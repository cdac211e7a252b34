"""The document table as blocks: a column is cut into runs of rows, each run is one sealed block.

    kind          run of   content
    KINDS         16384    kind u8 per row
    OBJECT_IDS    1024     16 bytes per row
    ROWS          1024     per row: seq u64 ‖ group set i32 ‖ pack i32
    ORIGIN        512      per row: stream u32 ‖ partition i32 ‖ offset i64 ‖ applied_ms i64 ‖
                           issued_ms i64 ‖ version u32
    IDS META OBJECT  *     u32 end offsets, then the values
    LENGTHS       4096     u32 per row, field after field in the order of the directory
    VECTORS       *        vectors as they are (`*`: a power of two of rows, about 16 KiB)
    VECTOR_ROWS   all      u32 rows that have a vector; absent when all have
    IDTABLE       bucket   (object id 16 ‖ row u32 ‖ kind u8) sorted; bucket = top bits of the id
    GROUPS PACKS  all      msgpack lists;  VOCABULARY: one block per entry
    DICTIONARY    2048     kind u8 ‖ token 32, sorted; only compaction and rotation read it

Little endian throughout, object ids as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from workers.chain.faults import damaged
from workers.chain.kinds import BlockKind
from workers.chain.rows import GroupSet, Rows, split_ids

TARGET_BYTES = 16 * 1024

KINDS_DTYPE = np.dtype([("kind", "u1")])
OBJECT_IDS_DTYPE = np.dtype([("object_id", "u1", (16,))])
ROWS_DTYPE = np.dtype([("seq", "<u8"), ("group_set", "<i4"), ("pack", "<i4")])
ORIGIN_DTYPE = np.dtype(
    [
        ("stream", "<u4"),
        ("partition", "<i4"),
        ("offset", "<i8"),
        ("applied_ms", "<i8"),
        ("issued_ms", "<i8"),
        ("version", "<u4"),
    ]
)
ID_DTYPE = np.dtype([("object_id", "u1", (16,)), ("row", "<u4"), ("kind", "u1")])
RECORDS: dict[BlockKind, np.dtype[Any]] = {
    BlockKind.KINDS: KINDS_DTYPE,
    BlockKind.OBJECT_IDS: OBJECT_IDS_DTYPE,
    BlockKind.ROWS: ROWS_DTYPE,
    BlockKind.ORIGIN: ORIGIN_DTYPE,
}
"""The columns of records, which together make up the table of an operation."""

_RUNS = {
    BlockKind.KINDS: 16384,
    BlockKind.OBJECT_IDS: 1024,
    BlockKind.ROWS: 1024,
    BlockKind.ORIGIN: 512,
    BlockKind.LENGTHS: 4096,
}
_ID_BUCKET = 512
MAX_ID_BITS = 14

Record = NDArray[Any]
"""An array of one of the dtypes above."""


class Column(NamedTuple):
    """The blocks of a kind; `run` is the rows per block (for IDTABLE: its number of bits)."""

    kind: BlockKind
    run: int
    blocks: list[bytes]


def encode_columns(rows: Rows) -> Iterator[Column]:
    """Yield the columns of a document table; none for an empty one's absent parts."""
    for kind, dtype in RECORDS.items():
        yield _fixed(kind, _records(rows, dtype))
    yield _values(BlockKind.IDS, [one.encode() for one in rows.ids])
    yield _values(BlockKind.META, rows.metadata)
    yield _values(BlockKind.OBJECT, rows.objects)
    yield _id_table(rows)
    if rows.lengths:
        yield _lengths(rows)
    if rows.vectors is not None and len(rows.vector_rows):
        yield from _vectors(rows)
    if rows.group_sets:
        yield Column(BlockKind.GROUPS, 1, [msgspec.msgpack.encode(rows.group_sets)])
    if rows.packs:
        yield Column(BlockKind.PACKS, 1, [msgspec.msgpack.encode(rows.packs)])
    if rows.vocabulary:
        yield Column(BlockKind.VOCABULARY, 1, list(rows.vocabulary))


def read_records(rows: Rows, kind: BlockKind, blocks: Sequence[bytes]) -> None:
    """Set the columns of one kind of records from all its blocks.

    Raises:
        Damaged: their number is not that of the rows.
    """
    records = np.frombuffer(b"".join(blocks), RECORDS[kind])
    if len(records) != len(rows):
        raise damaged("a document table has another size than its head says")
    for name in records.dtype.names or ():
        setattr(rows, name, np.ascontiguousarray(records[name]))


def decode_values(block: bytes) -> list[bytes]:
    """Return all values of a run of IDS, META or OBJECT."""
    count = int.from_bytes(block[:4], "little")
    ends = np.frombuffer(block, "<u4", count, 4).tolist()
    base = 4 + 4 * count
    starts = [0, *ends[:-1]]
    return [block[base + a : base + b] for a, b in zip(starts, ends, strict=True)]


def value_at(block: bytes, index: int) -> bytes:
    """Return one value of a run without decoding the others."""
    count = int.from_bytes(block[:4], "little")
    base = 4 + 4 * count
    at = 4 + 4 * index
    start = int.from_bytes(block[at - 4 : at], "little") if index else 0
    return block[base + start : base + int.from_bytes(block[at : at + 4], "little")]


def decode_group_sets(block: bytes) -> list[GroupSet]:
    """Return the group sets of a segment."""
    return msgspec.msgpack.decode(block, type=list[tuple[bytes, ...]])


def decode_packs(block: bytes) -> list[bytes]:
    """Return the packs of a segment."""
    return msgspec.msgpack.decode(block, type=list[bytes])


def decode_lengths(block: bytes, fields: Sequence[str]) -> dict[str, NDArray[np.uint32]]:
    """Return the token counts per field of a run."""
    if not fields:
        return {}
    table = np.frombuffer(block, "<u4").reshape(len(fields), -1)
    return {name: table[i] for i, name in enumerate(fields)}


def encode_dictionary(entries: Sequence[bytes]) -> Column:
    """Encode sorted `kind u8 ‖ token 32` entries."""
    run = 2048
    blocks = [b"".join(entries[at : at + run]) for at in range(0, len(entries), run)]
    return Column(BlockKind.DICTIONARY, run, blocks)


def id_bucket(object_id: bytes, bits: int) -> int:
    """Return the IDTABLE block that would hold an object id."""
    return int.from_bytes(object_id[:4], "big") >> (32 - bits)


def _records(rows: Rows, dtype: np.dtype[Any]) -> Record:
    table = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        table[name] = getattr(rows, name)
    return table


def _fixed(kind: BlockKind, table: Record) -> Column:
    run = _RUNS[kind]
    blocks = [table[at : at + run].tobytes() for at in range(0, len(table), run)]
    return Column(kind, run, blocks)


def _run_for(total_bytes: int, n: int, largest: int = 4096) -> int:
    per_row = max(1, total_bytes // max(1, n))
    return 1 << min(largest.bit_length() - 1, max(0, (TARGET_BYTES // per_row).bit_length() - 1))


def _values(kind: BlockKind, values: Sequence[bytes]) -> Column:
    run = _run_for(sum(map(len, values)) + 4 * len(values), len(values))
    blocks = []
    for at in range(0, len(values), run):
        part = values[at : at + run]
        ends = np.cumsum([len(one) for one in part]).astype("<u4")
        blocks.append(b"".join((len(part).to_bytes(4, "little"), ends.tobytes(), *part)))
    return Column(kind, run, blocks)


def _lengths(rows: Rows) -> Column:
    run = _RUNS[BlockKind.LENGTHS]
    table = np.stack([rows.lengths[name] for name in sorted(rows.lengths)]).astype("<u4")
    blocks = [table[:, at : at + run].tobytes() for at in range(0, len(rows), run)]
    return Column(BlockKind.LENGTHS, run, blocks)


def _vectors(rows: Rows) -> Iterator[Column]:
    assert rows.vectors is not None
    vectors = np.ascontiguousarray(rows.vectors)
    run = _run_for(vectors.nbytes, len(vectors))
    blocks = [vectors[at : at + run].tobytes() for at in range(0, len(vectors), run)]
    yield Column(BlockKind.VECTORS, run, blocks)
    if len(rows.vector_rows) != len(rows):
        yield Column(BlockKind.VECTOR_ROWS, 1, [rows.vector_rows.astype("<u4").tobytes()])


def _id_table(rows: Rows) -> Column:
    hi, lo = split_ids(rows.object_id)
    order = np.lexsort((lo, hi))
    table = np.empty(len(rows), ID_DTYPE)
    table["object_id"] = rows.object_id[order]
    table["row"] = order
    table["kind"] = rows.kind[order]
    bits = min(MAX_ID_BITS, max(0, (len(rows) // _ID_BUCKET).bit_length()))
    numbers = (hi[order] >> np.uint64(32)) >> np.uint64(32 - bits)
    cuts = np.searchsorted(numbers, np.arange(1, 1 << bits, dtype=np.uint64))
    return Column(BlockKind.IDTABLE, bits, [part.tobytes() for part in np.split(table, cuts)])
