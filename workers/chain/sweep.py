"""Garbage: what no head names any more, or never named.

Storage does not say when a segment was dropped, and a list of dropped ones in the head would grow
with the update rate. So: mark and sweep. `shards/<n>/garbage` notes when each unnamed object was
first seen unnamed; it is deleted when that is `grace_ms` ago and it is still unnamed. Readers of
older snapshots have that long; an upload of another writer that is about to be named is safe, too.
Before anything is deleted the head is published once more: that fences a writer stalled since
before its own segment was marked, whose head could otherwise name it after it is gone. This writer
names what it has uploaded before it sweeps (`ShardWriter.sweep`).

Uids are random and never reused, so an object cannot come back to life. A garbage note that does
not open, or whose key generation has ended, counts as none: sweeping then merely starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from workers.chain.core import ShardCore
from workers.chain.faults import Leased
from workers.chain.head import Head
from workers.crypto.errors import OpenFailed
from workers.crypto.seal import SealPurpose, open_sealed, read_header, seal
from workers.errors import Retry
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.store import Store

GRACE_MS = 86_400_000
_OBJECT_ID = b"garbage".ljust(16, bytes(1))

Centroids = Callable[[Head], Collection[bytes]]
"""Returns the uids of the centroid objects that a head names."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: objects deleted, and unnamed ones still waiting for their grace to pass."""

    deleted: int
    waiting: int


class _Note(NamedTuple):
    """When each unnamed object was first seen so, and the key generation this was sealed under."""

    marks: dict[str, int]
    generation: int


async def sweep_shard(
    core: ShardCore, *, grace_ms: int = GRACE_MS, centroids: Centroids | None = None
) -> Swept:
    """Delete segments and bitmaps of a shard that have been garbage for `grace_ms`.

    Args:
        core: the shard, loaded.
        grace_ms: how long garbage waits.
        centroids: given, centroid objects that it does not name are garbage too.

    Raises:
        Fenced: another writer owns the shard; nothing was deleted.
        Retry: the store or a key is unavailable.
    """
    note_key = f"{layout.shard_prefix(core.index_uid, core.shard)}garbage"
    noted = await _read_note(core, note_key)
    # List first: what is named afterwards by a newer head is then not mistaken for garbage.
    listed = [
        key
        for folder in (
            "segments/",
            "deletes/",
            "access/",
            *(["centroids/"] if centroids is not None else []),
        )
        for key in await _keys(core.store, layout.shard_prefix(core.index_uid, core.shard) + folder)
    ]
    now_ms = core.clock_ms()
    async with core.lock:
        named = _named(core) | {
            layout.centroids(core.index_uid, core.shard, uid)
            for uid in (centroids(core.head) if centroids is not None else ())
        }
        marks = {key: noted.marks.get(key, now_ms) for key in listed if key not in named}
        due = [key for key, since_ms in marks.items() if since_ms <= now_ms - grace_ms]
        if due:
            await core.publish(core.head, core.known_tables or None)
    await core.store.delete(due)
    waiting = {key: since_ms for key, since_ms in marks.items() if key not in set(due)}
    if waiting != noted.marks or (waiting and noted.generation != core.generation):
        await core.store.put(note_key, _seal_note(core, waiting))
    return Swept(len(due), len(waiting))


async def _keys(store: Store, prefix: str) -> list[str]:
    return [entry.key async for entry in store.list(prefix)]


def _named(core: ShardCore) -> set[str]:
    head = core.head
    named = {layout.segment(core.index_uid, core.shard, ref.uid) for ref in head.segments}
    named |= {
        layout.deletes(core.index_uid, core.shard, deletes.base)
        for deletes in head.deletes
        if deletes.base
    }
    if head.access is not None and head.access.uid:
        named.add(layout.access(core.index_uid, core.shard, head.access.uid))
    return named


async def _read_note(core: ShardCore, key: str) -> _Note:
    try:
        blob = (await core.store.get(key)).data
        generation = read_header(blob).generation
        try:
            sealed_by = core.keys(generation)
        except Retry:
            if generation >= core.generation:
                raise
            return _Note({}, generation)
        with Leased(sealed_by):
            plain = open_sealed(
                sealed_by,
                blob,
                purpose=SealPurpose.DELETES,
                index_uid=core.index_uid,
                object_id=_OBJECT_ID,
                associated_data=core.shard.to_bytes(4, "big"),
            )
        return _Note(msgspec.msgpack.decode(plain, type=dict[str, int]), generation)
    except (NotFound, OpenFailed, ValueError, msgspec.MsgspecError):
        return _Note({}, core.generation)


def _seal_note(core: ShardCore, marks: dict[str, int]) -> bytes:
    key = core.keys(core.generation)
    with Leased(key):
        return seal(
            key,
            msgspec.msgpack.encode(marks),
            purpose=SealPurpose.DELETES,
            generation=core.generation,
            index_uid=core.index_uid,
            object_id=_OBJECT_ID,
            associated_data=core.shard.to_bytes(4, "big"),
        )
