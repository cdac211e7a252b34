"""The object store as files below a folder: for one machine, where nobody wants a server for it.

A key is a path. Objects never change in place: a new one is written beside, synced, and put in its
place in one step, so a reader sees the one or the other, and whatever is killed leaves nothing
half-written. What looks before it writes does both under a lock on the key (`flock`: all processes
of this machine; not for network file systems).

    <folder>/<prefix>/<key>      the objects
    <folder>/.writing/           those under way; what a killed process left is of no use
    <folder>/.locks/             one file for each of 256 classes of keys

The ETag is inode, time and size: every write makes a file of its own. There are no rights by role
here, and a key cannot lie below another one; the layout has no such keys.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread

from workers.storage.check import check_store
from workers.storage.counting import count, denied, received, sent
from workers.storage.errors import (
    AlreadyExists,
    NotFound,
    PreconditionFailed,
    ReadOnly,
    StorageError,
    conditional,
    unavailable,
)
from workers.storage.store import ObjectInfo, Role, Stored, StoreStats, check_ranges

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_WRITING: Final = ".writing"
_LOCKS: Final = ".locks"
_CLASSES: Final = 256
# A folder that becomes empty may be removed while somebody writes into it.
_ATTEMPTS: Final = 10
# What was begun so long ago will not be finished.
_ABANDONED_S: Final = 3600.0
# Threads of a store. They may wait for a slow disk or for each other's locks, so they are not those
# of the event loop, in which everything else is opened and sealed.
_THREADS: Final = 16


class FileStore:
    """A `Store` in a folder. See `store.Store` for the verbs.

    Args:
        folder: must exist: a disk that is not mounted is no empty store.
        prefix: put before every key; "" for none.
        read_only: refuse to write.
    """

    def __init__(self, folder: Path, prefix: str = "", *, read_only: bool = False) -> None:
        self.stats = StoreStats()
        self._folder = folder.absolute()
        self._prefix = prefix.strip("/")
        self._read_only = read_only
        self._threads = CapacityLimiter(_THREADS)
        self._base = self._folder / _safe(self._prefix) if self._prefix else self._folder

    async def get(self, key: str) -> Stored:
        """Read an object."""
        return await self._get(key)

    async def get_if_changed(self, key: str, etag: str) -> Stored | None:
        """Read an object unless it still has `etag`."""
        stored = await self._get(key, unless=etag)
        return None if stored.etag == etag else stored

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `length` bytes from `start`."""
        [data] = await self.get_ranges(key, [(start, length)])
        return data

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several `(start, length)` ranges, from one version of the object."""
        check_ranges(ranges)
        if not any(length for _, length in ranges):
            return [b""] * len(ranges)
        count(self.stats, "get")

        def read(file: int) -> list[bytes]:
            return [_read(file, start, length) if length else b"" for start, length in ranges]

        parts = await self._in_thread(self._open, key, read)
        if any(length and not part for part, (_, length) in zip(parts, ranges, strict=True)):
            raise ValueError(f"the range begins beyond the end of the object: {key}")
        received(self.stats, sum(map(len, parts)))
        return parts

    async def put(self, key: str, data: bytes) -> str:
        """Write an object, whatever stands there."""
        return await self._write(key, data, lambda _: None)

    async def create(self, key: str, data: bytes) -> str:
        """Write an object only if the key is free."""

        def free(etag: str | None) -> None:
            if etag is not None:
                raise AlreadyExists(key)

        with conditional(key):
            return await self._write(key, data, free)

    async def replace(self, key: str, data: bytes, etag: str) -> str:
        """Write an object only if the present one has `etag`."""

        def same(present: str | None) -> None:
            if present != etag:
                raise PreconditionFailed(key)

        with conditional(key):
            return await self._write(key, data, same)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, and the folders that they leave empty; missing ones are no error."""
        if self._read_only and keys:
            raise ReadOnly(keys[0])
        count(self.stats, "delete", len(keys))
        await self._in_thread(self._delete, keys)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List the objects below `prefix` (whole path segments)."""
        count(self.stats, "list")
        for info in await self._in_thread(self._below, prefix):
            yield info

    async def check(self, role: Role = "all") -> None:
        """Prove at start that the store keeps what the workers build on."""
        if not self._read_only:
            await self._in_thread(self._tidy)
        await check_store(self, "query" if self._read_only else role)

    async def aclose(self) -> None:
        """Nothing to release."""

    # --- in threads --------------------------------------------------------------------------

    async def _in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        # Whoever is cancelled does not wait for the disk.
        return await to_thread.run_sync(
            function, *args, abandon_on_cancel=True, limiter=self._threads
        )

    async def _get(self, key: str, unless: str | None = None) -> Stored:
        count(self.stats, "get")

        def read(file: int) -> Stored:
            found = os.fstat(file)
            etag = _etag(found)
            return Stored(b"" if etag == unless else _read(file, 0, found.st_size), etag)

        stored = await self._in_thread(self._open, key, read)
        received(self.stats, len(stored.data))
        return stored

    def _open(self, key: str, use: Callable[[int], T]) -> T:
        with self._errors(key):
            file = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return use(file)
            finally:
                os.close(file)

    async def _write(self, key: str, data: bytes, allow: Callable[[str | None], None]) -> str:
        if self._read_only:
            raise ReadOnly(key)
        count(self.stats, "put")
        etag = await self._in_thread(self._store, key, data, allow)
        sent(self.stats, len(data))
        return etag

    def _store(self, key: str, data: bytes, allow: Callable[[str | None], None]) -> str:
        with self._errors(key):
            path = self._path(key)
            if not self._folder.is_dir():
                raise FileNotFoundError
            beside = self._folder / _WRITING / secrets.token_hex(16)
            etag = _create(beside, data)
            try:
                with self._lock(key):
                    allow(_present(path))
                    _move(beside, path)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            return etag

    def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with self._errors(key):
                path = self._path(key)
                with self._lock(key):
                    path.unlink(missing_ok=True)
                # Something is in it, or it went with another object.
                with suppress(OSError):
                    for folder in takewhile(lambda one: one != self._base, path.parents):
                        folder.rmdir()

    def _below(self, prefix: str) -> Sequence[ObjectInfo]:
        with self._errors(prefix):
            top = self._path(prefix.rstrip("/")) if prefix else self._base
            if not self._folder.is_dir():
                raise FileNotFoundError
            return tuple(self._walk(top))

    def _walk(self, folder: Path) -> Iterator[ObjectInfo]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            path = Path(entry.path)
            if path.parent == self._folder and entry.name in (_WRITING, _LOCKS):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(path)
                continue
            # It may be gone by now.
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                name = path.relative_to(self._base).as_posix()
                yield ObjectInfo(name, found.st_size, found.st_mtime_ns // 1_000_000)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        folder = self._folder / _LOCKS
        name = f"{zlib.crc32(f'{self._prefix}/{key}'.encode()) % _CLASSES:02x}"
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            # Unlocks.
            os.close(lock)

    def _tidy(self) -> None:
        """Remove what killed processes had begun to write."""
        before_s = time.time() - _ABANDONED_S
        with self._errors(_WRITING), suppress(FileNotFoundError):
            for entry in os.scandir(self._folder / _WRITING):
                with suppress(FileNotFoundError):
                    if entry.stat().st_mtime < before_s:
                        Path(entry.path).unlink()

    def _path(self, key: str) -> Path:
        return self._base / _safe(key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Translate what the operating system says."""
        try:
            yield
        except FileNotFoundError:
            # Not the same as a missing object: a writer would take it for a new shard.
            if not self._folder.is_dir():
                raise unavailable("its folder does not exist") from None
            raise NotFound(key) from None
        except PermissionError:
            raise denied(key) from None
        except (IsADirectoryError, NotADirectoryError):
            if self._path(key).is_dir():
                raise NotFound(key) from None
            raise StorageError(key, "a key lies below another one") from None
        except OSError as error:
            # Its text has paths of this machine.
            raise unavailable(errno.errorcode.get(error.errno or 0, "OSError")) from None


def _safe(key: str) -> str:
    """Return a key as a relative path. Raises StorageError for one that could lead elsewhere."""
    parts = key.split("/")
    if any(part.startswith(".") or not part or "\0" in part for part in parts):
        raise StorageError(key, "this is no key of a file store")
    return key


def _etag(found: os.stat_result) -> str:
    return f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'


def _present(path: Path) -> str | None:
    try:
        return _etag(path.stat())
    except FileNotFoundError:
        return None


def _read(file: int, start: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(file, length, start)):
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return b"".join(parts)


def _create(path: Path, data: bytes) -> str:
    """Write a file that nobody knows yet, to the disk; return its ETag."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Whole nanoseconds: the kernel's own time stands still for milliseconds, in which the inode
        # of a file that was replaced can come back, and with it the ETag.
        now_ns = time.time_ns()
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.utime(file, ns=(now_ns, now_ns))
        os.fsync(file)
        return _etag(os.fstat(file))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def _move(beside: Path, path: Path) -> None:
    """Put a file in its place, and see that it stays there."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _make(path.parent)
            beside.replace(path)
        except FileNotFoundError:
            if attempt == _ATTEMPTS:
                raise
            continue
        break
    _sync(path.parent)


def _make(folder: Path) -> None:
    """Make a folder, and those above it, so that they stay."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
