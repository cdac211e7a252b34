"""Passwords: drawn here, shown once, kept as Argon2id hashes.

Checking costs the same whether the user exists or not, and no more than `WORKERS` run at a time,
in threads of their own, so that logging in can stop neither the event loop nor other work.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from schemas.errors import ErrorCode
from workers.errors import Retry

MEMORY_KIB: Final = 19_456
PASSES: Final = 2
LANES: Final = 1
WORKERS: Final = 2
MAX_WAITING: Final = 64
SECRET_BYTES: Final = 24
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32

T = TypeVar("T")


class PasswordHash(msgspec.Struct, array_like=True, frozen=True):
    """An Argon2id hash with its parameters: memory in KiB, passes, lanes."""

    memory_kib: int
    passes: int
    lanes: int
    salt: bytes
    hash: bytes

    def __repr__(self) -> str:
        return "PasswordHash()"


def password_of(secret: bytes) -> str:
    """Write down a password of 24 random bytes: 32 characters of A-Z a-z 0-9 - _."""
    return urlsafe_b64encode(secret[:SECRET_BYTES]).decode("ascii")


def hash_password(password: str, salt: bytes | None = None) -> PasswordHash:
    """Hash a password. Tens of milliseconds; use `Passwords` on the event loop."""
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    return PasswordHash(
        MEMORY_KIB, PASSES, LANES, salt, _derive(password, salt, MEMORY_KIB, PASSES, LANES)
    )


def is_password(password: str, known: PasswordHash) -> bool:
    """Tell whether `known` is the hash of `password`."""
    found = _derive(password, known.salt, known.memory_kib, known.passes, known.lanes)
    return hmac.compare_digest(found, known.hash)


# Nobody's: what the password of an unknown user is compared with.
_NOBODY: Final = PasswordHash(MEMORY_KIB, PASSES, LANES, bytes(_SALT_BYTES), bytes(_HASH_BYTES))


class Passwords:
    """Hashes and checks off the event loop, a bounded number at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="argon2")
        self._waiting = 0

    async def hash(self, password: str) -> PasswordHash:
        """Hash a password. Raises Retry: OVERLOADED."""
        return await self._run(lambda: hash_password(password))

    async def check(self, password: str, known: PasswordHash | None) -> bool:
        """Tell whether a password is the known one; without one, False after the same work.

        Raises:
            Retry: OVERLOADED, too many wait already.
        """
        right = await self._run(lambda: is_password(password, known or _NOBODY))
        return right and known is not None

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise Retry(ErrorCode.OVERLOADED, "too many passwords are being checked: try again")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1


def _derive(password: str, salt: bytes, memory_kib: int, passes: int, lanes: int) -> bytes:
    kdf = Argon2id(
        salt=salt, length=_HASH_BYTES, iterations=passes, lanes=lanes, memory_cost=memory_kib
    )
    return kdf.derive(password.encode())
