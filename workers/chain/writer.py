"""The only writer of a shard: applies batches of operations exactly once.

Order of a batch: decide and build (`successor.py`) -> PUT the segment and bitmaps -> PUT the head.
Data and position change in that last conditional write; before it nothing is visible and memory is
unchanged, so after a `Retry` the whole batch may be applied again. After `Fenced` the writer must
`load()` again and its caller seek to `applied + 1`.

`apply` is called by one task at a time; `compact` and `sweep` may run beside it in others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from workers.chain.codec import Codec, Regroup
from workers.chain.compact import MAX_LIVE_SEGMENTS, MAX_SEGMENT_BYTES
from workers.chain.compactor import Compaction, Compactor, Reseal
from workers.chain.core import ShardCore
from workers.chain.fresh import FreshSegments
from workers.chain.head import Head, HeadSigner, VerifyWriter
from workers.chain.kinds import NodeKind, Padding, SegmentKeys
from workers.chain.ops import OpStatus, Outcome, PendingBatch, Published
from workers.chain.retain import RETENTION_MS
from workers.chain.state import SegmentTable
from workers.chain.successor import Decided, decide, follow
from workers.chain.sweep import GRACE_MS, Centroids, Swept, sweep_shard
from workers.storage.store import Store


class ShardWriter:
    """Writes one shard. Memory: about 90 bytes per row, and four times the bytes of a compaction.

    Args:
        store: read and write credentials.
        keys: segment keys by generation.
        signer: the worker as a writer of heads.
        verify_writer: checks who signed a head that is loaded.
        codecs: merge the nodes of each kind.
        generation: key generation of what is written from now on (see `use_generation`).
        padding: level of what is written from now on.
        retention_ms: how long after it was applied an operation's late duplicate may come, by the
            clock of the batches (`Head.clock_ms`). What comes later must not be passed to `apply`.
        max_segment_bytes: larger segments are not merged further while there is room.
        clock_ms: milliseconds since 1970.
        fresh: keeps what was just written for its merge; None keeps nothing.
        reseal: brings rows to another key generation (`compactor.py`).
    """

    def __init__(
        self,
        store: Store,
        index_uid: bytes,
        shard: int,
        keys: SegmentKeys,
        signer: HeadSigner,
        verify_writer: VerifyWriter,
        codecs: Mapping[NodeKind, Codec],
        *,
        generation: int = 1,
        padding: Padding = "standard",
        retention_ms: int = RETENTION_MS,
        max_segment_bytes: int = MAX_SEGMENT_BYTES,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        fresh: FreshSegments | None = None,
        reseal: Reseal | None = None,
    ) -> None:
        self.index_uid = index_uid
        self.shard = shard
        self._core = ShardCore(
            store,
            index_uid,
            shard,
            keys,
            signer,
            verify_writer,
            generation=generation,
            padding=padding,
            clock_ms=clock_ms,
            fresh=fresh or FreshSegments(0),
        )
        self._compactor = Compactor(
            self._core,
            codecs,
            retention_ms=retention_ms,
            max_segment_bytes=max_segment_bytes,
            reseal=reseal,
        )

    @property
    def head(self) -> Head:
        """The head as last loaded or published.

        Raises:
            Fenced: `load` must run first.
        """
        return self._core.head

    @property
    def head_sha256(self) -> bytes:
        """SHA-256 of the head object; zeros before the first."""
        return self._core.opened.sha256

    @property
    def needs_compaction(self) -> bool:
        """Whether `compact` would find something to merge."""
        return self._compactor.due

    def use_generation(self, generation: int) -> None:
        """Seal what is written from now on under another key generation."""
        self._core.generation = generation

    def use_signer(self, signer: HeadSigner) -> None:
        """Sign what is written from now on as `signer`: the same writer, a later certificate."""
        self._core.use_signer(signer)

    async def load(self, min_version: int = 0) -> int:
        """Read the head and return `applied`. Writes nothing; tables come with the first batch.

        Args:
            min_version: a version that somebody trusted has seen.

        Raises:
            Damaged: the head does not authenticate or was rolled back.
            Retry: the store or the key is unavailable.
        """
        async with self._core.lock:
            return (await self._core.load(min_version)).applied

    async def apply(self, batch: PendingBatch) -> Published:
        """Apply a batch and publish it. A batch at or below `applied` changes nothing.

        With the most live segments allowed, a compaction comes first: that is the back-pressure.

        Raises:
            Fenced: another writer owns the shard.
            Damaged: stored data does not authenticate.
            Retry: the store or the key is unavailable; nothing was applied.
        """
        if len(self.head.segments) >= MAX_LIVE_SEGMENTS:
            await self._compactor.run()
        async with self._core.lock:
            if batch.offset <= self.head.applied:
                return self._published([Outcome(OpStatus.IGNORED, 0, None)] * len(batch.ops))
            tables, access = await self._core.tables(), await self._core.access()
            decided = await asyncio.to_thread(decide, self._core, tables, batch, access)
            await self._publish(tables, batch, decided)
            return self._published(decided.resolution.outcomes)

    async def rehearse(self, batch: PendingBatch) -> None:
        """Do all that `apply` does with the operations, and throw it away; nothing is stored.

        Raises:
            Fenced, Damaged, Retry: as `apply`; and whatever the operations make fail.
        """
        async with self._core.lock:
            tables, access = await self._core.tables(), await self._core.access()
            decided = await asyncio.to_thread(decide, self._core, tables, batch, access)
            following = follow(self._core, tables, batch, decided)
            await asyncio.to_thread(self._core.seal, following.head)

    async def settle(self, applied: int) -> bool:
        """Forget what was refused up to `applied`: its senders were told. Return whether it did.

        Raises:
            Fenced: another writer owns the shard.
        """
        async with self._core.lock:
            head = self.head
            if not head.refused or head.applied != applied:
                return False
            changed = msgspec.structs.replace(head, refused=[])
            await self._core.publish(changed, self._core.known_tables or None)
            return True

    async def publish_state(
        self, *, vector: bytes | None = None, versions: Mapping[str, str] | None = None
    ) -> int:
        """Publish a new vector state or new analyzer and codec versions; return the head's version.

        Without arguments it publishes the head unchanged, which fences every other writer.

        Raises:
            Fenced: another writer owns the shard.
        """
        async with self._core.lock:
            head = self.head
            changed = msgspec.structs.replace(
                head,
                vector=head.vector if vector is None else vector,
                versions=head.versions if versions is None else dict(versions),
            )
            opened = await self._core.publish(changed, self._core.known_tables or None)
            return opened.head.version

    async def compact(
        self,
        *,
        everything: bool = False,
        old: bool = False,
        regroup: Regroup | None = None,
        epoch: int | None = None,
        vector: bytes | None = None,
        generation: int | None = None,
    ) -> Compaction | None:
        """Merge what the policy chooses; None when there is nothing to merge.

        It works beside `apply` on a snapshot and takes the publish lock only to publish; rows that
        were killed meanwhile are killed in its output too.

        Args:
            everything: merge all segments: for retraining.
            old: merge what is sealed under earlier key generations, as much as fits at a time.
            regroup: makes the CODES nodes anew; needed when the epochs of the inputs differ.
            epoch: of the CODES nodes of the output; default: the highest among the inputs.
            vector: the vector state to publish with it.
            generation: key generation of the output, for which `regroup` makes its tokens; default:
                the oldest among the inputs.

        Raises:
            Fenced: another writer owns the shard.
            Damaged: an input does not authenticate.
            Retry: the store or a key is unavailable; nothing changed.
        """
        return await self._compactor.run(
            everything=everything,
            old=old,
            regroup=regroup,
            epoch=epoch,
            vector=vector,
            generation=generation,
        )

    async def sweep(self, grace_ms: int = GRACE_MS, *, centroids: Centroids | None = None) -> Swept:
        """Delete the shard's garbage; see `sweep.sweep_shard`. A merge that runs is awaited."""
        async with self._compactor.lock:
            return await sweep_shard(self._core, grace_ms=grace_ms, centroids=centroids)

    async def _publish(
        self, tables: Sequence[SegmentTable], batch: PendingBatch, decided: Decided
    ) -> None:
        following = follow(self._core, tables, batch, decided)
        await self._core.store_parts(following.parts)
        head = following.head
        if decided.access is not await self._core.access():
            access = await self._core.store_access(decided.access)
            head = msgspec.structs.replace(head, access=access)
        await self._core.publish(head, following.tables)
        self._core.keep_access(decided.access)
        if decided.born is not None:
            self._core.keep(decided.born.built, decided.born.rows)

    def _published(self, outcomes: list[Outcome]) -> Published:
        opened = self._core.opened
        return Published(
            version=opened.head.version,
            applied=opened.head.applied,
            outcomes=outcomes,
            head_sha256=opened.sha256,
            documents=opened.head.stats.docs,
            segments=len(opened.head.segments),
        )
