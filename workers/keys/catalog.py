"""The catalog: which index a name is, and everything about it that is no key.

`catalog/<HMAC(realm root, name)>` holds the msgpack of an `IndexRecord`, sealed under the realm's
`catalog` key with that HMAC as object id: an entry moved to another name does not open, and the
bucket shows no names. Entries are created conditionally (of two creators one wins) and changed
with their ETag. The key-directory entry of an index is a projection of its record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, Literal

import msgspec

from schemas.errors import ErrorCode
from schemas.index import IndexConfig
from workers.crypto.errors import OpenFailed
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.errors import Damaged, Reject
from workers.keys.realm import Realm, RealmPurpose
from workers.leases.directory import IndexRecord as DirectoryRecord
from workers.leases.directory import PublicKey
from workers.storage import layout
from workers.storage.errors import AlreadyExists, NotFound, OutcomeUnknown, PreconditionFailed
from workers.storage.store import Store

PROVIDER_NONE: Final = "none"


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the data key that goes on, see `lifecycle.py`.

    Args:
        stage: what is waited for.
        started_ms: when it was asked for.
        since_ms: when the stage began.
        barrier: per shard, the index-update offset that must be applied; empty until it is set.
    """

    stage: Literal["prepare", "switch", "drain", "destroy"]
    started_ms: int
    since_ms: int
    barrier: list[int] = []


class IndexRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One index.

    Args:
        version: of the record and its directory entry; grows with every change.
        nonce: 16 random bytes, drawn anew at every write.
        owner: id of the identity that created it.
        owner_group: its default group: who may administer the index.
        provider: KMS that wraps its KEK; `none`: the caller keeps the KEK.
        generation: current data-key generation.
        ingest_keys: public halves, newest first.
        query_key: public half of the current generation.
        request_id: of the index.create that made it; a repetition is no conflict.
        state: `deleting` from the first step of a deletion to its last.
        epoch: of the KEK.
        envelope: lowest version of the KEK's envelope that is accepted.
        generations: of data keys that can be read; empty: `generation` alone.
        rotation: of the data key, while it goes on.
    """

    v: Literal[1] = 1
    version: int
    nonce: bytes
    index: str
    uid: bytes
    config: IndexConfig
    partitions: list[int]
    owner: str
    owner_group: str
    provider: str
    key_id: str
    generation: int
    ingest_keys: list[PublicKey]
    query_key: PublicKey
    created_ms: int
    request_id: str
    state: Literal["live", "deleting"] = "live"
    epoch: int = 0
    envelope: int = 0
    generations: list[int] = []
    rotation: Rotation | None = None

    @property
    def readable(self) -> frozenset[int]:
        """The generations that can be read, the current one among them."""
        return frozenset({*self.generations, self.generation})

    def directory_record(self, expires_ms: int) -> DirectoryRecord:
        """Return what everybody may know."""
        return DirectoryRecord(
            version=self.version,
            expires_ms=expires_ms,
            index=self.index,
            uid=self.uid.hex(),
            deleted=self.state != "live",
            shards=self.config.shards,
            partitions=self.partitions,
            generation=self.generation,
            ingest_keys=self.ingest_keys,
            query_key=self.query_key,
        )


class Catalog:
    """Reads and writes index records."""

    def __init__(self, store: Store, realm: Realm) -> None:
        self._store = store
        self._realm = realm
        self._key = realm.key(RealmPurpose.CATALOG)

    async def find(self, index: str) -> tuple[IndexRecord, str] | None:
        """Return the record of an index, in any state, and its ETag; None if there is none.

        Raises:
            Damaged: it does not open.
            Retry: STORAGE_UNAVAILABLE.
        """
        name = self._realm.catalog_name(index)
        try:
            stored = await self._store.get(layout.catalog(name))
        except NotFound:
            return None
        record = self._open(name, stored.data)
        if record.index != index:
            raise _damaged()
        return record, stored.etag

    async def get(self, index: str) -> IndexRecord:
        """Return the record of a live index.

        Raises:
            Reject: UNKNOWN_INDEX.
            Damaged, Retry: as `find`.
        """
        found = await self.find(index)
        if found is None or found[0].state != "live":
            raise unknown_index()
        return found[0]

    async def create(self, record: IndexRecord) -> None:
        """Write the record of a new index.

        Raises:
            Reject: INDEX_EXISTS.
            Retry: STORAGE_UNAVAILABLE.
        """
        name = self._realm.catalog_name(record.index)
        try:
            await self._store.create(layout.catalog(name), self._seal(name, record))
        except (AlreadyExists, OutcomeUnknown):
            found = await self.find(record.index)
            if found is None or found[0].nonce != record.nonce:
                raise Reject(
                    ErrorCode.INDEX_EXISTS, "there is an index of this name", field="args.index"
                ) from None

    async def replace(self, record: IndexRecord, etag: str) -> None:
        """Write a changed record.

        Raises:
            Reject: CONFLICT, somebody else changed it.
            Retry: STORAGE_UNAVAILABLE.
        """
        name = self._realm.catalog_name(record.index)
        try:
            await self._store.replace(layout.catalog(name), self._seal(name, record), etag)
        except (PreconditionFailed, OutcomeUnknown):
            found = await self.find(record.index)
            if found is None or found[0].nonce != record.nonce:
                raise Reject(
                    ErrorCode.CONFLICT, "the index was changed meanwhile: try again"
                ) from None

    async def remove(self, index: str) -> None:
        """Delete the record: the last step of a deletion. Raises Retry."""
        await self._store.delete([layout.catalog(self._realm.catalog_name(index))])

    async def records(
        self, on_damage: Callable[[Damaged], None] | None = None
    ) -> AsyncIterator[IndexRecord]:
        """Yield all records, in any state and no order.

        Args:
            on_damage: told of each record that does not open; without it the first one is raised.

        Raises:
            Damaged, Retry: as `find`.
        """
        async for entry in self._store.list(layout.catalog_prefix()):
            try:
                stored = await self._store.get(entry.key)
            except NotFound:
                continue
            try:
                record = self._open(bytes.fromhex(entry.key.rpartition("/")[2]), stored.data)
            except Damaged as error:
                if on_damage is None:
                    raise
                on_damage(error)
            else:
                yield record

    def _seal(self, name: bytes, record: IndexRecord) -> bytes:
        return seal(
            self._key,
            msgspec.msgpack.encode(record),
            purpose=SealPurpose.CATALOG,
            index_uid=b"",
            object_id=name,
        )

    def _open(self, name: bytes, data: bytes) -> IndexRecord:
        try:
            plain = open_sealed(
                self._key, data, purpose=SealPurpose.CATALOG, index_uid=b"", object_id=name
            )
            return msgspec.msgpack.decode(plain, type=IndexRecord)
        except (OpenFailed, ValueError, msgspec.MsgspecError) as error:
            raise _damaged() from error


def unknown_index() -> Reject:
    """Return the refusal for a name that no live index has."""
    return Reject(ErrorCode.UNKNOWN_INDEX, "there is no such index: create it", field="index")


def _damaged() -> Damaged:
    return Damaged(ErrorCode.DAMAGED, "an entry of the catalog does not open: damaged or exchanged")
