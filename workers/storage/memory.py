"""An object store in memory, with the same answers as S3 and failures on demand.

Deterministic: ETags count up, the clock is the caller's. Every method yields to the event loop
once, so that two writers really interleave.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from workers.storage.check import check_store
from workers.storage.errors import (
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    ReadOnly,
    unavailable,
)
from workers.storage.store import ObjectInfo, Role, Stored, StoreStats, check_ranges

Verb = Literal["get", "put", "create", "replace", "delete", "list"]


@dataclass(slots=True)
class _Fault:
    verb: Verb
    contains: str
    times: int
    after: bool


@dataclass(frozen=True, slots=True)
class _Object:
    stored: Stored
    modified_ms: int


@dataclass(slots=True)
class _Shared:
    """What the views of one bucket have in common."""

    objects: dict[str, _Object]
    faults: list[_Fault]
    writes: int = 0


class MemoryStore:
    """A `Store` in memory. See `store.Store` for the verbs.

    Args:
        clock_ms: milliseconds since 1970, for listings.
        read_only: refuse to write.
    """

    def __init__(
        self,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        read_only: bool = False,
    ) -> None:
        self.stats = StoreStats()
        self._clock_ms = clock_ms
        self._read_only = read_only
        self._shared = _Shared({}, [])

    def view(self, *, read_only: bool = False) -> MemoryStore:
        """Return another client of the same bucket, with statistics of its own."""
        view = MemoryStore(clock_ms=self._clock_ms, read_only=read_only)
        view._shared = self._shared
        return view

    def fail_next(
        self, verb: Verb, *, times: int = 1, contains: str = "", applied: bool = False
    ) -> None:
        """Let the next operations of this kind fail, through every view.

        Args:
            verb: which operation; "get" includes conditional GETs and ranges.
            times: how many of them.
            contains: only those whose key contains this.
            applied: the write happens and only its answer is lost.
        """
        self._shared.faults.append(_Fault(verb, contains, times, applied))

    def keys(self) -> list[str]:
        """Return all keys, sorted, without counting as a request."""
        return sorted(self._shared.objects)

    async def get(self, key: str) -> Stored:
        """Read an object."""
        stored = (await self._read(key)).stored
        self.stats.bytes_in += len(stored.data)
        return stored

    async def get_if_changed(self, key: str, etag: str) -> Stored | None:
        """Read an object unless it still has `etag`."""
        stored = (await self._read(key)).stored
        if stored.etag == etag:
            return None
        self.stats.bytes_in += len(stored.data)
        return stored

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `length` bytes from `start`."""
        [data] = await self.get_ranges(key, [(start, length)])
        return data

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several `(start, length)` ranges."""
        check_ranges(ranges)
        if not any(length for _, length in ranges):
            return [b""] * len(ranges)
        data = (await self._read(key)).stored.data
        if any(length and start >= len(data) for start, length in ranges):
            raise ValueError(f"the range begins beyond the end of the object: {key}")
        parts = [data[start : start + length] for start, length in ranges]
        self.stats.bytes_in += sum(map(len, parts))
        return parts

    async def put(self, key: str, data: bytes) -> str:
        """Write an object, whatever stands there."""
        return await self._write("put", key, data, lambda _: None)

    async def create(self, key: str, data: bytes) -> str:
        """Write an object only if the key is free."""

        def free(present: _Object | None) -> None:
            if present is not None:
                raise AlreadyExists(key)

        return await self._write("create", key, data, free)

    async def replace(self, key: str, data: bytes, etag: str) -> str:
        """Write an object only if the present one has `etag`."""

        def same(present: _Object | None) -> None:
            if present is None or present.stored.etag != etag:
                raise PreconditionFailed(key)

        return await self._write("replace", key, data, same)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are no error."""
        if self._read_only and keys:
            raise ReadOnly(keys[0])
        self.stats.deletes += len(keys)
        await asyncio.sleep(0)
        for key in keys:
            if (fault := self._fault("delete", key)) is not None and not fault.after:
                raise unavailable("injected")
            self._shared.objects.pop(key, None)
            if fault is not None:
                raise unavailable("injected")

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List the objects below `prefix` (whole path segments), sorted."""
        self.stats.lists += 1
        await asyncio.sleep(0)
        if self._fault("list", prefix) is not None:
            raise unavailable("injected")
        folder = prefix.rstrip("/") + "/" if prefix else ""
        for key, entry in sorted(self._shared.objects.items()):
            if key.startswith(folder):
                yield ObjectInfo(key, len(entry.stored.data), entry.modified_ms)

    async def check(self, role: Role = "all") -> None:
        """Prove at start that the store keeps what the workers build on."""
        await check_store(self, "query" if self._read_only else role)

    async def aclose(self) -> None:
        """Nothing to release."""

    async def _read(self, key: str) -> _Object:
        self.stats.gets += 1
        await asyncio.sleep(0)
        if self._fault("get", key) is not None:
            raise unavailable("injected")
        try:
            return self._shared.objects[key]
        except KeyError:
            raise NotFound(key) from None

    async def _write(
        self, verb: Verb, key: str, data: bytes, allow: Callable[[_Object | None], None]
    ) -> str:
        if self._read_only:
            raise ReadOnly(key)
        self.stats.puts += 1
        self.stats.bytes_out += len(data)
        await asyncio.sleep(0)
        fault = self._fault(verb, key)
        failure = unavailable("injected") if verb == "put" else OutcomeUnknown(key)
        if fault is not None and not fault.after:
            raise failure
        allow(self._shared.objects.get(key))
        self._shared.writes += 1
        stored = Stored(bytes(data), f'"{self._shared.writes:032x}"')
        self._shared.objects[key] = _Object(stored, self._clock_ms())
        if fault is not None:
            raise failure
        return stored.etag

    def _fault(self, verb: Verb, key: str) -> _Fault | None:
        for fault in self._shared.faults:
            if fault.verb == verb and fault.contains in key:
                fault.times -= 1
                if not fault.times:
                    self._shared.faults.remove(fault)
                return fault
        return None
