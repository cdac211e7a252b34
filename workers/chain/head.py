"""The head of a shard: the one mutable object, which says what the shard is at a version.

    envelope (msgpack array)    sealed        bytes, SST1 under the segment key of `generation`
                                certificate   bytes, of the index worker that wrote it
                                signature     64 bytes, domain HEAD over (index uid, shard, sealed)

Invariants:
- Version n+1 is written only with `If-Match` on version n, so a shard has one history;
  `prev_sha256` chains it.
- Data and position change together: `applied` counts what `segments` contain.
- A head that was opened is authentic (AEAD), written by a certified index worker (signature: a
  query worker holds the segment key too, but no certificate for this), and belongs to this index
  and shard.
- Rollback is seen by whoever saw a later version (`check_successor`) or was told a minimum version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import Struct

from workers.chain.faults import Leased, damaged
from workers.chain.kinds import SegmentKeys
from workers.crypto.errors import BadSignature, OpenFailed
from workers.crypto.info import Info
from workers.crypto.lp import Part
from workers.crypto.seal import SealPurpose, open_sealed, read_header, seal
from workers.crypto.sign import SigningKey
from workers.errors import Reject

HEAD_VERSION = 1
NO_HASH = bytes(32)


class FieldStats(Struct, frozen=True, array_like=True):
    """Live documents with a token in a text field, and the sum of their token counts."""

    docs: int
    total_length: int


class ShardStats(Struct, frozen=True, array_like=True):
    """Exact counts over live rows; `rows` alone counts dead ones too."""

    docs: int = 0
    rows: int = 0
    pairs: int = 0
    fields: dict[str, FieldStats] = {}


class Deletes(Struct, frozen=True, array_like=True):
    """The dead rows of a segment: those in the object `base`, and those in `recent`.

    `base` is the uid of a sealed object or b"". `recent` are u32le row numbers, sorted, kept in the
    head until there are too many: most batches cost no PUT besides the head's. `base_hash` is the
    SHA-256 of the base object: without it a holder of the segment key (a query worker) with stolen
    write credentials could swap a bitmap, and a missing dead row is nothing an AEAD would show.
    """

    count: int = 0
    base: bytes = b""
    base_hash: bytes = b""
    generation: int = 0
    recent: bytes = b""


class SegmentRef(Struct, frozen=True, array_like=True):
    """A live segment: where its buckets and its directory lie (see `segment.py`).

    `inline` is the whole segment when it is small, else b"". `sha256` covers the whole segment and
    is checked whenever it is read whole (small ones, compaction, verification); ranges are checked
    by their AEAD. `epoch` is the training epoch of its CODES nodes.
    """

    uid: bytes
    generation: int
    created_ms: int
    size: int
    sha256: bytes
    rows: int
    epoch: int
    padding: str
    bucket_bits: int
    buckets_at: int
    bucket_lengths: bytes
    directory_at: int
    directory_length: int
    inline: bytes = b""


class AccessRef(Struct, frozen=True, array_like=True):
    """The shard's changed access lists: `inline`, or in the object `uid` with that SHA-256.

    `generation` is that of the object's key.
    """

    inline: bytes = b""
    uid: bytes = b""
    sha256: bytes = b""
    generation: int = 0


class Refused(Struct, frozen=True, array_like=True):
    """Operations that were refused for one reason: `at` has (index-update offset, number)."""

    code: str
    message: str
    field: str | None
    at: list[tuple[int, int]]


class Head(Struct, frozen=True, array_like=True):
    """A shard at a version.

    `deletes[i]` belongs to `segments[i]`. `applied` is the highest index-update offset contained,
    -1 if none. `vector` is opaque here (centroids, epoch). `versions` names the analyzer and the
    codecs. `clock_ms` is when the newest batch that was applied had been made, by its writer's
    clock: what is older than it by the retention is refused, and only then do floors go. `access`
    names the lists that were changed after their documents were written (`access.py`). `refused`
    is what the batch before `applied` was refused of, until those who sent it have surely been
    told: who takes over the shard tells them.
    """

    v: int
    index_uid: bytes
    shard: int
    version: int
    nonce: bytes
    prev_sha256: bytes
    writer: str
    written_ms: int
    applied: int
    generation: int
    next_seq: int
    segments: list[SegmentRef]
    deletes: list[Deletes]
    stats: ShardStats
    vector: bytes = b""
    versions: dict[str, str] = {}
    clock_ms: int = 0
    access: AccessRef | None = None
    refused: list[Refused] = []

    def generations(self) -> set[int]:
        """Return the key generations that this shard still needs."""
        named = {ref.generation for ref in self.segments}
        if self.access is not None and self.access.uid:
            named.add(self.access.generation)
        return named | {one.generation for one in self.deletes if one.base} | {self.generation}


class _Envelope(Struct, frozen=True, array_like=True):
    sealed: bytes
    certificate: bytes
    signature: bytes


class VerifyWriter(Protocol):
    """Checks that a certified index worker signed `parts` (domain HEAD).

    The leases room supplies it. The certificate must have been valid at `written_ms`, not now: a
    shard without updates keeps its last head for longer than a certificate lives.
    """

    def __call__(
        self, certificate: bytes, signature: bytes, parts: tuple[Part, ...], written_ms: int
    ) -> None:
        """Raise `BadSignature` (or a `SealstreamError`) unless everything holds."""
        ...


@dataclass(frozen=True, slots=True)
class HeadSigner:
    """The index worker as a writer of heads."""

    writer: str
    key: SigningKey
    certificate: bytes


@dataclass(frozen=True, slots=True)
class OpenedHead:
    """A head as it was read: contents, SHA-256 of the object, and its ETag."""

    head: Head
    sha256: bytes
    etag: str


def empty_head(index_uid: bytes, shard: int, generation: int) -> Head:
    """Return the state of a shard that was never written (version 0)."""
    return Head(
        v=HEAD_VERSION,
        index_uid=index_uid,
        shard=shard,
        version=0,
        nonce=b"",
        prev_sha256=NO_HASH,
        writer="",
        written_ms=0,
        applied=-1,
        generation=generation,
        next_seq=0,
        segments=[],
        deletes=[],
        stats=ShardStats(),
    )


def seal_head(head: Head, keys: SegmentKeys, signer: HeadSigner) -> bytes:
    """Seal and sign `head` under the segment key of its generation. Raises Retry without it."""
    key = keys(head.generation)
    with Leased(key):
        sealed = seal(
            key,
            msgspec.msgpack.encode(head),
            purpose=SealPurpose.HEAD,
            generation=head.generation,
            index_uid=head.index_uid,
            object_id=_object_id(head.shard),
        )
    signature = signer.key.sign(Info.HEAD, head.index_uid, head.shard, sealed)
    return msgspec.msgpack.encode(_Envelope(sealed, signer.certificate, signature))


def open_head(
    data: bytes,
    index_uid: bytes,
    shard: int,
    keys: SegmentKeys,
    verify_writer: VerifyWriter,
    *,
    etag: str = "",
) -> OpenedHead:
    """Open and verify a head.

    Raises:
        Damaged: it does not authenticate, is not of this shard, or its writer was not entitled.
        Retry: there is no lease for its key generation.
    """
    try:
        envelope = msgspec.msgpack.decode(data, type=_Envelope)
        generation = read_header(envelope.sealed).generation
    except (msgspec.MsgspecError, OpenFailed, ValueError) as exc:
        raise damaged(f"the head of shard {shard} is not a head") from exc
    key = keys(generation)
    try:
        with Leased(key):
            plain = open_sealed(
                key,
                envelope.sealed,
                purpose=SealPurpose.HEAD,
                index_uid=index_uid,
                object_id=_object_id(shard),
            )
        head = msgspec.msgpack.decode(plain, type=Head)
    except (msgspec.MsgspecError, OpenFailed, ValueError) as exc:
        raise damaged(f"the head of shard {shard} does not open") from exc
    parts: tuple[Part, ...] = (index_uid, shard, envelope.sealed)
    try:
        verify_writer(envelope.certificate, envelope.signature, parts, head.written_ms)
    except (BadSignature, Reject) as exc:
        raise damaged(f"the head of shard {shard} was not signed by an index worker") from exc
    _check_shape(head, index_uid, shard, generation)
    return OpenedHead(head, hashlib.sha256(data).digest(), etag)


def check_successor(earlier: OpenedHead, later: OpenedHead) -> None:
    """Check that `later` can follow `earlier` in one history.

    Raises:
        Damaged: the version went back, forked, or the next version does not chain to the one seen.
    """
    old, new = earlier.head, later.head
    if new.version < old.version or new.applied < old.applied:
        raise damaged(f"the head of shard {new.shard} was rolled back")
    if new.version == old.version and later.sha256 != earlier.sha256:
        raise damaged(f"the head of shard {new.shard} has two histories")
    if new.version == old.version + 1 and new.prev_sha256 != earlier.sha256:
        raise damaged(f"the head of shard {new.shard} does not follow the one before")


def _object_id(shard: int) -> bytes:
    return b"head" + shard.to_bytes(12, "big")


def _check_shape(head: Head, index_uid: bytes, shard: int, generation: int) -> None:
    consistent = (
        head.v == HEAD_VERSION
        and head.index_uid == index_uid
        and head.shard == shard
        and head.generation == generation
        and head.version > 0
        and len(head.segments) == len(head.deletes)
        and len({ref.uid for ref in head.segments}) == len(head.segments)
    )
    if not consistent:
        raise damaged(f"the head of shard {shard} contradicts itself")
