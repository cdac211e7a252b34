"""Publishing a head: the one conditional write that makes a change real, and fences other writers.

    PUT succeeded                      published
    PUT refused, or its answer lost    GET: my bytes (so my nonce) = published, else = fenced
    that GET fails too                 fenced: the outcome is unknown, and loading anew is safe

It is never repeated, and never merged with what another writer published.
"""

from __future__ import annotations

import asyncio
import hashlib
import os

import msgspec

from workers.chain.faults import damaged, fenced
from workers.chain.head import (
    NO_HASH,
    Head,
    HeadSigner,
    OpenedHead,
    VerifyWriter,
    empty_head,
    open_head,
    seal_head,
)
from workers.chain.kinds import SegmentKeys
from workers.errors import Fenced, Retry
from workers.storage import layout
from workers.storage.errors import AccessDenied, AlreadyExists, NotFound, PreconditionFailed
from workers.storage.store import Store


class HeadStore:
    """The head of one shard, as its writer sees it. Not safe for concurrent `publish`."""

    def __init__(
        self,
        store: Store,
        index_uid: bytes,
        shard: int,
        keys: SegmentKeys,
        signer: HeadSigner,
        verify_writer: VerifyWriter,
    ) -> None:
        self._store = store
        self._index_uid = index_uid
        self._shard = shard
        self._keys = keys
        self.signer = signer
        self._verify_writer = verify_writer
        self._key = layout.head(index_uid, shard)
        self._opened: OpenedHead | None = None

    @property
    def opened(self) -> OpenedHead:
        """The head that the next one follows.

        Raises:
            Fenced: `load` has not run since the start or since the last fencing.
        """
        if self._opened is None:
            raise fenced("the head of this shard must be loaded first")
        return self._opened

    async def load(self, generation: int, min_version: int = 0) -> OpenedHead:
        """Read the head; nothing is written.

        Args:
            generation: of a shard without a head.
            min_version: the version that somebody trusted has seen.

        Raises:
            Damaged: it does not authenticate or is older than `min_version`.
            Retry: the store or the key is unavailable.
        """
        self._opened = None
        try:
            stored = await self._store.get(self._key)
        except NotFound:
            head = empty_head(self._index_uid, self._shard, generation)
            opened = OpenedHead(head, NO_HASH, "")
        else:
            opened = await asyncio.to_thread(
                lambda: open_head(
                    stored.data,
                    self._index_uid,
                    self._shard,
                    self._keys,
                    self._verify_writer,
                    etag=stored.etag,
                )
            )
        if opened.head.version < min_version:
            raise damaged(f"the head of shard {self._shard} was rolled back")
        self._opened = opened
        return opened

    async def changed(self) -> bool:
        """Whether another writer has published; if so, `load` must run again.

        Raises:
            Retry: the store is unavailable.
        """
        try:
            stored = await self._store.get_if_changed(self._key, self.opened.etag)
        except NotFound:
            return False
        if stored is not None:
            self._opened = None
        return stored is not None

    async def publish(self, head: Head) -> OpenedHead:
        """Make `head` the successor of the present one; return it as published.

        Version, nonce, hash of the one before, and writer are set here.

        Raises:
            Fenced: another writer published, or the outcome is unknown; `load` again.
            Retry: no lease for the key, or no right to write; nothing was written.
        """
        before = self.opened
        head = msgspec.structs.replace(
            head,
            version=before.head.version + 1,
            nonce=os.urandom(16),
            prev_sha256=before.sha256,
            writer=self.signer.writer,
        )
        data = await asyncio.to_thread(self.seal, head)
        try:
            if before.etag:
                etag = await self._store.replace(self._key, data, before.etag)
            else:
                etag = await self._store.create(self._key, data)
        except AccessDenied:
            raise
        except BaseException as exc:
            # In doubt, also for who was cancelled: nothing may follow until it is known. Until here
            # `before` is the head, for all who look while a merge publishes.
            self._opened = None
            if not isinstance(exc, (AlreadyExists, PreconditionFailed, Retry)):
                raise
            etag = await self._settle(data, exc)
        self._opened = OpenedHead(head, hashlib.sha256(data).digest(), etag)
        return self._opened

    def seal(self, head: Head) -> bytes:
        """Return the object of a head. Raises Retry: no lease for the key."""
        return seal_head(head, self._keys, self.signer)

    async def _settle(self, data: bytes, cause: Exception) -> str:
        try:
            stored = await self._store.get(self._key)
        except (NotFound, Retry) as exc:
            raise fenced("the outcome of publishing the shard is unknown; load it again") from exc
        if stored.data != data:
            raise self._lost() from cause
        return stored.etag

    def _lost(self) -> Fenced:
        return fenced(f"another writer published shard {self._shard}; load it again")
