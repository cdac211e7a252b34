"""Records on which the ingest or the index worker fails: refused alone, the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pipeline_kit import INDEX_GROUP, INGEST_GROUP, Pipeline
from structlog.testing import capture_logs

from schemas.errors import ErrorCode
from schemas.ingest import IngestRequest
from schemas.topics import INDEX_UPDATE, INGEST_RESULT, PLAINTEXT_INGEST
from schemas.update import UpdateBatch, decode_envelope
from workers.chain import compactor, successor, writer
from workers.errors import Retry
from workers.index import receive, shard
from workers.index.build import MicroBatch
from workers.index.handler import IndexHandler
from workers.index.vectors import ShardVectors
from workers.ingest import decide, incoming, prepare
from workers.ingest.batches import Authorised
from workers.kafka.broker import TP
from workers.objects import envelope
from workers.telemetry import metrics

NAMES = ["a", "b", "poison", "c", "d"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep tracebacks, which take a second each to print, out of the way."""
    with capture_logs():
        yield


def is_poison(argument: Any) -> bool:
    match argument:
        case IngestRequest():
            return argument.id == "poison"
        case Authorised():
            return argument.incoming.request.id == "poison"
        case UpdateBatch():
            return any(op.id == "poison" for op in argument.ops)
        case bytes():
            return b'"poison"' in argument
    return False


def poison(monkeypatch: pytest.MonkeyPatch, module: Any, step: str) -> None:
    """Make a step fail, in a way that nobody foresaw, on the document `poison`."""
    meant = getattr(module, step)

    def failing(*args: Any, **options: Any) -> Any:
        if any(map(is_poison, args)):
            raise IndexError("nobody foresaw this")
        return meant(*args, **options)

    monkeypatch.setattr(module, step, failing)


@pytest.mark.parametrize(
    ("module", "step", "told"),
    [
        (incoming, "decode", False),
        (decide, "check_scopes", True),
        (prepare, "_draft", True),
        # This one is made of the whole micro-batch: the record is found by halves.
        (envelope, "encode_batch", True),
    ],
)
async def test_a_record_that_cannot_be_prepared_is_refused_alone(
    monkeypatch: pytest.MonkeyPatch, module: Any, step: str, told: bool
) -> None:
    world = Pipeline()
    world.realm.create("i")
    poison(monkeypatch, module, step)
    for name in NAMES:
        await world.put("i", name, content="x", keywords=["k"])
    before = metrics.UNEXPECTED.value(topic=PLAINTEXT_INGEST)
    async with world.ingest(), world.index():
        await world.applied(*await world.accepted(4))
        await world.until(lambda: world.committed(INGEST_GROUP, PLAINTEXT_INGEST) == len(NAMES))
    [letter] = world.dead()
    assert (letter.source.offset, letter.error.code) == (2, ErrorCode.UNSUPPORTED)
    assert [r.id for r in world.results() if r.status == "rejected"] == ["poison"] * told
    assert await world.keyword("i", "k") == ["a", "b", "c", "d"]
    assert metrics.UNEXPECTED.value(topic=PLAINTEXT_INGEST) == before + 1


@pytest.mark.parametrize("step", ["check_batch", "open_update", "verify_update", "decode_envelope"])
async def test_an_update_that_cannot_be_read_is_refused_alone(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    for name in NAMES:
        await ingest.process([await world.put("i", name, content="x", keywords=["k"])])
    bad = world.broker.records(INDEX_UPDATE)[2].value
    body, meant = decode_envelope(bad).body, getattr(receive, step)

    def failing(first: Any, *args: Any, **options: Any) -> Any:
        if first == bad or is_poison(first) or getattr(first, "body", None) == body:
            raise IndexError("nobody foresaw this")
        return meant(first, *args, **options)

    monkeypatch.setattr(receive, step, failing)
    async with world.index():
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == len(NAMES))
    [letter] = world.dead(INDEX_UPDATE)
    assert (letter.source.offset, letter.error.code) == (2, ErrorCode.UNSUPPORTED)
    assert await world.keyword("i", "k") == ["a", "b", "c", "d"]
    assert len(world.broker.records(INGEST_RESULT)) == len(NAMES)


def names(argument: Any) -> set[str]:
    """Return the ids in what the steps of building a segment are called with."""
    match argument:
        case MicroBatch():
            return {op.id for op in argument.ops}
        case list() | tuple():
            return {op.id for op in argument if hasattr(op, "id")}
        case _:
            return set(getattr(argument, "ids", ()))


def poison_building(
    monkeypatch: pytest.MonkeyPatch, module: Any, step: str, bad: set[str], error: Exception
) -> None:
    meant = getattr(module, step)

    def failing(*args: Any, **options: Any) -> Any:
        if bad & set().union(*map(names, args)):
            raise error
        return meant(*args, **options)

    monkeypatch.setattr(module, step, failing)


BUILDING = [(MicroBatch, "nodes"), (successor, "resolve"), (successor, "assemble")]


@pytest.mark.parametrize(("module", "step"), BUILDING)
async def test_a_document_that_cannot_be_built_is_left_out_alone(
    monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    """Two of seven, in one update of five and one of two; also when it is delivered again."""
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    many = ["a", "b", "poison", "c", "venom"]
    await ingest.process([await world.put("i", n, content="tide", keywords=["k"]) for n in many])
    few = ["d", "e"]
    await ingest.process([await world.put("i", n, content="tide", keywords=["k"]) for n in few])
    updates = world.broker.records(INDEX_UPDATE)
    assert len(updates) == 2
    before = metrics.UNEXPECTED.value(topic=INDEX_UPDATE)
    with monkeypatch.context() as patched:
        bad = {"poison", "venom"}
        poison_building(patched, module, step, bad, IndexError("nobody foresaw this"))
        async with world.index():
            await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 2)
        [letter] = world.dead(INDEX_UPDATE)
        assert (letter.source.offset, letter.error.code) == (0, ErrorCode.UNSUPPORTED)
        late = [r for r in world.results() if r.status == "rejected"]
        assert sorted((r.id, r.error and r.error.code) for r in late) == [
            ("poison", ErrorCode.UNSUPPORTED),
            ("venom", ErrorCode.UNSUPPORTED),
        ]
        assert await world.keyword("i", "k") == ["a", "b", "c", "d", "e"]
        assert metrics.UNEXPECTED.value(topic=INDEX_UPDATE) == before + 2
    # Once the fault is mended: the dead-lettered update again brings what is missing, no more.
    producer = await world.broker.producer()
    await producer.send_and_wait(
        INDEX_UPDATE, updates[0].value, key=updates[0].key, partition=updates[0].partition
    )
    async with world.index():
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 3)
    assert await world.keyword("i", "k") == ["a", "b", "c", "d", "e", "poison", "venom"]


async def test_a_vector_that_cannot_be_grouped_is_left_out_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Pipeline()
    world.realm.create("i", dimension=2)
    ingest = await world.ingest_handler()
    await ingest.start()
    await ingest.process(
        [
            await world.put("i", name, keywords=["k"], vector=[float(n + 1), 1.0])
            for n, name in enumerate(NAMES)
        ]
    )
    bad = 3.0 / 10**0.5
    clusters = ShardVectors.clusters

    async def failing(self: Any, writer: Any, head: Any, vectors: Any, generation: int) -> Any:
        if vectors is not None and (abs(vectors[:, 0] - bad) < 1e-6).any():
            raise ZeroDivisionError
        return await clusters(self, writer, head, vectors, generation)

    monkeypatch.setattr(ShardVectors, "clusters", failing)
    async with world.index():
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 1)
    assert len(world.dead(INDEX_UPDATE)) == 1
    assert await world.keyword("i", "k") == ["a", "b", "c", "d"]


async def test_what_is_missing_for_a_while_is_no_fault_of_a_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A document that cannot be built, while keys and storage come and go."""
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    await ingest.process([await world.put("i", n, content="x", keywords=["k"]) for n in NAMES])
    failing = successor.resolve
    calls = 0

    def shaky(tables: Any, ops: Any, access: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0 and calls < 40:
            raise Retry(ErrorCode.STORAGE_UNAVAILABLE, "away")
        if any(op.id == "poison" for op in ops):
            raise IndexError
        return failing(tables, ops, access)

    monkeypatch.setattr(successor, "resolve", shaky)
    async with world.index():
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 1)
    assert len(world.dead(INDEX_UPDATE)) == 1
    assert [r.id for r in world.results() if r.status == "rejected"] == ["poison"]
    assert await world.keyword("i", "k") == ["a", "b", "c", "d"]


@pytest.mark.parametrize("error", [IndexError("nobody foresaw this"), MemoryError()])
async def test_a_failure_that_is_no_documents_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    await ingest.process([await world.put("i", n, content="x") for n in NAMES])

    def failing(*_args: Any) -> Any:
        raise error

    monkeypatch.setattr(successor, "resolve", failing)
    handler = IndexHandler(
        TP(INDEX_UPDATE, 0), await world.services(), max_blocked_records=10, background=False
    )
    await handler.start()
    with pytest.raises(type(error)):
        await handler.process(world.broker.records(INDEX_UPDATE))
    assert not world.dead(INDEX_UPDATE)
    await handler.stop()


async def test_a_merge_that_fails_keeps_no_update_waiting_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()

    def failing(*_args: Any, **_options: Any) -> Any:
        raise IndexError("nobody foresaw this")

    before = metrics.UNEXPECTED.value(topic=INDEX_UPDATE)
    with monkeypatch.context() as patched:
        patched.setattr(compactor, "merge_segments", failing)
        patched.setattr(shard, "MAX_LIVE_SEGMENTS", 1000)
        patched.setattr(writer, "MAX_LIVE_SEGMENTS", 1000)
        async with world.index(background=True, max_records=1):
            for number in range(12):
                await ingest.process([await world.put("i", f"d{number}", keywords=["k"])])
            await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 12)
            await world.until(lambda: metrics.UNEXPECTED.value(topic=INDEX_UPDATE) > before)
        assert len(await world.keyword("i", "k")) == 12
    async with world.index(background=True):
        await ingest.process([await world.put("i", "last", keywords=["k"])])
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 13)
    assert len(await world.keyword("i", "k")) == 13
