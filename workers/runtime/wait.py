"""Waiting that a stop can end: no pause, gate or linger may delay a shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818
    """Raised instead of a result when the stop came first."""


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, or cancel it when `stop` is set.

    Raises:
        Stopped: the stop came first; `work` has ended.
    """
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Stopped
    finally:
        for waiting in (task, stopping):
            waiting.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep.

    Raises:
        Stopped: the stop came first.
    """
    if await event_within(stop, seconds):
        raise Stopped


async def event_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; return whether it came before this returns."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        # It may have come after the time was up, before this task had its turn: a stop that is
        # missed here would be looked for only after the next piece of work.
        return event.is_set()
    return True
