"""Back-off, waiting, health, dead letters, ending."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
from pathlib import Path

import orjson
import pytest

from schemas.codec import decode
from schemas.deadletter import DeadLetter
from schemas.errors import ErrorCode, ErrorInfo
from workers.errors import Retry
from workers.kafka.broker import TP, Record
from workers.kafka.memory import MemoryBroker
from workers.runtime.deadletter import DeadLetters
from workers.runtime.drain import run_with_deadline, stop_on_signals
from workers.runtime.health import Health
from workers.runtime.policy import RetryPolicy
from workers.runtime.wait import Stopped, event_within, pause, unless


def test_back_off_grows_to_its_bound_with_jitter() -> None:
    policy = RetryPolicy(first_s=0.1, max_s=2.0)
    rng = random.Random(7)
    for attempt, bound in ((1, 0.1), (2, 0.2), (5, 1.6), (6, 2.0), (1000, 2.0)):
        delays = [policy.delay_s(attempt, rng) for _ in range(200)]
        assert all(bound * 0.1 <= delay <= bound for delay in delays)
        assert max(delays) - min(delays) > bound / 2


async def test_unless_returns_or_stops() -> None:
    stop = asyncio.Event()

    async def seven() -> int:
        return 7

    assert await unless(stop, seven()) == 7
    cancelled = asyncio.Event()

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(unless(stop, long()))
    await asyncio.sleep(0)
    stop.set()
    with pytest.raises(Stopped):
        await task
    assert cancelled.is_set()


async def test_unless_passes_errors_and_cancellation_on() -> None:
    async def bad() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await unless(asyncio.Event(), bad())
    task = asyncio.create_task(unless(asyncio.Event(), asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_pause() -> None:
    stop = asyncio.Event()
    await pause(stop, 0.0)
    stop.set()
    with pytest.raises(Stopped):
        await pause(stop, 3600.0)


async def test_an_event_that_comes_when_the_time_is_just_up_counts() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(event_within(event, 0.0))
    await asyncio.sleep(0)  # it waits
    await asyncio.sleep(0)  # its time is up, but it had no turn yet
    event.set()
    assert await waiting
    assert not await event_within(asyncio.Event(), 0.0)


async def test_health_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "w1.json"
    health = Health("w1", path, interval_s=0.005)
    health.set("ready", True)
    health.beat()
    for _ in range(3):
        health.error("work/0", Retry(ErrorCode.KEY_UNAVAILABLE, "no lease"))
    health.error("work/0", ValueError("a secret text"))
    stop = asyncio.Event()
    task = asyncio.create_task(health.run(stop))
    async with asyncio.timeout(60):
        while not path.exists():
            await asyncio.sleep(0.001)
    status = orjson.loads(path.read_bytes())
    assert (status["worker"], status["ready"], status["batches"]) == ("w1", True, 1)
    assert status["pid"] == os.getpid()
    assert [(e["error"], e["count"]) for e in status["errors"]] == [
        ("Retry: KEY_UNAVAILABLE: no lease", 3),
        ("ValueError", 1),
    ]
    stop.set()
    await task
    assert not path.exists()


async def test_health_without_a_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    health = Health("w", tmp_path / "file" / "w.json", interval_s=0.001)
    stop = asyncio.Event()
    task = asyncio.create_task(health.run(stop))
    await asyncio.sleep(0.01)
    assert not task.done()
    stop.set()
    await task


RECORD = Record("work", 3, 14, 1_700_000_000_000, b"acme/docs/doc-1", b"the secret plan")
ERROR = ErrorInfo(code=ErrorCode.INVALID_MESSAGE, message="unknown field", field="x")


async def test_dead_letter_says_where_and_why_never_what() -> None:
    broker = MemoryBroker({"work.dead-letter": 1})
    letters = DeadLetters(await broker.producer(), b"k" * 32, clock_ms=lambda: 99)
    await letters.send(RECORD, ERROR, 2, sealed=False)
    [record] = broker.records("work.dead-letter")
    raw = (record.key or b"") + (record.value or b"")
    assert b"secret" not in raw
    assert b"doc-1" not in raw
    letter = decode(DeadLetter, record.value)
    assert letter.error == ERROR
    source = letter.source
    assert (source.topic, source.partition, source.offset) == ("work", 3, 14)
    assert source.timestamp_ms == 1_700_000_000_000
    assert (letter.size, letter.attempts, letter.failed_ms) == (15, 2, 99)
    # Who knows the text cannot find it by its hash.
    assert letter.sha256 != hashlib.sha256(RECORD.value or b"").hexdigest()
    assert letter.digest == "hmac-sha256"


async def test_dead_letter_of_a_sealed_record_has_its_hash() -> None:
    broker = MemoryBroker({"work.dead-letter": 1})
    letters = DeadLetters(await broker.producer(), b"k" * 32)
    await letters.send(RECORD, ERROR, 1, sealed=True)
    letter = decode(DeadLetter, broker.records("work.dead-letter")[0].value)
    assert letter.sha256 == hashlib.sha256(RECORD.value or b"").hexdigest()


async def test_dead_letter_once_although_the_batch_is_repeated() -> None:
    broker = MemoryBroker({"work.dead-letter": 1})
    letters = DeadLetters(await broker.producer(), b"k" * 32)
    broker.drop_next("work.dead-letter")
    with pytest.raises(Retry):
        await letters.send(RECORD, ERROR, 1, sealed=False)
    for _ in range(3):
        await letters.send(RECORD, ERROR, 1, sealed=False)
    assert len(broker.records("work.dead-letter")) == 1


async def test_signals_stop_then_cancel() -> None:
    async def work() -> str:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            await stop.wait()
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "cut off"
        return "never"

    assert await asyncio.create_task(work()) == "cut off"


async def test_deadline_after_the_stop() -> None:
    stop = asyncio.Event()

    async def willing(stop: asyncio.Event) -> None:
        await stop.wait()

    async def stubborn(_stop: asyncio.Event) -> None:
        await asyncio.Event().wait()

    async def broken(_stop: asyncio.Event) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await run_with_deadline(broken, stop, 1.0)
    stop.set()
    assert await run_with_deadline(willing, stop, 60.0)
    assert not await run_with_deadline(stubborn, stop, 0.01)


def test_tp_orders_by_topic_and_number() -> None:
    assert sorted([TP("b", 0), TP("a", 2), TP("a", 1)]) == [TP("a", 1), TP("a", 2), TP("b", 0)]
