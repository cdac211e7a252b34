"""Key material in memory that can be wiped, and that does not leave by accident.

Invariant: a `SecretBytes` has no text form, cannot be pickled, copied implicitly or hashed, and is
zero after `wipe()`. What cannot be promised in Python: OpenSSL keeps its own copy of a key inside a
cipher object, which cannot be overwritten from here, only dropped; and `copy()` makes an immutable
`bytes`. So: hold keys as `SecretBytes`, pass `view()` to the primitives, drop cipher objects early,
`overwrite` what a library returns as `bytes`, and never make hex or base64 text of a key.
"""

from __future__ import annotations

import contextlib
import ctypes
import hmac
import os
import resource
import sys
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

from workers.crypto.errors import InvalidKey, KeyWiped

KEY_BYTES = 32
_PR_SET_DUMPABLE = 4


class SecretBytes:
    """A secret of a fixed length, wiped on request, on leaving a `with` block, and when dropped."""

    __slots__ = ("_data", "_wiped")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        """Copy `data`; the caller wipes its own copy."""
        self._data = bytearray(data)
        self._wiped = False

    def view(self) -> memoryview:
        """Return a read-only view without a copy.

        It reads as zeros after `wipe()`: do not keep it.

        Raises:
            KeyWiped: The secret was wiped.
        """
        if self._wiped:
            raise KeyWiped("this secret was wiped")
        return memoryview(self._data).toreadonly()

    def copy(self) -> bytes:
        """Return the secret as `bytes` that nobody can wipe: only where an interface insists.

        Raises:
            KeyWiped: The secret was wiped.
        """
        return bytes(self.view())

    def wipe(self) -> None:
        """Overwrite the secret with zeros; harmless to repeat."""
        self._wiped = True
        self._data[:] = bytes(len(self._data))

    @property
    def wiped(self) -> bool:
        """Whether `wipe()` has run."""
        return self._wiped

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self.view(), other.view())

    def __repr__(self) -> str:
        return f"SecretBytes({len(self._data)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretBytes cannot be pickled or copied")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wipe()

    def __del__(self) -> None:
        # Absent when __init__ refused its argument.
        if hasattr(self, "_data"):
            self.wipe()


def overwrite(data: bytes | bytearray) -> None:
    """Overwrite a buffer that held a secret with zeros, if need be a `bytes` object.

    A library that decrypts returns `bytes`: what was a key would stay in freed memory. Only for
    what the caller alone has, made just now by such a call and used for the last time: nothing
    else may hold it, nor take it for immutable. Where Python is not CPython, `bytes` stay.
    """
    if isinstance(data, bytearray):
        data[:] = bytes(len(data))
    # CPython keeps one object for each single byte, and one for none.
    elif len(data) > 1 and sys.implementation.name == "cpython":
        # The contents end with the zero byte that is part of the basic size.
        ctypes.memset(id(data) + bytes.__basicsize__ - 1, 0, len(data))


Key = SecretBytes | bytes | bytearray | memoryview


def key_view(key: Key, size: int = KEY_BYTES) -> bytes | bytearray | memoryview:
    """Return the bytes of `key` without a copy, after checking the length.

    Raises:
        InvalidKey: `key` is not `size` bytes long.
        KeyWiped: `key` was wiped.
    """
    if len(key) != size:
        raise InvalidKey(f"this key must have {size} bytes, it has {len(key)}")
    return key.view() if isinstance(key, SecretBytes) else key


def random_secret(n: int = KEY_BYTES) -> SecretBytes:
    """Draw `n` bytes from the operating system's generator."""
    return SecretBytes(os.urandom(n))


class Hardening(NamedTuple):
    """What `harden_process` achieved."""

    no_core: bool
    not_dumpable: bool


def harden_process() -> Hardening:
    """Turn core dumps and ptrace by processes of the same user off, as far as the platform allows.

    Call it first in a worker's process. `PR_SET_DUMPABLE` exists on Linux only; elsewhere, and
    where a sandbox forbids either call, the field is False and the worker should say so in its log.
    """
    no_core = not_dumpable = False
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        no_core = True
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            not_dumpable = ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
    return Hardening(no_core, not_dumpable)
