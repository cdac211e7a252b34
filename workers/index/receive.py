"""From a record of index-update to a checked batch: who wrote it, for which shard, what it holds.

Everything here can be refused without harm to others: a refused record is dead-lettered, the
shard's `applied` passes it, and the worker goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.errors import ErrorCode, ErrorInfo, InvalidMessage
from schemas.update import UpdateEnvelope, decode_envelope
from workers.chain.retain import too_old
from workers.crypto.derive import Purpose
from workers.crypto.sign import VerifyKey
from workers.errors import Reject
from workers.index.build import Checked, check_access, check_batch
from workers.kafka.broker import Record
from workers.leases.lease import Lease
from workers.leases.revocation import Revocations
from workers.objects.envelope import KEY_SERVICE, Route, open_update, verify_update
from workers.runtime.lastresort import unexpected
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.store import Store


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe: the key service's verify key, and the workers that it revoked."""

    issuer: VerifyKey
    revocations: Revocations


@dataclass(frozen=True, slots=True, repr=False)
class Received:
    """A record and what became of it: a checked batch, or why it was refused.

    `generation`: key generation that the batch was sealed under. `numbers`: those of its operations
    in the record, where some were left out.
    """

    record: Record
    checked: Checked | None
    error: ErrorInfo | None
    generation: int = 0
    numbers: tuple[int, ...] | None = None

    @property
    def origins(self) -> list[tuple[int, int]]:
        """Of each operation, the record's offset and the number in it."""
        ops = () if self.checked is None else range(len(self.checked.ops))
        return [(self.record.offset, n) for n in (ops if self.numbers is None else self.numbers)]


async def receive(
    records: Sequence[Record],
    lease: Lease,
    shard: int,
    trust: Trust,
    store: Store,
    clock_ms: int,
) -> list[Received]:
    """Verify, open and check the records of one shard, in order.

    Args:
        records: as read.
        lease: for the index.
        shard: which they must be for.
        trust: the key service, and whom it revoked.
        store: where bodies lie that were too large for a record.
        clock_ms: `Head.clock_ms`; batches that are too old for it are refused.

    Raises:
        Retry: KEY_UNAVAILABLE (a generation the lease does not have), STORAGE_UNAVAILABLE.
    """
    envelopes = await asyncio.to_thread(
        lambda: [_verify(record, lease, shard, trust) for record in records]
    )
    bodies = [
        one if isinstance(one, ErrorInfo) else await _body(one, lease.uid, store)
        for one in envelopes
    ]
    return await asyncio.to_thread(
        lambda: [
            _open(record, envelope, body, lease, clock_ms)
            for record, envelope, body in zip(records, envelopes, bodies, strict=True)
        ]
    )


def _verify(record: Record, lease: Lease, shard: int, trust: Trust) -> UpdateEnvelope | ErrorInfo:
    try:
        envelope = decode_envelope(record.value)
        route = Route(envelope.index_uid, envelope.shard, envelope.generation)
        if route.index_uid != lease.uid or route.shard != shard or route.key != record.key:
            raise Reject(ErrorCode.INVALID_MESSAGE, "the update is for another shard than its key")
        if lease.partitions[shard] != record.partition:
            raise Reject(ErrorCode.INVALID_MESSAGE, "the update is in another shard's partition")
        verify_update(
            envelope,
            index=lease.index,
            issuer=trust.issuer,
            written_s=record.timestamp_ms / 1000,
            revocations=trust.revocations,
        )
        return envelope
    except (InvalidMessage, Reject) as error:
        return error.info()
    except Exception as failure:
        return unexpected(failure, record).info()


async def _body(envelope: UpdateEnvelope, uid: bytes, store: Store) -> bytes | ErrorInfo:
    if envelope.body is not None:
        return envelope.body
    key = envelope.body_object or ""
    try:
        if key != layout.body(uid, layout.last_uid(key)):
            raise ValueError
        return (await store.get(key)).data
    except ValueError:
        return Reject(
            ErrorCode.INVALID_MESSAGE, "the update names no body object of its index"
        ).info()
    except NotFound:
        return Reject(ErrorCode.DAMAGED, "the update's body object is gone").info()


def _open(
    record: Record,
    envelope: UpdateEnvelope | ErrorInfo,
    body: bytes | ErrorInfo,
    lease: Lease,
    clock_ms: int,
) -> Received:
    if isinstance(envelope, ErrorInfo):
        return Received(record, None, envelope)
    if isinstance(body, ErrorInfo):
        return Received(record, None, body)
    generation = envelope.generation
    if generation < min(lease.generations, default=0):
        # Its data key is destroyed: nobody will ever open it. What its writer accepted was done
        # again by whoever took over its partition.
        ended = Reject(ErrorCode.EXPIRED, "the update is sealed under a key that has ended")
        return Received(record, None, ended.info())
    private = lease.private_key(generation, Purpose.UPDATE)
    try:
        batch = open_update(envelope, private, body)
        if too_old(batch.created_ms, clock_ms):
            # What stopped a second application may be forgotten: nobody may bring it back.
            raise Reject(ErrorCode.EXPIRED, "the update is older than what the shard remembers")
        if envelope.worker == KEY_SERVICE:
            return Received(record, check_access(batch), None, generation)
        return Received(record, check_batch(batch, lease.config), None, generation)
    except Reject as error:
        return Received(record, None, error.info())
    except Exception as failure:
        return Received(record, None, unexpected(failure, record).info())
