"""The change of an index's data key, step by step, while everybody goes on working.

    prepare   the new generation can be read by whoever asks, nobody writes with it; after the life
              of a lease everybody has it
    switch    new updates, segments and heads use it; after the life of a lease nobody writes with
              the old one any more
    drain     an empty update stands in every shard's queue behind the last old one (`barrier`);
              waited for: every head has applied it, and names nothing of the old generation
    destroy   the catalog names the new generation alone; the old data key is deleted

The state stands in the catalog, every step is one conditional write there: any instance may take
the next one, and one that died is continued. Index workers move the data (compaction,
`workers.index.rotate`); the key service reads the heads itself to see how far they are.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from schemas.errors import ErrorCode
from schemas.update import UpdateBatch
from workers.chain.head import Head, open_head
from workers.crypto.derive import Purpose
from workers.crypto.hpke import HpkeSuite
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey
from workers.errors import Reject, Retry
from workers.kafka.broker import Producer
from workers.keys.audit import Audit
from workers.keys.catalog import IndexRecord, Rotation, unknown_index
from workers.keys.indexes import Indexes
from workers.keys.keyring import KeyRing
from workers.keys.publish import Publisher
from workers.leases.certificate import CLOCK_SKEW_S, Clock
from workers.leases.directory import PublicKey
from workers.leases.heads import head_verifier
from workers.objects.envelope import KeyServiceSigner, Route, seal_update
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.store import Store
from workers.vector.store import read_ref

_MAX_RECORD_BYTES: Final = 900_000

log = structlog.get_logger("keys.lifecycle")


@dataclass(frozen=True, slots=True)
class ShardState:
    """How far a shard is.

    Attributes:
        version, applied: of its head; 0 and -1 before the first.
        segments, size: how many segments, and bytes of them, are of an earlier generation.
        done: nothing is left to move.
    """

    shard: int
    version: int
    applied: int
    segments: int
    size: int
    done: bool


class Lifecycle:
    """Changes data keys. One per key-service process."""

    def __init__(
        self,
        *,
        store: Store,
        indexes: Indexes,
        publisher: Publisher,
        audit: Audit,
        producer: Producer,
        signer: SigningKey,
        updates: str,
        suite: HpkeSuite,
        lease_s: int,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            store: where heads lie.
            indexes: catalog and keys.
            publisher: writes key-directory.
            audit: takes every step.
            producer: writes barriers.
            signer: the key service's identity.
            updates: topic index-update, with prefix.
            suite: HPKE suite of new generations.
            lease_s: seconds that a lease lives at most.
            clock: seconds since 1970.
        """
        self._store = store
        self._indexes = indexes
        self._publisher = publisher
        self._audit = audit
        self._producer = producer
        self._signer = signer
        self._updates = updates
        self._suite = suite
        self._wait_ms = (lease_s + CLOCK_SKEW_S) * 1000
        self._clock = clock
        self._going: set[str] = set()

    def watch(self, record: IndexRecord) -> None:
        """Go on with a rotation that was begun elsewhere, or before a restart."""
        if record.state == "live" and record.rotation is not None:
            self._going.add(record.index)

    async def begin(self, record: IndexRecord, etag: str, ring: KeyRing) -> IndexRecord:
        """Begin to change the data key of an index.

        Args:
            record: of the index.
            etag: of the record.
            ring: its keys.

        Raises:
            Reject: CONFLICT, a change goes on already, or somebody else changes the index.
            Retry: the store, the KMS or the broker is unavailable.
        """
        if record.rotation is not None:
            raise Reject(
                ErrorCode.CONFLICT, "the data key of this index is being changed: see key status"
            )
        generation = await self._indexes.hierarchy.new_generation(record, ring, self._suite)
        now_ms = self._now_ms()
        changed = await self._indexes.change(
            record,
            etag,
            generations=sorted({*record.readable, generation}),
            rotation=Rotation(stage="prepare", started_ms=now_ms, since_ms=now_ms),
        )
        self._going.add(record.index)
        await self._publisher.index(changed)
        return changed

    async def tick(self) -> None:
        """Take the next step of every rotation for which it is time. Called every few seconds."""
        for index in sorted(self._going):
            try:
                await self._advance(index)
            except Reject as error:
                # Another instance took the step, or the index is gone; damage is told by name.
                if error.code is ErrorCode.UNKNOWN_INDEX:
                    self._going.discard(index)
                elif error.code is not ErrorCode.CONFLICT:
                    log.error("rotation waits", index=index, code=error.code.value)
            except Retry as error:
                log.warning("rotation waits", index=index, code=error.code.value)

    async def status(self, record: IndexRecord, ring: KeyRing) -> list[ShardState]:
        """Return how far the shards of an index are.

        Raises:
            Damaged: a head does not authenticate. Retry: STORAGE_UNAVAILABLE.
        """
        target = max(record.readable)
        return [
            await self._shard(record, ring, shard, target) for shard in range(record.config.shards)
        ]

    async def _advance(self, index: str) -> None:
        found = await self._indexes.catalog.find(index)
        if found is None or found[0].state != "live":
            raise unknown_index()
        record, etag = found
        rotation = record.rotation
        if rotation is None:
            self._going.discard(index)
            return
        waited = self._now_ms() >= rotation.since_ms + self._wait_ms
        match rotation.stage:
            case "prepare" if waited:
                await self._switch(record, etag)
            case "switch" if waited:
                await self._set_barrier(record, etag)
            case "drain":
                await self._end_when_done(record, etag)
            case "destroy":
                await self._indexes.hierarchy.drop_generations(record)
                await self._step(record, etag, None)
                log.info("data key changed", index=index, generation=record.generation)
            case _:
                pass

    async def _switch(self, record: IndexRecord, etag: str) -> None:
        ring = await self._indexes.open(record)
        generation = max(record.readable)
        ring.check()
        public = ring.pair(generation, Purpose.QUERY).public
        await self._step(
            record,
            etag,
            "switch",
            generation=generation,
            query_key=PublicKey.of(public, self._now_ms()),
        )

    async def _set_barrier(self, record: IndexRecord, etag: str) -> None:
        ring = await self._indexes.open(record)
        ring.check()
        public = ring.pair(record.generation, Purpose.UPDATE).public
        offsets = []
        for shard, partition in enumerate(record.partitions):
            route = Route(record.uid, shard, record.generation)
            batch = UpdateBatch(
                tokens=[],
                token_kinds=b"",
                ops=[],
                vocabulary=b"",
                packs=[],
                created_ms=self._now_ms(),
            )
            sealed = await asyncio.to_thread(
                seal_update,
                batch,
                route,
                public,
                KeyServiceSigner(self._signer),
                max_record_bytes=_MAX_RECORD_BYTES,
            )
            delivered = await self._producer.send_and_wait(
                self._updates, sealed.value, key=route.key, partition=partition
            )
            offsets.append(delivered.offset)
        await self._step(record, etag, "drain", barrier=offsets)

    async def _end_when_done(self, record: IndexRecord, etag: str) -> None:
        ring = await self._indexes.open(record)
        if all(one.done for one in await self.status(record, ring)):
            await self._step(record, etag, "destroy", generations=[record.generation])

    async def _step(
        self,
        record: IndexRecord,
        etag: str,
        stage: str | None,
        *,
        barrier: list[int] | None = None,
        **changes: object,
    ) -> None:
        """Write a step down, publish it, and note it in the audit before anything rests on it."""
        rotation = None
        if stage is not None and record.rotation is not None:
            rotation = msgspec.structs.replace(
                record.rotation,
                stage=stage,
                since_ms=self._now_ms(),
                barrier=record.rotation.barrier if barrier is None else barrier,
            )
        await self._audit.write(
            f"rotate.{stage or 'end'}",
            decision="none",
            index=record.index,
            generation=max(record.readable),
        )
        changed = await self._indexes.change(record, etag, rotation=rotation, **changes)
        await self._publisher.index(changed)
        if rotation is None:
            self._going.discard(record.index)

    async def _shard(
        self, record: IndexRecord, ring: KeyRing, shard: int, target: int
    ) -> ShardState:
        head = await self._head(record, ring, shard)
        rotation = record.rotation
        barrier = rotation.barrier[shard] if rotation and rotation.barrier else None
        if head is None:
            return ShardState(shard, 0, -1, 0, 0, done=rotation is None)
        old = [ref for ref in head.segments if ref.generation != target]
        named = head.generations()
        if head.vector:
            named.add(read_ref(head.vector).generation)
        drained = rotation is None or (barrier is not None and head.applied >= barrier)
        return ShardState(
            shard=shard,
            version=head.version,
            applied=head.applied,
            segments=len(old),
            size=sum(ref.size for ref in old),
            done=drained and named == {target},
        )

    async def _head(self, record: IndexRecord, ring: KeyRing, shard: int) -> Head | None:
        try:
            stored = await self._store.get(layout.head(record.uid, shard))
        except NotFound:
            return None

        def key(generation: int) -> SecretBytes:
            ring.check()
            try:
                return ring.subkey(generation, Purpose.SEGMENT)
            except KeyError as error:
                raise Reject(
                    ErrorCode.DAMAGED, "a head is of a key generation that has ended"
                ) from error

        verifier = head_verifier(self._indexes.directory, record.index)
        return open_head(stored.data, record.uid, shard, key, verifier).head

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
