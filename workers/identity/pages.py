"""Records of the realm, many to an object: sealed, versioned, refused when put back.

A page is one object, `realm/<kind>/<page>` = SST1(realm key of the kind, msgpack `_Page`, object id
lp(kind, page)). An entry lies on the page that its id hashes to. A change replaces the whole page
with `If-Match` (`If-None-Match` the first one), so version and entries change together and of two
writers one begins again.

Rollback: after every change the page's version is published as a floor, outside of the bucket
(`Floors`; key-directory, signed). A page below its floor, or missing where there is a floor, is
DAMAGED. So is one below what this process has seen. What is not noticed: a page put back between
its write and the publication of its floor, where this process did not write it; and a bucket put
back together with the topic that holds the floors.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.errors import OpenFailed
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import Key
from workers.errors import Damaged, Retry
from workers.storage import layout
from workers.storage.errors import AlreadyExists, NotFound, OutcomeUnknown, PreconditionFailed
from workers.storage.store import Store

MAX_CACHED: Final = 256
"""Opened pages that are kept, to be asked for again only if they changed."""
FRESH_S: Final = 1.0
_ATTEMPTS: Final = 16

T = TypeVar("T", bound=msgspec.Struct)


class Floors(Protocol):
    """Remembers the lowest version that is accepted, where the bucket's owner cannot change it."""

    def version(self, name: str) -> int:
        """Return the floor of a page, 0 if it has none."""
        ...

    async def publish(self, name: str, version: int) -> None:
        """Raise the floor of a page and wait until that is durable. Raises Retry."""
        ...


class _Page(msgspec.Struct, array_like=True):
    v: int
    version: int
    nonce: bytes
    entries: dict[str, msgspec.Raw]


@dataclass(frozen=True, slots=True)
class _Read:
    page: _Page
    etag: str | None
    at_s: float


class Pages(Generic[T]):
    """All records of one kind.

    Args:
        store: where the pages lie.
        floors: remembers versions.
        key: realm key of the kind, 32 bytes.
        kind: names objects and floors; letters, digits, dashes.
        purpose: of the sealed objects.
        entry: type of an entry.
        spread: pages that the entries of a scope are spread over, 1 to 256.
        fresh_s: seconds for which `get` does not look again, unless the floor has risen: how long
            another process's change may go unseen.
    """

    def __init__(
        self,
        store: Store,
        floors: Floors,
        key: Key,
        *,
        kind: str,
        purpose: SealPurpose,
        entry: type[T],
        spread: int = 64,
        fresh_s: float = FRESH_S,
    ) -> None:
        self._store = store
        self._floors = floors
        self._key = key
        self._kind = kind
        self._purpose = purpose
        self._decoder = msgspec.msgpack.Decoder(entry)
        self._spread = spread
        self._fresh_s = fresh_s
        self._cache: OrderedDict[bytes, _Read] = OrderedDict()
        self._seen: dict[bytes, int] = {}
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def get(self, entry: str, scope: bytes = b"") -> T | None:
        """Return an entry, None if there is none; as stored at most `fresh_s` ago.

        Args:
            entry: its id.
            scope: what the ids are unique in, e.g. the uid of an index; b"" for the realm.

        Raises:
            Damaged: the page does not open, or is older than its floor.
            Retry: STORAGE_UNAVAILABLE.
        """
        name = self._name(scope, entry)
        found = (self._fresh(name) or await self._read(name)).page.entries.get(entry)
        return None if found is None else self._decode(found)

    async def peek(self, entry: str, scope: bytes = b"") -> T | None:
        """Return an entry as `get` does, but ask the store only where something was ever written.

        For lookups that mostly find nothing. A first writing by another process is seen as soon as
        its floor is.
        """
        name = self._name(scope, entry)
        if name not in self._cache and not self._floors.version(self._floor(name)):
            return None
        return await self.get(entry, scope)

    async def change(
        self, entry: str, change: Callable[[T | None], T | None], scope: bytes = b""
    ) -> T | None:
        """Change an entry and publish the page's floor; return it as stored.

        Args:
            entry: its id.
            change: gets the present entry, returns the new one, or None to remove it. Called again
                when somebody else changed the page meanwhile. Returning what it got writes nothing.
            scope: as in `get`.

        Raises:
            Damaged, Retry: as `get`; and what `change` raises.
        """
        name = self._name(scope, entry)
        async with self._locks.setdefault(name, asyncio.Lock()):
            for _ in range(_ATTEMPTS):
                read = await self._read(name)
                raw = read.page.entries.get(entry)
                before = None if raw is None else self._decode(raw)
                after = change(before)
                if after is before or after == before:
                    # Perhaps written by a request whose floor was not published any more.
                    await self._publish(name, read.page.version)
                    return after
                entries = dict(read.page.entries)
                entries.pop(entry, None)
                if after is not None:
                    entries[entry] = msgspec.Raw(msgspec.msgpack.encode(after))
                if await self._write(name, read, entries):
                    return after
        raise Retry(ErrorCode.OVERLOADED, "the records are being changed: try again")

    async def all(self, scope: bytes = b"") -> AsyncIterator[tuple[str, T]]:
        """Yield every entry of a scope with its id, in no order. Raises Damaged, Retry."""
        for number in range(self._spread):
            page = (await self._read(self._page(scope, number))).page
            for entry, raw in page.entries.items():
                yield entry, self._decode(raw)

    async def drop(self, scope: bytes) -> None:
        """Delete the pages of a scope that is never used again. Raises Retry."""
        names = [self._page(scope, number) for number in range(self._spread)]
        await self._store.delete([layout.realm(self._kind, name) for name in names])
        for name in names:
            self._cache.pop(name, None)

    def _name(self, scope: bytes, entry: str) -> bytes:
        return self._page(scope, hashlib.sha256(entry.encode()).digest()[0] % self._spread)

    def _page(self, scope: bytes, number: int) -> bytes:
        return scope + bytes([number])

    def _floor(self, name: bytes) -> str:
        return f"{self._kind}/{name.hex()}"

    def _fresh(self, name: bytes) -> _Read | None:
        known = self._cache.get(name)
        if known is None or time.monotonic() - known.at_s >= self._fresh_s:
            return None
        return known if known.page.version >= self._floors.version(self._floor(name)) else None

    async def _read(self, name: bytes) -> _Read:
        key = layout.realm(self._kind, name)
        now_s = time.monotonic()
        known = self._cache.get(name)
        try:
            if known is None or known.etag is None:
                stored = await self._store.get(key)
            else:
                changed = await self._store.get_if_changed(key, known.etag)
                if changed is None:
                    return self._checked(name, dataclasses.replace(known, at_s=now_s))
                stored = changed
        except NotFound:
            self._cache.pop(name, None)
            return self._checked(name, _Read(_Page(1, 0, b"", {}), None, now_s))
        return self._checked(name, _Read(self._open(name, stored.data), stored.etag, now_s))

    def _checked(self, name: bytes, read: _Read) -> _Read:
        """Refuse what is older than it may be; remember the rest."""
        version = read.page.version
        if version < max(self._floors.version(self._floor(name)), self._seen.get(name, 0)):
            raise Damaged(
                ErrorCode.DAMAGED, f"records of the kind {self._kind} were put back or deleted"
            )
        self._keep(name, read)
        return read

    def _keep(self, name: bytes, read: _Read) -> None:
        self._seen[name] = read.page.version
        self._cache[name] = read
        self._cache.move_to_end(name)
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)

    async def _write(self, name: bytes, read: _Read, entries: dict[str, msgspec.Raw]) -> bool:
        """Replace a page; False if somebody else did."""
        floor = self._floors.version(self._floor(name))
        page = _Page(1, max(read.page.version, floor) + 1, os.urandom(16), entries)
        key, data = layout.realm(self._kind, name), self._seal(name, page)
        try:
            if read.etag is None:
                etag = await self._store.create(key, data)
            else:
                etag = await self._store.replace(key, data, read.etag)
        except (AlreadyExists, PreconditionFailed, OutcomeUnknown):
            now = await self._read(name)
            if now.page.nonce != page.nonce:
                return False
        else:
            self._keep(name, _Read(page, etag, time.monotonic()))
        await self._publish(name, page.version)
        return True

    async def _publish(self, name: bytes, version: int) -> None:
        floor = self._floor(name)
        if version > self._floors.version(floor):
            await self._floors.publish(floor, version)

    def _seal(self, name: bytes, page: _Page) -> bytes:
        return seal(
            self._key,
            msgspec.msgpack.encode(page),
            purpose=self._purpose,
            index_uid=b"",
            object_id=lp(self._kind, name),
        )

    def _open(self, name: bytes, data: bytes) -> _Page:
        try:
            plain = open_sealed(
                self._key,
                data,
                purpose=self._purpose,
                index_uid=b"",
                object_id=lp(self._kind, name),
            )
            page = msgspec.msgpack.decode(plain, type=_Page)
        except (OpenFailed, ValueError, msgspec.MsgspecError) as error:
            raise self._damaged() from error
        if page.v != 1 or page.version < 1:
            raise self._damaged()
        return page

    def _decode(self, raw: msgspec.Raw) -> T:
        try:
            return self._decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise self._damaged() from error

    def _damaged(self) -> Damaged:
        return Damaged(
            ErrorCode.DAMAGED, f"records of the kind {self._kind} do not open: damaged or exchanged"
        )
