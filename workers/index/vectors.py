"""The vectors of one shard: which centroids new ones go to, when to train, how to merge.

The state (`workers.vector.centroids`) is named by the head, so readers and writer always agree. An
index begins untrained, in one cluster that is searched exactly. A training makes a new epoch and
regroups every segment in the same publication; segments that were added meanwhile keep their
epoch, and the state names it until compaction has regrouped them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import structlog

from schemas.index import IndexConfig
from workers.chain.codec import Regroup, RowMap
from workers.chain.faults import Leased
from workers.chain.head import Head
from workers.chain.kinds import NodeKind
from workers.chain.reader import ShardReader
from workers.chain.snapshot import Snapshot
from workers.chain.writer import ShardWriter
from workers.crypto.derive import centroid_token
from workers.crypto.secret import SecretBytes
from workers.index.build import F32, Clusters
from workers.storage.store import Store
from workers.vector.centroids import Epoch, VectorState, initial_state
from workers.vector.codes import CodesCodec, decode_codes, dequantize
from workers.vector.metric import Metric
from workers.vector.store import VectorKeys, load_state, read_ref, save_state
from workers.vector.training import MIN_VECTORS, retrain, sample_size, should_train

log = structlog.get_logger("index.vectors")

_SEED: Final = 1


class CodesMerge:
    """Merge CODES nodes (`workers.chain.codec.Codec`), whatever their epoch."""

    kind = NodeKind.CODES

    def merge_many(
        self, chains: Sequence[Sequence[tuple[bytes, RowMap]]]
    ) -> Sequence[bytes | None]:
        """Return one payload over the new rows for each chain, None when no vector is left."""
        return [self._merge(parts) for parts in chains]

    def _merge(self, parts: Sequence[tuple[bytes, RowMap]]) -> bytes | None:
        first = decode_codes(parts[0][0])
        zeros = np.zeros((1, first.values.codes.shape[1]), dtype=np.float32)
        state = VectorState(Metric.DOT, zeros[0], (Epoch(first.epoch, zeros, 0),))
        codec = CodesCodec(state, lambda _epoch, _cluster: b"")
        merged = codec.regroup([(b"", payload, rowmap) for payload, rowmap in parts])
        return next((payload for _, payload in merged), None)


class ShardVectors:
    """What the writer of a shard knows about its vectors. Without a dimension it does nothing."""

    def __init__(
        self,
        store: Store,
        uid: bytes,
        shard: int,
        keys: VectorKeys,
        generation: Callable[[], int],
        config: IndexConfig,
    ) -> None:
        """Prepare; `generation` returns the key generation to write with."""
        self._store = store
        self._uid = uid
        self._shard = shard
        self._keys = keys
        self._generation = generation
        self._config = config
        self._known: tuple[bytes, VectorState] | None = None
        # Held from the choice of an epoch to its publication, and while epochs are forgotten.
        self.epochs_in_use = asyncio.Lock()

    async def clusters(
        self, writer: ShardWriter, head: Head, vectors: F32 | None, generation: int
    ) -> Clusters | None:
        """Return how the vectors of a batch are grouped; None if there are none.

        `generation` is the one of their segment: their tokens end with it.

        The first vectors of a shard fix the mean that is subtracted before quantising, so the
        state is published before them.

        Raises:
            Damaged, Retry, Fenced.
        """
        dimension = self._config.dimension
        if dimension is None or vectors is None:
            return None
        state = await self._state(head)
        if state is None:
            state = initial_state(dimension, Metric(self._config.metric), vectors)
            await writer.publish_state(vector=await self._save(self._generation(), state))
        return self._group(state, generation)

    def epoch(self, head: Head) -> int:
        """Return the training epoch of a segment that is written now. Raises Damaged."""
        return read_ref(head.vector).epoch if head.vector else 0

    async def move(self, writer: ShardWriter, head: Head, generation: int) -> bool:
        """Seal the state under a later key generation; return whether that was needed.

        Raises:
            Damaged, Retry, Fenced.
        """
        async with self.epochs_in_use:
            head = writer.head
            if not head.vector or read_ref(head.vector).generation >= generation:
                return False
            state = await self._state(head)
            if state is None:
                return False
            await writer.publish_state(vector=await self._save(generation, state))
            return True

    def named(self, head: Head) -> set[bytes]:
        """Return the uids of the centroid objects that a head names. Raises Damaged."""
        ref = read_ref(head.vector) if head.vector else None
        return {ref.uid} if ref is not None and ref.uid else set()

    async def regroup(self, head: Head, generation: int) -> tuple[Regroup | None, int | None]:
        """Return what a merge needs to group the vectors by the current epoch.

        `generation` is the one of the merged segment.
        """
        state = await self._state(head)
        if state is None:
            return None, None
        group = self._group(state, generation)
        return CodesCodec(state, group.token), state.current.number

    async def train(self, writer: ShardWriter, head: Head, reader: ShardReader) -> bool:
        """Train when it is time to; forget epochs that no segment uses. Returns whether it did.

        Raises:
            Damaged, Retry, Fenced.
        """
        if self._config.dimension is None or head.stats.docs < MIN_VECTORS or not head.vector:
            return False
        state = await self._state(head)
        if state is None or not should_train(state, head.stats.docs):
            return await self._settle(writer)
        snapshot = await reader.refresh()
        generations = {ref.uid: ref.generation for ref in head.segments}
        live, sample = await self._sample(snapshot, state, generations)
        if not should_train(state, live):
            return False
        trained = await asyncio.to_thread(retrain, state, sample, live, seed=_SEED)
        generation = self._generation()
        group = self._group(trained, generation)
        saved = await self._save(generation, trained)
        codec = CodesCodec(trained, group.token)
        epoch = trained.current.number
        done = await writer.compact(
            everything=True, regroup=codec, epoch=epoch, vector=saved, generation=generation
        )
        log.info("trained", vectors=live, clusters=trained.current.clusters, done=bool(done))
        return done is not None

    async def _settle(self, writer: ShardWriter) -> bool:
        async with self.epochs_in_use:
            head = writer.head
            state = await self._state(head)
            if state is None or len(state.epochs) == 1:
                return False
            if any(ref.epoch != state.current.number for ref in head.segments):
                return False
            await writer.publish_state(vector=await self._save(self._generation(), state.settled()))
            return True

    async def _state(self, head: Head) -> VectorState | None:
        if self._known is None or self._known[0] != head.vector:
            state = await load_state(self._store, self._keys, self._uid, self._shard, head.vector)
            if state is None:
                return None
            self._known = (head.vector, state)
        return self._known[1]

    async def _save(self, generation: int, state: VectorState) -> bytes:
        key = self._keys(generation)
        return await save_state(self._store, key, self._uid, self._shard, generation, state)

    def _group(self, state: VectorState, generation: int) -> Clusters:
        def token(epoch: int, cluster: int) -> bytes:
            # Asked for anew each time: the key of a lease that ended is wiped.
            key: SecretBytes = self._keys(generation)
            with Leased(key):
                return centroid_token(key, epoch, cluster)

        return Clusters(state, token)

    async def _sample(
        self, snapshot: Snapshot, state: VectorState, generations: dict[bytes, int]
    ) -> tuple[int, F32]:
        """Return how many live vectors there are, and a random sample of them."""
        random = np.random.default_rng(_SEED)
        share = sample_size(snapshot.shard_stats.docs, state.dimension) / max(
            1, snapshot.shard_stats.docs
        )
        live, parts = 0, [np.zeros((0, state.dimension), dtype=np.float32)]
        for segment in range(snapshot.segments):
            generation = generations.get(snapshot.segment_uid(segment))
            if generation is None:
                continue
            rows, vectors = await self._vectors(snapshot, segment, state, generation)
            alive = np.flatnonzero(snapshot.live(segment)[rows])
            live += alive.size
            chosen = alive[random.random(alive.size) < share]
            parts.append(vectors[chosen].astype(np.float32))
        return live, np.concatenate(parts)

    async def _vectors(
        self, snapshot: Snapshot, segment: int, state: VectorState, generation: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._config.storage_precision != "int8":
            return await snapshot.vectors(segment)
        # Codes alone are stored: near enough for centroids.
        number = snapshot.epochs[segment]
        epoch = next((one for one in state.epochs if one.number == number), state.current)
        tokens = [
            centroid_token(self._keys(generation), number, cluster)
            for cluster in range(epoch.clusters)
        ]
        requests = [(NodeKind.CODES, token) for token in tokens]
        found = await snapshot.lookup(requests, only={one: [segment] for one in requests})
        nodes = [decode_codes(payload) for hits in found.values() for _, payload in hits]
        if not nodes:
            return np.zeros(0, np.int64), np.zeros((0, state.dimension), np.float32)
        return (
            np.concatenate([node.rows.astype(np.int64) for node in nodes]),
            np.concatenate([dequantize(node.values, state.mean) for node in nodes]),
        )
