"""Send query-requests and wait for their results."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from schemas.codec import convert, decode, encode, to_plain
from schemas.errors import ErrorCode, InvalidMessage
from schemas.ingest import IngestResult
from schemas.query import QueryRequest, QueryResult
from schemas.topics import HEADER_REPLY, QUERY_REQUEST, QUERY_RESULT
from workers.client.connection import Connection, Message, check_open, is_sealed, new_id, timed_out
from workers.client.replies import Listener
from workers.crypto.info import Info
from workers.errors import Reject
from workers.kafka.broker import TP, Record
from workers.leases.grant import denial
from workers.leases.signed import verify_record

FANOUT: Final = 4
"""Kafka keys over which a client spreads the requests for one index, so that caches stay warm."""
QUERY_S: Final = 30.0
"""Seconds that the workers may take to answer, unless the caller says otherwise."""
# What the answer may take to travel after the worker's own deadline.
_GRACE_S: Final = 2.0


class _Asked(NamedTuple):
    name: str
    answer: asyncio.Future[QueryResult]


class Querier:
    """The query half of a client. Listens on one partition of `query-result` from its first use."""

    def __init__(self, connection: Connection, *, fanout: int = FANOUT) -> None:
        self._connection = connection
        self._fanout = fanout
        self._topic = connection.topic(QUERY_REQUEST)
        self._partition = 0
        self._listener: Listener | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._waiting: dict[bytes, _Asked] = {}

    async def start(self) -> None:
        """Listen for results; harmless to repeat. Raises Retry, Fatal."""
        async with self._starting:
            check_open(closed=self._closed)
            if self._listener is None:
                topic = self._connection.topic(QUERY_RESULT)
                count = await self._connection.broker.partitions(topic)
                self._partition = random.randrange(max(count, 1))  # noqa: S311 - spreads load
                listener = Listener(
                    self._connection.broker, [TP(topic, self._partition)], self._on_result
                )
                await listener.start()
                self._listener = listener
            self._listener.check()

    async def stop(self) -> None:
        """Stop listening; who still waits is cancelled."""
        self._closed = True
        async with self._starting:
            if self._listener is not None:
                await self._listener.stop()
        for asked in self._waiting.values():
            asked.answer.cancel()

    async def query(
        self,
        index: str,
        query: dict[str, Any] | Sequence[dict[str, Any]],
        *,
        after: Sequence[IngestResult] = (),
        timeout_s: float = QUERY_S,
        **options: Any,
    ) -> QueryResult:
        """Send a query, or a batch, and wait for its result.

        Args:
            index: name of the index.
            query: the `query` object of the contract, or a list of them.
            after: results of own operations that the answer must contain.
            timeout_s: seconds the workers may take.
            options: other fields of a query-request: `top_k`, `filter`, `include`, `explain`,
                `cursor`. None means not given.

        Raises:
            Reject, Retry: the code of the error result; DEADLINE_EXCEEDED without an answer.
            InvalidMessage: the request breaks the contract.
        """
        await self.start()
        session = self._connection.session
        request_id = new_id()
        plain: dict[str, Any] = {
            "v": 1,
            "request_id": request_id,
            "index": index,
            "auth": to_plain(session.auth(index)),
            "timeout_ms": max(1, int(timeout_s * 1000)),
            "reply": {"partition": self._partition, "public_key": session.reply_public},
            "message_id": new_id(),
            "issued_ms": int(time.time() * 1000),
            **{name: value for name, value in options.items() if value is not None},
        }
        plain["query" if isinstance(query, dict) else "queries"] = query
        if after:
            plain["min_position"] = _positions(after)
        request = convert(QueryRequest, plain)
        key = f"{index}#{random.randrange(self._fanout)}".encode()  # noqa: S311 - spreads load
        [(value, headers)] = await self._connection.protect(
            Info.QUERY_VALUE, self._topic, [Message(index, key, encode(request))]
        )
        if session.protection == "sealed":
            # A worker that cannot open the request can only answer by what stands outside.
            headers = (*headers, (HEADER_REPLY, f"{request_id}/{self._partition}".encode()))
        check_open(closed=self._closed)
        waiting: asyncio.Future[QueryResult] = asyncio.get_running_loop().create_future()
        self._waiting[request_id.encode()] = _Asked(index, waiting)
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                await self._connection.send(self._topic, key, value, headers)
                result = await waiting
        except TimeoutError:
            raise timed_out("query-result", timeout_s + _GRACE_S) from None
        finally:
            del self._waiting[request_id.encode()]
        if result.error is not None:
            raise denial(result.error)
        return result

    def _on_result(self, record: Record) -> None:
        asked = self._waiting.get(record.key or b"")
        if asked is None or asked.answer.done():
            return
        request_id = (record.key or b"").decode()
        service = self._connection.directory.key_service.sign_pub
        verify_record(
            record,
            service,
            ("query",),
            Info.QUERY_RESULT,
            index=asked.name,
            revocations=self._connection.directory.revocations,
        )
        value = record.value or b""
        if is_sealed(record):
            value = self._connection.open_reply(record, Info.QUERY_RESULT, request_id)
        try:
            result = decode(QueryResult, value)
        except InvalidMessage as error:
            raise Reject(error.code, error.message) from error
        if result.error is None and not is_sealed(record):
            # In clear comes only that a request could not be opened.
            raise Reject(ErrorCode.INVALID_MESSAGE, "a result is in clear that should be sealed")
        if result.request_id == request_id:
            asked.answer.set_result(result)


def _positions(results: Sequence[IngestResult]) -> list[dict[str, int]]:
    """Return the furthest position of each shard."""
    furthest: dict[int, int] = {}
    for result in results:
        if result.position is not None:
            shard = result.position.shard
            furthest[shard] = max(furthest.get(shard, -1), result.position.offset)
    return [{"shard": shard, "offset": offset} for shard, offset in sorted(furthest.items())]
