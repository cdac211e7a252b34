"""Access lists that were changed after their documents were written.

Segments are never changed, so the lists that differ from what stands in them lie in one table of
the shard: object id -> version of the document, version of the list, groups. A list is replaced by
one of a higher version for the same version of the document, and goes when the document is
overwritten or deleted. Small tables lie in the head, larger ones in a sealed object that the head
names together with its SHA-256.

    table   msgpack [[object id, document version, list version, [group token, ...]], ...]
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from workers.chain.faults import damaged
from workers.chain.head import AccessRef
from workers.chain.kinds import BlockKind, RowKind, SegmentKeys
from workers.chain.rows import GroupSet, ids_array, split_ids
from workers.chain.seals import SegmentSeals
from workers.chain.state import SegmentTable, match_ids
from workers.storage import layout
from workers.storage.store import Store

INLINE_BYTES = 16 * 1024
"""Larger tables get an object of their own."""


class Listed(NamedTuple):
    """A changed list: of which version of the document, its own version, group tokens."""

    document: int
    version: int
    groups: GroupSet


class AccessChange(NamedTuple):
    """A list to be replaced; `listed.document` is the version of the document it was read for."""

    object_id: bytes
    listed: Listed


AccessTable = Mapping[bytes, Listed]


def with_changes(
    table: AccessTable, changes: Sequence[AccessChange], tables: Sequence[SegmentTable]
) -> AccessTable:
    """Return the table after changes.

    Args:
        table: before.
        changes: in the order of their records; one for what is no live document, or another version
            of it, changes nothing.
        tables: the live segments.
    """
    if not changes:
        return table
    after = dict(table)
    live = _versions(tables, {change.object_id for change in changes})
    for name, listed in changes:
        known = after.get(name)
        if live.get(name) != listed.document:
            continue
        if known is None or known.document != listed.document or known.version < listed.version:
            after[name] = listed
    return after


def without(table: AccessTable, gone: Collection[bytes]) -> AccessTable:
    """Return the table without the object ids of documents that were overwritten or deleted."""
    if table.keys().isdisjoint(gone):
        return table
    return {name: listed for name, listed in table.items() if name not in gone}


def encode_access(table: AccessTable) -> bytes:
    """Encode a table, entries by object id."""
    return msgspec.msgpack.encode(
        [(name, *listed[:2], list(listed.groups)) for name, listed in sorted(table.items())]
    )


def decode_access(data: bytes) -> AccessTable:
    """Decode a table. Raises Damaged."""
    try:
        entries = msgspec.msgpack.decode(data, type=list[tuple[bytes, int, int, list[bytes]]])
    except msgspec.MsgspecError as error:
        raise damaged("a table of access lists is malformed") from error
    return {
        name: Listed(document, version, tuple(groups))
        for name, document, version, groups in entries
    }


def seal_access(
    table: AccessTable, index_uid: bytes, shard: int, uid: bytes, keys: SegmentKeys, generation: int
) -> tuple[AccessRef | None, bytes]:
    """Return what the head says of a table, and the object to store under `uid`, b"" for none.

    Raises:
        Retry: no lease for the key.
    """
    if not table:
        return None, b""
    plain = encode_access(table)
    if len(plain) <= INLINE_BYTES:
        return AccessRef(plain), b""
    seals = SegmentSeals(index_uid, shard, uid, keys(generation))
    blob = seals.seal_block(BlockKind.ACCESS, 0, plain, "standard")
    return AccessRef(b"", uid, hashlib.sha256(blob).digest(), generation), blob


async def load_access(
    store: Store, ref: AccessRef | None, index_uid: bytes, shard: int, keys: SegmentKeys
) -> AccessTable:
    """Read the table that a head names.

    Raises:
        Damaged: it does not authenticate.
        NotFound: its object does not exist.
        Retry: the store or the key is unavailable.
    """
    if ref is None:
        return {}
    if not ref.uid:
        return decode_access(ref.inline)
    blob = (await store.get(layout.access(index_uid, shard, ref.uid))).data
    if hashlib.sha256(blob).digest() != ref.sha256:
        raise damaged("a table of access lists is not the one its head names")
    seals = SegmentSeals(index_uid, shard, ref.uid, keys(ref.generation))
    return decode_access(seals.open_block(BlockKind.ACCESS, 0, blob))


def _versions(tables: Sequence[SegmentTable], ids: Collection[bytes]) -> dict[bytes, int]:
    """Return the versions of the live documents among `ids`."""
    if not ids:
        return {}
    names = list(ids)
    matches = match_ids(tables, *split_ids(ids_array(names)))
    found: dict[bytes, int] = {}
    for segment, table in enumerate(tables):
        mine = matches.segment == segment
        rows, which = matches.row[mine], matches.which[mine]
        documents = (table.kind[rows] == RowKind.DOC) & ~table.is_dead(rows)
        for i, version in zip(
            which[documents].tolist(), table.version[rows[documents]].tolist(), strict=True
        ):
            found[names[i]] = version
    return found
