from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from workers.runtime.crunch import crunch

_NAME: ContextVar[str] = ContextVar("_NAME")


async def test_work_runs_in_one_thread_in_its_order() -> None:
    begun = asyncio.Event()
    loop, go, order = asyncio.get_running_loop(), threading.Event(), list[int]()

    def first() -> int:
        loop.call_soon_threadsafe(begun.set)
        go.wait()
        order.append(1)
        return threading.get_ident()

    def second(number: int) -> int:
        order.append(number)
        return threading.get_ident()

    one = asyncio.create_task(crunch(first))
    await begun.wait()
    two = asyncio.create_task(crunch(second, 2))
    go.set()
    assert len({await one, await two, threading.get_ident()}) == 2
    assert order == [1, 2]


async def test_errors_and_context_pass() -> None:
    _NAME.set("here")
    assert await crunch(_NAME.get) == "here"
    with pytest.raises(ZeroDivisionError):
        await crunch(lambda: 1 // 0)
