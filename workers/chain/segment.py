"""A segment: one immutable, self-contained object per micro-batch, sealed parts back to back.

    part               found by
    large nodes        `place` in their bucket entry; in label order, so the order tells nothing
    buckets 0..2^b-1   head: `buckets_at` and `bucket_lengths`
    columns            directory; see `columns.py`
    directory          head: `directory_at`, `directory_length`

    directory (msgpack array)
    columns            {kind: [run, place of the first block, u32le lengths of the blocks]}
    fields             names of the text fields, sorted, in the order of LENGTHS
    dimension, half    of VECTORS: float16 if half, else float32
    large              u32le lengths of the large nodes, from place 0 on

A cold look-up is head -> bucket (-> large node). Building is pure CPU: run it in a thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from workers.chain.buckets import INLINE_NODE_BYTES, Slot, choose_bits, encode_buckets
from workers.chain.codec import Node
from workers.chain.columns import Column, encode_columns, encode_dictionary
from workers.chain.fresh import NODE_BYTES
from workers.chain.head import SegmentRef
from workers.chain.kinds import BlockKind, NodeKind, Padding
from workers.chain.padding import pad, size_class
from workers.chain.rows import Rows
from workers.chain.seals import SegmentSeals
from workers.crypto.secret import SecretBytes

INLINE_SEGMENT_BYTES = 64 * 1024
"""Segments below this size travel in the head."""

_TAG = 16
_LABEL = 16
_PREFIX = {kind: bytes([kind]) for kind in NodeKind}


class Directory(Struct, frozen=True, array_like=True):
    """Where the columns of a segment lie."""

    columns: dict[int, tuple[int, int, bytes]]
    fields: list[str]
    dimension: int
    half: bool
    large: bytes


@dataclass(frozen=True, slots=True)
class SegmentContext:
    """What a segment is built for.

    `epoch` is the training epoch of its CODES nodes. `keep_bytes`: its nodes are also handed out in
    clear if they take no more than this (`fresh.py`).
    """

    index_uid: bytes
    shard: int
    segment_key: SecretBytes
    generation: int
    padding: Padding
    now_ms: int
    epoch: int = 0
    keep_bytes: int = 0


class BuiltSegment(NamedTuple):
    """A segment ready to be stored: `data` is b"" when the ref carries it inline.

    `nodes` are the payloads by `kind u8 ‖ token 32`, None if they were too large to keep.
    """

    uid: bytes
    data: bytes
    ref: SegmentRef
    nodes: dict[bytes, bytes] | None = None


def build_segment(ctx: SegmentContext, rows: Rows, nodes: Iterable[Node]) -> BuiltSegment:
    """Seal a document table and its nodes into a new segment with a fresh random uid.

    Args:
        ctx: where it belongs.
        rows: the document table.
        nodes: one per (kind, token), payloads over the rows of this table.

    Raises:
        ValueError: a (kind, token) comes twice, or the segment has no rows.
    """
    if not len(rows):
        raise ValueError("a segment has at least one row")
    uid = os.urandom(16)
    seals = SegmentSeals(ctx.index_uid, ctx.shard, uid, ctx.segment_key)
    parts: list[bytes] = []
    kept = _Kept(ctx.keep_bytes)
    slots, dictionary, large = _seal_nodes(seals, kept.through(nodes), ctx.padding, parts)
    _add_dummies(slots, ctx.padding)
    at = sum(large)
    bits = choose_bits(slots)
    bucket_lengths = []
    buckets_at = at
    for number, bucket in enumerate(encode_buckets(slots, bits)):
        parts.append(seals.seal_block(BlockKind.BUCKET, number, bucket, ctx.padding))
        bucket_lengths.append(len(parts[-1]))
    at += sum(bucket_lengths)
    columns: dict[int, tuple[int, int, bytes]] = {}
    for column in (*encode_columns(rows), encode_dictionary(dictionary)):
        lengths = _seal_column(seals, column, ctx.padding, parts)
        columns[column.kind] = (column.run, at, _u32(lengths))
        at += sum(lengths)
    half = rows.vectors is not None and rows.vectors.dtype == np.float16
    dimension = rows.vectors.shape[1] if rows.vectors is not None else 0
    directory = Directory(columns, sorted(rows.lengths), dimension, half, _u32(large))
    parts.append(
        seals.seal_block(BlockKind.DIRECTORY, 0, msgspec.msgpack.encode(directory), ctx.padding)
    )
    data = b"".join(parts)
    inline = len(data) < INLINE_SEGMENT_BYTES
    ref = SegmentRef(
        uid=uid,
        generation=ctx.generation,
        created_ms=ctx.now_ms,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        rows=len(rows),
        epoch=ctx.epoch,
        padding=ctx.padding,
        bucket_bits=bits,
        buckets_at=buckets_at,
        bucket_lengths=_u32(bucket_lengths),
        directory_at=at,
        directory_length=len(parts[-1]),
        inline=data if inline else b"",
    )
    return BuiltSegment(uid, b"" if inline else data, ref, kept.nodes)


class _Kept:
    """The nodes that pass by, as long as they fit."""

    def __init__(self, max_bytes: int) -> None:
        self.nodes: dict[bytes, bytes] | None = {}
        self._room = max_bytes

    def through(self, nodes: Iterable[Node]) -> Iterator[Node]:
        for node in nodes:
            if self.nodes is not None:
                self._room -= NODE_BYTES + len(node.payload)
                if self._room < 0:
                    self.nodes = None
                else:
                    self.nodes[_PREFIX[node.kind] + node.token] = node.payload
            yield node


def _seal_nodes(
    seals: SegmentSeals, nodes: Iterable[Node], padding: Padding, parts: list[bytes]
) -> tuple[list[Slot], list[bytes], list[int]]:
    """Seal all nodes; large ones go to `parts`. Returns slots, dictionary and large lengths."""
    slots: list[Slot] = []
    dictionary: list[bytes] = []
    big: list[tuple[bytes, bytes]] = []
    seal = seals.seal_node
    for kind, token, payload in nodes:
        dictionary.append(_PREFIX[kind] + token)
        if len(payload) + _TAG <= INLINE_NODE_BYTES:
            label, node = seal(kind, token, payload)
            slots.append(Slot(label, node, 0, len(node)))
        else:
            big.append(seal(kind, token, pad(payload, padding)))
    if len(set(dictionary)) != len(dictionary):
        # Two messages under one key would break the AEAD, not only the look-up.
        raise ValueError("a chain has more than one node in a segment")
    dictionary.sort()
    big.sort()
    at = 0
    for label, node in big:
        slots.append(Slot(label, b"", at, len(node)))
        parts.append(node)
        at += len(node)
    return slots, dictionary, [len(node) for _, node in big]


def _add_dummies(slots: list[Slot], padding: Padding) -> None:
    """Pad the number of labels: dummies look like small nodes of sizes that occur."""
    wanted = size_class(len(slots), padding) - len(slots)
    sizes = [slot.length for slot in slots if slot.node] or [_TAG + 8]
    step = max(1, len(sizes) // max(1, wanted))
    for i in range(wanted):
        size = sizes[i * step % len(sizes)]
        slots.append(Slot(os.urandom(_LABEL), os.urandom(size), 0, size))


def _seal_column(
    seals: SegmentSeals, column: Column, padding: Padding, parts: list[bytes]
) -> list[int]:
    lengths = []
    for number, block in enumerate(column.blocks):
        parts.append(seals.seal_block(column.kind, number, block, padding))
        lengths.append(len(parts[-1]))
    return lengths


def _u32(values: list[int]) -> bytes:
    return np.array(values, "<u4").tobytes()
