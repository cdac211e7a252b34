"""Records on which the ingest or the index worker fails: refused alone, the others go on."""

from __future__ import annotations

from typing import Any

import pytest
from pipeline_kit import INDEX_GROUP, INGEST_GROUP, Pipeline

from schemas.errors import ErrorCode
from schemas.ingest import IngestRequest
from schemas.topics import INDEX_UPDATE, INGEST_RESULT, PLAINTEXT_INGEST
from schemas.update import UpdateBatch, decode_envelope
from workers.index import receive
from workers.ingest import decide, incoming, prepare
from workers.ingest.batches import Authorised
from workers.objects import envelope
from workers.telemetry import metrics

NAMES = ["a", "b", "poison", "c", "d"]


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
