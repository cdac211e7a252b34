"""One shard that this worker owns: its waiting records, its writer, its keys.

Ordering rule of a micro-batch: verify and open -> dead letters of what is refused -> segment and
head, with the offset (`workers.chain.writer`) -> late results -> index-event. Whatever dies in
between is repeated from the head's `applied`, which is the only truth about what was done; and what
a head says was refused is told again by who opens it, until a later head says it no more.

A shard that cannot go on (no key, no storage, damaged data) keeps its records and is tried again
with back-off; other shards of the partition go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, TypeVar

import structlog

from schemas.errors import ErrorCode, ErrorInfo
from schemas.topics import INDEX_UPDATE
from schemas.update import UpdateOp
from workers.chain.fresh import FreshSegments
from workers.chain.head import Head, HeadSigner, Refused
from workers.chain.kinds import NodeKind
from workers.chain.ops import OpStatus, PendingBatch, Published
from workers.chain.reader import ShardReader
from workers.chain.sweep import GRACE_MS
from workers.chain.writer import ShardWriter
from workers.crypto.derive import Purpose
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged, Fenced, Reject, Retry, SealstreamError
from workers.index.build import MicroBatch, gather
from workers.index.emit import Emitter, ShardPosition
from workers.index.garbage import SharedGarbage
from workers.index.notes import Notes
from workers.index.receive import Received, Trust, receive
from workers.index.reseal import Resealer
from workers.index.sift import LeftOut, sift
from workers.index.totals import Total
from workers.index.vectors import CodesMerge, ShardVectors
from workers.kafka.broker import Record
from workers.leases.certificate import WorkerIdentity
from workers.leases.directory import IndexEntry, KeyDirectory
from workers.leases.heads import head_verifier
from workers.leases.holder import LeaseHolder
from workers.leases.lease import Lease
from workers.runtime.announced import Announced
from workers.runtime.deadletter import DeadLetters
from workers.runtime.health import Health
from workers.runtime.lastresort import foreseen, reveal, unexpected
from workers.runtime.policy import RetryPolicy
from workers.storage.store import Store
from workers.telemetry import metrics
from workers.text.postings import RowsCodec, TermCodec

log = structlog.get_logger("index.shard")
T = TypeVar("T")

MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Bytes of index-update that become one segment at most: bounds the memory of a micro-batch."""
SETTLE_S: Final = 5.0
"""Seconds after which a head is written that forgets refusals, if there was no other by then."""
SWEEP_S: Final = 3600.0
"""Seconds between two sweeps of a shard's garbage."""
ENDED_LEASES: Final = 2.0
"""Lives of a lease after which the garbage of a key generation that has ended is deleted."""
MAX_LIVE_SEGMENTS: Final = 8
FRESH_BYTES: Final = 64 * 1024 * 1024
"""About how much the process keeps of what it has just written, to merge it."""
_DAMAGED_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Services:
    """What all shards of the process share."""

    holder: LeaseHolder
    directory: KeyDirectory
    store: Store
    identity: WorkerIdentity
    emitter: Emitter
    dead_letters: DeadLetters
    retry: RetryPolicy
    blocked: Total
    segments: Total
    health: Health
    announced: Announced
    notes: Notes
    fresh: FreshSegments = field(default_factory=lambda: FreshSegments(FRESH_BYTES))


Refusals = list[tuple[UpdateOp, ErrorInfo]]


@dataclass(frozen=True, slots=True, repr=False)
class _Unsent:
    """What was published and not told yet: the head, what was refused, and where that begins."""

    published: Published
    refused: Refusals
    first: int


class Shard:
    """One shard; used by the handler of its partition, one call of `advance` at a time."""

    def __init__(self, entry: IndexEntry, shard: int, services: Services) -> None:
        self.index = entry.name
        self.uid = entry.uid
        self.number = shard
        self.partition = entry.partitions[shard]
        self.waiting: deque[Record] = deque()
        self.waiting_bytes = 0
        self.retry_at = 0.0
        # The first record that was put aside: it and what follows must be read again.
        self.behind: int | None = None
        self.maintain_at = 0.0
        self.sweep_at = time.monotonic() + SWEEP_S * random.random()  # noqa: S311 - spreads the load
        self._services = services
        self._garbage = SharedGarbage(services.store, entry.uid)
        self._attempts = 0
        self._because: ErrorCode | None = None
        self._lease: Lease | None = None
        self._writer: ShardWriter | None = None
        self._vectors: ShardVectors | None = None
        self._reader: ShardReader | None = None
        # What was last seen of the head: the writer shows none while it publishes.
        self._head: Head | None = None
        self._head_sha256 = b""
        # Published, but not told to everybody yet.
        self._unsent: deque[_Unsent] = deque()
        # By offset: what the head that was opened says was refused, and is to be told again.
        self._owed: dict[int, list[tuple[int, ErrorInfo]]] = {}
        self._settle_at = 0.0
        self._opening = asyncio.Lock()
        # The oldest and the present key generation of the lease.
        self._generations = (0, 0)
        # Of a generation that ended: seconds until its garbage is deleted; sweeps for it that are
        # still to come.
        self._ended_grace_s = 0.0
        self._ended_sweeps = 0
        self._rng = random.Random()  # noqa: S311 - jitter, no secret

    @property
    def applied(self) -> int | None:
        """The highest index-update offset in the head; None before the head was read."""
        return None if self._head is None else self._head.applied

    @property
    def has_head(self) -> bool:
        """Whether anything was ever written."""
        return self._head is not None and self._head.version > 0

    @property
    def begin(self) -> int:
        """The offset to read from, once the head is known."""
        return min([(self.applied or 0) + 1, *self._owed])

    def add(self, record: Record) -> None:
        """Queue a record, unless the head contains it or those before it were put aside."""
        applied = self.applied
        wanted = applied is None or record.offset > applied or record.offset in self._owed
        if self.behind is None and wanted:
            self.waiting.append(record)
            self.waiting_bytes += record.size

    def ready(self, now_s: float) -> bool:
        """Tell whether there is something to do and the time of a back-off has passed."""
        return bool(self.waiting or self._unsent) and now_s >= self.retry_at

    def put_aside(self) -> None:
        """Forget all that waits but the first record, which will show when it can go on."""
        if len(self.waiting) > 1:
            self.behind = self.waiting[1].offset
            while len(self.waiting) > 1:
                self.waiting_bytes -= self.waiting.pop().size

    @property
    def can_catch_up(self) -> bool:
        """Whether what was put aside can be worked on, so that it must be read again."""
        return self.behind is not None and not self.waiting

    @property
    def keeps_waiting(self) -> bool:
        """Whether it waits for something that concerns this index alone, not for the store."""
        return self._because not in (None, ErrorCode.STORAGE_UNAVAILABLE)

    @property
    def lowest(self) -> int | None:
        """The lowest offset that may not be committed yet; None if nothing waits."""
        waiting = [self.waiting[0].offset] if self.waiting else []
        if self.behind is not None:
            waiting.append(self.behind)
        return min([*waiting, *(one.first for one in self._unsent)], default=None)

    async def open(self) -> ShardWriter:
        """Read the head, if that was not done; write nothing.

        Raises:
            Retry, Reject: no keys, no storage. Damaged: the head does not authenticate, or is older
            than one that was announced.
        """
        services = self._services
        # By uid: the name may have been given to another index meanwhile.
        lease = await services.holder.lease(None, uid=self.uid)
        self._lease = lease
        self._note_generations(lease)
        async with self._opening:
            if self._writer is None:
                verifier = head_verifier(services.directory, self.index)
                vectors = ShardVectors(
                    services.store,
                    self.uid,
                    self.number,
                    self._vector_key,
                    self._generation,
                    lease.config,
                )
                writer = ShardWriter(
                    services.store,
                    self.uid,
                    self.number,
                    self._segment_key,
                    _signer(services.identity),
                    verifier,
                    {
                        NodeKind.KEYWORD: RowsCodec(NodeKind.KEYWORD),
                        NodeKind.TERM: TermCodec(NodeKind.TERM),
                        NodeKind.CODES: CodesMerge(),
                    },
                    generation=lease.generation,
                    padding=lease.config.padding,
                    fresh=services.fresh,
                    reseal=Resealer(services.holder, services.store, self._good_lease),
                )
                floor = services.announced.version(self.index, self.uid, self.number)
                await writer.load(floor)
                self._writer, self._vectors = writer, vectors
                self._look(writer)
                self._owed = _by_offset(writer.head.refused)
                self._settle_at = 0.0
                self._reader = ShardReader(
                    services.store, None, self.uid, self.number, self._segment_key, verifier
                )
        self._writer.use_generation(lease.generation)
        # Certificates are renewed while the worker runs.
        self._writer.use_signer(_signer(services.identity))
        return self._writer

    async def announce(self) -> None:
        """Send one cumulative index-event, if the shard was ever written. Raises Retry.

        Not while refusals are to be told: who has seen the event knows that none comes any more.
        """
        head = self._head
        if head is not None and head.version and not self._owed:
            await self._emit(
                Published(
                    version=head.version,
                    applied=head.applied,
                    outcomes=[],
                    head_sha256=self._head_sha256,
                    documents=head.stats.docs,
                    segments=len(head.segments),
                )
            )

    async def _emit(self, published: Published) -> None:
        await self._services.emitter.event(
            ShardPosition(
                index=self.index,
                uid=self.uid,
                shard=self.number,
                partition=self.partition,
                version=published.version,
                applied=published.applied,
                documents=published.documents,
                segments=published.segments,
                head_sha256=published.head_sha256,
            )
        )

    async def advance(self) -> None:
        """Apply what waits, as far as it goes; on trouble wait and try again later.

        Raises:
            Fenced: another writer owns the shard.
            Fatal: the process cannot go on.
        """
        try:
            await self._tell()
            while self.waiting:
                await self._one_batch()
        except Damaged as error:
            metrics.DAMAGED.inc(what="shard")
            self._hold_back(error, _DAMAGED_WAIT_S)
        except (Retry, Reject) as error:
            self._hold_back(error, 0.0)
        else:
            self._attempts, self._because = 0, None

    async def maintain(self) -> bool:
        """Do one piece of background work: a merge or a training. Returns whether there was one.

        Raises:
            Fenced, Damaged, Retry, Reject.
        """
        if self._vectors is None or self._reader is None or self._head is None:
            return False
        writer = await self.open()
        trained = await self._vectors.train(writer, self._head, self._reader)
        done = trained or await self._compact(writer, self._head)
        done = done or await self._move(writer, self._head)
        done = done or await self._settle(writer, self._head)
        if done:
            self._look(writer)
            await self.announce()
        return done

    def close(self) -> None:
        """Drop the state; the shard is not used any more."""
        self._services.segments.forget((self.uid, self.number))
        self._writer = self._reader = self._vectors = self._head = None

    async def sweep(self) -> None:
        """Delete what no head has named for a day, and what no shard refers to any more.

        After a key generation has ended its garbage goes sooner: marked by one sweep, deleted by
        the next.

        Raises:
            Fenced, Damaged, Retry, Reject.
        """
        vectors = self._vectors
        if not self.has_head or vectors is None:
            return
        writer = await self.open()
        ended = self._ended_sweeps > 0
        grace_ms = int(self._ended_grace_s * 1000) if ended else GRACE_MS
        async with vectors.epochs_in_use:
            swept = await writer.sweep(grace_ms, centroids=vectors.named)
        # It may have published the head once more.
        self._look(writer)
        metrics.SWEPT.inc(swept.deleted)
        if ended:
            self._ended_sweeps -= 1
            if self._ended_sweeps:
                self.sweep_at = time.monotonic() + self._ended_grace_s
        if self.number == 0:
            metrics.SWEPT.inc(await self._garbage.sweep(self._readers()))

    def _readers(self) -> list[ShardReader]:
        """Make a reader of every shard of the index."""
        services = self._services
        verifier = head_verifier(services.directory, self.index)
        readers = []
        for number in range(self._lease.config.shards if self._lease else 0):
            reader = ShardReader(
                services.store, None, self.uid, number, self._segment_key, verifier
            )
            reader.expect(services.announced.version(self.index, self.uid, number))
            readers.append(reader)
        return readers

    def _look(self, writer: ShardWriter) -> None:
        """Remember the head, unless it is just being replaced: who does that will look."""
        with contextlib.suppress(Fenced):
            self._head, self._head_sha256 = writer.head, writer.head_sha256
            self._services.segments.set((self.uid, self.number), len(self._head.segments))

    def _segment_key(self, generation: int) -> SecretBytes:
        return self._keys(generation, Purpose.SEGMENT)

    def _vector_key(self, generation: int) -> SecretBytes:
        return self._keys(generation, Purpose.VECTOR)

    def _generation(self) -> int:
        return self._good_lease().generation

    def _keys(self, generation: int, purpose: Purpose) -> SecretBytes:
        return self._good_lease().keys(generation, purpose)

    def _hold_back(self, error: SealstreamError, least_s: float) -> None:
        self._attempts += 1
        pause_s = max(least_s, self._services.retry.delay_s(self._attempts, self._rng))
        self.retry_at = time.monotonic() + pause_s
        self._services.health.error("shard", error)
        if self._because is not error.code:
            log.warning("shard waits", index=self.index, shard=self.number, code=error.code.value)
        self._because = error.code

    async def _one_batch(self) -> None:
        try:
            writer = await self.open()
        except Damaged:
            raise
        except Reject as error:
            if error.code is not ErrorCode.UNKNOWN_INDEX:
                raise
            # Deleted: its updates can never be applied.
            await self._refuse_all(error)
            return
        head = self._head
        if head is None:
            return
        await self._tell_again(head)
        records = self._next_records()
        if not records:
            return
        received = await self._receive(records, head)
        await self._dead_letter(received)
        if len(head.segments) >= MAX_LIVE_SEGMENTS:
            await self._compact(writer, head)
        began_s = time.monotonic()
        checked = [one for one in received if one.checked is not None]
        whole, published, left_out = await self._publish(writer, records[-1].offset, checked)
        metrics.PUBLISH_SECONDS.observe(time.monotonic() - began_s)
        metrics.INDEX_DELAY_SECONDS.observe(max(0.0, time.time() - records[0].timestamp_ms / 1000))
        self._drop(len(records))
        refused = _refused(whole.sources, published) + left_out
        first = records[0].offset if refused else published.applied
        self._unsent.append(_Unsent(published, refused, first))
        if refused:
            self._settle_at = time.monotonic() + SETTLE_S
        await self._tell()

    async def _tell_again(self, head: Head) -> None:
        """Drop what the head contains; tell again what it says was refused of it. Raises Retry."""
        contained = list(takewhile(lambda one: one.offset <= head.applied, self.waiting))
        owed = [record for record in contained if record.offset in self._owed]
        for one in await self._receive(owed, head) if owed else []:
            ops = [] if one.checked is None else one.checked.batch.ops
            # As it was opened when it was refused; else its keys have ended, and nobody waits.
            refused = [(ops[n], why) for n, why in self._owed[one.record.offset] if n < len(ops)]
            await self._services.emitter.rejected(self.index, refused)
            del self._owed[one.record.offset]
            self._note(refused)
        self._drop(len(contained))
        if self.waiting and self._owed:
            log.warning("refusals are not told: their updates are gone", index=self.index)
            self._owed.clear()
        if owed:
            await self.announce()

    def _note(self, refused: Refusals) -> None:
        """Have the audit told: the key service does not know whose document it was."""
        forbidden = [op.kind.name.lower() for op, e in refused if e.code is ErrorCode.FORBIDDEN]
        self._services.notes.put(self.index, ErrorCode.FORBIDDEN, forbidden)

    async def _receive(self, records: Sequence[Record], head: Head) -> list[Received]:
        services, directory = self._services, self._services.directory
        trust = Trust(directory.key_service.sign_pub, directory.revocations)
        return await receive(
            records, self._good_lease(), self.number, trust, services.store, head.clock_ms
        )

    async def _settle(self, writer: ShardWriter, head: Head) -> bool:
        """Write a head that forgets refusals, when all were told and no update does it soon."""
        if not head.refused or self._unsent or self._owed or not self._services.notes.empty:
            return False
        if time.monotonic() < self._settle_at:
            return False
        return await writer.settle(head.applied)

    def _next_records(self) -> list[Record]:
        records: list[Record] = []
        size = 0
        for record in self.waiting:
            size += record.size
            if records and size > MAX_BATCH_BYTES:
                break
            records.append(record)
        return records

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self.waiting_bytes -= self.waiting.popleft().size

    async def _publish(
        self, writer: ShardWriter, offset: int, checked: Sequence[Received]
    ) -> tuple[MicroBatch, Published, Refusals]:
        """Publish what can be built of some batches, up to an offset.

        Returns the batch, what became of it, and the operations that were left out.
        """
        try:
            whole, published = await self._with_batch(writer, offset, checked, writer.apply)
        except Exception as failure:
            if foreseen(failure):
                raise
            log.warning("a batch cannot be built", index=self.index, shard=self.number)

            async def rehearse(some: Sequence[Received]) -> None:
                await self._with_batch(writer, offset, some, writer.rehearse)

            sifted = await sift(checked, rehearse, self._good_lease().config)
            if not sifted.left_out:
                raise
            left_out, noted = await self._leave_out(sifted.left_out)
            whole, published = await self._with_batch(
                writer, offset, sifted.kept, writer.apply, noted
            )
            return whole, published, left_out
        return whole, published, []

    async def _with_batch(
        self,
        writer: ShardWriter,
        offset: int,
        checked: Sequence[Received],
        use: Callable[[PendingBatch], Awaitable[T]],
        refused: Sequence[Refused] = (),
    ) -> tuple[MicroBatch, T]:
        """Put batches together and hand them to the writer; return both.

        `refused`: what was left out of them.
        """
        lease, vectors, head = self._good_lease(), self._vectors, writer.head
        if vectors is None:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the shard is not open")
        whole = await asyncio.to_thread(gather, [one.checked for one in checked if one.checked])
        # Nothing in a segment outlives its generation: packs and words are of their update's.
        generation = min([lease.generation, *(one.generation for one in checked)])
        async with vectors.epochs_in_use:
            clusters = await vectors.clusters(writer, head, whole.first_vectors(), generation)
            self._look(writer)
            used = await use(
                PendingBatch(
                    offset=offset,
                    ops=whole.ops,
                    build_nodes=lambda accepted: whole.nodes(accepted, clusters),
                    vocabulary=whole.vocabulary,
                    epoch=vectors.epoch(self._head or head),
                    created_ms=whole.created_ms,
                    generation=generation,
                    access=whole.access,
                    origins=[origin for one in checked for origin in one.origins],
                    refused=refused,
                )
            )
            self._look(writer)
        return whole, used

    async def _leave_out(self, parts: Sequence[LeftOut]) -> tuple[Refusals, list[Refused]]:
        """Dead-letter the records of what cannot be built.

        Returns its operations, and what the head says of them.
        """
        refused, noted, told = [], [], set()
        for one in parts:
            record, operation = one.source.record, one.operation
            error = unexpected(one.failure, record).info()
            if operation is not None:
                refused.append((operation, error))
                at = [(record.offset, one.op)]
                noted.append(Refused(error.code.value, error.message, error.field, at))
            if record.offset not in told:
                told.add(record.offset)
                await self._services.dead_letters.send(record, error, 1, sealed=True)
        return refused, noted

    async def _dead_letter(self, received: Sequence[Received]) -> None:
        for one in received:
            if one.error is not None:
                if one.error.code is ErrorCode.DAMAGED:
                    metrics.DAMAGED.inc(what="update")
                await self._services.dead_letters.send(one.record, one.error, 1, sealed=True)

    async def _refuse_all(self, error: Reject) -> None:
        while self.waiting:
            await self._services.dead_letters.send(
                self.waiting[0], error.info(), self._attempts + 1, sealed=True
            )
            self._drop(1)

    async def _tell(self) -> None:
        """Send the events and late results of what was published. Raises Retry."""
        while self._unsent:
            one = self._unsent[0]
            # First the refusals: who has seen the event knows that no refusal comes any more.
            await self._services.emitter.rejected(self.index, one.refused)
            await self._emit(one.published)
            self._unsent.popleft()
            self._note(one.refused)

    async def _move(self, writer: ShardWriter, head: Head) -> bool:
        """Move one piece of what is sealed under an earlier key generation to the present one."""
        generation = self._generation()
        if self._vectors is None or not head.version:
            return False
        if await self._vectors.move(writer, head, generation):
            return True
        if any(named < generation for named in head.generations() - {head.generation}):
            return await self._merge(writer, head, old=True)
        if head.generation < generation:
            await writer.publish_state()
            return True
        return False

    def _note_generations(self, lease: Lease) -> None:
        """Sweep when the key generations change: nothing is left under a key that nobody has."""
        before, self._generations = (
            self._generations,
            (min(lease.generations, default=0), lease.generation),
        )
        if not any(before) or self._generations == before:
            return
        # A new one: what is noted about garbage moves to it.
        self.sweep_at = time.monotonic()
        if self._generations[0] > before[0]:
            # Leases that could still read it end within one life.
            self._ended_grace_s = ENDED_LEASES * (lease.expires_s - lease.issued_s)
            self._ended_sweeps = 2

    def _good_lease(self) -> Lease:
        if self._lease is None:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the shard has no lease")
        return self._lease

    async def _compact(self, writer: ShardWriter, head: Head) -> bool:
        if self._vectors is None or not writer.needs_compaction:
            return False
        return await self._merge(writer, head, old=False)

    async def _merge(self, writer: ShardWriter, head: Head, *, old: bool) -> bool:
        if self._vectors is None:
            return False
        generation = self._generation()
        regroup, epoch = await self._vectors.regroup(head, generation)
        try:
            done = await writer.compact(
                old=old, regroup=regroup, epoch=epoch, generation=generation
            )
        except Exception as failure:
            # A merge can be tried again at any time: this shard waits, and no other.
            reveal(failure, INDEX_UPDATE, index=self.index, shard=self.number)
            raise Retry(ErrorCode.OVERLOADED, "a merge failed: see the log") from failure
        if done is None:
            return False
        metrics.COMPACTIONS.inc(outcome="merged")
        metrics.COMPACTED_BYTES.inc(done.bytes_in, direction="in")
        metrics.COMPACTED_BYTES.inc(done.bytes_out, direction="out")
        return True


def _signer(identity: WorkerIdentity) -> HeadSigner:
    return HeadSigner(identity.worker_id, identity.signing_key, identity.certificate.encoded)


def _by_offset(refused: Sequence[Refused]) -> dict[int, list[tuple[int, ErrorInfo]]]:
    """Return the refusals that a head names: number and reason, by the offset of their record."""
    found: dict[int, list[tuple[int, ErrorInfo]]] = {}
    for one in refused:
        error = Reject(one.code, one.message, field=one.field).info()
        for offset, number in one.at:
            found.setdefault(offset, []).append((number, error))
    return found


def _refused(sources: Sequence[UpdateOp], published: Published) -> Refusals:
    refused = []
    counts = Counter(
        (op.kind, one.status) for op, one in zip(sources, published.outcomes, strict=True)
    )
    for (kind, status), count in counts.items():
        metrics.APPLIED.inc(count, kind=kind.name.lower(), outcome=status.name.lower())
    for op, outcome in zip(sources, published.outcomes, strict=True):
        if outcome.status is OpStatus.REJECTED and outcome.error is not None:
            refused.append((op, outcome.error))
    return refused
