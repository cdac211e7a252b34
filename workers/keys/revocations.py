"""The realm's revocations: written down one by one, counted, published, never taken back.

`realm/policy/<epoch, 8 bytes>` = SST1 of a msgpack map, a `Revocation`, bound to its epoch. Epochs
count from 1 without gaps: of two instances that revoke at once, one gets the next epoch. The newest
epoch is also published as a floor in key-directory, so a bucket that is put back to an older state
is noticed at start, and so is a missing record.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from schemas.errors import ErrorCode
from schemas.topics import CONTENT_JSON, HEADER_CONTENT_TYPE
from workers.crypto.errors import OpenFailed
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import Key
from workers.crypto.sign import SigningKey
from workers.errors import Damaged, Fatal
from workers.kafka.broker import Producer
from workers.keys.floors import DirectoryFloors
from workers.leases.certificate import Clock
from workers.leases.directory import KeyDirectory
from workers.leases.revocation import Kind, Revocation, sign_revocation
from workers.storage import layout
from workers.storage.errors import AlreadyExists, NotFound, OutcomeUnknown
from workers.storage.store import Store

KIND: Final = "policy"
_EPOCH_BYTES: Final = 8


class RevocationLog:
    """Writes revocations; `KeyDirectory.revocations` is how everybody reads them."""

    def __init__(
        self,
        store: Store,
        key: Key,
        *,
        producer: Producer,
        topic: str,
        signer: SigningKey,
        directory: KeyDirectory,
        floors: DirectoryFloors,
        clock: Clock = time.time,
    ) -> None:
        """Prepare.

        Args:
            store: keeps them.
            key: the realm's `policy` key.
            producer: publishes them.
            topic: key-revocation, with prefix.
            signer: the key service's identity.
            directory: where this process reads them back.
            floors: keep the newest epoch outside of the bucket.
            clock: seconds since 1970.
        """
        self._store = store
        self._key = key
        self._producer = producer
        self._topic = topic
        self._signer = signer
        self._directory = directory
        self._floors = floors
        self._clock = clock
        self._log: dict[int, Revocation] = {}

    @property
    def epoch(self) -> int:
        """The policy epoch: how many revocations there were."""
        return max(len(self._log), self._directory.revocations.epoch)

    async def start(self) -> None:
        """Read what is stored, refuse an older state than was published, publish it anew.

        Raises:
            Fatal: the bucket holds an older state than was published, or has gaps.
            Damaged: a record does not open.
            Retry: the store or the broker is unavailable.
        """
        await self._read()
        floor = max(self._floors.version(KIND), self._directory.revocations.epoch)
        if len(self._log) < floor:
            raise Fatal(
                ErrorCode.DAMAGED,
                "the bucket holds fewer revocations than were published: it was put back to an"
                " older state",
            )
        await self.publish()

    async def publish(self) -> None:
        """Write the newest revocation of every principal to its topic. Raises Retry."""
        newest = {one.key: one for _, one in sorted(self._log.items())}
        for revocation in newest.values():
            await self._send(revocation)
        if self._log and self._floors.version(KIND) < len(self._log):
            await self._floors.publish(KIND, len(self._log))

    async def revoke(self, kind: Kind, principal: str) -> Revocation:
        """Revoke a principal, for all processes; returns once this one knows it.

        Raises:
            Retry: the store or the broker is unavailable; safe to repeat.
            Damaged: a record of another instance does not open.
        """
        while True:
            await self._read()
            epoch = len(self._log) + 1
            revocation = Revocation(
                principal=principal,
                kind=kind,
                policy_epoch=epoch,
                revoked_ms=int(self._clock() * 1000),
            )
            try:
                await self._store.create(_name(epoch), self._seal(revocation))
            except (AlreadyExists, OutcomeUnknown):
                await self._read()
                if self._log.get(epoch) != revocation:
                    continue
            self._log[epoch] = revocation
            break
        await self._floors.publish(KIND, epoch)
        await self._send(revocation)
        await self._directory.refresh()
        return revocation

    async def _send(self, revocation: Revocation) -> None:
        await self._producer.send_and_wait(
            self._topic,
            sign_revocation(revocation, self._signer),
            key=revocation.key.encode(),
            headers=((HEADER_CONTENT_TYPE, CONTENT_JSON.encode()),),
        )

    async def _read(self) -> None:
        # Epochs have no gaps: what is missing ends the log, and the floor tells.
        epoch = len(self._log) + 1
        while True:
            try:
                stored = await self._store.get(_name(epoch))
            except NotFound:
                return
            self._log[epoch] = self._open(epoch, stored.data)
            epoch += 1

    def _seal(self, revocation: Revocation) -> bytes:
        return seal(
            self._key,
            msgspec.msgpack.encode(revocation),
            purpose=SealPurpose.REALM,
            index_uid=b"",
            object_id=lp(KIND, revocation.policy_epoch),
        )

    def _open(self, epoch: int, data: bytes) -> Revocation:
        try:
            plain = open_sealed(
                self._key,
                data,
                purpose=SealPurpose.REALM,
                index_uid=b"",
                object_id=lp(KIND, epoch),
            )
            return msgspec.msgpack.decode(plain, type=Revocation)
        except (OpenFailed, ValueError, msgspec.MsgspecError) as error:
            raise Damaged(ErrorCode.DAMAGED, "a stored revocation does not open") from error


def _name(epoch: int) -> str:
    return layout.realm(KIND, epoch.to_bytes(_EPOCH_BYTES, "big"))
