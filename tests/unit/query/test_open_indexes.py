"""What a query worker still has of an index after its lease has ended."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest

from schemas.index import IndexConfig
from workers.crypto.derive import Purpose
from workers.crypto.secret import random_secret
from workers.errors import Retry
from workers.leases.lease import Decision, Lease
from workers.query.indexes import OpenIndexes
from workers.storage import layout
from workers.storage.memory import MemoryStore

DIRECTORY: Any = None
CALLER = Decision("c", "a", (), "", frozenset(), None, 2.0**40)


def lease(uid: bytes) -> Lease:
    return Lease(
        index="a",
        uid=uid,
        config=IndexConfig(),
        role="query",
        generation=1,
        partitions=(0,),
        issued_s=time.time(),
        expires_s=time.time() + 300,
        full=True,
        directory_version=1,
        _secrets={(0, Purpose.TAG): random_secret()},
        _publics={},
        _privates={},
        _ingest={},
        _query_public=None,
    )


def test_nothing_readable_outlives_the_lease() -> None:
    indexes = OpenIndexes(MemoryStore(), DIRECTORY, cache_bytes=1 << 20)
    held = {uid: lease(uid) for uid in (b"a" * 16, b"b" * 16)}
    blocks = {}
    for uid, one in held.items():
        indexes.open(one)
        blocks[uid] = (layout.segment(uid, 0, b"s" * 16) + "#open", 0, 1)
        indexes.blocks.put(blocks[uid], b"a column in clear")
        indexes.decoded.put((uid, "ids"), ["a"], 10)
    held[b"a" * 16].wipe()
    indexes.sweep()
    assert indexes.blocks.peek(blocks[b"a" * 16]) is None
    assert indexes.decoded.get((b"a" * 16, "ids")) is None
    assert indexes.blocks.peek(blocks[b"b" * 16]) is not None


def test_a_lease_that_ends_during_a_query_can_be_asked_for_again() -> None:
    one = lease(b"a" * 16)
    indexes = OpenIndexes(MemoryStore(), DIRECTORY, cache_bytes=1 << 20)
    context = indexes.open(one).context(CALLER)
    assert len(context.object_id("doc")) == 16
    one.wipe()
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        context.object_id("doc")


async def test_a_closed_index_is_gone_at_once() -> None:
    """Its token cache is keyed: nothing may wait for Python to look for cycles."""
    one = lease(b"a" * 16)
    indexes = OpenIndexes(MemoryStore(), DIRECTORY, cache_bytes=1 << 20)
    with indexes.using(one) as opened:
        await opened.snapshot([], 0)
        opened.context(CALLER)
    watched = weakref.ref(opened)
    del opened
    one.wipe()
    gc.disable()
    try:
        indexes.sweep()
        assert watched() is None
    finally:
        gc.enable()
