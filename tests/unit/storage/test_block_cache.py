from __future__ import annotations

import asyncio

import pytest

from workers.storage.cache import _ENTRY_BYTES, BlockCache


def block(n: int, length: int = 100) -> tuple[str, int, int]:
    return ("seg", n, length)


async def test_second_read_is_a_hit() -> None:
    cache = BlockCache(100_000)
    loads: list[int] = []

    async def load() -> bytes:
        loads.append(1)
        return b"x" * 100

    assert await cache.get(block(1), load) == b"x" * 100
    assert await cache.get(block(1), load) == b"x" * 100
    assert len(loads) == 1
    assert (cache.stats.hits, cache.stats.misses) == (1, 1)


async def test_callers_share_one_load() -> None:
    cache = BlockCache(100_000)
    go_on, loads = asyncio.Event(), []

    async def load() -> bytes:
        loads.append(1)
        await go_on.wait()
        return b"data"

    tasks = [asyncio.create_task(cache.get(block(1), load)) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(*tasks) == [b"data"] * 5
    assert len(loads) == 1


async def test_large_blocks_are_shared_but_not_kept() -> None:
    cache = BlockCache(1000)
    go_on = asyncio.Event()

    async def load() -> bytes:
        await go_on.wait()
        return bytes(900)

    tasks = [asyncio.create_task(cache.get(block(1), load)) for _ in range(3)]
    await asyncio.sleep(0)
    go_on.set()
    assert [len(data) for data in await asyncio.gather(*tasks)] == [900] * 3
    assert cache.stats.bytes == 0


async def test_another_caller_takes_over_when_the_first_is_cancelled_or_fails() -> None:
    cache = BlockCache(100_000)

    async def for_ever() -> bytes:
        await asyncio.Event().wait()
        return b""

    async def fail() -> bytes:
        await asyncio.sleep(0)
        raise KeyError("mine")

    async def good() -> bytes:
        return b"good"

    first = asyncio.create_task(cache.get(block(1), for_ever))
    await asyncio.sleep(0)
    second = asyncio.create_task(cache.get(block(1), good))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"good"
    third = asyncio.create_task(cache.get(block(2), fail))
    await asyncio.sleep(0)
    fourth = asyncio.create_task(cache.get(block(2), good))
    with pytest.raises(KeyError):
        await third
    assert await fourth == b"good"


async def test_least_recently_used_goes_first() -> None:
    each = 100 + _ENTRY_BYTES
    cache = BlockCache(8 * each)

    async def load() -> bytes:
        return bytes(100)

    for n in range(8):
        await cache.get(block(n), load)
    cache.peek(block(0))
    await cache.get(block(8), load)
    assert cache.peek(block(0)) is not None
    assert cache.peek(block(1)) is None
    assert cache.stats.evictions == 1
    assert cache.stats.bytes <= 8 * each


async def test_drop_forgets_an_object() -> None:
    cache = BlockCache(100_000)
    cache.put(("a", 0, 1), b"1")
    cache.put(("b", 0, 1), b"1")
    cache.drop("a")
    assert cache.peek(("a", 0, 1)) is None
    assert cache.peek(("b", 0, 1)) == b"1"
    assert cache.stats.bytes == 1 + _ENTRY_BYTES


def test_forget_takes_everything_under_a_prefix() -> None:
    cache = BlockCache(100_000)
    for key in ("a/x", "a/y#open", "ab/x"):
        cache.put((key, 0, 1), b"1")
    cache.forget("a/")
    assert cache.peek(("a/x", 0, 1)) is cache.peek(("a/y#open", 0, 1)) is None
    assert cache.peek(("ab/x", 0, 1)) == b"1"
    assert cache.stats.bytes == 1 + _ENTRY_BYTES


def test_zero_bytes_keep_nothing() -> None:
    cache = BlockCache(0)
    cache.put(("a", 0, 1), b"1")
    assert cache.stats.bytes == 0
