"""`Client.ingest_many` as the commands use it: slow sources, refusals, one wait for many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from schemas.errors import ErrorCode, ErrorInfo, InvalidMessage
from schemas.ingest import IngestOp, IngestResult
from schemas.position import Position
from workers.client.connection import Message
from workers.client.ingest import Ingestor, Submitted, _Made
from workers.errors import Reject
from workers.kafka.broker import Headers


class Results:
    looks = 0

    async def caught_up(self) -> None:
        self.looks += 1


class Unprotected:
    """A connection whose messages go as they are."""

    async def protect(
        self, _info: Any, _topic: str, messages: Sequence[Message]
    ) -> list[tuple[bytes, Headers]]:
        return [(message.value, ()) for message in messages]


class Answering(Ingestor):
    """An `Ingestor` that answers by itself."""

    def __init__(self) -> None:
        self._connection: Any = Unprotected()
        self._topic = "plaintext-ingest"
        self._results: Any = Results()
        self._waiting = {}
        self.sent: list[str] = []
        self.waited: list[tuple[str, int, int]] = []
        self.silent = False

    async def start(self) -> None:
        """Nobody to listen to."""

    def _make(self, operation: dict[str, Any]) -> _Made:
        doc_id = operation["id"]
        if doc_id == "bad":
            raise InvalidMessage("must be an object", "metadata")
        return _Made(doc_id, doc_id, Message("i", doc_id.encode(), b"{}"))

    async def _send(self, made: _Made, value: bytes, headers: Headers) -> tuple[str, Submitted]:
        doc_id = made.id
        if doc_id == "large":
            raise Reject(ErrorCode.TOO_LARGE, "no record holds it")
        if doc_id == "nowhere":
            raise Reject(ErrorCode.UNKNOWN_INDEX, "no such index")
        self.sent.append(doc_id)
        submitted = Submitted("i", doc_id, doc_id.encode())
        self._waiting.setdefault(submitted.key, {})[doc_id] = submitted
        offset = len(self.sent)
        if not self.silent:
            submitted.answer.set_result(
                IngestResult(
                    index="i",
                    id=doc_id,
                    op=IngestOp.UPSERT,
                    status="accepted",
                    position=Position(shard=offset % 2, partition=0, offset=offset),
                )
            )
        return doc_id, submitted

    async def searchable(self, index: str, position: Position, timeout_s: float) -> None:
        self.waited.append((index, position.shard, position.offset))
        late = self._waiting.get(b"late", {}).get("late")
        if late is not None:
            error = ErrorInfo(code=ErrorCode.CONFLICT, message="changed")
            late.late_refusal = IngestResult(
                index="i", id="late", op=IngestOp.UPSERT, status="rejected", error=error
            )


def operations(*ids: str) -> list[dict[str, Any]]:
    return [{"index": "i", "id": one} for one in ids]


async def test_refusals_here_are_results_in_their_place():
    ingestor = Answering()
    found = [r async for r in ingestor.ingest_many(operations("a", "bad", "large", "b"))]
    assert [(r.id, r.status) for r in found] == [
        ("a", "accepted"),
        ("bad", "rejected"),
        ("large", "rejected"),
        ("b", "accepted"),
    ]
    assert (found[1].error.code, found[1].error.field) == ("INVALID_MESSAGE", "metadata")
    assert found[2].error.code == "TOO_LARGE"
    assert not ingestor._waiting


async def test_an_unknown_index_ends_the_stream():
    with pytest.raises(Reject, match="UNKNOWN_INDEX"):
        async for _ in Answering().ingest_many(operations("a", "nowhere", "b")):
            pass


async def test_a_slow_source_is_answered_as_it_comes():
    ingestor = Answering()
    told = asyncio.Event()

    async def slow() -> AsyncIterator[dict[str, Any]]:
        yield {"index": "i", "id": "a"}
        await told.wait()
        yield {"index": "i", "id": "b"}

    results = ingestor.ingest_many(slow())
    first = await anext(results)
    assert first.id == "a"
    told.set()
    assert [r.id async for r in results] == ["b"]


async def test_no_more_than_asked_are_under_way():
    ingestor = Answering()
    ingestor.silent = True
    results = ingestor.ingest_many(operations(*map(str, range(100))), in_flight=8)
    waiting = asyncio.ensure_future(anext(results))
    while len(ingestor.sent) < 8:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(ingestor.sent) == 8
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await results.aclose()
    assert not ingestor._waiting


async def test_many_become_searchable_in_one_wait():
    ingestor = Answering()
    stream = ingestor.ingest_many(operations(*map(str, range(9))), wait="searchable", in_flight=400)
    assert [r.id async for r in stream] == [str(n) for n in range(9)]
    assert sorted(ingestor.waited) == [("i", 0, 8), ("i", 1, 9)]
    assert ingestor._results.looks == 1
    assert not ingestor._waiting


async def test_what_the_index_worker_refuses_late_is_told():
    ingestor = Answering()
    stream = ingestor.ingest_many(operations("a", "late"), wait="searchable")
    assert [(r.id, r.status) async for r in stream] == [("a", "accepted"), ("late", "rejected")]


async def test_nothing_accepted_is_waited_for_by_nobody():
    ingestor = Answering()
    assert [r.status async for r in ingestor.ingest_many(operations("bad"), wait="searchable")] == [
        "rejected"
    ]
    assert ingestor._results.looks == 0
