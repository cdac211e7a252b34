"""Produce documents and wait for what became of them.

`accepted` means durable: the sealed object is stored and its index-update acknowledged.
`searchable` means that the shard's index-event reached that position, and that no later result
refused the operation.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

from schemas.codec import convert, decode, encode, to_plain
from schemas.errors import ErrorCode, ErrorInfo, InvalidMessage
from schemas.event import IndexEvent
from schemas.ingest import IngestOp, IngestRequest, IngestResult
from schemas.position import Position
from schemas.topics import INDEX_EVENT, INGEST_RESULT, PLAINTEXT_INGEST
from workers.client.connection import (
    Connection,
    Message,
    check_open,
    new_id,
    plain_json,
    timed_out,
)
from workers.client.replies import Listener
from workers.crypto.info import Info
from workers.crypto.together import TOGETHER
from workers.errors import Reject
from workers.kafka.broker import Delivered, Headers, Record
from workers.leases.grant import denial
from workers.leases.signed import verify_record

Wait = Literal["accepted", "searchable"]
Operations: TypeAlias = Iterable[dict[str, Any]] | AsyncIterable[dict[str, Any]]
IN_FLIGHT: Final = 2000
"""Operations `ingest_many` has under way at once."""


class Submitted:
    """An operation that was produced and not yet answered."""

    def __init__(self, index: str, doc_id: str, key: bytes) -> None:
        self.index = index
        self.id = doc_id
        self.key = key
        self.answer: asyncio.Future[IngestResult] = asyncio.get_running_loop().create_future()
        self.delivered: asyncio.Future[Delivered] | None = None
        self.late_refusal: IngestResult | None = None

    def on_delivered(self, delivered: asyncio.Future[Delivered]) -> None:
        """Fail the operation when the broker did not take its record."""
        failure = None if delivered.cancelled() else delivered.exception()
        if failure is not None and not self.answer.done():
            self.answer.set_exception(failure)
            # Looked at: whoever gave up waiting does not come for it.
            self.answer.exception()

    def is_about(self, result: IngestResult, message_id: str) -> bool:
        """Tell whether a result answers this operation: late refusals name its record only."""
        if result.message_id is not None:
            return result.message_id == message_id
        sent = self.delivered
        if result.source is None or sent is None or not sent.done() or sent.cancelled():
            return False
        place = (result.source.partition, result.source.offset)
        return sent.exception() is None and sent.result() == place


@dataclass(frozen=True, slots=True)
class _Made:
    """An operation before it is protected."""

    message_id: str
    id: str
    message: Message


class Ingestor:
    """The ingest half of a client. Listens from its first use on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._topic = connection.topic(PLAINTEXT_INGEST)
        self._results = Listener(
            connection.broker, [connection.topic(INGEST_RESULT)], self._on_result
        )
        self._events = Listener(
            connection.broker,
            [connection.topic(INDEX_EVENT)],
            self._on_event,
            from_beginning=True,
        )
        self._starting = asyncio.Lock()
        self._started = False
        self._closed = False
        # By the record's key: all operations on one document, in the order they were produced.
        self._waiting: dict[bytes, dict[str, Submitted]] = {}
        self._applied: dict[tuple[str, int, int], int] = {}
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        """Listen for results and events; harmless to repeat. Raises Retry, Fatal."""
        async with self._starting:
            check_open(closed=self._closed)
            if not self._started:
                await self._results.start()
                await self._events.start()
                self._started = True
            self._results.check()
            self._events.check()

    async def stop(self) -> None:
        """Stop listening; who still waits is cancelled."""
        self._closed = True
        async with self._starting:
            await self._results.stop()
            await self._events.stop()
        for waiting in self._waiting.values():
            for submitted in waiting.values():
                submitted.answer.cancel()

    async def submit(self, operation: dict[str, Any]) -> tuple[str, Submitted]:
        """Produce one operation; return its message id and what waits for its answer.

        Args:
            operation: a plaintext-ingest body without `v`, `auth`, `reply`, `message_id` and
                `issued_ms`, which are added; bytes and arrays as they are.

        Raises:
            InvalidMessage: the operation breaks the contract.
            Reject: UNKNOWN_INDEX. Retry: the broker cannot be reached.
        """
        await self.start()
        made = self._make(operation)
        [(value, headers)] = await self._connection.protect(
            Info.INGEST_VALUE, self._topic, [made.message]
        )
        return await self._send(made, value, headers)

    def _make(self, operation: dict[str, Any]) -> _Made:
        session = self._connection.session
        message_id = new_id()
        index = str(operation.get("index", ""))
        request = convert(
            IngestRequest,
            {
                **plain_json(operation),
                "v": 1,
                "auth": to_plain(session.auth(index)),
                "reply": {"public_key": session.reply_public},
                "message_id": message_id,
                "issued_ms": int(time.time() * 1000),
            },
        )
        sealed = session.protection == "sealed"
        key = session.routing_key(index, request.id) if sealed else f"{index}/{request.id}".encode()
        return _Made(message_id, request.id, Message(index, key, encode(request)))

    async def _send(self, made: _Made, value: bytes, headers: Headers) -> tuple[str, Submitted]:
        check_open(closed=self._closed)
        message_id, key = made.message_id, made.message.key
        submitted = Submitted(made.message.index, made.id, key)
        self._waiting.setdefault(key, {})[message_id] = submitted
        try:
            submitted.delivered = await self._connection.producer.send(
                self._topic, value, key=key, headers=headers
            )
            submitted.delivered.add_done_callback(submitted.on_delivered)
        except BaseException:
            self._forget(key, message_id)
            raise
        return message_id, submitted

    async def ingest(
        self, operation: dict[str, Any], *, wait: Wait = "accepted", timeout_s: float = 60.0
    ) -> IngestResult:
        """Produce one operation and wait for its result.

        Raises:
            Reject, Retry: the code of the rejected result; DEADLINE_EXCEEDED without an answer.
            InvalidMessage: the operation breaks the contract.
        """
        [result] = await self._settle([await self.submit(operation)], wait, timeout_s)
        if result.error is not None:
            raise denial(result.error)
        return result

    async def ingest_many(
        self,
        operations: Operations,
        *,
        wait: Wait = "accepted",
        timeout_s: float = 300.0,
        in_flight: int = IN_FLIGHT,
    ) -> AsyncIterator[IngestResult]:
        """Produce many operations, at most `in_flight` unanswered; yield their results in order.

        A rejected operation yields its result, and so does one that is refused here before it is
        sent (it breaks the contract, no record could hold it); the others go on.

        Raises:
            Retry: DEADLINE_EXCEEDED; the broker cannot be reached.
            Reject: UNKNOWN_INDEX, UNAUTHENTICATED.
            ValueError: `in_flight` is below 1.
        """
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        source = _Source(operations)
        under_way: deque[tuple[str, Submitted]] = deque()
        batch: list[tuple[str, Submitted]] = []
        settling: asyncio.Task[list[IngestResult]] | None = None
        idle = False
        try:
            while under_way or settling is not None or not source.ended:
                room = not source.ended and len(under_way) + len(batch) < in_flight
                # To be searchable takes a round trip: for as many as can be, unless nothing comes.
                if settling is None and under_way and (wait == "accepted" or idle or not room):
                    together = wait == "searchable" and not room
                    batch = _first(under_way, max(1, in_flight // 4), unanswered=together)
                    settling = asyncio.create_task(self._settle(batch, wait, timeout_s))
                if room:
                    first = under_way[0][1].answer if under_way else None
                    operation = await source.next(settling or first, timeout_s)
                    idle = operation is None
                    if operation is not None:
                        space = in_flight - len(under_way) - len(batch)
                        more = source.at_once(min(space, TOGETHER) - 1)
                        await self._submit_all([operation, *more], under_way)
                elif settling is not None:
                    await asyncio.wait((settling,))
                if settling is not None and settling.done():
                    results = settling.result()
                    batch, settling = [], None
                    for result in results:
                        yield result
        finally:
            if settling is not None:
                settling.cancel()
                await asyncio.gather(settling, return_exceptions=True)
            await source.aclose()
            for message_id, submitted in (*batch, *under_way):
                self._forget(submitted.key, message_id)

    async def _submit_all(
        self, operations: Sequence[dict[str, Any]], under_way: deque[tuple[str, Submitted]]
    ) -> None:
        """Produce operations, in order; what is wrong with one alone becomes its answer."""
        await self.start()
        made: list[_Made | Submitted] = []
        for operation in operations:
            try:
                made.append(self._make(operation))
            except InvalidMessage as error:
                made.append(_refused(operation, error.info()))
        messages = [one.message for one in made if isinstance(one, _Made)]
        protected = iter(await self._connection.protect(Info.INGEST_VALUE, self._topic, messages))
        for operation, one in zip(operations, made, strict=True):
            if isinstance(one, Submitted):
                under_way.append(("", one))
                continue
            try:
                under_way.append(await self._send(one, *next(protected)))
            except Reject as error:
                if error.code is not ErrorCode.TOO_LARGE:
                    raise
                under_way.append(("", _refused(operation, error.info())))

    async def searchable(self, index: str, position: Position, timeout_s: float) -> None:
        """Wait until a shard has applied a position.

        Raises:
            Retry: DEADLINE_EXCEEDED.
        """
        await self.start()
        name = (index, position.shard, position.partition)
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._applied.get(name, -1) >= position.offset)
        except TimeoutError:
            raise timed_out("index-event of this position", timeout_s) from None

    async def _settle(
        self, batch: Sequence[tuple[str, Submitted]], wait: Wait, timeout_s: float
    ) -> list[IngestResult]:
        """Wait for the results of operations, and for all to be searchable if asked."""
        try:
            results = [await _answered(submitted, timeout_s) for _, submitted in batch]
            if wait == "searchable" and (furthest := _furthest(results)):
                for (index, _), position in furthest.items():
                    await self.searchable(index, position, timeout_s)
                # The index worker emits its refusals before the event: one more look finds them.
                await self._results.caught_up()
                results = [
                    submitted.late_refusal or result
                    for (_, submitted), result in zip(batch, results, strict=True)
                ]
            return results
        finally:
            for message_id, submitted in batch:
                self._forget(submitted.key, message_id)

    def _forget(self, key: bytes, message_id: str) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.pop(message_id, None)
            if not waiting:
                del self._waiting[key]

    def _on_result(self, record: Record) -> None:
        waiting = self._waiting.get(record.key or b"")
        if not waiting:
            return
        service = self._connection.directory.key_service.sign_pub
        anyone = next(iter(waiting.values()))
        verify_record(
            record,
            service,
            ("ingest", "index"),
            Info.INGEST_RESULT,
            index=anyone.index,
            revocations=self._connection.directory.revocations,
        )
        value = self._connection.open_reply(record, Info.INGEST_RESULT, anyone.index, anyone.id)
        try:
            result = decode(IngestResult, value)
        except InvalidMessage as error:
            raise Reject(error.code, error.message) from error
        submitted = next((one for name, one in waiting.items() if one.is_about(result, name)), None)
        if submitted is None:
            return
        if not submitted.answer.done():
            submitted.answer.set_result(result)
        elif result.status == "rejected":
            submitted.late_refusal = result

    async def _on_event(self, record: Record) -> None:
        if record.value is None:
            return
        service = self._connection.directory.key_service.sign_pub
        try:
            event = decode(IndexEvent, record.value)
        except InvalidMessage as error:
            raise Reject(error.code, error.message) from error
        verify_record(
            record,
            service,
            ("index",),
            Info.INDEX_EVENT,
            index=event.index,
            revocations=self._connection.directory.revocations,
        )
        # By partition too: offsets of an earlier index of this name say nothing about another one.
        name = (event.index, event.shard, event.applied.partition)
        if event.applied.offset > self._applied.get(name, -1):
            async with self._changed:
                self._applied[name] = event.applied.offset
                self._changed.notify_all()


async def _answered(submitted: Submitted, timeout_s: float) -> IngestResult:
    try:
        async with asyncio.timeout(timeout_s):
            return await submitted.answer
    except TimeoutError:
        raise timed_out("ingest-result", timeout_s) from None


def _refused(operation: dict[str, Any], error: ErrorInfo) -> Submitted:
    """Return an operation that was answered here, before it was sent."""
    op = operation.get("op")
    refused = IngestResult(
        index=str(operation.get("index", "")),
        id=str(operation.get("id", "")),
        op=IngestOp(op) if op in list(IngestOp) else IngestOp.UPSERT,
        status="rejected",
        error=error,
    )
    submitted = Submitted(refused.index, refused.id, b"")
    submitted.answer.set_result(refused)
    return submitted


def _furthest(results: Sequence[IngestResult]) -> dict[tuple[str, int], Position]:
    """Return the furthest position of each index and shard."""
    found: dict[tuple[str, int], Position] = {}
    for result in results:
        position = result.position
        if position is None or result.status != "accepted":
            continue
        name = (result.index, position.shard)
        if name not in found or found[name].offset < position.offset:
            found[name] = position
    return found


def _first(
    under_way: deque[tuple[str, Submitted]], limit: int, *, unanswered: bool
) -> list[tuple[str, Submitted]]:
    """Take the first operation, and those after it: all, or while their answers are known."""
    batch = [under_way.popleft()]
    while under_way and len(batch) < limit and (unanswered or under_way[0][1].answer.done()):
        batch.append(under_way.popleft())
    return batch


class _Source:
    """The operations of a caller, one by one. Asynchronous ones may take their time."""

    def __init__(self, operations: Operations) -> None:
        self.ended = False
        self._slow: AsyncIterator[dict[str, Any]] | None = None
        self._quick: Iterator[dict[str, Any]] = iter(())
        self._coming: asyncio.Task[dict[str, Any] | None] | None = None
        if isinstance(operations, AsyncIterable):
            self._slow = aiter(operations)
        else:
            self._quick = iter(operations)

    async def next(
        self, unless: asyncio.Future[Any] | None, timeout_s: float
    ) -> dict[str, Any] | None:
        """Return the next operation; None at the end, or when `unless` is done or time is over."""
        if self._slow is None:
            operation = next(self._quick, None)
        else:
            if self._coming is None:
                self._coming = asyncio.create_task(_take(self._slow))
            waiting = {self._coming} if unless is None else {self._coming, unless}
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not self._coming.done():
                return None
            coming, self._coming = self._coming, None
            operation = coming.result()
        self.ended = operation is None
        return operation

    def at_once(self, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` operations that nobody has to wait for."""
        if self._slow is not None or self.ended:
            return []
        found = list(islice(self._quick, limit))
        self.ended = len(found) < limit
        return found

    async def aclose(self) -> None:
        """Ask for no more."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)


async def _take(source: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(source, None)
