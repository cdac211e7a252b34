"""Make a micro-batch of one index durable and answer for it.

Ordering rule: packs and large bodies -> updates, all of them acknowledged -> results. An `accepted`
therefore means: durable and on its way to the index worker.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from schemas.ingest import IngestResult
from schemas.position import Position, Source
from schemas.topics import INDEX_UPDATE, INGEST_RESULT, PLAINTEXT_INGEST, with_prefix
from workers.crypto.hpke import HpkePublicKey
from workers.crypto.info import Info, info
from workers.errors import SealstreamError
from workers.ingest.batches import Authorised, PreparedUpdate
from workers.ingest.incoming import Refused
from workers.ingest.prepare import IndexContext, IndexKeys, Limits, Prepared, prepare
from workers.kafka.broker import Delivered, Producer
from workers.leases.certificate import WorkerIdentity
from workers.leases.directory import KeyDirectory
from workers.leases.lease import Lease
from workers.objects.envelope import Route, SealedUpdate, seal_update
from workers.objects.results import Answer, ResultTopic, encode_results
from workers.runtime.crunch import crunch
from workers.runtime.deadletter import DeadLetters
from workers.runtime.lastresort import unexpected
from workers.storage.store import Store
from workers.telemetry import metrics
from workers.text.vocabulary import build_vocabulary

T = TypeVar("T")

_MAX_INDEXES: Final = 4096
"""Indexes whose words and tokens are remembered."""


class Publisher:
    """Writes packs, updates and results. One per process, shared by all partitions."""

    def __init__(
        self,
        *,
        store: Store,
        producer: Producer,
        dead_letters: DeadLetters,
        directory: KeyDirectory,
        identity: WorkerIdentity,
        topic_prefix: str,
        limits: Limits,
        result_partitions: int = 0,
    ) -> None:
        self._store = store
        self._producer = producer
        self._dead_letters = dead_letters
        self._directory = directory
        self._identity = identity
        self._updates = with_prefix(topic_prefix, INDEX_UPDATE)
        self._results = ResultTopic(
            producer, with_prefix(topic_prefix, INGEST_RESULT), result_partitions
        )
        self._limits = limits
        self._waiting: dict[int, int] = {}
        self._keys: OrderedDict[bytes, tuple[Lease, IndexKeys]] = OrderedDict()

    async def publish(self, lease: Lease, items: Sequence[Authorised]) -> list[Refused]:
        """Make `items`, requests of one index in order, durable and answer `accepted`.

        Returns:
            Those that broke a rule of the index; they are not answered yet.

        Raises:
            Retry: STORAGE_UNAVAILABLE or the broker; all of it may be repeated.
        """
        context = self._context(lease)
        query_public = lease.query_public
        update_public = lease.update_public
        try:
            prepared, sealed = await crunch(
                self._prepare, items, context, update_public, query_public
            )
        except Exception as failure:
            return await self._publish_halves(lease, items, failure)
        await self._store_all(prepared, sealed)
        places = await self._send_updates(context, prepared.updates, sealed)
        for update in prepared.updates:
            update.words.remember()
        await self._accept(lease.index, prepared.updates, places)
        _count(prepared.updates)
        return prepared.refused

    async def refuse(self, refused: Sequence[Refused]) -> None:
        """Dead-letter records, and send `rejected` where index and id could be read.

        Raises:
            Retry: the broker; it may be repeated, a record is dead-lettered once.
        """
        if not refused:
            return
        await gather(
            self._dead_letters.send(one.record, one.error, 1, sealed=one.sealed) for one in refused
        )
        results = await crunch(encode_results, _rejections(refused), self._identity)
        await self._results.send(results)
        for one in refused:
            op = one.request.op.value if one.request is not None else "unknown"
            metrics.INGESTED.inc(op=op, status="rejected")

    def waiting(self, owner: object, records: int) -> None:
        """Say how many records wait in one partition's lanes."""
        self._waiting[id(owner)] = records
        metrics.BLOCKED_RECORDS.set(sum(self._waiting.values()), topic=PLAINTEXT_INGEST)
        if not records:
            del self._waiting[id(owner)]

    def forget_ended(self) -> None:
        """Drop the words and tokens of indexes whose lease has ended. Called now and then."""
        for uid in [uid for uid, (lease, _) in self._keys.items() if lease.wiped]:
            self._keys.pop(uid)[1].clear()

    def _context(self, lease: Lease) -> IndexContext:
        held = self._keys.pop(lease.uid, None)
        # A renewed lease has the same tag key for the index's life: its tokens stay good.
        keys = held[1] if held is not None else IndexKeys(lease.tag)
        self._keys[lease.uid] = (lease, keys)
        while len(self._keys) > _MAX_INDEXES:
            self._keys.popitem(last=False)[1][1].clear()
        return IndexContext(
            uid=lease.uid,
            config=lease.config,
            generation=lease.generation,
            partitions=lease.partitions,
            stream=self._directory.key_service.streams.get(PLAINTEXT_INGEST, 0),
            object_public=lease.object_public,
            keys=keys,
        )

    async def _publish_halves(
        self, lease: Lease, items: Sequence[Authorised], failure: Exception
    ) -> list[Refused]:
        """Find the record that could not be prepared, by halves; refuse it, publish the others."""
        first = items[0].incoming
        if len(items) == 1:
            error = unexpected(failure, first.record)
            return [Refused(first.record, error.info(), first.request, first.sealed)]
        if isinstance(failure, SealstreamError):
            raise failure
        half = len(items) // 2
        refused = await self.publish(lease, items[:half])
        return refused + await self.publish(lease, items[half:])

    def _prepare(
        self,
        items: Sequence[Authorised],
        context: IndexContext,
        update_public: HpkePublicKey,
        query_public: HpkePublicKey,
    ) -> tuple[Prepared, list[SealedUpdate]]:
        """Do all that is pure CPU; nothing has left the process yet."""
        prepared = prepare(items, context, self._limits, now_ms=int(time.time() * 1000))
        return prepared, self._seal(prepared, context, update_public, query_public)

    def _seal(
        self,
        prepared: Prepared,
        context: IndexContext,
        update_public: HpkePublicKey,
        query_public: HpkePublicKey,
    ) -> list[SealedUpdate]:
        sealed = []
        for update in prepared.updates:
            batch = update.batch
            if update.words:
                about = info(Info.VOCABULARY, context.uid, context.generation)
                words = query_public.seal(about, build_vocabulary(update.words.spell()))
                batch = msgspec.structs.replace(batch, vocabulary=words)
            sealed.append(
                seal_update(
                    batch,
                    Route(context.uid, update.shard, context.generation),
                    update_public,
                    self._identity,
                    max_record_bytes=self._limits.record_bytes,
                )
            )
        return sealed

    async def _store_all(self, prepared: Prepared, sealed: Sequence[SealedUpdate]) -> None:
        puts = [self._store.put(pack.key, pack.data) for pack in prepared.packs]
        puts += [self._store.put(one.body_key, one.body) for one in sealed if one.body_key]
        await gather(puts)

    async def _send_updates(
        self,
        context: IndexContext,
        updates: Sequence[PreparedUpdate],
        sealed: Sequence[SealedUpdate],
    ) -> list[Delivered]:
        futures = []
        for update, one in zip(updates, sealed, strict=True):
            route = Route(context.uid, update.shard, context.generation)
            futures.append(
                await self._producer.send(
                    self._updates, one.value, key=route.key, partition=update.partition
                )
            )
        return await gather(futures)

    async def _accept(
        self, index: str, updates: Sequence[PreparedUpdate], places: Sequence[Delivered]
    ) -> None:
        answers = _acceptances(index, updates, places)
        results = await crunch(encode_results, answers, self._identity)
        await self._results.send(results)


def _acceptances(
    index: str, updates: Sequence[PreparedUpdate], places: Sequence[Delivered]
) -> Iterator[Answer]:
    for update, place in zip(updates, places, strict=True):
        position = Position(shard=update.shard, partition=place.partition, offset=place.offset)
        for op, member in zip(update.batch.ops, update.members, strict=True):
            request = member.incoming.request
            result = IngestResult(
                index=index,
                id=request.id,
                op=request.op,
                status="accepted",
                object_id=op.object_id.hex(),
                position=position,
                source=op.source,
                message_id=request.message_id,
            )
            yield Answer(result, op.request_key, op.reply_key)


def _rejections(refused: Sequence[Refused]) -> Iterator[Answer]:
    for one in refused:
        request, record = one.request, one.record
        if request is None or record.key is None:
            continue
        result = IngestResult(
            index=request.index,
            id=request.id,
            op=request.op,
            status="rejected",
            error=one.error,
            source=Source(topic=record.topic, partition=record.partition, offset=record.offset),
            message_id=request.message_id,
        )
        reply_key = request.reply.key_bytes() if request.reply is not None else b""
        yield Answer(result, record.key, reply_key)


def _count(updates: Sequence[PreparedUpdate]) -> None:
    now_s = time.time()
    for update in updates:
        ops = Counter(member.incoming.request.op for member in update.members)
        for op, count in ops.items():
            metrics.INGESTED.inc(count, op=op.value, status="accepted")
        for member in update.members:
            taken_ms = member.incoming.record.timestamp_ms
            metrics.INGEST_SECONDS.observe(max(0.0, now_s - taken_ms / 1000))


async def gather(waiting: Iterable[Awaitable[T]]) -> list[T]:
    """Await all, then raise the first error: nothing is left without an owner."""
    done = await asyncio.gather(*waiting, return_exceptions=True)
    found: list[T] = []
    for one in done:
        if isinstance(one, BaseException):
            raise one
        found.append(one)
    return found
