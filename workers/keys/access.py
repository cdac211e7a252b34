"""Access lists: which groups a document is of, read and changed by the key service alone.

A document's access record (`workers.objects.record`) holds the list it was written with, and its
object key. The first change makes an entry in the sealed, versioned pages of the index, named by
object id and pack uid, so by that very writing of the document; from then on the entry *is* the
list. So a change holds at once, whoever shows whichever record: an older list put back opens
nothing. A document that is written anew begins with a list of its own.

Change:  head -> document -> entry (conditional) and its floor -> `access` index-update -> result

The index-update brings the list to where visibility, overwriting and deleting are decided; it names
the version of the document and of the list, so it is applied once and in order. An entry goes when
its index is deleted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from schemas.auth import Scope
from schemas.errors import ErrorCode
from schemas.ids import DocId
from schemas.position import Order, Position, Source
from schemas.update import OpKind, UpdateBatch, UpdateOp
from workers.chain.reader import ShardReader
from workers.crypto.derive import Purpose, group_token, object_id, shard_of
from workers.crypto.errors import OpenFailed
from workers.crypto.sign import SigningKey
from workers.errors import Damaged, Reject
from workers.identity.pages import Pages
from workers.kafka.broker import Producer, Record
from workers.keys.catalog import IndexRecord
from workers.keys.indexes import Indexes
from workers.keys.keyring import KeyRing
from workers.keys.principal import Principal
from workers.leases.certificate import Clock
from workers.leases.heads import head_verifier
from workers.objects.envelope import KeyServiceSigner, Route, seal_update
from workers.objects.pack import decode_pointer, split_pack_key
from workers.objects.record import AccessRecord, open_pack_key, open_record
from workers.storage.store import Store

MAX_GROUPS: Final = 256


class AccessEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A changed access list.

    Args:
        version: of the list; that of the record is 1.
        groups: ids, sorted.
        request_id: of the request that made this version.
    """

    v: int = 1
    version: int
    groups: list[str]
    request_id: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A document's access list; `position` is where its change was written, None if unchanged."""

    groups: list[str]
    version: int
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class _Document:
    """A document as its shard has it now; `version` is the document's, not the list's."""

    id: str
    object_id: bytes
    shard: int
    version: int
    pack: bytes
    record: AccessRecord

    @property
    def name(self) -> str:
        return entry_name(self.object_id, self.pack)


class AccessLists:
    """Reads and changes access lists."""

    def __init__(
        self,
        pages: Pages[AccessEntry],
        store: Store,
        indexes: Indexes,
        producer: Producer,
        signer: SigningKey,
        *,
        updates: str,
        max_record_bytes: int,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            pages: of entries; the scope is the uid of an index.
            store: where indexes lie.
            indexes: their keys.
            producer: writes index-update.
            signer: the key service's identity.
            updates: topic index-update, with prefix.
            max_record_bytes: of an update.
            clock: seconds since 1970.
        """
        self._pages = pages
        self._store = store
        self._indexes = indexes
        self._producer = producer
        self._signer = signer
        self._updates = updates
        self._max_record_bytes = max_record_bytes
        self._clock = clock

    async def changed(self, uid: bytes, names: Sequence[str]) -> list[AccessEntry | None]:
        """Return the changed lists among documents, None where the record's own list counts.

        Args:
            uid: of the index.
            names: `entry_name` of each.

        Raises:
            Damaged: entries were put back. Retry: STORAGE_UNAVAILABLE.
        """
        return await asyncio.gather(*(self._pages.peek(name, uid) for name in names))

    async def get(self, record: IndexRecord, principal: Principal, doc_id: str) -> Listed:
        """Return a document's access list to a member.

        Raises:
            Reject: NOT_FOUND, no such document; FORBIDDEN. Damaged.
            Retry: STORAGE_UNAVAILABLE, KEY_UNAVAILABLE.
        """
        document = await self._find(record, await self._indexes.open(record), doc_id)
        entry = await self._pages.get(document.name, record.uid)
        groups, version = _current(document, entry)
        principal.require_member(Scope.GET_ACCESS_GROUPS, groups)
        return Listed(sorted(groups), version)

    async def change(
        self,
        record: IndexRecord,
        principal: Principal,
        doc_id: str,
        change: Callable[[set[str]], set[str]],
        *,
        request_id: str,
        source: Record,
    ) -> Listed:
        """Change a document's access list, for a member of it.

        Args:
            record: of the index.
            principal: who asks.
            doc_id: of the document.
            change: returns the new list for the present one.
            request_id: of the request; run again, it only repeats the index-update.
            source: the request's record.

        Raises:
            Reject: NOT_FOUND; FORBIDDEN; CONFLICT, the list would be empty; TOO_LARGE. Damaged.
            Retry: STORAGE_UNAVAILABLE, KEY_UNAVAILABLE.
        """
        ring = await self._indexes.open(record)
        document = await self._find(record, ring, doc_id)

        def apply(entry: AccessEntry | None) -> AccessEntry | None:
            if entry is not None and entry.request_id == request_id:
                return entry
            groups, version = _current(document, entry)
            principal.require_member(Scope.MODIFY_ACCESS_GROUPS, groups)
            after = change(groups)
            if after == groups:
                return entry
            if not after:
                raise Reject(
                    ErrorCode.CONFLICT, "an access list has at least one group", field="args.groups"
                )
            if len(after) > MAX_GROUPS:
                raise Reject(
                    ErrorCode.TOO_LARGE,
                    f"an access list takes at most {MAX_GROUPS} groups",
                    field="args.groups",
                )
            return AccessEntry(version=version + 1, groups=sorted(after), request_id=request_id)

        entry = await self._pages.change(document.name, apply, record.uid)
        if entry is None:
            return Listed(sorted(document.record.groups), document.record.version)
        position = await self._send(record, ring, document, entry, source)
        return Listed(entry.groups, entry.version, position)

    async def forget(self, uid: bytes) -> None:
        """Delete the entries of an index that is deleted. Raises Retry."""
        await self._pages.drop(uid)

    async def _find(self, record: IndexRecord, ring: KeyRing, doc_id: str) -> _Document:
        ring.check()
        name = object_id(ring.tag, doc_id)
        shard = shard_of(name, record.config.shards)
        reader = ShardReader(
            self._store,
            None,
            record.uid,
            shard,
            lambda generation: ring.subkey(generation, Purpose.SEGMENT),
            head_verifier(self._indexes.directory, record.index),
        )
        snapshot = await reader.refresh()
        [place] = await snapshot.find_ids([name])
        if place is None:
            raise Reject(ErrorCode.NOT_FOUND, "there is no such document", field="args.id")
        segment, row = place
        rows = np.array([row], dtype=np.int64)
        [(pointer, pack)] = await snapshot.objects(segment, rows)
        [version] = (await snapshot.origins(segment, rows))["version"].tolist()
        found, uid = self._open(record, ring, pointer, pack)
        return _Document(doc_id, name, shard, version, uid, found)

    def _open(
        self, record: IndexRecord, ring: KeyRing, encoded: bytes, wrapped: bytes
    ) -> tuple[AccessRecord, bytes]:
        pointer = decode_pointer(encoded)
        pack = split_pack_key(wrapped)
        ring.check()
        try:
            private = ring.pair(pack.generation, Purpose.OBJECT)
            with open_pack_key(
                private,
                pack.sealed,
                index_uid=record.uid,
                generation=pack.generation,
                pack_uid=pack.uid,
            ) as key:
                found = open_record(
                    key,
                    pointer.access,
                    index_uid=record.uid,
                    generation=pack.generation,
                    object_id=pointer.object_id,
                    content_sha256=pointer.sha256,
                )
        except (OpenFailed, KeyError) as error:
            raise Damaged(
                ErrorCode.DAMAGED, "an access record does not open: damaged or exchanged"
            ) from error
        return found, pack.uid

    async def _send(
        self,
        record: IndexRecord,
        ring: KeyRing,
        document: _Document,
        entry: AccessEntry,
        source: Record,
    ) -> Position:
        ring.check()
        op = UpdateOp(
            kind=OpKind.ACCESS,
            order=Order(0, 0, 0),
            id=DocId(document.id),
            object_id=document.object_id,
            op_id=0,
            groups=[group_token(ring.tag, group) for group in entry.groups],
            if_version=document.version,
            source=Source(topic=source.topic, partition=source.partition, offset=source.offset),
            access_version=entry.version,
        )
        batch = UpdateBatch(
            tokens=[], token_kinds=b"", ops=[op], created_ms=int(self._clock() * 1000)
        )
        route = Route(record.uid, document.shard, record.generation)
        sealed = seal_update(
            batch,
            route,
            ring.pair(record.generation, Purpose.UPDATE).public,
            KeyServiceSigner(self._signer),
            max_record_bytes=self._max_record_bytes,
        )
        at = await self._producer.send_and_wait(
            self._updates,
            sealed.value,
            key=route.key,
            partition=record.partitions[document.shard],
        )
        return Position(shard=document.shard, partition=at.partition, offset=at.offset)


def entry_name(object_id: bytes, pack: bytes) -> str:
    """Return what the list of one writing of a document is called."""
    return (object_id + pack).hex()


def _current(document: _Document, entry: AccessEntry | None) -> tuple[set[str], int]:
    if entry is None:
        return set(document.record.groups), document.record.version
    return set(entry.groups), entry.version
