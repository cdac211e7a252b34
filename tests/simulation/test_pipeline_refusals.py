"""What the index worker refuses is told to its sender for certain, and to the audit beside it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pipeline_kit import GROUP_B, INDEX_GROUP, PATIENCE_S, QUICK, Caller, Pipeline

from schemas.errors import ErrorCode
from schemas.ingest import IngestResult
from schemas.topics import INDEX_EVENT, INDEX_UPDATE, INGEST_RESULT
from workers.chain import successor
from workers.index import background, notes, telling
from workers.index.handler import IndexHandler
from workers.index.notes import Notes
from workers.kafka.broker import TP


class Died(Exception):
    """The process ends here."""


class Mortal:
    """An emitter; the process ends before what is named, once."""

    def __init__(self, inner: Any, before: str) -> None:
        self._inner = inner
        self._before = before

    def __getattr__(self, name: str) -> Any:
        if name == self._before:
            raise Died
        return getattr(self._inner, name)


async def refusals(world: Pipeline) -> None:
    """Fill index-update: two documents of alice, and what bob may not do to the second."""
    world.realm.create("i")
    world.realm.callers["bob"] = Caller(groups=(GROUP_B,))
    ingest = await world.ingest_handler()
    await ingest.start()
    for name in ("a", "b"):
        await ingest.process([await world.put("i", name, content="x", keywords=["k"])])
    bob = {"auth": {"token": "bob"}, "keywords": ["k"]}
    await ingest.process(
        [
            await world.put("i", "c", **bob),
            await world.put("i", "b", **bob),
            await world.put("i", "d", **bob),
            await world.put("i", "a", **bob),
        ]
    )


async def die(world: Pipeline, before: str) -> None:
    """Run an index worker that ends right before it sends something."""
    services = await world.services()
    handler = IndexHandler(TP(INDEX_UPDATE, 0), services, max_blocked_records=9, background=False)
    await handler.start()
    # Frozen: as from another process, nothing more is to come of it.
    object.__setattr__(services, "emitter", Mortal(services.emitter, before))
    with pytest.raises(Died):
        await handler.process(world.broker.records(INDEX_UPDATE))
    await handler.stop()


def rejected(world: Pipeline) -> list[IngestResult]:
    return [one for one in world.results() if one.status == "rejected"]


async def test_what_was_refused_is_told_by_who_comes_after_a_crash() -> None:
    world = Pipeline()
    await refusals(world)
    await die(world, "rejected")
    assert not rejected(world)
    async with world.index():
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 3)
        await world.until(lambda: world.realm.reports)
    assert [(one.id, one.error and one.error.code) for one in rejected(world)] == [
        ("b", ErrorCode.FORBIDDEN),
        ("a", ErrorCode.FORBIDDEN),
    ]
    assert {one.source and one.source.offset for one in rejected(world)} == {3, 5}
    assert world.realm.reports == [("i", ErrorCode.FORBIDDEN, ("upsert", "upsert"))]
    assert await world.keyword("i", "k") == ["a", "b", "c", "d"]
    # Whoever waits for the event has seen the refusal before it.
    events = [one for one in world.events() if one.applied.offset >= 2]
    assert events
    told = max(r.timestamp_ms for r in world.broker.records(INGEST_RESULT))
    assert all(r.timestamp_ms >= told for r in world.broker.records(INDEX_EVENT)[-len(events) :])


async def test_what_was_told_may_be_told_again_until_the_head_forgets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "SETTLE_S", 0.0)
    monkeypatch.setattr(background, "ROUND_S", 0.01)
    world = Pipeline()
    await refusals(world)
    await die(world, "event")
    assert len(rejected(world)) == 2
    async with world.index(background=True):
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 3)
        await world.until(lambda: len(rejected(world)) == 4)
        [one] = next(handler.shards for handler in world.handlers if handler.shards)
        await world.until(lambda: one.head is not None and not one.head.refused)
    # The same, about the same records.
    assert len({(r.id, r.source and r.source.offset) for r in rejected(world)}) == 2
    async with world.index(background=True):
        ingest = await world.ingest_handler()
        await ingest.start()
        await ingest.process([await world.put("i", "e", keywords=["k"])])
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 4)
    assert len(rejected(world)) == 4


async def test_a_document_that_was_left_out_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Pipeline()
    await refusals(world)
    meant = successor.resolve

    def failing(tables: Any, ops: Any, access: Any) -> Any:
        if any(op.id == "d" for op in ops):
            raise IndexError
        return meant(tables, ops, access)

    monkeypatch.setattr(successor, "resolve", failing)
    await die(world, "rejected")
    async with world.index():
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 3)
    assert sorted((one.id, one.error and one.error.code) for one in rejected(world)) == [
        ("a", ErrorCode.FORBIDDEN),
        ("b", ErrorCode.FORBIDDEN),
        ("d", ErrorCode.UNSUPPORTED),
    ]
    assert await world.keyword("i", "k") == ["a", "b", "c"]


async def test_what_was_refused_is_told_although_more_has_come_meanwhile() -> None:
    """Of two shards in a partition one goes on: the other's refusals are read once more."""
    world = Pipeline()
    await refusals(world)
    world.realm.create("j")
    await die(world, "rejected")
    ingest = await world.ingest_handler()
    await ingest.start()
    for number in range(3):
        await ingest.process([await world.put("j", f"d{number}", keywords=["k"])])
    async with world.index():
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 6)
    assert len(rejected(world)) == 2
    assert len(await world.keyword("j", "k")) == 3


# --- notes for the audit --------------------------------------------------------------------------


class Audit:
    """Takes notes while it is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = asyncio.Event()
        self.taken: list[Any] = []

    async def note_refusals(self, index: str, why: Any, operations: Any) -> bool:
        self.asked.set()
        await self.open.wait()
        self.taken.append((index, tuple(operations)))
        return True


async def test_nothing_waits_for_the_audit() -> None:
    world, audit = Pipeline(), Audit()
    await refusals(world)
    services = await world.services()
    object.__setattr__(services, "notes", Notes(audit, QUICK))
    handler = IndexHandler(TP(INDEX_UPDATE, 0), services, max_blocked_records=9, background=False)
    async with services.notes:
        await handler.start()
        assert await handler.process(world.broker.records(INDEX_UPDATE)) == 3
        await audit.asked.wait()
        assert len(rejected(world)) == 2
        assert not audit.taken
        audit.open.set()
    # Sent before the end.
    assert audit.taken == [("i", ("upsert", "upsert"))]
    await handler.stop()


async def test_notes_wait_for_the_key_service_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notes, "MAX_WAITING", 3)
    world = Pipeline()
    world.realm.down.add("i")
    services = await world.services()
    async with services.notes as waiting:
        for number in range(5):
            waiting.put("i", ErrorCode.FORBIDDEN, [f"op{number}"])
        waiting.put("i", ErrorCode.FORBIDDEN, [])
        await asyncio.sleep(0)
        assert not waiting.empty
        world.realm.down.clear()
        async with asyncio.timeout(PATIENCE_S):
            while not waiting.empty:
                await asyncio.sleep(0.01)
    assert [operations for _, _, operations in world.realm.reports] == [
        ("op2",),
        ("op3",),
        ("op4",),
    ]
    # The key service is away when the worker ends: it does not wait.
    world.realm.down.add("i")
    last = Notes(services.holder, QUICK, drain_s=0.05)
    async with last:
        last.put("i", ErrorCode.FORBIDDEN, ["late"])
    assert not last.empty
