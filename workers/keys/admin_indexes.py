"""Administrative operations on indexes.

The operations are idempotent: a create that is delivered again finds its own request id in the
catalog, a delete goes on where it stopped.

Create:  keys -> catalog entry (conditional: of two creators one wins) -> directory -> result
Delete:  catalog entry `deleting` -> directory -> keys -> data -> catalog entry gone -> result
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

from schemas.admin import AdminOp, IndexCreate, KmsChoice
from schemas.auth import Scope
from schemas.codec import to_plain
from schemas.errors import ErrorCode
from workers.crypto.derive import Purpose
from workers.crypto.hpke import HpkeSuite
from workers.errors import Reject, Retry
from workers.keys.asked import Asked, Operation, Result, begun
from workers.keys.catalog import PROVIDER_NONE, IndexRecord, unknown_index
from workers.keys.hierarchy import FIRST_GENERATION
from workers.keys.indexes import Indexes
from workers.keys.keyring import KeyRing
from workers.keys.policy import check_no_user_key, check_owner
from workers.keys.principal import Principal
from workers.keys.publish import Publisher
from workers.kms.base import Kms, check_key_id
from workers.leases.certificate import CLOCK_SKEW_S, Clock
from workers.leases.directory import KEY_SERVICE_KEY, PublicKey
from workers.storage import layout
from workers.storage.store import Store
from workers.text.analyzer import analyzer_names

_DELETE_BATCH: Final = 500
_SCANS: Final = 3

Partitions = Callable[[], Awaitable[int]]
Forget = Callable[[bytes], Awaitable[None]]


class IndexOperations:
    """Creates, shows and deletes indexes."""

    def __init__(
        self,
        *,
        store: Store,
        kms: Kms,
        indexes: Indexes,
        publisher: Publisher,
        suite: HpkeSuite,
        partitions: Partitions,
        forget: Sequence[Forget],
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            store: where indexes lie.
            kms: wraps the KEKs of new indexes.
            indexes: catalog and keys.
            publisher: writes key-directory.
            suite: HPKE suite of new indexes.
            partitions: returns the number of partitions of index-update.
            forget: each deletes something that the realm keeps about an index, by its uid.
            clock: seconds since 1970.
        """
        self._store = store
        self._kms = kms
        self._indexes = indexes
        self._publisher = publisher
        self._suite = suite
        self._partitions = partitions
        self._forget = forget
        self._clock = clock

    @property
    def operations(self) -> dict[AdminOp, Operation]:
        """What runs each op."""
        return {
            AdminOp.INDEX_CREATE: self._create,
            AdminOp.INDEX_DESCRIBE: self._describe,
            AdminOp.INDEX_LIST: self._list,
            AdminOp.INDEX_DELETE: self._delete,
            AdminOp.INDEX_SHRED: self._shred,
        }

    async def _create(self, asked: Asked) -> Result:
        arguments, principal = cast("IndexCreate", asked.arguments), asked.principal
        request, found = asked.request, asked.found
        check_no_user_key(principal)
        principal.require(Scope.INDEX)
        if arguments.index == KEY_SERVICE_KEY:
            raise Reject(ErrorCode.INVALID_MESSAGE, "this name is reserved", field="args.index")
        if arguments.analyzer not in analyzer_names():
            # Nothing could ever be stored in that index.
            known = ", ".join(analyzer_names())
            raise Reject(
                ErrorCode.UNSUPPORTED, f"no such analyzer: there are {known}", field="args.analyzer"
            )
        if found is None:
            record = await self._make(asked, arguments, principal)
        elif found[0].request_id == request.request_id and found[0].owner == principal.id:
            # This very request, delivered again after a crash before its answer.
            record = found[0]
        else:
            raise Reject(
                ErrorCode.INDEX_EXISTS, "there is an index of this name", field="args.index"
            )
        with begun():
            await self._publisher.index(record)
            await asked.grant()
        return _description(record)

    async def _make(
        self, asked: Asked, arguments: IndexCreate, principal: Principal
    ) -> IndexRecord:
        key_name = self._kms_key(arguments.kms, principal)
        await asked.begin()
        uid = os.urandom(16)
        ring = await self._indexes.hierarchy.create(
            uid, key_id=key_name, suite=self._suite, index_key=principal.index_key
        )
        try:
            record = await self._record(asked, arguments, ring, key_name)
            await self._indexes.catalog.create(record)
        except Reject:
            await self._indexes.hierarchy.destroy(uid)
            raise
        return record

    def _kms_key(self, choice: KmsChoice | None, principal: Principal) -> str:
        """Return the KMS key for a new index; "" if its callers keep the key.

        Raises:
            Reject: WRONG_KEY, UNSUPPORTED, INVALID_MESSAGE.
        """
        if choice is not None and choice.provider == PROVIDER_NONE:
            if principal.index_key is None:
                raise Reject(
                    ErrorCode.WRONG_KEY,
                    "with provider none the caller keeps the key: send 32 bytes as index_key",
                    field="auth.index_key",
                )
            return ""
        if principal.index_key is not None:
            raise Reject(
                ErrorCode.INVALID_MESSAGE,
                "an index_key goes with the provider none",
                field="args.kms.provider",
            )
        if choice is None:
            return self._kms.default_key
        if choice.provider != self._kms.name or choice.region is not None:
            raise Reject(
                ErrorCode.UNSUPPORTED,
                f"this key service wraps keys with: none, {self._kms.name}",
                field="args.kms.provider",
            )
        return check_key_id(choice.key_id) if choice.key_id else self._kms.default_key

    async def _record(
        self,
        asked: Asked,
        arguments: IndexCreate,
        ring: KeyRing,
        key_name: str,
    ) -> IndexRecord:
        principal = asked.principal
        now_ms = int(self._clock() * 1000)
        version = self._indexes.next_version(arguments.index)
        ring.check()
        query = ring.pair(FIRST_GENERATION, Purpose.QUERY).public
        return IndexRecord(
            version=version,
            nonce=os.urandom(16),
            index=arguments.index,
            uid=ring.uid,
            config=arguments.config(),
            partitions=await self._assign(arguments.shards),
            owner=principal.id,
            owner_group=principal.default_group,
            provider=self._kms.name if principal.index_key is None else PROVIDER_NONE,
            key_id=key_name,
            generation=FIRST_GENERATION,
            ingest_keys=[PublicKey.of(k.public, now_ms) for k in ring.newest_ingest_first()],
            query_key=PublicKey.of(query, now_ms),
            created_ms=now_ms,
            request_id=asked.request.request_id,
        )

    async def _assign(self, shards: int) -> list[int]:
        """Give every shard a partition of index-update, in turn after those given before.

        Raises:
            Retry: KEY_UNAVAILABLE, the topic does not exist.
        """
        count = await self._partitions()
        if count == 0:
            raise Retry(
                ErrorCode.KEY_UNAVAILABLE, "the topic index-update is missing: run topics apply"
            )
        given = sum(entry.shards for entry in self._indexes.directory.indexes())
        return [(given + shard) % count for shard in range(shards)]

    async def _describe(self, asked: Asked) -> Result:
        asked.principal.require(Scope.INDEX)
        if asked.found is None or asked.found[0].state != "live":
            raise unknown_index()
        record = asked.found[0]
        await self._indexes.prove(record, asked.principal.index_key)
        return _description(record)

    async def _list(self, asked: Asked) -> Result:
        check_no_user_key(asked.principal)
        asked.principal.require(Scope.INDEX)
        records = [r async for r in self._indexes.catalog.records() if r.state == "live"]
        records.sort(key=lambda record: record.index)
        return {"indexes": [_summary(record) for record in records]}

    async def _shred(self, asked: Asked) -> Result:
        """Delete an index, and prove by a scan that nothing of it is left."""
        uid = asked.found[0].uid if asked.found else b""
        deleted = await self._delete(asked)
        for _ in range(_SCANS):
            left = [entry.key async for entry in self._store.list(layout.index_prefix(uid))]
            if not left:
                break
            # A worker that held a lease has written something meanwhile.
            await self._delete_data(uid)
        return {**deleted, "uid": uid.hex(), "objects_left": len(left)}

    async def _delete(self, asked: Asked) -> Result:
        if asked.found is None:
            raise unknown_index()
        record, etag = asked.found
        principal, issued_ms = asked.principal, asked.request.issued_ms
        if record.state == "live":
            # Once it is deleting, its keys may be gone: who asked was proved before.
            await self._indexes.prove(record, principal.index_key)
        check_owner(principal, record, principal.index_key)
        if issued_ms is not None and issued_ms + CLOCK_SKEW_S * 1000 < record.created_ms:
            # A copy, sent where the first one was not seen: another instance, or after a restart.
            raise Reject(ErrorCode.CONFLICT, "issued before this index was made", field="issued_ms")
        await asked.begin()
        with begun():
            if record.state == "live":
                record = await self._indexes.change(record, etag, state="deleting")
            await self._publisher.index(record)
            await self._indexes.hierarchy.destroy(record.uid)
            await self._delete_data(record.uid)
            for forget in self._forget:
                await forget(record.uid)
            await self._indexes.catalog.remove(record.index)
            self._indexes.forget(record.index)
            await asked.grant()
        return {"index": record.index, "deleted": True}

    async def _delete_data(self, uid: bytes) -> None:
        batch: list[str] = []
        async for entry in self._store.list(layout.index_prefix(uid)):
            batch.append(entry.key)
            if len(batch) == _DELETE_BATCH:
                await self._store.delete(batch)
                batch = []
        if batch:
            await self._store.delete(batch)


def _summary(record: IndexRecord) -> Result:
    """Return a line of a list of indexes."""
    return {
        "index": record.index,
        "shards": record.config.shards,
        "dimension": record.config.dimension,
        "metric": record.config.metric,
        "kms": record.provider,
        "created_ms": record.created_ms,
    }


def _description(record: IndexRecord) -> Result:
    """Return what callers may know about an index."""
    return {
        "index": record.index,
        "uid": record.uid.hex(),
        "config": to_plain(record.config),
        "partitions": record.partitions,
        "generation": record.generation,
        "kms": {"provider": record.provider, "key_id": record.key_id or None},
        "created_ms": record.created_ms,
    }
