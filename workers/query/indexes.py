"""What a query worker keeps of each index it serves, and for how long.

Readers follow the heads, the token cache and the decoded columns make repeated queries fast. All of
it is readable text or keys in memory, so it ends with the lease: `sweep` drops an index whose lease
was not renewed.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from schemas.auth import Scope
from schemas.errors import ErrorCode
from schemas.position import MinPosition
from workers.chain.reader import ShardReader
from workers.chain.snapshot import Snapshot
from workers.crypto.derive import Purpose, centroid_token, group_token, object_id
from workers.crypto.errors import OpenFailed
from workers.crypto.info import Info, info
from workers.crypto.secret import SecretBytes
from workers.crypto.token_cache import TokenCache
from workers.errors import Damaged, Reject
from workers.leases.directory import KeyDirectory
from workers.leases.heads import head_verifier
from workers.leases.lease import Decision, Lease
from workers.search.cache import DecodedCache
from workers.search.context import SearchContext
from workers.search.snapshot import IndexSnapshot, ShardSnapshot
from workers.storage import layout
from workers.storage.cache import BlockCache
from workers.storage.store import Store
from workers.vector.centroids import VectorState
from workers.vector.store import load_state

_MAX_STATES: Final = 16
_POLL_S: Final = 0.25

log = structlog.get_logger("query.indexes")


class _Leased:
    """The segment and vector keys of the lease that an index has now.

    Readers keep this, not their `OpenIndex`: what nobody uses any more, a keyed state among it, is
    gone at once then, and not when Python next looks for objects that hold each other.
    """

    def __init__(self, lease: Lease) -> None:
        self.lease = lease

    def segment_key(self, generation: int) -> SecretBytes:
        return self.lease.keys(generation, Purpose.SEGMENT)

    def vector_key(self, generation: int) -> SecretBytes:
        return self.lease.keys(generation, Purpose.VECTOR)


class OpenIndex:
    """One index as this worker reads it.

    Args:
        lease: the keys; replaced by `use` when they are renewed.
        store: read-only credentials suffice.
        blocks: parts of segments, sealed or opened, shared by all indexes.
        decoded: decoded columns, shared by all indexes.
        directory: names the key service that certifies writers.
    """

    def __init__(
        self,
        lease: Lease,
        store: Store,
        blocks: BlockCache,
        decoded: DecodedCache,
        directory: KeyDirectory,
    ) -> None:
        self._leased = _Leased(lease)
        self._store = store
        self._blocks = blocks
        self._decoded = decoded
        self._tokens = TokenCache(lease.tag)
        self._states: OrderedDict[tuple[int, bytes], VectorState] = OrderedDict()
        verifier = head_verifier(directory, lease.index)
        self.readers = [
            ShardReader(store, blocks, lease.uid, shard, self._leased.segment_key, verifier)
            for shard in range(lease.config.shards)
        ]
        self._moved = asyncio.Condition()

    @property
    def lease(self) -> Lease:
        """The lease that was used last."""
        return self._leased.lease

    def use(self, lease: Lease) -> None:
        """Go on with a renewed lease."""
        self._leased.lease = lease

    async def moved(self, shard: int, version: int) -> None:
        """Take the hint of a signed index-event: the shard has at least `version`."""
        if shard < len(self.readers):
            self.readers[shard].expect(version)
            async with self._moved:
                self._moved.notify_all()

    async def snapshot(
        self, min_position: list[MinPosition], max_staleness_ms: float
    ) -> IndexSnapshot:
        """Return all shards, each at one version, once `min_position` is applied.

        The caller bounds the wait. Counters of the shards start at zero.

        Raises:
            Reject: INVALID_MESSAGE, no such shard; Damaged. Retry: storage or keys unavailable.
        """
        wanted = self._wanted(min_position)
        shards = await asyncio.gather(
            *(
                self._shard(reader, wanted.get(reader.shard), max_staleness_ms)
                for reader in self.readers
            )
        )
        return IndexSnapshot(self.lease.uid, tuple(shard.measured() for shard in shards))

    async def reached(self, min_position: list[MinPosition]) -> bool:
        """Tell whether `min_position` is applied by now. Raises as `snapshot`."""
        wanted = self._wanted(min_position)
        shards = await asyncio.gather(*(self.readers[shard].refresh(0) for shard in wanted))
        return all(
            one.applied >= offset for one, offset in zip(shards, wanted.values(), strict=True)
        )

    def _wanted(self, min_position: list[MinPosition]) -> dict[int, int]:
        wanted: dict[int, int] = {}
        for number, position in enumerate(min_position):
            if position.shard >= len(self.readers):
                raise Reject(
                    ErrorCode.INVALID_MESSAGE,
                    "the index has no such shard",
                    field=f"min_position[{number}].shard",
                )
            wanted[position.shard] = max(wanted.get(position.shard, -1), position.offset)
        return wanted

    async def _shard(
        self, reader: ShardReader, offset: int | None, max_staleness_ms: float
    ) -> Snapshot:
        snapshot = await reader.refresh(max_staleness_ms)
        while offset is not None and snapshot.applied < offset:
            # Events are hints and may be late or lost; the head is looked at in any case.
            async with self._moved:
                try:
                    async with asyncio.timeout(_POLL_S):
                        await self._moved.wait()
                except TimeoutError:
                    pass
            snapshot = await reader.refresh(0)
        return snapshot

    def context(self, decision: Decision) -> SearchContext:
        """Return what one query of this caller needs of keys and settings."""
        lease = self.lease
        tag = lease.tag
        return SearchContext(
            config=lease.config,
            tokens=self._tokens,
            # Asked for anew each time: the key of a lease that ended is wiped.
            object_id=lambda doc_id: object_id(self.lease.tag, doc_id),
            groups=frozenset(
                group_token(tag, group) for group in decision.groups_with(Scope.INDEX)
            ),
            cache=self._decoded,
            centroid_tokens=self._centroid_tokens,
            centroids=self._centroids,
            open_vocabulary=self._open_vocabulary,
        )

    def group_names(self, decision: Decision) -> dict[bytes, str]:
        """Return those of the caller's groups that it may be told of, by their tokens."""
        shown = decision.groups_with(Scope.GET_ACCESS_GROUPS)
        return {group_token(self.lease.tag, group): group for group in shown}

    def close(self) -> None:
        """Forget everything that was readable."""
        self._tokens.clear()
        self._states.clear()
        self._decoded.forget(self.lease.uid)
        self._blocks.forget(layout.index_prefix(self.lease.uid))

    def _centroid_tokens(self, epoch: int, cluster: int) -> list[bytes]:
        return [
            centroid_token(self._leased.vector_key(generation), epoch, cluster)
            for generation in self.lease.generations
        ]

    async def _centroids(self, shard: ShardSnapshot) -> VectorState | None:
        if not shard.vector:
            return None
        name = (shard.shard, shard.vector)
        state = self._states.get(name)
        if state is None:
            state = await load_state(
                self._store, self._leased.vector_key, self.lease.uid, shard.shard, shard.vector
            )
            if state is None:
                return None
            self._states[name] = state
            while len(self._states) > max(_MAX_STATES, 2 * len(self.readers)):
                self._states.popitem(last=False)
        return state

    def _open_vocabulary(self, sealed: bytes) -> bytes:
        lease = self.lease
        for generation in reversed(lease.generations):
            about = info(Info.VOCABULARY, lease.uid, generation)
            try:
                return lease.private_key(generation, Purpose.QUERY).open(about, sealed)
            except OpenFailed:
                continue
        raise Damaged(ErrorCode.DAMAGED, "a vocabulary block does not open")


class OpenIndexes:
    """All indexes this worker serves now, by uid."""

    def __init__(
        self,
        store: Store,
        directory: KeyDirectory,
        *,
        cache_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            store: of the sealed index.
            directory: of the key service.
            cache_bytes: memory for blocks and decoded columns together.
            clock: seconds since 1970.
        """
        self._store = store
        self._directory = directory
        # Blocks are only read again when decoded columns were dropped: a quarter is enough.
        self.blocks = BlockCache(cache_bytes // 4)
        self.decoded = DecodedCache(cache_bytes - cache_bytes // 4)
        self._clock = clock
        self._open: dict[bytes, OpenIndex] = {}
        # What signed events said of all indexes, open or not: (name, uid, shard) -> version.
        self._announced: dict[tuple[str, bytes, int], int] = {}

    def open(self, lease: Lease) -> OpenIndex:
        """Return the index of a lease."""
        opened = self._open.get(lease.uid)
        if opened is None:
            opened = OpenIndex(lease, self._store, self.blocks, self.decoded, self._directory)
            self._open[lease.uid] = opened
            for reader in opened.readers:
                name = (lease.index, lease.uid, reader.shard)
                reader.expect(self._announced.get(name, 0))
        else:
            opened.use(lease)
        return opened

    @contextmanager
    def using(self, lease: Lease) -> Iterator[OpenIndex]:
        """Open an index for one query; what the query read after `sweep` closed it is forgotten."""
        opened = self.open(lease)
        try:
            yield opened
        finally:
            if lease.uid not in self._open:
                opened.close()

    async def announce(self, index: str, uid: bytes, shard: int, version: int) -> None:
        """Take what a signed index-event says: heads below `version` are refused from now on."""
        if version <= self._announced.get((index, uid, shard), 0):
            return
        self._announced[index, uid, shard] = version
        opened = self._open.get(uid)
        if opened is not None and opened.lease.index == index:
            await opened.moved(shard, version)

    def sweep(self) -> None:
        """Close what has no live lease any more."""
        now = self._clock()
        for uid, opened in list(self._open.items()):
            if opened.lease.wiped or opened.lease.expires_s <= now:
                opened.close()
                del self._open[uid]
                log.info("index closed", reason="its lease ended")
