"""Merges, training and sweeping, beside the updates of a partition.

One task per partition: it goes round its shards after updates came, one piece of work at a time,
and sweeps each shard now and then. It never touches a record or an offset. A fence that it meets is
handed to the handler (`check`), which makes the runtime load the heads anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Final

import structlog

from schemas.topics import INDEX_UPDATE
from workers.errors import Damaged, Fenced, Reject, Retry
from workers.index.shard import Shard
from workers.runtime.lastresort import foreseen, reveal
from workers.telemetry import metrics

log = structlog.get_logger("index.background")

ROUND_S: Final = 10.0
"""Seconds after which the task looks at its shards although no update came."""
_RECOVER_S: Final = 30.0


class Background:
    """The background work of one partition's shards."""

    def __init__(self, shards: Mapping[bytes, Shard]) -> None:
        """Prepare; `shards` may change while it runs."""
        self._shards = shards
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Begin; only after `stop` or at first."""
        self._failure = None
        self._task = asyncio.create_task(self._run(), name="index-background")

    def wake(self) -> None:
        """Say that updates were applied."""
        self._wake.set()

    def check(self) -> None:
        """Raise what ended the task: Fenced, or what must end the process."""
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """End the task; a merge that is not published yet is thrown away."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ROUND_S):
                        await self._wake.wait()
                self._wake.clear()
                for shard in list(self._shards.values()):
                    await self._maintain(shard)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error

    async def _maintain(self, shard: Shard) -> None:
        now_s = time.monotonic()
        if now_s < shard.maintain_at:
            return
        try:
            while await shard.maintain():
                pass
            await shard.sweep_when_due(now_s)
        except Fenced:
            raise
        except Damaged as error:
            metrics.DAMAGED.inc(what="segment")
            log.error("merge found damage", index=shard.place.index, why=error.message)
            shard.maintain_at = now_s + _RECOVER_S
        except (Retry, Reject) as error:
            metrics.COMPACTIONS.inc(outcome="failed")
            log.warning("merge waits", index=shard.place.index, code=error.code.value)
            shard.maintain_at = now_s + _RECOVER_S
        except Exception as error:
            if foreseen(error):
                raise
            # Nothing was published, and it can be tried again: updates go on meanwhile.
            reveal(error, INDEX_UPDATE, index=shard.place.index, shard=shard.place.shard)
            shard.maintain_at = now_s + _RECOVER_S
