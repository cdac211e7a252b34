"""Opening a shard: its head is read, and what works on it is made. Nothing is written."""

from __future__ import annotations

import contextlib

from workers.chain.head import Head, HeadSigner
from workers.chain.kinds import NodeKind
from workers.chain.reader import ShardReader
from workers.chain.writer import ShardWriter
from workers.errors import Fenced
from workers.index.leased import LeasedKeys
from workers.index.place import Place
from workers.index.reseal import Resealer
from workers.index.services import Services
from workers.index.totals import Total
from workers.index.vectors import CodesMerge, ShardVectors
from workers.leases.certificate import WorkerIdentity
from workers.leases.heads import head_verifier
from workers.leases.lease import Lease
from workers.text.postings import RowsCodec, TermCodec


class OpenShard:
    """A shard whose head was read, with its writer: the only one, until it is fenced.

    Attributes:
        head: as last seen: the writer shows none once it is fenced.
        head_sha256: of its object; zeros before the first.
    """

    def __init__(
        self,
        place: Place,
        keys: LeasedKeys,
        writer: ShardWriter,
        vectors: ShardVectors,
        reader: ShardReader,
        live_segments: Total,
    ) -> None:
        """Take in what works on it; the head of `writer` was loaded."""
        self.place = place
        self.keys = keys
        self.writer = writer
        self.vectors = vectors
        self.reader = reader
        self.head: Head = writer.head
        self.head_sha256 = b""
        self._live_segments = live_segments
        self.look()

    def look(self) -> None:
        """Remember the head; after a fence the last one stays, until the shard is closed."""
        with contextlib.suppress(Fenced):
            self.head, self.head_sha256 = self.writer.head, self.writer.head_sha256
            self._live_segments.set(self.place, len(self.head.segments))

    def use(self, lease: Lease, identity: WorkerIdentity) -> None:
        """Write from now on under the newest key generation and certificate."""
        self.writer.use_generation(lease.generation)
        # Certificates are renewed while the worker runs.
        self.writer.use_signer(_signer(identity))

    def close(self) -> None:
        """Take its segments out of the total."""
        self._live_segments.forget(self.place)


async def open_shard(place: Place, keys: LeasedKeys, services: Services) -> OpenShard:
    """Read the head of a shard, for which there is a lease.

    Raises:
        Retry: no keys, no storage. Damaged: the head does not authenticate, or is older than one
        that was announced.
    """
    lease = keys.lease()
    store, uid, shard = services.store, place.uid, place.shard
    verifier = head_verifier(services.directory, place.index)
    writer = ShardWriter(
        store,
        uid,
        shard,
        keys.segment,
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
        reseal=Resealer(services.holder, store, keys.lease),
    )
    floor = services.announced.version(place.index, uid, shard)
    await writer.load(floor)
    return OpenShard(
        place,
        keys,
        writer,
        ShardVectors(store, uid, shard, keys.vector, keys.generation, lease.config),
        ShardReader(store, None, uid, shard, keys.segment, verifier),
        services.segments,
    )


def _signer(identity: WorkerIdentity) -> HeadSigner:
    return HeadSigner(identity.worker_id, identity.signing_key, identity.certificate.encoded)
