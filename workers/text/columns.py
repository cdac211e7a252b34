"""Carry the terms of documents from ingest to the index worker as packed columns.

The byte forms are those of `schemas.update.TermField`: `terms` u32 LE indexes into the tokens of
the batch, `tfs` u16 LE, `positions` varints, for each term the first position and the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from workers.text.analyzer import FieldTerms
from workers.text.postings import TermColumns
from workers.text.varint import Ints, MalformedPayloadError, decode_varints, encode_varints


class PackedTerms(NamedTuple):
    """The three columns of one field of one document, as bytes."""

    terms: bytes
    tfs: bytes
    positions: bytes


def pack_terms(field: FieldTerms, tokens: Sequence[int]) -> PackedTerms:
    """Pack the terms of one field.

    Args:
        field: from `Analyzer.analyze_field`.
        tokens: index of each term's token in the batch, in the order of `field.terms`.
    """
    deltas: list[int] = []
    for places in field.positions:
        last = 0
        for place in places:
            deltas.append(place - last)
            last = place
    if not deltas or max(deltas) < 128:
        positions = bytes(deltas)
    else:
        positions = encode_varints(np.array(deltas, dtype=np.int64))[0].tobytes()
    return PackedTerms(
        np.array(tokens, dtype="<u4").tobytes(),
        np.array(field.tfs, dtype="<u2").tobytes(),
        positions,
    )


def read_terms(fields: Sequence[PackedTerms], rows: Ints) -> TermColumns:
    """Return the postings of many fields as columns for `build_terms`.

    Args:
        fields: one entry for each field of each document; anything with the three attributes.
        rows: int64 `(len(fields),)`, the row of each entry's document; entries with a negative
            row are left out.

    Raises:
        MalformedPayloadError: if columns do not fit together.
    """
    kept = [(field, row) for field, row in zip(fields, rows.tolist(), strict=True) if row >= 0]
    groups = np.frombuffer(b"".join([field.terms for field, _ in kept]), "<u4").astype(np.int64)
    tfs = np.frombuffer(b"".join([field.tfs for field, _ in kept]), "<u2").astype(np.int64)
    counts = np.array([len(field.terms) // 4 for field, _ in kept], dtype=np.int64)
    where = np.repeat(np.array([row for _, row in kept], dtype=np.int64), counts)
    packed = b"".join([field.positions for field, _ in kept])
    deltas: Ints | None = None
    if packed:
        deltas, _ = decode_varints(packed)
    if groups.size != tfs.size or (tfs.size and tfs.min() < 1):
        raise MalformedPayloadError("terms and frequencies do not fit together")
    if deltas is not None and deltas.size != int(tfs.sum()):
        raise MalformedPayloadError("positions and frequencies do not fit together")
    return TermColumns(groups, where, tfs, deltas)
