"""Tell the key service's audit which operations this worker refused, beside the updates.

The key service decided who asks, but only an index worker knows whose document it is. The refusal
is in force and on its way to the caller either way, so nobody waits for the note: while the key
service is away notes queue up here, at most `MAX_WAITING`, and are sent when it is back.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

import structlog

from schemas.errors import ErrorCode
from workers.runtime.policy import RetryPolicy

log = structlog.get_logger("index.notes")

MAX_WAITING: Final = 1000
"""Notes, each of one micro-batch."""
MAX_OPERATIONS: Final = 100
"""Operations of a micro-batch that are named."""


class Audit(Protocol):
    """Where notes go: a `LeaseHolder`."""

    async def note_refusals(self, index: str, why: ErrorCode, operations: Sequence[str]) -> bool:
        """Send a note; return whether it was taken."""
        ...


@dataclass(frozen=True, slots=True)
class _Note:
    index: str
    why: ErrorCode
    operations: tuple[str, ...]


class Notes:
    """Notes of refusals on their way. One per process; sends while its context is open."""

    def __init__(self, audit: Audit, retry: RetryPolicy, *, drain_s: float = 5.0) -> None:
        """Prepare.

        Args:
            audit: takes the notes.
            retry: how long to wait when it takes none.
            drain_s: seconds that what still waits at the end may take.
        """
        self._audit = audit
        self._retry = retry
        self._drain_s = drain_s
        self._rng = random.Random()  # noqa: S311 - jitter, no secret
        self._waiting: deque[_Note] = deque()
        self._dropped = 0
        self._changed = asyncio.Event()
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def empty(self) -> bool:
        """Whether everything was sent."""
        return not self._waiting

    def put(self, index: str, why: ErrorCode, operations: Sequence[str]) -> None:
        """Queue a note; if too many wait, the oldest is dropped."""
        if not operations:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
            log.warning("a refusal is not noted in the audit", index=index, dropped=self._dropped)
        self._waiting.append(_Note(index, why, tuple(operations[:MAX_OPERATIONS])))
        self._changed.set()

    async def __aenter__(self) -> Self:
        """Begin to send."""
        self._ending.clear()
        self._task = asyncio.create_task(self._run(), name="index-notes")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send what waits, for a while; then end."""
        self._ending.set()
        self._changed.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=self._drain_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._waiting:
            log.warning("refusals are not noted in the audit", notes=len(self._waiting))

    async def _run(self) -> None:
        attempt = 0
        while self._waiting or not self._ending.is_set():
            if not self._waiting:
                self._changed.clear()
                await self._changed.wait()
                continue
            note = self._waiting[0]
            if await self._audit.note_refusals(note.index, note.why, note.operations):
                attempt = 0
                # Unless it was dropped meanwhile.
                if self._waiting and self._waiting[0] is note:
                    self._waiting.popleft()
            else:
                attempt += 1
                await asyncio.sleep(self._retry.delay_s(attempt, self._rng))
