"""One thread for the work that holds the GIL.

Such work gains nothing from several threads and loses much. Whenever one of two busy threads lets
the GIL go for a moment (a signature does, a draw of random bytes, a hash or a cipher over 2 KiB),
it gets it back only when the other's turn of 5 ms is over: beside a busy thread a signature of
70 µs took 4 ms, and three times its CPU. So the partitions of a worker take turns with whole pieces
of work. The event loop is not held up: its thread gets the GIL when it wants it.

What waits for something, or calculates without the GIL, belongs into `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREAD: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crunch")


async def crunch(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in the one thread, after what came before; return its result or raise its error.

    Pure CPU only: everything else of the process that comes here waits meanwhile.
    """
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREAD, lambda: context.run(work, *args, **kwargs))
