"""The indexes of the realm as every part of the key service sees them: record plus keys.

Records are read from the catalog and kept for `RECORD_CACHE_S`; a newer directory entry (another
instance changed the index) ends that at once. A record older than its directory entry is a
rolled-back catalog: DAMAGED.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged, Reject, Retry
from workers.keys.catalog import PROVIDER_NONE, Catalog, IndexRecord, unknown_index
from workers.keys.hierarchy import Hierarchy
from workers.keys.keyring import KeyRing
from workers.leases.certificate import Clock
from workers.leases.directory import KeyDirectory, PublicKey

RECORD_CACHE_S: Final = 10.0


class Indexes:
    """Finds indexes and opens their keys."""

    def __init__(
        self,
        catalog: Catalog,
        hierarchy: Hierarchy,
        directory: KeyDirectory,
        *,
        clock: Clock = time.time,
    ) -> None:
        self.catalog = catalog
        self.hierarchy = hierarchy
        self.directory = directory
        self._clock = clock
        self._records: dict[str, tuple[IndexRecord, float]] = {}

    async def record(self, index: str, uid: bytes = b"") -> IndexRecord:
        """Return the record of a live index, by name or else by uid.

        Raises:
            Reject: UNKNOWN_INDEX; Damaged.
            Retry: STORAGE_UNAVAILABLE.
        """
        if not index:
            entry = self.directory.by_uid(uid)
            if entry is None:
                await self.directory.refresh()
                entry = self.directory.by_uid(uid)
            if entry is None:
                raise unknown_index()
            index = entry.name
        record = self._cached(index) or await self._read(index)
        if uid and record.uid != uid:
            raise unknown_index()
        return record

    async def open(
        self, record: IndexRecord, *, index_key: SecretBytes | None = None, fresh: bool = False
    ) -> KeyRing:
        """Return an index's keys, see `Hierarchy.open`.

        An index key for an index that a KMS keeps is refused: it would prove nothing.

        Raises:
            Reject: WRONG_KEY; Damaged.
            Retry: KEY_UNAVAILABLE, STORAGE_UNAVAILABLE.
        """
        if index_key is not None and record.provider != PROVIDER_NONE:
            raise Reject(
                ErrorCode.WRONG_KEY, "a KMS keeps this index's key: send a token", field="auth"
            )
        return await self.hierarchy.open(record, index_key=index_key, fresh=fresh)

    async def prove(self, record: IndexRecord, index_key: SecretBytes | None) -> None:
        """Check the key that a caller brings, where callers keep it.

        Raises:
            Reject: WRONG_KEY, another key, or none; Damaged.
            Retry: STORAGE_UNAVAILABLE.
        """
        if record.provider == PROVIDER_NONE and index_key is None:
            raise Reject(
                ErrorCode.WRONG_KEY,
                "no key was sent: the callers of this index keep its key, send it as index_key",
                field="auth",
            )
        if index_key is not None:
            await self.open(record, index_key=index_key)

    async def with_todays_ingest_key(
        self, record: IndexRecord, ring: KeyRing, keep_s: float
    ) -> IndexRecord:
        """Give an index today's INGEST pair and destroy old ones; return its record, maybe new.

        Args:
            record: of the index.
            ring: its keys.
            keep_s: seconds that a message sealed to an older pair may still have to be opened.

        Raises:
            Retry: STORAGE_UNAVAILABLE; KEY_UNAVAILABLE, another instance changes the index now.
            Reject: UNKNOWN_INDEX.
        """
        await self.hierarchy.ingest_key_of_today(ring)
        ring.check()
        newest = ring.newest_ingest_first()[0].public
        if record.ingest_keys[0].decode() == newest:
            return record
        found = await self.catalog.find(record.index)
        if found is None or found[0].uid != record.uid or found[0].state != "live":
            raise unknown_index()
        if found[0].epoch != ring.epoch:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the index's key is being changed: ask again")
        if found[0].ingest_keys[0].decode() == newest:
            return found[0]
        await self.hierarchy.drop_old_ingest_keys(ring, keep_s)
        ring.check()
        now_ms = int(self._clock() * 1000)
        keys = [PublicKey.of(key.public, now_ms) for key in ring.newest_ingest_first()]
        try:
            return await self.change(*found, ingest_keys=keys)
        except Reject as error:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the index is being changed") from error

    async def change(self, record: IndexRecord, etag: str, **changes: Any) -> IndexRecord:
        """Write a new version of a record; the caller publishes it.

        Raises:
            Reject: CONFLICT.
            Retry: STORAGE_UNAVAILABLE.
        """
        changed = msgspec.structs.replace(
            record,
            nonce=os.urandom(16),
            version=self.next_version(record.index, record.version),
            **changes,
        )
        await self.catalog.replace(changed, etag)
        self.forget(record.index)
        return changed

    def forget(self, index: str) -> None:
        """Drop what is cached about a name."""
        self._records.pop(index, None)

    def next_version(self, index: str, at_least: int = 0) -> int:
        """Return a version above every one seen: milliseconds, so all instances agree."""
        return max(int(self._clock() * 1000), self.directory.version(index) + 1, at_least + 1)

    def _cached(self, index: str) -> IndexRecord | None:
        record, until_s = self._records.get(index, (None, 0.0))
        if record is None or until_s <= self._clock():
            return None
        return record if record.version >= self.directory.version(index) else None

    async def _read(self, index: str) -> IndexRecord:
        record = await self.catalog.get(index)
        if record.version < self.directory.version(index):
            raise Damaged(ErrorCode.DAMAGED, "the catalog is older than key-directory: rolled back")
        self._records[index] = (record, self._clock() + RECORD_CACHE_S)
        return record
