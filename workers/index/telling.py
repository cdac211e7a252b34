"""What is to be told about one shard: how far it is, and which operations were refused.

Ordering rule: refusals -> index-event -> note for the audit. Who has seen an event knows that no
refusal comes any more of what it covers. Nothing is lost in a crash: the head says what was
refused, and who opens it tells that again, until a later head says it no more (`settle`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from schemas.errors import ErrorCode, ErrorInfo
from workers.chain.head import Head, Refused
from workers.chain.ops import Published
from workers.errors import Reject
from workers.index.emit import Refusals, ShardPosition
from workers.index.opening import OpenShard
from workers.index.place import Place
from workers.index.receive import Received
from workers.index.services import Services

log = structlog.get_logger("index.telling")

SETTLE_S: Final = 5.0
"""Seconds after which a head is written that forgets refusals, if there was no other by then."""


@dataclass(frozen=True, slots=True, repr=False)
class _Unsent:
    """What was published and not told yet: the head, what was refused, and where that begins."""

    published: Published
    refused: Refusals
    first: int


class Telling:
    """What one shard has to tell. Used by one task at a time, but for `announce` and `settle`."""

    def __init__(self, place: Place, services: Services) -> None:
        """Begin with nothing to tell."""
        self._place = place
        self._services = services
        self._unsent: deque[_Unsent] = deque()
        # By offset: what the head that was opened says was refused, and is to be told again.
        self._owed: dict[int, list[tuple[int, ErrorInfo]]] = {}
        self._settle_at = 0.0

    @property
    def unsent(self) -> bool:
        """Whether something was published and not told yet."""
        return bool(self._unsent)

    @property
    def lowest(self) -> int | None:
        """The lowest offset of what was published and not told yet; None without."""
        return min((one.first for one in self._unsent), default=None)

    @property
    def owed(self) -> Iterable[int]:
        """The offsets of records with refusals that are to be told again."""
        return self._owed.keys()

    def opened(self, head: Head) -> None:
        """Take from a head that was opened what it says was refused: it is to be told again."""
        self._owed = _by_offset(head.refused)
        self._settle_at = 0.0

    def published(self, published: Published, refused: Refusals, first: int) -> None:
        """Queue what became of a micro-batch; `first` is the offset of its first record."""
        first = first if refused else published.applied
        self._unsent.append(_Unsent(published, refused, first))
        if refused:
            self._settle_at = time.monotonic() + SETTLE_S

    async def tell(self) -> None:
        """Send the events and late results of what was published. Raises Retry."""
        while self._unsent:
            one = self._unsent[0]
            await self._services.emitter.rejected(self._place.index, one.refused)
            await self._emit(one.published)
            self._unsent.popleft()
            self._note(one.refused)

    async def tell_again(self, received: Sequence[Received]) -> None:
        """Tell what is owed about records that were opened once more. Raises Retry."""
        for one in received:
            ops = [] if one.checked is None else one.checked.batch.ops
            # As it was opened when it was refused; else its keys have ended, and nobody waits.
            refused = [(ops[n], why) for n, why in self._owed[one.record.offset] if n < len(ops)]
            await self._services.emitter.rejected(self._place.index, refused)
            del self._owed[one.record.offset]
            self._note(refused)

    def give_up(self) -> None:
        """Forget what is owed about records that do not come any more."""
        if self._owed:
            log.warning("refusals are not told: their updates are gone", index=self._place.index)
            self._owed.clear()

    async def announce(self, shard: OpenShard) -> None:
        """Send one cumulative index-event, if the shard was ever written. Raises Retry.

        Not while refusals are to be told again.
        """
        head = shard.head
        if head.version and not self._owed:
            await self._emit(
                Published(
                    version=head.version,
                    applied=head.applied,
                    outcomes=[],
                    head_sha256=shard.head_sha256,
                    documents=head.stats.docs,
                    segments=len(head.segments),
                )
            )

    async def settle(self, shard: OpenShard) -> bool:
        """Write a head that forgets refusals, when all were told and no update does it soon.

        Raises:
            Fenced, Retry.
        """
        head = shard.head
        if not head.refused or self._unsent or self._owed or not self._services.notes.empty:
            return False
        if time.monotonic() < self._settle_at:
            return False
        return await shard.writer.settle(head.applied)

    async def _emit(self, published: Published) -> None:
        await self._services.emitter.event(
            ShardPosition(
                index=self._place.index,
                uid=self._place.uid,
                shard=self._place.shard,
                partition=self._place.partition,
                version=published.version,
                applied=published.applied,
                documents=published.documents,
                segments=published.segments,
                head_sha256=published.head_sha256,
            )
        )

    def _note(self, refused: Refusals) -> None:
        """Have the audit told: the key service does not know whose document it was."""
        forbidden = [op.kind.name.lower() for op, e in refused if e.code is ErrorCode.FORBIDDEN]
        self._services.notes.put(self._place.index, ErrorCode.FORBIDDEN, forbidden)


def _by_offset(refused: Sequence[Refused]) -> dict[int, list[tuple[int, ErrorInfo]]]:
    """Return the refusals that a head names: number and reason, by the offset of their record."""
    found: dict[int, list[tuple[int, ErrorInfo]]] = {}
    for one in refused:
        error = Reject(one.code, one.message, field=one.field).info()
        for offset, number in one.at:
            found.setdefault(offset, []).append((number, error))
    return found
