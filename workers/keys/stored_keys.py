"""The keys of an index as they lie in the store: written, read, replaced, destroyed.

Objects of an index, all but the envelope sealed (SST1) under the KEK and bound to index and name.
The three last lie under `<uid>/keys/epochs/<epoch>/` for KEKs after the first one; which epoch is
the current one stands in the catalog, so a change of the KEK is one conditional write there.

    <uid>/keys/envelope/<epoch>    `envelope.py`
    <uid>/keys/tag                 TAG, 32 bytes
    <uid>/keys/dek/<generation>    suite u8 ‖ DEK
    <uid>/keys/ingest/<day>        suite u8 ‖ seed of the INGEST pair

What the catalog names, but is missing or does not open, is DAMAGED. Every method raises Retry:
STORAGE_UNAVAILABLE.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from schemas.errors import ErrorCode
from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkeSuite
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import KEY_BYTES, SecretBytes
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.keys.catalog import IndexRecord
from workers.keys.envelope import EPOCH, Envelope, damaged, open_envelope, sign_envelope
from workers.keys.keyring import DataKey, IngestKey, KeyRing
from workers.storage import layout
from workers.storage.errors import NotFound, OutcomeUnknown, PreconditionFailed
from workers.storage.store import Store

_TAG_ID = b"tag"


class StoredKeys:
    """Reads and writes the key objects of indexes."""

    def __init__(self, store: Store, signer: SigningKey) -> None:
        """Prepare; `signer` is the key service's identity."""
        self._store = store
        self._signer = signer

    async def write(self, envelope: Envelope, ring: KeyRing) -> None:
        """Store all keys of a new index, or of a new epoch of one.

        Raises:
            AlreadyExists: another instance makes the same epoch.
        """
        name = layout.envelope(ring.uid, ring.epoch)
        # First, and only if there is none: of two instances in one millisecond one goes on.
        await self._store.create(name, sign_envelope(envelope, self._signer))
        await self._store.create(layout.tag(ring.uid, ring.epoch), _seal_tag(ring))
        for data_key in ring.data_keys.values():
            await self.add_data_key(ring, data_key)
        for ingest_key in ring.ingest_keys.values():
            await self.add_ingest_key(ring, ingest_key)

    async def add_data_key(self, ring: KeyRing, key: DataKey) -> None:
        """Store one more data key. Raises AlreadyExists."""
        name = layout.dek(ring.uid, key.generation, ring.epoch)
        await self._store.create(name, _seal_data_key(ring, key))

    async def add_ingest_key(self, ring: KeyRing, key: IngestKey) -> None:
        """Store one more INGEST pair. Raises AlreadyExists."""
        name = layout.ingest_key(ring.uid, key.day, ring.epoch)
        await self._store.create(name, _seal_ingest_key(ring, key))

    async def envelope(self, record: IndexRecord) -> tuple[Envelope, str]:
        """Return the envelope of an index, verified, and its ETag. Raises Damaged."""
        try:
            stored = await self._store.get(layout.envelope(record.uid, record.epoch))
        except NotFound as error:
            raise damaged() from error
        envelope = open_envelope(
            stored.data, record.uid, record.epoch, self._signer.public, least=record.envelope
        )
        return envelope, stored.etag

    async def replace_envelope(self, record: IndexRecord, envelope: Envelope, etag: str) -> None:
        """Put an envelope in the place of the one with this ETag. Raises Reject: CONFLICT."""
        name = layout.envelope(record.uid, record.epoch)
        try:
            await self._store.replace(name, sign_envelope(envelope, self._signer), etag)
        except (PreconditionFailed, OutcomeUnknown) as error:
            raise Reject(ErrorCode.CONFLICT, "the key is being changed: try again") from error

    async def read(self, record: IndexRecord, kek: SecretBytes, proved_s: float) -> KeyRing:
        """Return all keys of an index, with the generations that the catalog names.

        Args:
            record: of the index.
            kek: of the record's epoch; the ring keeps it.
            proved_s: when it was given, seconds since 1970.

        Raises:
            Damaged: they do not open.
        """
        uid, epoch = record.uid, record.epoch
        with _damage():
            raw = await self._open(layout.tag(uid, epoch), kek, SealPurpose.TAG, uid, _TAG_ID)
            ring = KeyRing(
                uid=uid,
                kek=kek,
                tag=SecretBytes(raw),
                data_keys={g: await self.data_key(record, kek, g) for g in record.readable},
                ingest_keys={},
                proved_s=proved_s,
                epoch=epoch,
            )
            async for entry in self._store.list(layout.ingest_prefix(uid, epoch)):
                day = int(entry.key.rpartition("/")[2])
                ring.ingest_keys[day] = await self.ingest_key(uid, kek, day, epoch)
        return ring

    async def data_key(self, record: IndexRecord, kek: SecretBytes, generation: int) -> DataKey:
        """Return the data key of a generation. Raises Damaged."""
        name, uid = layout.dek(record.uid, generation, record.epoch), record.uid
        with _damage():
            raw = await self._open(name, kek, SealPurpose.DEK, uid, _dek_id(generation))
            return DataKey(generation, *_split(raw))

    async def ingest_key(self, uid: bytes, kek: SecretBytes, day: int, epoch: int) -> IngestKey:
        """Return the INGEST pair of a day. Raises Damaged."""
        name = layout.ingest_key(uid, day, epoch)
        with _damage():
            raw = await self._open(name, kek, SealPurpose.INGEST_KEY, uid, _ingest_id(day))
            return IngestKey(day, *_split(raw))

    async def drop_ingest_keys(self, ring: KeyRing, days: Iterable[int]) -> None:
        """Destroy the INGEST pairs of these days."""
        await self._store.delete([layout.ingest_key(ring.uid, d, ring.epoch) for d in days])

    async def drop_epochs(self, record: IndexRecord) -> None:
        """Destroy what earlier KEKs wrap.

        Later ones stay: another instance may be about to change to one.
        """
        uid = record.uid
        firsts = (layout.tag(uid), layout.deks_prefix(uid), layout.ingest_prefix(uid))
        numbered = (layout.epochs_prefix(uid), layout.envelopes_prefix(uid))
        old = []
        async for entry in self._store.list(layout.keys_prefix(uid)):
            prefix = next((p for p in numbered if entry.key.startswith(p)), None)
            if prefix is not None:
                epoch = int(entry.key.removeprefix(prefix).partition("/")[0])
            elif entry.key.startswith(firsts):
                epoch = EPOCH
            else:
                continue
            if epoch < record.epoch:
                old.append(entry.key)
        if old:
            await self._store.delete(old)

    async def drop_generations(self, record: IndexRecord) -> None:
        """Destroy the data keys before those that the catalog names."""
        least, prefix = min(record.readable), layout.deks_prefix(record.uid, record.epoch)
        old = [
            entry.key
            async for entry in self._store.list(prefix)
            if int(entry.key.removeprefix(prefix)) < least
        ]
        if old:
            await self._store.delete(old)

    async def destroy(self, uid: bytes) -> None:
        """Destroy all keys of an index."""
        keys = [entry.key async for entry in self._store.list(layout.keys_prefix(uid))]
        if keys:
            await self._store.delete(keys)

    async def _open(
        self, key: str, kek: SecretBytes, purpose: SealPurpose, uid: bytes, object_id: bytes
    ) -> bytes:
        stored = await self._store.get(key)
        return open_sealed(kek, stored.data, purpose=purpose, index_uid=uid, object_id=object_id)


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise Damaged for what is missing or does not open."""
    try:
        yield
    except (OpenFailed, NotFound, ValueError) as error:
        raise damaged() from error


def _dek_id(generation: int) -> bytes:
    return lp("dek", generation)


def _ingest_id(day: int) -> bytes:
    return lp("ingest", day)


def _seal_tag(ring: KeyRing) -> bytes:
    return seal(
        ring.kek,
        ring.tag.view(),
        purpose=SealPurpose.TAG,
        index_uid=ring.uid,
        object_id=_TAG_ID,
    )


def _seal_data_key(ring: KeyRing, key: DataKey) -> bytes:
    return seal(
        ring.kek,
        bytes([key.suite]) + key.dek.view(),
        purpose=SealPurpose.DEK,
        generation=key.generation,
        index_uid=ring.uid,
        object_id=_dek_id(key.generation),
    )


def _seal_ingest_key(ring: KeyRing, key: IngestKey) -> bytes:
    return seal(
        ring.kek,
        bytes([key.suite]) + key.seed.view(),
        purpose=SealPurpose.INGEST_KEY,
        index_uid=ring.uid,
        object_id=_ingest_id(key.day),
    )


def _split(raw: bytes) -> tuple[HpkeSuite, SecretBytes]:
    """Split suite byte and key. Raises OpenFailed."""
    if len(raw) != 1 + KEY_BYTES:
        raise OpenFailed("a stored key has an unknown form")
    return HpkeSuite(raw[0]), SecretBytes(memoryview(raw)[1:])
