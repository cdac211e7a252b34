"""A KMS for development: one 32-byte key in a file of mode 0600.

Whoever reads the file opens every index of the realm, nothing logs its use, and it has no versions:
it exists so that the local stack runs without a server. A wrapped key is a sealed object
(`crypto.seal`) with purpose `LOCAL_KMS`, the key id as object id and the context as associated
data.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

import structlog

from schemas.errors import ErrorCode
from workers.crypto.errors import OpenFailed
from workers.crypto.seal import SealPurpose, open_sealed, seal
from workers.crypto.secret import KEY_BYTES, SecretBytes, random_secret
from workers.errors import Damaged, Fatal
from workers.kms.base import KeyInfo, Wrapped, check_key_id, context_bytes
from workers.kms.errors import unavailable

VERSION = "1"

log = structlog.get_logger(__name__)


class LocalKms:
    """Wraps keys under the key in a local file; for development only."""

    name = "local"
    default_key = "local"

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Read the key file.

        Args:
            path: a file of 32 raw bytes that belongs to this user or root and is readable by its
                owner only.
            create: make the file with a new key if it does not exist.

        Raises:
            Fatal: The file is missing, not of 32 bytes, or open to others.
        """
        if create:
            _create(path)
        self._key = _read(path)
        log.warning(
            "local key file in use as KMS: for development only, use a real KMS in production",
            path=str(path),
        )

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        """Wrap `plaintext`: see `Kms.wrap`."""
        blob = seal(
            self._live_key(),
            plaintext.view(),
            purpose=SealPurpose.LOCAL_KMS,
            index_uid=b"",
            object_id=check_key_id(key_id).encode(),
            associated_data=context_bytes(context),
        )
        return Wrapped(blob, VERSION)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        """Open a wrapped key: see `Kms.unwrap`."""
        try:
            plaintext = open_sealed(
                self._live_key(),
                wrapped,
                purpose=SealPurpose.LOCAL_KMS,
                index_uid=b"",
                object_id=check_key_id(key_id).encode(),
                associated_data=context_bytes(context),
            )
        except OpenFailed as exc:
            raise Damaged(
                ErrorCode.DAMAGED,
                "a wrapped key does not open: it was changed, or this is not the key file that"
                " wrapped it",
            ) from exc
        return SecretBytes(plaintext)

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        """Open and wrap again: see `Kms.rewrap`."""
        with await self.unwrap(key_id, wrapped, context) as plaintext:
            return await self.wrap(key_id, plaintext, context)

    async def describe(self, key_id: str) -> KeyInfo:
        """Describe the one version: see `Kms.describe`."""
        self._live_key()
        return KeyInfo(self.name, check_key_id(key_id), VERSION, VERSION, binds_context=True)

    async def aclose(self) -> None:
        """Wipe the key."""
        self._key.wipe()

    def _live_key(self) -> SecretBytes:
        if self._key.wiped:
            raise unavailable("this KMS was closed")
        return self._key

    def __repr__(self) -> str:
        return "LocalKms()"


def _create(path: Path) -> None:
    """Make the key file whole or not at all; a file that exists stays as it is."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file, random_secret() as key:
            file.write(key.view())
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces the key of somebody who was faster.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    except OSError as exc:
        raise _unusable(path, "cannot be created") from exc
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _read(path: Path) -> SecretBytes:
    data = bytearray(KEY_BYTES + 1)
    try:
        # Non-blocking: a FIFO in its place must not hang the start.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check(path, os.fstat(fd))
            size = os.readv(fd, [data])
        finally:
            os.close(fd)
    except FileNotFoundError as exc:
        raise _unusable(path, "does not exist") from exc
    except OSError as exc:
        raise _unusable(path, "cannot be read") from exc
    if size != KEY_BYTES:
        raise _unusable(path, f"must have exactly {KEY_BYTES} raw bytes")
    key = SecretBytes(memoryview(data)[:KEY_BYTES])
    data[:] = bytes(len(data))
    return key


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _unusable(path, "is not a file")
    if status.st_mode & 0o077:
        raise _unusable(path, "can be read by others: chmod 600 it and replace the key")
    if status.st_uid not in (os.geteuid(), 0):
        raise _unusable(path, "belongs to another user")


def _unusable(path: Path, why: str) -> Fatal:
    return Fatal(ErrorCode.KEY_UNAVAILABLE, f"the local KMS key file {path} {why}")
