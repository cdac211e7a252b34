"""Who may change access lists by index-update: the key service, and it alone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from pipeline_kit import GROUP_A, GROUP_B, Pipeline, identity

from schemas.errors import ErrorCode
from schemas.position import Order, Source
from schemas.topics import INDEX_UPDATE
from schemas.update import OpKind, UpdateBatch, UpdateOp
from workers.crypto.derive import Purpose, group_token, object_id
from workers.crypto.sign import SigningKey
from workers.objects.envelope import KeyServiceSigner, Route, seal_update

INDEX = "acme/docs"


async def send(world: Pipeline, signer: Any, *ops: UpdateOp) -> None:
    entry = world.realm.entries[INDEX]
    route = Route(entry.uid, 0, 1)
    batch = UpdateBatch(tokens=[], token_kinds=b"", ops=list(ops), created_ms=now_ms())
    public = world.realm.private(INDEX, Purpose.UPDATE).public
    sealed = seal_update(batch, route, public, signer, max_record_bytes=900_000)
    producer = await world.broker.producer()
    await producer.send_and_wait(INDEX_UPDATE, sealed.value, key=route.key, partition=0)


def now_ms() -> int:
    return int(time.time() * 1000)


def op(world: Pipeline, **changes: Any) -> UpdateOp:
    tag = world.realm.tags[INDEX]
    values: dict[str, Any] = {
        "kind": OpKind.ACCESS,
        "order": Order(0, 0, 0),
        "id": "a",
        "object_id": object_id(tag, "a"),
        "op_id": 0,
        "groups": [group_token(tag, GROUP_B)],
        "if_version": 1,
        "access_version": 2,
        "source": Source(topic="admin-request", partition=0, offset=0),
        **changes,
    }
    return UpdateOp(**values)


async def groups(world: Pipeline) -> Any:
    snapshot = await world.snapshot(INDEX)
    [place] = await snapshot.find_ids([object_id(world.realm.tags[INDEX], "a")])
    assert place is not None
    [found] = await snapshot.groups(place[0], np.array([place[1]]))
    return found


@pytest.fixture
async def world() -> Any:
    world = Pipeline()
    world.realm.create(INDEX)
    async with world.ingest(), world.index():
        await world.put(INDEX, "a", content="x")
        await world.applied(*await world.accepted(1))
        yield world


async def test_the_key_service_changes_a_list(world: Pipeline) -> None:
    await send(world, KeyServiceSigner(world.realm.signer), op(world))
    await world.until(lambda: len(world.events()) > 1)
    assert await groups(world) == (group_token(world.realm.tags[INDEX], GROUP_B),)
    assert not world.dead(INDEX_UPDATE)


@pytest.mark.parametrize("who", ["an ingest worker", "a stranger"])
async def test_nobody_else_does(world: Pipeline, who: str) -> None:
    signer: Any = identity(world.realm, "ingest", "ingest-9")
    if who == "a stranger":
        signer = KeyServiceSigner(SigningKey.generate())
    await send(world, signer, op(world))
    (letter,) = await world.until(lambda: world.dead(INDEX_UPDATE))
    assert letter.error.code in (ErrorCode.UNSUPPORTED, ErrorCode.UNAUTHENTICATED)
    assert await groups(world) == (group_token(world.realm.tags[INDEX], GROUP_A),)


@pytest.mark.parametrize(
    "changes", [{"kind": OpKind.DELETE}, {"if_version": None}, {"access_version": 0}]
)
async def test_the_key_service_changes_lists_and_nothing_else(
    world: Pipeline, changes: dict[str, Any]
) -> None:
    await send(world, KeyServiceSigner(world.realm.signer), op(world, **changes))
    (letter,) = await world.until(lambda: world.dead(INDEX_UPDATE))
    assert letter.error.code is ErrorCode.INVALID_MESSAGE
    assert await groups(world) == (group_token(world.realm.tags[INDEX], GROUP_A),)
