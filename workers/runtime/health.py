"""Is this worker alive, and what went wrong lately? A file says so.

`HOME/run/<worker>.json` is written anew every `interval_s` by the event loop itself, so a stuck
loop or process shows as an old `time_ms`. It holds counts, codes and our own messages: no names of
indexes or documents, no plaintext, no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import orjson
import structlog

from workers.runtime.wait import event_within
from workers.telemetry import metrics
from workers.telemetry.logs import describe

_log = structlog.get_logger(__name__)

_ERRORS = 20


class Health:
    """What a worker tells about itself.

    Args:
        worker: its id.
        path: the file; None writes none.
        interval_s: seconds between two writes.
    """

    def __init__(self, worker: str, path: Path | None = None, *, interval_s: float = 1.0) -> None:
        self._worker = worker
        self._path = path
        self._interval_s = interval_s
        self._started_ms = _now_ms()
        self._beat_ms = self._started_ms
        self._batches = 0
        self._denied_before = metrics.STORE_DENIED.value()
        self._facts: dict[str, Any] = {}
        self._errors: deque[dict[str, Any]] = deque(maxlen=_ERRORS)

    def beat(self) -> None:
        """Say that a piece of work was done."""
        self._beat_ms = _now_ms()
        self._batches += 1

    def set(self, name: str, value: object) -> None:
        """Set one fact of the status, such as `ready` or `partitions`. JSON values only."""
        self._facts[name] = value

    def error(self, where: str, error: BaseException) -> None:
        """Keep an error; equal ones in a row are counted, not repeated."""
        what = describe(error)
        last = self._errors[-1] if self._errors else None
        if last is not None and (last["where"], last["error"]) == (where, what):
            last["count"] += 1
            last["time_ms"] = _now_ms()
        else:
            self._errors.append({"time_ms": _now_ms(), "where": where, "error": what, "count": 1})

    def status(self) -> dict[str, Any]:
        """Return what the file says now."""
        return {
            "worker": self._worker,
            "pid": os.getpid(),
            "started_ms": self._started_ms,
            "time_ms": _now_ms(),
            "last_work_ms": self._beat_ms,
            "batches": self._batches,
            **self._facts,
            **self._denials(),
            "errors": list(self._errors),
        }

    def _denials(self) -> dict[str, int]:
        """Return when the store last denied something to this process, if it did."""
        if metrics.STORE_DENIED.value() <= self._denied_before:
            return {}
        return {"store_denied_ms": int(metrics.STORE_DENIED_AT.value() * 1000)}

    async def run(self, stop: asyncio.Event) -> None:
        """Write the file and measure the event loop's delay until `stop`; then remove the file."""
        loop = asyncio.get_running_loop()
        try:
            while not stop.is_set():
                await self._write()
                due_s = loop.time() + self._interval_s
                if not await event_within(stop, self._interval_s):
                    metrics.LOOP_LAG_SECONDS.observe(max(0.0, loop.time() - due_s))
        finally:
            # Where it could not be written it may be impossible to remove: no reason to end badly.
            if self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink()

    async def _write(self) -> None:
        if self._path is None:
            return
        try:
            await asyncio.to_thread(_replace_file, self._path, orjson.dumps(self.status()))
        except OSError as error:
            _log.warning("health_file_not_written", error=type(error).__name__)


def _replace_file(path: Path, data: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
