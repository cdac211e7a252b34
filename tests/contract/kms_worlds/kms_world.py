"""What the contract suite needs of a KMS: a server, two keys, and ways to break it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import StrEnum
from typing import NoReturn

import pytest

from workers.kms.base import Kms
from workers.kms.errors import KmsDenied, KmsUnavailable

# Longer than any answer takes, also on a machine that has stood still: whoever needs it hangs.
PATIENCE_S = 60.0


class Fault(StrEnum):
    """What may be wrong with a server or with what it thinks of us."""

    UNREACHABLE = "unreachable"
    FROZEN = "frozen"
    THROTTLED = "throttled"
    BROKEN = "broken"
    FOREIGN = "foreign"
    DENIED = "denied"


EXPECTED = dict.fromkeys(Fault, KmsUnavailable) | {Fault.DENIED: KmsDenied}


class World:
    """A KMS that runs, with keys of its own.

    Attributes:
        provider: name of the client.
        one: a key.
        two: another.
        secrets: tokens and the like, which no log record and no error may show.
        faults: what `fault` can do.
        verifies_tls: whether `open(trusted=False)` means something.
        has_versions: whether `rotate` makes a new version.
        can_disable: whether keys can be disabled.
    """

    provider: str
    one: str
    two: str
    secrets: tuple[str, ...] = ()
    faults: frozenset[Fault] = frozenset()
    verifies_tls = False
    has_versions = False
    can_disable = False

    def open(self, *, timeout_s: float = PATIENCE_S, trusted: bool = True) -> Kms:
        """Make a client; `trusted=False`: one that does not know the server's CA."""
        raise NotImplementedError

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[None]:
        """Have the server fail in this way."""
        raise NotImplementedError
        yield

    async def make_key(self) -> str:
        """Make a key and return its id."""
        raise NotImplementedError

    async def rotate(self, key_id: str) -> None:
        """Make a new version of a key."""
        raise NotImplementedError

    async def disable(self, key_id: str) -> None:
        """Disable a key."""
        raise NotImplementedError

    async def enable(self, key_id: str) -> None:
        """Enable a key again."""
        raise NotImplementedError

    async def lose(self, key_id: str) -> None:
        """Destroy a key for good."""
        raise NotImplementedError


StartWorld = AbstractAsyncContextManager[World]


def missing(what: str) -> NoReturn:
    """Skip, naming what is missing; where nothing may be missing, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"not on this machine: {what}", pytrace=False)
    pytest.skip(f"not on this machine: {what}")
