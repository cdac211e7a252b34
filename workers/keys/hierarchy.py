"""KMS key -> KEK -> TAG, DEK, INGEST: made, opened, changed, cached.

How they lie in the store: `stored_keys.py`. Invariants:

- Opened keys are cached for at most `CACHE_S` after the KMS, or a caller who keeps the KEK, last
  gave it; at most `MAX_RINGS` indexes at a time.
- A cached ring is of the epoch, and has the generations, that the catalog names.
- What is new asks the KMS (`fresh`); what continues (a renewal, an object key for a leased worker)
  may live from the cache while the KMS is down, and asks it once the cache is `REFRESH_S` old.
- `WRONG_KEY` is said only of a key that a caller gave; all else that does not open is DAMAGED.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import replace
from itertools import pairwise
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.hpke import HpkeSuite
from workers.crypto.secret import SecretBytes, random_secret
from workers.crypto.sign import SigningKey
from workers.errors import Reject, Retry
from workers.keys.catalog import PROVIDER_NONE, IndexRecord
from workers.keys.envelope import EPOCH, Envelope, commitment, damaged, kms_context
from workers.keys.keyring import DataKey, IngestKey, KeyRing
from workers.keys.stored_keys import StoredKeys
from workers.kms.base import Kms
from workers.leases.certificate import Clock
from workers.storage.errors import AlreadyExists
from workers.storage.store import Store
from workers.telemetry import metrics

T = TypeVar("T")

CACHE_S: Final = 900.0
REFRESH_S: Final = 300.0
MAX_RINGS: Final = 1024
FIRST_GENERATION: Final = 1
DAY_S: Final = 86_400


class Hierarchy:
    """Makes and opens the keys of indexes.

    Attributes:
        stored: the same keys, where they lie.
    """

    def __init__(
        self, store: Store, kms: Kms, signer: SigningKey, *, clock: Clock = time.time
    ) -> None:
        """Prepare; `signer` is the key service's identity."""
        self.stored = StoredKeys(store, signer)
        self._kms = kms
        self._clock = clock
        self._rings: OrderedDict[bytes, KeyRing] = OrderedDict()
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def create(
        self, uid: bytes, *, key_id: str, suite: HpkeSuite, index_key: SecretBytes | None = None
    ) -> KeyRing:
        """Make and store the keys of a new index.

        Args:
            uid: fresh and random, so nothing stands there.
            key_id: of the KMS key that wraps the KEK.
            suite: of the pairs of this index.
            index_key: the KEK itself, for provider `none`.

        Raises:
            Retry: KEY_UNAVAILABLE, STORAGE_UNAVAILABLE.
            Reject: the KMS refuses the key.
        """
        now = self._clock()
        kek = random_secret() if index_key is None else SecretBytes(index_key.view())
        envelope = await self._wrap(uid, EPOCH, kek, None if index_key is not None else key_id, now)
        day = int(now) // DAY_S
        ring = KeyRing(
            uid=uid,
            kek=kek,
            tag=random_secret(),
            data_keys={FIRST_GENERATION: DataKey(FIRST_GENERATION, suite, random_secret())},
            ingest_keys={day: IngestKey(day, suite, random_secret())},
            proved_s=now,
        )
        await self.stored.write(envelope, ring)
        self._keep(ring)
        return ring

    async def open(
        self, record: IndexRecord, *, index_key: SecretBytes | None = None, fresh: bool
    ) -> KeyRing:
        """Return the keys of an index.

        Args:
            record: of the index.
            index_key: what the caller says is the KEK, for provider `none`.
            fresh: ask the KMS even if the keys are cached.

        Raises:
            Reject: WRONG_KEY.
            Retry: KEY_UNAVAILABLE, STORAGE_UNAVAILABLE.
            Damaged: stored keys do not open.
        """
        async with self._locks.setdefault(record.uid, asyncio.Lock()):
            if record.provider == PROVIDER_NONE:
                return await self._open_kept_by_caller(record, index_key)
            cached = await self._current(record)
            if cached is not None and not fresh and self._age(cached) < REFRESH_S:
                return cached
            try:
                kek = await self._unwrap(record)
            except Retry:
                # It may have been wiped while the KMS was asked.
                if cached is None or fresh or cached.wiped:
                    raise
                return cached
            return await self._proved(record, kek, cached)

    async def ingest_key_of_today(self, ring: KeyRing) -> bool:
        """Make sure that the INGEST pair of today exists; tell whether the ring changed.

        Raises:
            Retry: STORAGE_UNAVAILABLE.
        """
        day = int(self._clock()) // DAY_S
        if max(ring.ingest_keys, default=-1) >= day:
            return False
        suite = ring.data_keys[max(ring.data_keys)].suite
        key = IngestKey(day, suite, random_secret())
        try:
            await self.stored.add_ingest_key(ring, key)
        except AlreadyExists:
            ring.check()
            key = await self.stored.ingest_key(ring.uid, ring.kek, day, ring.epoch)
        ring.ingest_keys[day] = key
        return True

    async def drop_old_ingest_keys(self, ring: KeyRing, keep_s: float) -> None:
        """Destroy INGEST pairs whose successor is older than `keep_s`. Raises Retry."""
        days = sorted(ring.ingest_keys)
        limit = self._clock() - keep_s
        # A pair is sealed to until producers have seen its successor: a day for that.
        old = [d for d, after in pairwise(days) if (after + 1) * DAY_S < limit]
        if old:
            await self.stored.drop_ingest_keys(ring, old)
            for day in old:
                ring.ingest_keys.pop(day).seed.wipe()

    async def rewrap(self, record: IndexRecord) -> Envelope:
        """Let the KMS wrap the KEK anew, under the newest version of its key.

        Returns:
            The envelope that is stored now; the caller raises the floor in the catalog.

        Raises:
            Retry: KEY_UNAVAILABLE, STORAGE_UNAVAILABLE.
            Reject: CONFLICT, another instance does the same now; UNSUPPORTED, no KMS has the key.
            Damaged: the envelope, or what the KMS returned, is not this index's.
        """
        self._check_kms(record)
        before, etag = await self.stored.envelope(record)
        context = kms_context(record.uid, record.epoch)
        answer = await self._timed(
            "rewrap", self._kms.rewrap(before.key_id, before.wrapped_bytes(), context)
        )
        after = msgspec.structs.replace(
            before,
            wrap_version=answer.version,
            wrapped=base64.b64encode(answer.data).decode("ascii"),
            version=before.version + 1,
        )
        # Before the old one is given up: does the new one open, and to the same key?
        kek = await self._timed("unwrap", self._kms.unwrap(after.key_id, answer.data, context))
        with kek:
            if not after.is_of(kek):
                raise damaged()
        await self.stored.replace_envelope(record, after, etag)
        return after

    async def new_epoch(
        self, record: IndexRecord, ring: KeyRing, index_key: SecretBytes | None = None
    ) -> int:
        """Make the next KEK, and store everything under it once more; return its epoch.

        Nothing changes for anybody until the catalog names that epoch.

        Args:
            record: of the index.
            ring: its keys.
            index_key: the next KEK itself, for provider `none`.

        Raises:
            Retry: KEY_UNAVAILABLE, STORAGE_UNAVAILABLE.
        """
        now = self._clock()
        epoch = max(int(now * 1000), record.epoch + 1)
        kek = random_secret() if index_key is None else SecretBytes(index_key.view())
        key_id = None if index_key is not None else record.key_id
        envelope = await self._wrap(record.uid, epoch, kek, key_id, now)
        ring.check()
        with kek:
            await self.stored.write(envelope, replace(ring, kek=kek, epoch=epoch))
        return epoch

    async def new_generation(self, record: IndexRecord, ring: KeyRing, suite: HpkeSuite) -> int:
        """Make the next data key; return its generation, which the catalog does not name yet.

        Raises:
            Retry: STORAGE_UNAVAILABLE.
        """
        generation = max(record.readable) + 1
        key = DataKey(generation, suite, random_secret())
        ring.check()
        # An attempt that got no further may have left one: the KEK is the same, and so is the key.
        with contextlib.suppress(AlreadyExists):
            await self.stored.add_data_key(ring, key)
        return generation

    async def drop_generations(self, record: IndexRecord) -> None:
        """Destroy the data keys before those that the catalog names. Raises Retry."""
        await self.stored.drop_generations(record)
        self.forget(record.uid)

    async def destroy(self, uid: bytes) -> None:
        """Delete the stored keys of an index and forget the cached ones. Raises Retry."""
        self.forget(uid)
        await self.stored.destroy(uid)

    def forget(self, uid: bytes) -> None:
        """Wipe the cached keys of an index."""
        ring = self._rings.pop(uid, None)
        if ring is not None:
            ring.wipe()

    def expire(self) -> None:
        """Wipe what has been cached for too long. Called every second."""
        for uid in [uid for uid, ring in self._rings.items() if self._age(ring) >= CACHE_S]:
            self.forget(uid)

    def wipe(self) -> None:
        """Wipe everything."""
        for uid in list(self._rings):
            self.forget(uid)

    async def _open_kept_by_caller(
        self, record: IndexRecord, index_key: SecretBytes | None
    ) -> KeyRing:
        cached = await self._current(record)
        if index_key is None:
            if cached is None:
                raise Retry(
                    ErrorCode.KEY_UNAVAILABLE,
                    "the key of this index is kept by its callers, and none has come lately",
                )
            return cached
        envelope, _ = await self.stored.envelope(record)
        if envelope.provider != PROVIDER_NONE:
            raise damaged()
        if not envelope.is_of(index_key):
            raise Reject(ErrorCode.WRONG_KEY, "this is not the key of the index", field="auth")
        return await self._proved(record, SecretBytes(index_key.view()), cached)

    async def _proved(
        self, record: IndexRecord, kek: SecretBytes, cached: KeyRing | None
    ) -> KeyRing:
        """Return the ring of a KEK that was just given: the cached one, or one read anew."""
        if cached is not None and cached.is_of(kek):
            kek.wipe()
            cached.proved_s = self._clock()
            return cached
        ring = await self.stored.read(record, kek, self._clock())
        self._keep(ring)
        return ring

    async def _wrap(
        self, uid: bytes, epoch: int, kek: SecretBytes, key_id: str | None, now: float
    ) -> Envelope:
        """Return the envelope of a new KEK; without a `key_id` its callers keep it."""
        wrapped, version = b"", ""
        if key_id is not None:
            answer = await self._timed("wrap", self._kms.wrap(key_id, kek, kms_context(uid, epoch)))
            wrapped, version = answer.data, answer.version
        return Envelope(
            index_uid=uid.hex(),
            epoch=epoch,
            provider=PROVIDER_NONE if key_id is None else self._kms.name,
            key_id=key_id or "",
            wrap_version=version,
            wrapped=base64.b64encode(wrapped).decode("ascii"),
            commitment=commitment(kek, uid, epoch),
            created_ms=int(now * 1000),
        )

    async def _unwrap(self, record: IndexRecord) -> SecretBytes:
        envelope, _ = await self.stored.envelope(record)
        if envelope.provider != self._kms.name:
            raise Retry(
                ErrorCode.KEY_UNAVAILABLE,
                f"the index's key is in the KMS {envelope.provider}, which this key service does"
                " not reach",
            )
        try:
            wrapped = envelope.wrapped_bytes()
        except ValueError as error:
            raise damaged() from error
        kek = await self._timed(
            "unwrap",
            self._kms.unwrap(envelope.key_id, wrapped, kms_context(record.uid, record.epoch)),
        )
        if not envelope.is_of(kek):
            kek.wipe()
            raise damaged()
        return kek

    def _check_kms(self, record: IndexRecord) -> None:
        if record.provider == PROVIDER_NONE:
            raise Reject(
                ErrorCode.UNSUPPORTED, "its callers keep the key of this index", field="args.level"
            )

    async def _timed(self, call: str, answer: Awaitable[T]) -> T:
        """Await a call to the KMS and measure it."""
        outcome = "error"
        started_s = time.perf_counter()
        try:
            result = await answer
            outcome = "ok"
            return result
        finally:
            metrics.KMS_SECONDS.observe(time.perf_counter() - started_s, call=call)
            metrics.KMS_CALLS.inc(call=call, outcome=outcome)

    async def _current(self, record: IndexRecord) -> KeyRing | None:
        """Return the cached ring, with the generations that the catalog names now; None without.

        Raises:
            Retry: STORAGE_UNAVAILABLE. Damaged: a data key does not open.
        """
        ring = self._cached(record.uid)
        if ring is None:
            return None
        if ring.epoch != record.epoch:
            self.forget(record.uid)
            return None
        for generation in ring.data_keys.keys() - record.readable:
            ring.data_keys.pop(generation).dek.wipe()
        for generation in record.readable - ring.data_keys.keys():
            found = await self.stored.data_key(record, ring.kek, generation)
            ring.check()
            ring.data_keys[generation] = found
        return ring

    def _cached(self, uid: bytes) -> KeyRing | None:
        ring = self._rings.get(uid)
        if ring is None:
            return None
        if self._age(ring) >= CACHE_S:
            self.forget(uid)
            return None
        self._rings.move_to_end(uid)
        return ring

    def _keep(self, ring: KeyRing) -> None:
        before = self._rings.pop(ring.uid, None)
        self._rings[ring.uid] = ring
        if before is not None:
            before.wipe()
        while len(self._rings) > MAX_RINGS:
            _, oldest = self._rings.popitem(last=False)
            oldest.wipe()

    def _age(self, ring: KeyRing) -> float:
        return self._clock() - ring.proved_s
