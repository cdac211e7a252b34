"""What must not be lost, doubled or believed: crashes, zombies, missing keys, bad input."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from pipeline_kit import GROUP_A, INDEX_GROUP, INGEST_GROUP, Caller, Pipeline, identity

from schemas.auth import Scope
from schemas.codec import decode
from schemas.errors import ErrorCode
from schemas.sealed import SealedValue
from schemas.topics import (
    CONTENT_SEALED,
    HEADER_REPLAY,
    INDEX_EVENT,
    INDEX_UPDATE,
    INGEST_RESULT,
    PLAINTEXT_INGEST,
)
from schemas.update import decode_envelope, encode_envelope
from schemas.values import encode_base64
from workers.chain.retain import RETENTION_MS
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey
from workers.errors import Damaged, Fenced, Retry
from workers.index.handler import IndexHandler
from workers.ingest import publish
from workers.kafka.broker import TP, Record
from workers.leases.credential import seal_value, sign_message
from workers.objects.results import open_result
from workers.storage import layout
from workers.telemetry import metrics


async def index_handler(world: Pipeline, worker_id: str = "index-1") -> IndexHandler:
    return IndexHandler(
        TP(INDEX_UPDATE, 0),
        await world.services(worker_id),
        max_blocked_records=1000,
        background=False,
    )


def updates(world: Pipeline) -> list[Record]:
    return world.broker.records(INDEX_UPDATE)


async def test_a_batch_delivered_again_is_applied_once() -> None:
    world = Pipeline()
    world.realm.create("i")
    handler = await world.ingest_handler()
    await handler.start()
    records = [await world.put("i", f"d{n}", content="x", keywords=["k"]) for n in range(3)]
    assert await handler.process(records) == 3
    assert await handler.process(records) == 3
    assert len(updates(world)) == 2
    async with world.index():
        await world.applied(world.results()[-1])
    assert await world.keyword("i", "k") == ["d0", "d1", "d2"]
    assert (await world.snapshot("i")).shard_stats.docs == 3
    assert [r.status for r in world.results()] == ["accepted"] * 6


async def test_a_late_duplicate_of_a_zombie_changes_nothing() -> None:
    world = Pipeline()
    world.realm.create("i")
    zombie, owner = await world.ingest_handler(), await world.ingest_handler()
    await zombie.start()
    await owner.start()
    old = await world.put("i", "d", content="old", keywords=["old"])
    new = await world.put("i", "d", content="new", keywords=["new"])
    added = await world.put("i", "d", op="add_keywords", keywords=["more"])
    await owner.process([old, new, added])
    await zombie.process([old])
    await zombie.process([old, new])
    async with world.index():
        await world.applied(world.results()[-1])
    assert await world.keyword("i", "old") == []
    assert await world.keyword("i", "new") == ["d"]
    assert await world.keyword("i", "more") == ["d"]
    assert (await world.snapshot("i")).shard_stats.docs == 1


async def test_a_crash_between_head_and_event_loses_no_event_and_applies_nothing_twice() -> None:
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    await ingest.process([await world.put("i", "a", content="x", keywords=["k"])])
    first = await index_handler(world)
    await first.start()
    world.broker.drop_next(INDEX_EVENT)
    assert await first.process(updates(world)) == 0  # the event is still to be sent
    assert world.events() == []
    version = (await world.snapshot("i")).version

    # The process dies here; the next owner reads the head.
    second = await index_handler(world, "index-2")
    assert await second.start() == 1
    (event,) = world.events()
    assert (event.applied.offset, event.version, event.documents) == (0, version, 1)
    assert await second.process(updates(world)) == 1
    assert (await world.snapshot("i")).version == version
    await first.stop()
    await second.stop()


async def test_a_kept_update_that_is_older_than_the_floors_is_refused(monkeypatch) -> None:
    """Its own place in the order would be forgotten: it could bring back what was deleted."""
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    clock_s = time.time()

    async def put(doc: str, age_ms: int, **body: Any) -> None:
        monkeypatch.setattr(publish.time, "time", lambda: clock_s - age_ms / 1000)
        await ingest.process([await world.put("i", doc, **body)])
        monkeypatch.undo()

    await put("gone", RETENTION_MS + 2000, content="x", keywords=["k"])
    await put("gone", RETENTION_MS + 1000, op="delete")
    await put("other", 0, content="x", keywords=["k"])
    kept = updates(world)[0]
    producer = await world.broker.producer()
    async with world.index():
        await world.applied(*world.results())
        await producer.send_and_wait(
            INDEX_UPDATE, kept.value, key=kept.key, partition=0, headers=kept.headers
        )
        (letter,) = await world.until(lambda: world.dead(INDEX_UPDATE))
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 4)
    assert (letter.error.code, letter.source.offset) == (ErrorCode.EXPIRED, 3)
    assert await world.keyword("i", "k") == ["other"]


async def test_a_head_older_than_what_was_announced_is_not_gone_on_from() -> None:
    world = Pipeline()
    uid = world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    heads = []
    async with world.index():
        for number in range(2):
            await ingest.process([await world.put("i", f"d{number}", content="x")])
            await world.applied(*world.results())
            heads.append(await world.store.get(layout.head(uid, 0)))
    await world.store.put(layout.head(uid, 0), heads[0].data)
    await ingest.process([await world.put("i", "d2", content="x")])
    handler = await index_handler(world)
    assert await handler.start() is None
    (shard,) = handler.shards
    with pytest.raises(Damaged):
        await shard.open()
    await handler.process(updates(world)[2:])
    # The update waits: it is neither lost nor applied to what was put back.
    assert [record.offset for record in shard.waiting] == [2]
    assert (await world.store.get(layout.head(uid, 0))).data == heads[0].data
    await handler.stop()


async def test_an_event_that_was_not_acknowledged_is_sent_again() -> None:
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    await ingest.process([await world.put("i", "a", content="x")])
    world.broker.drop_next(INDEX_EVENT, times=2)
    async with world.index():
        await world.until(lambda: world.events())
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 1)


async def test_a_second_writer_fences_the_first_which_then_loads_anew() -> None:
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    for number in range(3):
        record = await world.put("i", f"d{number}", content="x", keywords=["k"])
        await ingest.process([record])
    zero, one, two = updates(world)
    old, new = await index_handler(world, "index-old"), await index_handler(world, "index-new")
    await old.start()
    await new.start()
    await old.process([zero])
    assert await new.start() == 1
    await new.process([one])
    with pytest.raises(Fenced):
        await old.process([one])
    await old.stop()
    assert await old.start() == 2
    await old.process([two])
    assert await world.keyword("i", "k") == ["d0", "d1", "d2"]
    with pytest.raises(Fenced):
        await new.process([two])
    await old.stop()
    await new.stop()


def _retries(topic: str) -> float:
    """Return how often something was put off because keys were unavailable."""
    return metrics.RETRIES.value(topic=topic, code=ErrorCode.KEY_UNAVAILABLE.value)


async def test_one_index_without_keys_does_not_stop_the_others() -> None:
    world = Pipeline()
    world.realm.create("open")
    world.realm.create("shut")
    world.realm.down.add("shut")
    before = _retries(PLAINTEXT_INGEST)
    async with world.ingest(), world.index():
        await world.put("shut", "s", content="x", keywords=["k"])
        await world.put("open", "o", content="x", keywords=["k"])
        await world.applied(*await world.accepted(1))
        assert await world.keyword("open", "k") == ["o"]
        # Not committed past what waits.
        assert world.committed(INGEST_GROUP, PLAINTEXT_INGEST) in (None, 0)
        await world.until(lambda: _retries(PLAINTEXT_INGEST) > before)
        world.realm.down.clear()
        await world.applied(*await world.accepted(2))
        assert await world.keyword("shut", "k") == ["s"]
        await world.until(lambda: world.committed(INGEST_GROUP, PLAINTEXT_INGEST) == 2)


async def test_one_shard_without_keys_does_not_stop_the_others() -> None:
    world = Pipeline()
    world.realm.create("open")
    world.realm.create("shut")
    ingest = await world.ingest_handler()
    await ingest.start()
    await ingest.process(
        [
            await world.put("shut", "s", content="x", keywords=["k"]),
            await world.put("open", "o", content="x", keywords=["k"]),
        ]
    )
    world.realm.down.add("shut")
    before = _retries(INDEX_UPDATE)
    async with world.index():
        await world.until(lambda: world.events())
        assert [event.index for event in world.events()] == ["open"]
        await world.until(lambda: _retries(INDEX_UPDATE) > before)
        world.realm.down.clear()
        await world.until(lambda: {event.index for event in world.events()} == {"open", "shut"})
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 2)


async def test_what_waits_for_a_key_is_put_aside_and_read_again() -> None:
    """Memory is bounded, the others go on, and in the end nothing is missing or out of order."""
    world = Pipeline()
    world.realm.create("open")
    world.realm.create("shut")
    ingest = await world.ingest_handler()
    await ingest.start()
    for number in range(6):
        await ingest.process([await world.put("shut", f"s{number}", content="x", keywords=["k"])])
        await ingest.process([await world.put("shut", "same", content="x", keywords=[f"{number}"])])
    world.realm.down.add("shut")
    async with world.index(max_blocked_records=3, max_records=2):
        for number in range(3):
            await ingest.process([await world.put("open", f"o{number}", content="x")])
        await world.applied(*(one for one in world.results() if one.index == "open"))
        shards = [shard for handler in world.handlers for shard in handler.shards]
        assert sum(len(shard.waiting) for shard in shards) <= 3 + 2
        assert [one.place.index for one in shards if one.waiting.behind is not None] == ["shut"]
        assert world.committed(INDEX_GROUP, INDEX_UPDATE) in (None, 0)
        world.realm.down.clear()
        await world.applied(*world.results())
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == 15)
    assert await world.keyword("shut", "k") == [f"s{number}" for number in range(6)]
    assert await world.keyword("shut", "5") == ["same"]
    assert (await world.snapshot("shut")).shard_stats.docs == 7
    assert (await world.snapshot("open")).shard_stats.docs == 3
    assert not world.dead(INDEX_UPDATE)


async def test_too_much_that_waits_for_storage_stops_the_partition() -> None:
    world = Pipeline()
    world.realm.create("i")
    handler = await world.ingest_handler()
    handler._max_records = 2
    await handler.start()
    world.store.fail_next("put", times=100, contains="packs/")
    large = "x" * 10_000
    first = [await world.put("i", f"d{n}", content=large) for n in range(2)]
    assert await handler.process(first) == 0
    more = [await world.put("i", "d2", content=large)]
    with pytest.raises(Retry):
        await handler.process(more)
    for lane in handler._lanes.values():
        lane.retry_at = 0.0
    with pytest.raises(Retry):
        await handler.process(more)
    assert sum(len(lane.items) for lane in handler._lanes.values()) == 2
    world.store._shared.faults.clear()
    for lane in handler._lanes.values():
        lane.retry_at = 0.0
    assert await handler.process(more) == 3
    assert sorted(r.id for r in world.results()) == ["d0", "d1", "d2"]


async def test_messages_that_wait_for_a_key_are_put_aside_and_read_again() -> None:
    """Memory is bounded, the others go on, and nothing is missing, doubled or out of order."""
    world = Pipeline()
    for name in ("open", "shut", "late"):
        world.realm.create(name)
    world.realm.down |= {"shut", "late"}
    limits = {"max_blocked_records": 4, "max_records": 2}
    async with world.ingest(**limits), world.index():
        for number in range(6):
            await world.put("shut", f"s{number}", content="x", keywords=["k"])
            await world.put("late", f"l{number}", content="x", keywords=["k"])
            await world.put("shut", "same", content="x", keywords=[f"{number}"])
            await world.put_raw(b"k", b"no message")
            await world.put("open", f"o{number}", content="x")
        await world.accepted(6)
        await world.until(lambda: len(world.dead()) == 6)
        assert {result.index for result in world.results()} == {"open"}
        assert world.committed(INGEST_GROUP, PLAINTEXT_INGEST) in (None, 0)
        world.realm.down.remove("shut")
        await world.accepted(6 + 12)
        world.realm.down.clear()
        await world.accepted(6 + 12 + 6)
        await world.until(lambda: world.committed(INGEST_GROUP, PLAINTEXT_INGEST) == 30)
        await world.applied(*world.results())
    assert len(world.results()) == 24
    assert len(world.dead()) == 6
    assert await world.keyword("shut", "k") == [f"s{number}" for number in range(6)]
    assert await world.keyword("shut", "5") == ["same"]
    assert (await world.snapshot("shut")).shard_stats.docs == 7
    assert await world.keyword("late", "k") == [f"l{number}" for number in range(6)]


@pytest.mark.parametrize("what", ["packs/", "shards/"])
async def test_a_store_that_fails_now_and_then_only_delays(what: str) -> None:
    world = Pipeline()
    world.realm.create("i")
    world.store.fail_next("put", times=2, contains=what)
    world.store.fail_next("create", times=1, contains=what)
    async with world.ingest(), world.index():
        for number in range(3):
            await world.put("i", f"d{number}", content="x" * 5000, keywords=["k"])
        await world.applied(*await world.accepted(3))
    assert sorted(await world.keyword("i", "k")) == ["d0", "d1", "d2"]


async def test_lost_acknowledgements_double_nothing() -> None:
    world = Pipeline()
    world.realm.create("i")
    world.broker.drop_next(INDEX_UPDATE, appended=True)
    world.broker.drop_next(INDEX_UPDATE)
    world.broker.drop_next(INGEST_RESULT, appended=True)
    async with world.ingest(), world.index():
        await world.put("i", "a", content="x", keywords=["k"])
        await world.applied(*await world.accepted(2))
    assert await world.keyword("i", "k") == ["a"]
    assert (await world.snapshot("i")).shard_stats.docs == 1


def body(index: str = "i", token: str = "alice", **more: object) -> bytes:
    message = {"v": 1, "index": index, "id": "a", "auth": {"token": token}, **more}
    return msgspec.json.encode(message)


# Key, value, the code expected, and whether the producer can be told.
BAD = [
    (b"i/a", b"not json", ErrorCode.INVALID_MESSAGE, False),
    (b"i/a", None, ErrorCode.INVALID_MESSAGE, False),
    (b"i/a", b'{"v":1,"index":"i","id":"a"}', ErrorCode.INVALID_MESSAGE, False),
    (b"i/b", body(), ErrorCode.INVALID_MESSAGE, True),
    (None, body(), ErrorCode.INVALID_MESSAGE, False),
    (b"i/a", body(token="mallory"), ErrorCode.UNAUTHENTICATED, True),
    (b"j/a", body("j"), ErrorCode.UNKNOWN_INDEX, True),
    (b"i/a", body(vector=[1]), ErrorCode.DIMENSION_MISMATCH, True),
    (b"i/a", body(token="reader", content="x"), ErrorCode.FORBIDDEN, True),
    (b"i/a", body(token="writer", keywords=["k"]), ErrorCode.FORBIDDEN, True),
    (b"i/a", body(content="x" * 2000), ErrorCode.TOO_LARGE, True),
    (b"i/a", body(reply={"public_key": "AAAA"}), ErrorCode.INVALID_MESSAGE, False),
    (b"i/a", body(unknown=1), ErrorCode.INVALID_MESSAGE, False),
]


async def test_every_bad_record_gets_one_dead_letter_and_the_others_go_on() -> None:
    world = Pipeline()
    world.realm.create("i")
    world.realm.callers["reader"] = Caller(scopes=frozenset({Scope.DECRYPT}))
    world.realm.callers["writer"] = Caller(scopes=frozenset({Scope.ENCRYPT}))
    for key, value, _, _ in BAD:
        await world.put_raw(key, value)
    await world.put("i", "good", content="x", keywords=["k"])
    async with world.ingest(content_bytes=1000), world.index():
        await world.applied(*await world.accepted(1))
        await world.until(lambda: world.committed(INGEST_GROUP, PLAINTEXT_INGEST) == len(BAD) + 1)
    letters = sorted(world.dead(), key=lambda letter: letter.source.offset)
    assert [letter.source.offset for letter in letters] == list(range(len(BAD)))
    assert [letter.error.code for letter in letters] == [code for _, _, code, _ in BAD]
    told = {r.source.offset for r in world.results() if r.status == "rejected" and r.source}
    assert told == {n for n, bad in enumerate(BAD) if bad[3]}
    text = b"".join(
        record.value or b"" for record in world.broker.records("plaintext-ingest.dead-letter")
    )
    assert b"mallory" not in text
    assert await world.keyword("i", "k") == ["good"]


async def test_forged_updates_are_dead_letters_and_the_shard_goes_on() -> None:
    world = Pipeline()
    world.realm.create("i")
    ingest = await world.ingest_handler()
    await ingest.start()
    await ingest.process([await world.put("i", "good", content="x", keywords=["k"])])
    (good,) = updates(world)
    envelope = decode_envelope(good.value)
    stranger = identity(type(world.realm)(), "ingest", "ingest-1")
    wrong_role = identity(world.realm, "query", "query-1")
    forged = [
        b"garbage",
        encode_envelope(msgspec.structs.replace(envelope, signature=bytes(64))),
        encode_envelope(msgspec.structs.replace(envelope, shard=1)),
        encode_envelope(msgspec.structs.replace(envelope, worker="key-service", certificate=b"")),
        encode_envelope(
            msgspec.structs.replace(envelope, certificate=stranger.certificate.encoded)
        ),
        encode_envelope(
            msgspec.structs.replace(
                envelope,
                worker="query-1",
                certificate=wrong_role.certificate.encoded,
            )
        ),
        encode_envelope(msgspec.structs.replace(envelope, body=(envelope.body or b"") + b"x")),
    ]
    producer = await world.broker.producer()
    for value in forged:
        await producer.send_and_wait(INDEX_UPDATE, value, key=good.key, partition=0)
    await producer.send_and_wait(INDEX_UPDATE, good.value, key=b"nobody/0", partition=0)
    await ingest.process([await world.put("i", "later", content="x", keywords=["k"])])
    async with world.index():
        await world.until(lambda: world.committed(INDEX_GROUP, INDEX_UPDATE) == len(forged) + 3)
    assert await world.keyword("i", "k") == ["good", "later"]
    assert sorted(letter.source.offset for letter in world.dead(INDEX_UPDATE)) == list(
        range(1, len(forged) + 2)
    )


async def test_sealed_messages_and_sealed_results() -> None:
    world = Pipeline()
    world.realm.create("i")
    session = SigningKey.generate()
    world.realm.callers["c2VhbGVk"] = Caller(groups=(GROUP_A,), cnf=session.public.raw)
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    message = msgspec.json.encode(
        {
            "v": 1,
            "index": "i",
            "id": "secret-id",
            "auth": {"sealed": "c2VhbGVk"},
            "message_id": "00000000-0000-4000-8000-000000000001",
            "issued_ms": 1,
            "content": "secret words",
            "keywords": ["k"],
            "reply": {"public_key": encode_base64(reply.public.encode())},
        }
    )
    value = seal_value(Info.INGEST_VALUE, world.realm.intake["i"].public, "i", message)
    key = b"i/" + b"0" * 32
    kind = ("content-type", CONTENT_SEALED.encode())
    good = ("sealstream-sig", sign_message(session, PLAINTEXT_INGEST, key, value))
    other = SigningKey.generate()
    bad = ("sealstream-sig", sign_message(other, PLAINTEXT_INGEST, key, value))
    async with world.ingest(), world.index():
        await world.put_raw(key, value, headers=(kind, bad))
        await world.put_raw(b"i/short", value, headers=(kind, good))
        await world.put_raw(key, value, headers=(kind, good))
        await world.until(lambda: world.events())
        await world.until(lambda: world.committed(INGEST_GROUP, PLAINTEXT_INGEST) == 3)
    assert await world.keyword("i", "k") == ["secret-id"]
    answers = world.broker.records(INGEST_RESULT)
    opened = []
    for record in answers:
        assert set(msgspec.json.decode(record.value or b"")) == {
            "v",
            "key_id",
            "suite",
            "sealed",
            "shared",
        }
        plain = open_result(reply, decode(SealedValue, record.value), "i", "secret-id")
        opened.append(msgspec.json.decode(plain)["status"])
    assert sorted(opened) == ["accepted", "rejected"]
    keys = world.store.keys()
    everything = b"".join(
        (r.value or b"") + (r.key or b"")
        for topic in {tp.topic for tp in world.broker.logs}
        for r in world.broker.records(topic)
    ) + b"".join([(await world.store.get(k)).data for k in keys])
    assert b"secret" not in everything


async def test_a_replayed_record_does_not_overrule_what_came_after_it() -> None:
    world = Pipeline()
    world.realm.create("i")
    async with world.ingest(), world.index():
        refused = await world.put("i", "a", keywords=["old"], auth={"token": "newcomer"})
        await world.until(lambda: world.dead())
        world.realm.callers["newcomer"] = Caller()
        await world.put("i", "a", keywords=["new"])
        await world.put("i", "b", keywords=["new"], auth={"token": "newcomer"})
        headers = ((HEADER_REPLAY, str(refused.offset).encode()),)
        await world.put_raw(refused.key, refused.value, headers=headers)
        await world.applied(*await world.accepted(3))
    assert sorted(await world.keyword("i", "new")) == ["a", "b"]
    assert await world.keyword("i", "old") == []


async def test_updates_of_a_deleted_index_do_not_stop_the_partition() -> None:
    world = Pipeline()
    world.realm.create("gone")
    world.realm.create("here")
    ingest = await world.ingest_handler()
    await ingest.start()
    handler = await index_handler(world)
    await handler.start()
    for index in ("gone", "here", "gone"):
        await ingest.process([await world.put(index, "a", content="x", keywords=["k"])])
    zero, one, two = updates(world)
    assert await handler.process([zero]) == 1
    # Deleted, and the name given to another index: the worker has not heard of it.
    entry = world.realm.entries.pop("gone")
    handler._services.holder._leases.clear()
    assert await handler.process([one, two]) == 3
    assert [letter.source.offset for letter in world.dead(INDEX_UPDATE)] == [2]
    assert await world.keyword("here", "k") == ["a"]
    assert entry.name == "gone"
    await handler.stop()
