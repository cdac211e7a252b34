"""A segment whose bytes are all in memory, read synchronously: for compaction in a thread."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from workers.chain.buckets import Bucket, bucket_of
from workers.chain.columns import (
    RECORDS,
    decode_group_sets,
    decode_lengths,
    decode_packs,
    decode_values,
    read_records,
)
from workers.chain.faults import damaged
from workers.chain.head import SegmentRef
from workers.chain.kinds import BlockKind, NodeKind
from workers.chain.padding import unpad
from workers.chain.rows import Rows
from workers.chain.seals import SegmentSeals
from workers.chain.segment import Directory


class WholeSegment:
    """All parts of one segment.

    Args:
        data: its bytes, already checked against the SHA-256 in the head.
    """

    def __init__(self, ref: SegmentRef, data: bytes, seals: SegmentSeals) -> None:
        self.ref = ref
        self._data = data
        self._seals = seals
        self._buckets: dict[int, Bucket] = {}
        lengths = np.frombuffer(ref.bucket_lengths, "<u4").astype(np.int64)
        self._bucket_ends = (ref.buckets_at + np.cumsum(lengths)).tolist()
        self._bucket_lengths = lengths.tolist()
        end = ref.directory_at + ref.directory_length
        block = seals.open_block(BlockKind.DIRECTORY, 0, data[ref.directory_at : end])
        try:
            self.directory = msgspec.msgpack.decode(block, type=Directory)
        except msgspec.MsgspecError as exc:
            raise damaged("the directory of a segment cannot be read") from exc

    def column(self, kind: BlockKind) -> Iterator[bytes]:
        """Yield the opened blocks of a column; none if it is absent."""
        column = self.directory.columns.get(kind)
        if column is None:
            return
        at = column[1]
        for number, length in enumerate(np.frombuffer(column[2], "<u4").tolist()):
            yield self._seals.open_block(kind, number, self._data[at : at + length])
            at += length

    def rows(self) -> Rows:
        """Return the whole document table."""
        rows = Rows.blank(self.ref.rows)
        for kind in RECORDS:
            read_records(rows, kind, list(self.column(kind)))
        rows.ids = [one.decode() for one in self._values(BlockKind.IDS)]
        rows.metadata = self._values(BlockKind.META)
        rows.objects = self._values(BlockKind.OBJECT)
        fields = self.directory.fields
        if fields:
            parts = [decode_lengths(one, fields) for one in self.column(BlockKind.LENGTHS)]
            rows.lengths = {name: np.concatenate([p[name] for p in parts]) for name in fields}
        for block in self.column(BlockKind.GROUPS):
            rows.group_sets = decode_group_sets(block)
        for block in self.column(BlockKind.PACKS):
            rows.packs = decode_packs(block)
        rows.vocabulary = list(self.column(BlockKind.VOCABULARY))
        self._read_vectors(rows)
        return rows

    def dictionary(self) -> Iterator[bytes]:
        """Yield `kind u8 ‖ token 32` of every node, sorted."""
        for block in self.column(BlockKind.DICTIONARY):
            for at in range(0, len(block), 33):
                yield block[at : at + 33]

    def node(self, kind: NodeKind, token: bytes) -> bytes:
        """Return the payload of a node that the dictionary lists.

        Raises:
            Damaged: it is missing or does not open.
        """
        label, key = self._seals.label_and_key(kind, token)
        found = self._bucket(bucket_of(label, self.ref.bucket_bits)).find(label)
        if found is None:
            raise damaged("a node that the dictionary lists is missing")
        if found.node:
            return self._seals.open_node(kind, label, key, found.node)
        blob = self._data[found.place : found.place + found.length]
        try:
            return unpad(self._seals.open_node(kind, label, key, blob))
        except ValueError as exc:
            raise damaged("a node has no valid frame") from exc

    def _bucket(self, number: int) -> Bucket:
        bucket = self._buckets.get(number)
        if bucket is None:
            end, length = self._bucket_ends[number], self._bucket_lengths[number]
            blob = self._data[end - length : end]
            bucket = Bucket(self._seals.open_block(BlockKind.BUCKET, number, blob))
            self._buckets[number] = bucket
        return bucket

    def _values(self, kind: BlockKind) -> list[bytes]:
        return [value for block in self.column(kind) for value in decode_values(block)]

    def _read_vectors(self, rows: Rows) -> None:
        blocks = list(self.column(BlockKind.VECTORS))
        if not blocks:
            return
        dtype = np.dtype("<f2" if self.directory.half else "<f4")
        flat = np.frombuffer(b"".join(blocks), dtype)
        rows.vectors = flat.reshape(-1, self.directory.dimension)
        numbers = b"".join(self.column(BlockKind.VECTOR_ROWS))
        rows.vector_rows = (
            np.frombuffer(numbers, "<u4")
            if BlockKind.VECTOR_ROWS in self.directory.columns
            else np.arange(len(rows), dtype=np.uint32)
        )
