"""The engine alone: one index on a store, written and read by the workers' own parts.

No broker and no key service: keys are made here, the batches of `workers.ingest.prepare` go
straight into `workers.index.build` and the shard's writer, and queries run on what the query worker
keeps of an index (`workers.query.indexes.OpenIndex`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from schemas.auth import Scope
from schemas.codec import convert
from schemas.filter import Filter
from schemas.index import IndexConfig
from schemas.ingest import IngestRequest
from schemas.query import QueryRequest
from workers.chain.head import HeadSigner
from workers.chain.kinds import NodeKind
from workers.chain.ops import PendingBatch, Published
from workers.chain.reader import ShardReader
from workers.chain.writer import ShardWriter
from workers.crypto.derive import Purpose, subkey
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey
from workers.index.build import check_batch, gather
from workers.index.vectors import CodesMerge, ShardVectors
from workers.ingest.batches import Authorised
from workers.ingest.incoming import Incoming
from workers.ingest.prepare import IndexContext, IndexKeys, Limits, prepare
from workers.kafka.broker import Record
from workers.leases.certificate import issue_certificate
from workers.leases.heads import head_verifier
from workers.leases.lease import Decision, Lease
from workers.leases.revocation import Revocations
from workers.query.indexes import OpenIndex
from workers.search.cache import DecodedCache
from workers.search.execute import Answer, search, search_many
from workers.storage.cache import BlockCache
from workers.storage.store import Store
from workers.text.postings import RowsCodec, TermCodec

GROUP = "00000000-0000-4000-8000-000000000001"
_INDEX = "bench/engine"
_SUITE = HpkeSuite.X25519
_STALENESS_MS = 1000
_CACHE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Keys:
    """Everything secret of one index, and who may write it. Picklable, for a second process."""

    uid: bytes
    tag: bytes
    dek: bytes
    issuer: bytes

    @classmethod
    def make(cls) -> Keys:
        """Draw them at random."""
        random = np.random.default_rng()
        return cls(random.bytes(16), random.bytes(32), random.bytes(32), random.bytes(32))

    def secret(self, purpose: Purpose) -> SecretBytes:
        """Return a subkey of the one generation."""
        return subkey(SecretBytes(self.dek), purpose, self.uid)

    def private(self, purpose: Purpose) -> HpkePrivateKey:
        """Return the private half of a subkey."""
        return HpkePrivateKey.from_seed(_SUITE, self.secret(purpose))

    def directory(self) -> Any:
        """Return what stands for the key directory: who certifies writers."""
        issuer = SigningKey.from_seed(self.issuer)
        return SimpleNamespace(
            key_service=SimpleNamespace(sign_pub=issuer.public), revocations=Revocations()
        )


class Writing:
    """The index as ingest and index workers write it."""

    def __init__(self, store: Store, keys: Keys, config: IndexConfig) -> None:
        self._config = config
        self._keys = keys
        self._context = IndexContext(
            uid=keys.uid,
            config=config,
            generation=1,
            partitions=(0,),
            stream=1,
            object_public=keys.private(Purpose.OBJECT).public,
            keys=IndexKeys(SecretBytes(keys.tag)),
        )
        issuer, signer = SigningKey.from_seed(keys.issuer), SigningKey.generate()
        certificate = issue_certificate(
            issuer, worker_id="index-1", role="index", indexes=["*"], sign_pub=signer.public.raw
        )
        segment, vector = keys.secret(Purpose.SEGMENT), keys.secret(Purpose.VECTOR)
        self._vectors = ShardVectors(store, keys.uid, 0, lambda _: vector, lambda: 1, config)
        verifier = head_verifier(keys.directory(), _INDEX)
        self._writer = ShardWriter(
            store,
            keys.uid,
            0,
            lambda _: segment,
            HeadSigner("index-1", signer, certificate.encoded),
            verifier,
            {
                NodeKind.KEYWORD: RowsCodec(NodeKind.KEYWORD),
                NodeKind.TERM: TermCodec(NodeKind.TERM),
                NodeKind.CODES: CodesMerge(),
            },
            padding=config.padding,
        )
        self._reader = ShardReader(store, None, keys.uid, 0, lambda _: segment, verifier)
        self._decision = decision()
        self._offset = 0

    async def load(self) -> Writing:
        """Read the head, if there is one."""
        await self._writer.load()
        return self

    async def write(self, bodies: Iterable[dict[str, Any]]) -> Published:
        """Apply one micro-batch of plaintext-ingest bodies (without `v`, `index`, `auth`)."""
        items = [self._item(body) for body in bodies]
        limits = Limits(content_bytes=1 << 24, record_bytes=1 << 26)
        prepared = await asyncio.to_thread(
            lambda: prepare(items, self._context, limits, now_ms=int(time.time() * 1000))
        )
        if prepared.refused:
            raise RuntimeError(f"refused: {prepared.refused[0].error}")
        whole = await asyncio.to_thread(
            lambda: gather([check_batch(one.batch, self._config) for one in prepared.updates])
        )
        writer = self._writer
        clusters = await self._vectors.clusters(
            writer, writer.head, whole.first_vectors(), writer.head.generation
        )
        return await writer.apply(
            PendingBatch(
                offset=self._offset,
                ops=whole.ops,
                build_nodes=lambda accepted: whole.nodes(accepted, clusters),
                vocabulary=whole.vocabulary,
                epoch=self._vectors.epoch(writer.head),
            )
        )

    async def settle(self, *, everything: bool = False) -> None:
        """Do the background work: train, merge; `everything` merges down to one segment."""
        writer = self._writer
        await self._vectors.train(writer, writer.head, self._reader)
        while writer.needs_compaction:
            await self._compact(everything=False)
        if everything and len(writer.head.segments) > 1:
            await self._compact(everything=True)

    @property
    def segments(self) -> int:
        """The number of live segments."""
        return len(self._writer.head.segments)

    async def _compact(self, *, everything: bool) -> None:
        regroup, epoch = await self._vectors.regroup(
            self._writer.head, self._writer.head.generation
        )
        await self._writer.compact(everything=everything, regroup=regroup, epoch=epoch)

    def _item(self, body: dict[str, Any]) -> Authorised:
        self._offset += 1
        whole = {"v": 1, "index": _INDEX, "auth": {"token": "bench"}, **body}
        request = convert(IngestRequest, whole)
        record = Record(
            "plaintext-ingest", 0, self._offset, -1, f"{_INDEX}/{request.id}".encode(), b"", ()
        )
        return Authorised(Incoming(record, request, False, None, self._offset), self._decision)


class Reading:
    """The index as a query worker reads it, with nothing in memory yet."""

    def __init__(
        self, store: Store, keys: Keys, config: IndexConfig, cache_bytes: int = _CACHE_BYTES
    ) -> None:
        now_s = time.time()
        lease = Lease(
            index=_INDEX,
            uid=keys.uid,
            config=config,
            role="query",
            generation=1,
            partitions=(0,),
            issued_s=now_s,
            expires_s=now_s + 86_400,
            full=True,
            directory_version=1,
            _secrets={
                (0, Purpose.TAG): SecretBytes(keys.tag),
                (1, Purpose.SEGMENT): keys.secret(Purpose.SEGMENT),
                (1, Purpose.VECTOR): keys.secret(Purpose.VECTOR),
            },
            _publics={},
            _privates={(1, Purpose.QUERY): keys.private(Purpose.QUERY)},
            _ingest={},
            _query_public=None,
        )
        self._decision = decision()
        self._open = OpenIndex(
            lease,
            store,
            BlockCache(cache_bytes // 4),
            DecodedCache(cache_bytes - cache_bytes // 4),
            cast("Any", keys.directory()),
        )
        self.gets = self.bytes = 0

    async def answer(
        self, query: Any, top_k: int | None = 10, condition: Filter | None = None
    ) -> Answer:
        """Answer one query (see `parse`)."""
        snapshot = await self._open.snapshot([], _STALENESS_MS)
        context = self._open.context(self._decision)
        found = await search(context, snapshot, query, top_k=top_k, condition=condition)
        self.gets += sum(shard.stats.gets for shard in snapshot.shards)
        self.bytes += sum(shard.stats.bytes for shard in snapshot.shards)
        return found

    async def answers(self, queries: Sequence[Any], top_k: int = 10) -> list[Answer]:
        """Answer a batch."""
        snapshot = await self._open.snapshot([], _STALENESS_MS)
        context = self._open.context(self._decision)
        return await search_many(context, snapshot, queries, limits=[top_k] * len(queries))


def parse(query: dict[str, Any]) -> Any:
    """Decode a query of the contract, as a query worker does before it searches."""
    request = convert(
        QueryRequest,
        {
            "v": 1,
            "request_id": "00000000-0000-4000-8000-000000000002",
            "index": _INDEX,
            "auth": {"token": "bench"},
            "query": query,
        },
    )
    return request.query


def decision() -> Decision:
    """Return a caller who may do everything."""
    return Decision(
        caller="bench",
        index=_INDEX,
        groups=(GROUP,),
        default_group=GROUP,
        scopes=frozenset(Scope),
        cnf=None,
        expires_s=time.time() + 86_400,
    )
