"""How a worker process ends: signals set an event, the event starts a drain, the drain has a limit.

The first SIGTERM or SIGINT asks; a second one, or the deadline, cuts off. Both ways are safe: what
was not committed is delivered again.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog

_log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """Yield the event that the first signal sets; a second one cancels the current task.

    Needs the main thread's event loop.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    stop = asyncio.Event()

    def received(number: signal.Signals) -> None:
        if stop.is_set():
            _log.warning("stop_forced", signal=number.name)
            if task is not None:
                task.cancel()
        else:
            _log.info("stopping", signal=number.name)
            stop.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, received, number)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def run_with_deadline(
    work: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event, deadline_s: float
) -> bool:
    """Run `work(stop)`; once `stop` is set it has `deadline_s` seconds, then it is cancelled.

    Returns:
        Whether it ended by itself.

    Raises:
        Whatever `work` raises.
    """
    task = asyncio.ensure_future(work(stop))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait((task,), timeout=deadline_s)
        if task.done():
            task.result()
            return True
        _log.error("drain_deadline_passed", deadline_s=deadline_s)
        return False
    finally:
        stopping.cancel()
        task.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)
