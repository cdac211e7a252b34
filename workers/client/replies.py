"""Listen to the result topics and hand every result to who waits for it.

A reader seeks to the end of its partitions and knows its position before the first request goes
out, so no answer can be missed. Results nobody waits for belong to other clients of the topic and
are skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from schemas.errors import ErrorCode
from workers.errors import Retry, SealstreamError
from workers.kafka.broker import TP, Broker, Record, TopicReader

_POLL_S = 1.0

log = structlog.get_logger("client.replies")


class Listener:
    """Follows topics or partitions and calls `receive` for each record, in order.

    Args:
        broker: where the topics are.
        sources: topics, or single partitions.
        receive: must not raise anything but SealstreamError, which is logged: a hostile record must
            not stop the client.
        from_beginning: for compacted topics; results are read from the end.
    """

    def __init__(
        self,
        broker: Broker,
        sources: Sequence[str | TP],
        receive: Callable[[Record], Awaitable[None] | None],
        *,
        from_beginning: bool = False,
    ) -> None:
        self._reader: TopicReader = broker.topic_reader(
            sources, start="beginning" if from_beginning else "end"
        )
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, if not begun; what is produced from then on is received. Raises Retry, Fatal."""
        if self._task is not None:
            return
        await self._reader.start()
        self._task = asyncio.create_task(self._follow(), name="client-listener")

    def check(self) -> None:
        """Raise what ended the listener, if it has ended: no result would come any more.

        Raises:
            Retry, Fatal: as the broker said.
        """
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def caught_up(self) -> None:
        """Wait until every record that exists now has been received.

        Raises:
            Retry: the reader ended.
        """
        if self._task is None:
            raise RuntimeError("the listener is not started")
        waiter = asyncio.ensure_future(self._reader.caught_up())
        try:
            await asyncio.wait({waiter, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if not waiter.done():
                self.check()
                raise Retry(ErrorCode.OVERLOADED, "the reader of a result topic ended")
            waiter.result()
        finally:
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)

    async def stop(self) -> None:
        """Stop following; harmless before `start`."""
        if self._task is not None:
            self._task.cancel()
            # What ended it was told to who called `check`.
            await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.stop()

    async def _follow(self) -> None:
        while True:
            for record in await self._reader.next(_POLL_S):
                try:
                    answer = self._receive(record)
                    if answer is not None:
                        await answer
                except SealstreamError as error:
                    log.warning("result refused", topic=record.topic, code=error.code.value)
