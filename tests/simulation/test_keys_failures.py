"""KMS, audit, store and process failures; damaged keys; races between two key services."""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import orjson
import pytest

from schemas.audit import AuditRecord
from schemas.auth import Auth, Credential
from schemas.codec import decode
from schemas.deadletter import DeadLetter
from schemas.errors import ErrorCode, InvalidMessage
from schemas.topics import (
    ADMIN_REQUEST,
    KEY_AUDIT,
    KEY_GRANT,
    KEY_REQUEST,
    QUERY_REQUEST,
    dead_letter,
)
from schemas.values import decode_base64, encode_base64
from workers.crypto.errors import KeyWiped
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info
from workers.errors import Damaged, Fatal, Reject, Retry
from workers.kafka.broker import Record
from workers.keys import worker as keys_worker
from workers.keys.admin import Admin
from workers.keys.answers import Answers
from workers.keys.audit import GENESIS, chain_hash
from workers.runtime.health import Health
from workers.storage import layout
from workers.storage.errors import AccessDenied
from workers.telemetry import metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import PATIENCE_S, Caller, World

NONE = {"kms": {"provider": "none"}}


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


def keyed(world, key):
    """Return admin credentials with an index key, and a caller that holds it."""
    auth = {"token": world.token, "index_key": encode_base64(key)}
    return auth, Caller(world, index_key=key)


async def test_kms_down_renewals_go_on_for_900_s_and_nothing_else(world):
    await world.create("acme/docs")
    await world.create("cold")
    holder = await world.holder("index-1")
    newcomer = await world.holder("query-1")
    await holder.lease("acme/docs")
    world.kms.down = True
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        await newcomer.lease("acme/docs", auth=Auth(token=world.token))
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        await holder.lease("cold")
    refused = await world.admin("index.create", {"index": "new"})
    assert refused.error.code is ErrorCode.KEY_UNAVAILABLE
    assert refused.error.retryable
    elapsed = 0
    while elapsed + 210 < 900:
        world.clock.pass_s(210)
        elapsed += 210
        await holder.tick()
        await holder.settled()
        assert (await holder.lease("acme/docs")).expires_s > world.clock() + 200
    # The KEK is 900 s old before this lease ends: it is not renewed again.
    world.clock.pass_s(210)
    await holder.tick()
    await holder.settled()
    world.clock.pass_s(91)
    await holder.tick()
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        await holder.lease("acme/docs")
    world.kms.down = False
    assert (await holder.lease("acme/docs")).full
    # What failed left nothing behind.
    await world.create("new")


async def test_new_leases_ask_the_kms_and_renewals_do_not(world):
    await world.create("acme/docs")
    holder = await world.holder("index-1")
    before = world.kms.unwraps
    await holder.lease("acme/docs")
    assert world.kms.unwraps == before + 1
    world.clock.pass_s(201)
    await holder.tick()
    await holder.settled()
    assert world.kms.unwraps == before + 1
    world.clock.pass_s(201)
    await holder.tick()
    await holder.settled()
    # The cached KEK is past its refresh age: a KMS that is up is asked.
    assert world.kms.unwraps == before + 2


async def test_no_grant_without_its_audit_record(world):
    await world.create("acme/docs")
    holder = await world.holder("index-1")
    before = world.audited("lease", "grant")
    world.broker.drop_next(KEY_AUDIT, times=2)
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        await holder.lease("acme/docs")
    assert world.audited("lease", "grant") == before
    assert (await holder.lease("acme/docs")).full
    assert world.audited("lease", "grant") == before + 1
    granted = [r for r in world.broker.records(KEY_GRANT) if b'"sealed"' in r.value]
    assert len(granted) == 1


async def test_the_audit_is_a_chain_with_signed_checkpoints(world):
    await world.create("acme/docs")
    holder = await world.holder("index-1")
    service = await world.service()
    await holder.lease("acme/docs")
    world.clock.pass_s(11)
    await service.tick()
    chains: dict[str, list[dict[str, object]]] = {}
    for record in world.broker.records(KEY_AUDIT):
        chains.setdefault(record.key.decode(), []).append(orjson.loads(record.value))
    checkpoints = 0
    for instance, members in chains.items():
        assert [m["seq"] for m in members] == list(range(len(members)))
        assert members[0]["prev"] == GENESIS.hex()
        assert all(after["prev"] == before["hash"] for before, after in pairwise(members))
        for member in members:
            digest = chain_hash(bytes.fromhex(member["prev"]), member)
            assert member["hash"] == digest.hex()
            assert member["instance"] == instance
            if member["event"] == "checkpoint":
                checkpoints += 1
                signature = decode_base64(member["signature"])
                world.directory.key_service.sign_pub.verify(
                    signature, Info.AUDIT, instance, member["seq"], digest
                )
    assert checkpoints >= 1
    said = b"".join(record.value for record in world.broker.records(KEY_AUDIT))
    assert world.token.encode() not in said


async def test_the_key_service_killed_and_started_again(world):
    made = await world.create("acme/docs", shards=2)
    holder = await world.holder("index-1")
    first = await holder.lease("acme/docs")
    await world.running.kill()
    await world.start_service()
    described = await world.admin("index.describe", {"index": "acme/docs"})
    assert described.result == made
    other = await world.holder("query-1")
    lease = await other.lease("acme/docs", auth=Auth(token=world.token))
    assert lease.keys(1, "segment") == first.keys(1, "segment")
    # The rest of its life the first worker needs nobody.
    assert await holder.lease("acme/docs") is first


async def test_without_a_key_service_workers_wait(world):
    await world.create("acme/docs")
    await world.running.end()
    holder = await world.holder("index-1", ask_timeout_s=0.05)
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        await holder.lease("acme/docs")


async def test_an_entry_that_was_not_published_is_published_at_the_next_start(world):
    await world.running.end()
    service = await world.service()
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    key, value, headers = await world.admin_record("index.create", {"index": "acme/docs"}, reply)
    record = Record(ADMIN_REQUEST, 0, 0, 0, key, value, headers)
    world.broker.drop_next("key-directory")
    with pytest.raises(Retry):
        await service.handle(record)
    await world.directory.refresh()
    assert world.directory.find("acme/docs") is None
    assert not world.broker.records("admin-result")
    # A crash here; the record comes again and finds its own work.
    again = await world.service()
    await world.directory.refresh()
    made = world.directory.index("acme/docs")
    await again.handle(record)
    [result] = world.broker.records("admin-result")
    opened = world.open_result(result, reply)
    assert opened.status == "ok"
    assert opened.result["uid"] == made.uid.hex()


async def test_two_key_services_create_the_same_name(world):
    await world.running.end()
    services = [await world.service(), await world.service()]
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    records = []
    for number in range(2):
        key, value, headers = await world.admin_record("index.create", {"index": "race"}, reply)
        records.append(Record(ADMIN_REQUEST, 0, number, 0, key, value, headers))
    await asyncio.gather(*(s.handle(r) for s, r in zip(services, records, strict=True)))
    results = [world.open_result(r, reply) for r in world.broker.records("admin-result")]
    [won] = [r for r in results if r.status == "ok"]
    [lost] = [r for r in results if r.status == "error"]
    assert lost.error.code is ErrorCode.INDEX_EXISTS
    await world.directory.refresh()
    uid = bytes.fromhex(won.result["uid"])
    assert world.directory.index("race").uid == uid
    # The loser's keys are gone.
    owners = {key.split("/")[0] for key in world.stored() if "/keys/" in key}
    assert owners == {uid.hex()}


async def test_two_key_services_share_their_keys(world):
    await world.create("acme/docs")
    await world.start_service("keys-2")
    holders = [await world.holder(f"{role}-1") for role in ("ingest", "query")]
    auth = Auth(token=world.token)
    leases = [await holder.lease("acme/docs", auth=auth) for holder in holders]
    assert leases[0].tag == leases[1].tag


@pytest.mark.parametrize("what", ["envelope", "tag", "dek"])
async def test_stored_keys_exchanged_between_indexes_are_damage(world, what):
    a = bytes.fromhex((await world.create("a"))["uid"])
    b = bytes.fromhex((await world.create("b"))["uid"])
    path = {
        "envelope": lambda uid: layout.envelope(uid, 0),
        "tag": layout.tag,
        "dek": lambda uid: layout.dek(uid, 1),
    }[what]
    await world.running.end()
    await world.store.put(path(a), (await world.store.get(path(b))).data)
    await world.start_service()
    holder = await world.holder("index-1")
    with pytest.raises(Damaged, match="DAMAGED"):
        await holder.lease("a")
    assert (await holder.lease("b")).full
    await world.store.delete([path(b)])
    other = await world.holder("query-1")
    with pytest.raises(Damaged):
        await world_fresh_lease(world, other, "b")


async def world_fresh_lease(world, holder, index):
    """Ask after a restart, so that nothing is cached."""
    await world.latest.end()
    await world.start_service()
    return await holder.lease(index, auth=Auth(token=world.token))


async def test_a_changed_envelope_is_damage_not_a_wrong_key(world):
    key = os.urandom(32)
    auth, caller = keyed(world, key)
    uid = bytes.fromhex((await world.create("mine", auth=auth, **NONE))["uid"])
    stored = orjson.loads((await world.store.get(layout.envelope(uid, 0))).data)
    stored["commitment"] = "00" * 32
    await world.store.put(layout.envelope(uid, 0), orjson.dumps(stored))
    holder = await world.holder("query-1")
    with pytest.raises(Damaged):
        await holder.decide("mine", caller.auth("mine"), **caller.proof(topic=QUERY_REQUEST))


async def test_an_exchanged_catalog_entry_is_damage(world):
    await world.create("a")
    await world.create("b")
    paths = [k for k in world.stored() if k.startswith("catalog/")]
    await world.running.end()
    first, second = [(await world.store.get(p)).data for p in paths]
    await world.store.put(paths[0], second)
    # It starts, for the sake of all the others.
    running = await world.start_service()
    told = [await world.admin("index.describe", {"index": name}) for name in ("a", "b")]
    assert sorted(one.status for one in told) == ["error", "ok"]
    assert [one.error.code for one in told if one.error] == [ErrorCode.DAMAGED]
    await running.end()
    await world.store.put(paths[0], first)
    await world.start_service()


async def test_provider_none_opens_only_with_its_key(world):
    key = os.urandom(32)
    auth, caller = keyed(world, key)
    made = await world.create("mine", auth=auth, **NONE)
    assert made["kms"] == {"provider": "none", "key_id": None}
    query, index = await world.holder("query-1"), await world.holder("index-1")
    decision = await query.decide("mine", caller.auth("mine"), **caller.proof(topic=QUERY_REQUEST))
    assert decision.caller.startswith("index-key:")
    assert (await query.lease("mine", auth=caller.auth("mine"), **caller.shown(QUERY_REQUEST))).full
    assert (await index.lease("mine")).full
    wrong = Caller(world, index_key=os.urandom(32))
    token = Caller(world, token=world.token)
    none_sent, another = "WRONG_KEY: no key was sent", "WRONG_KEY: this is not the key"
    for other, told in ((wrong, another), (token, none_sent)):
        with pytest.raises(Reject, match=told):
            await query.decide("mine", other.auth("mine"), **other.proof(topic=QUERY_REQUEST))
    fresh = await world.holder("ingest-1")
    with pytest.raises(Reject, match=another):
        await fresh.lease("mine", auth=wrong.auth("mine"), **wrong.shown())
    with pytest.raises(Reject, match=none_sent):
        await fresh.decide("mine", Auth(token=world.token))
    for op in ("index.describe", "index.delete"):
        refused = await world.admin(op, {"index": "mine"})
        assert refused.error.code is ErrorCode.WRONG_KEY
        assert "no key was sent" in refused.error.message
        bad = {"token": world.token, "index_key": encode_base64(os.urandom(32))}
        refused = await world.admin(op, {"index": "mine"}, auth=bad)
        assert refused.error.code is ErrorCode.WRONG_KEY
    assert (await world.admin("index.describe", {"index": "mine"}, auth=auth)).status == "ok"
    # An index key means nothing to an index that a KMS keeps.
    await world.create("theirs")
    with pytest.raises(Reject, match="WRONG_KEY"):
        await query.decide("theirs", caller.auth("theirs"), **caller.proof(topic=QUERY_REQUEST))
    # The key is nowhere.
    everything = b"".join(
        [(await world.store.get(k)).data for k in world.stored()]
        + [
            r.value or b""
            for t in ("key-grant", "key-audit", "key-directory")
            for r in world.broker.records(t)
        ]
    )
    assert key not in everything
    assert key.hex().encode() not in everything


async def test_provider_none_after_a_restart_waits_for_a_caller(world):
    auth, caller = keyed(world, os.urandom(32))
    await world.create("mine", auth=auth, **NONE)
    await world.running.kill()
    await world.start_service()
    index = await world.holder("index-1")
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        await index.lease("mine")
    query = await world.holder("query-1")
    await query.decide("mine", caller.auth("mine"), **caller.proof(topic=QUERY_REQUEST))
    assert (await index.lease("mine")).full
    world.clock.pass_s(901)
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        await index.lease("mine")


async def test_a_key_of_another_length_is_named(world):
    for size in (0, 16, 31, 33):
        with pytest.raises(InvalidMessage):
            Credential(
                index_key=encode_base64(os.urandom(size)), exp=1, cnf=encode_base64(bytes(32))
            )


async def test_the_realm_is_the_pinned_one(world):
    await world.running.end()
    world.settings = world.settings.model_copy(update={"key_service_fingerprint": "00" * 32})
    with pytest.raises(Fatal, match="UNAUTHENTICATED"):
        await world.start_service()


async def test_service_keys_rotate_and_old_ones_are_destroyed(world):
    first = world.directory.key_service
    old = world.admin_caller
    auth = old.auth("acme/docs", life_s=7200)
    await world.running.end()
    service = await world.service()
    for _ in range(2):
        world.clock.pass_s(86_400)
        await service.tick()
    await world.directory.refresh()
    assert world.directory.key_service.hpke_key_id != first.hpke_key_id
    assert service._keys.find(first.hpke_key_id) is not None
    for _ in range(3):
        world.clock.pass_s(86_400)
        await service.tick()
    assert service._keys.find(first.hpke_key_id) is None
    assert len(service._keys.keys) <= 4
    names = [k for k in world.stored() if k.startswith("realm/hpke/")]
    assert len(names) == len(service._keys.keys)
    assert auth.sealed


async def test_whatever_fails_beside_the_work_is_done_later(world, monkeypatch, caplog):
    # Caches that nobody wipes any more, an audit that nobody signs: that must not be silent.
    service = await world.service()
    ticks, real, done, stop = [], service.tick, asyncio.Event(), asyncio.Event()

    async def tick():
        ticks.append(1)
        if len(ticks) == 1:
            raise KeyError("nobody foresaw it")
        if len(ticks) == 2:
            raise AccessDenied("realm/hpke/00")
        if len(ticks) == 3:
            raise KeyWiped("this secret was wiped")
        await real()
        done.set()

    monkeypatch.setattr(service, "tick", tick)
    monkeypatch.setattr(keys_worker, "_TICK_S", 0.001)
    health, before = Health("keys-1"), metrics.UNEXPECTED.value(topic=KEY_REQUEST)
    keeping = asyncio.create_task(service.keep(stop, health))
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()
        stop.set()
        await keeping
    told = [one["error"] for one in health.status()["errors"]]
    assert told[0] == "KeyError"
    assert "denied access" in told[1]
    # The other two will pass by themselves; what nobody foresaw calls for a look.
    assert metrics.UNEXPECTED.value(topic=KEY_REQUEST) == before + 1


async def test_a_store_that_denies_is_no_refusal(world, monkeypatch):
    await world.create("acme/docs")
    await world.running.end()
    world.running = await world.start_service("keys-2")
    await world.directory.refresh()
    holder = await world.holder("index-1")
    letters = len(world.broker.records(dead_letter(KEY_REQUEST)))
    with monkeypatch.context() as patch:

        async def denied(key):
            raise AccessDenied(key)

        patch.setattr(world.store, "get", denied)
        with pytest.raises(Retry, match="STORAGE_UNAVAILABLE"):
            await holder.lease("acme/docs")
    world.clock.pass_s(60)
    assert (await holder.lease("acme/docs")).generation == 1
    assert len(world.broker.records(dead_letter(KEY_REQUEST))) == letters


async def test_audit_records_decode(world):
    for record in world.broker.records(KEY_AUDIT):
        assert isinstance(decode(AuditRecord, record.value), msgspec.Struct)


async def test_a_damaged_service_key_is_left_out_and_the_others_serve(world):
    await world.running.end()
    service = await world.service()
    world.clock.pass_s(86_400)
    await service.tick()
    old, new = (n for n in sorted(world.stored()) if n.startswith("realm/hpke/"))
    data = bytearray((await world.store.get(old)).data)
    data[-1] ^= 1
    await world.store.put(old, bytes(data))
    await world.store.put("realm/hpke/readme", b"not a key")
    await world.start_service()
    holder = await world.holder("index-1")
    await world.create("acme/docs")
    assert (await holder.lease("acme/docs")).full
    # An id that nobody knows has the keys listed anew; what was reported is not reported again.
    value = orjson.dumps({"key_id": "00" * 16})
    seen = set()
    for offset in range(3):
        await service.handle(Record(KEY_REQUEST, 0, offset, 0, b"k", value))
        seen.add(metrics.DAMAGED.value(what="keys"))
        world.clock.pass_s(2)
    assert len(seen) == 1
    # Without any key that opens there is nothing to serve with.
    await world.latest.end()
    await world.store.put(new, bytes(data))
    with pytest.raises(Damaged, match="no key of the key service opens"):
        await world.start_service()


async def test_a_request_on_which_the_service_fails_is_refused_and_the_service_goes_on(
    world, monkeypatch
):
    await world.create("acme/docs")
    holder = await world.holder("index-1")
    before = metrics.UNEXPECTED.value(topic=KEY_REQUEST)
    with monkeypatch.context() as patch:
        patch.setattr(Answers, "_decide", fail)
        patch.setattr(Admin, "_run", fail)
        with pytest.raises(Reject, match="UNSUPPORTED: the worker failed on this record"):
            await holder.lease("acme/docs")
        result = await world.admin("index.describe", {"index": "acme/docs"})
        assert result.error.code is ErrorCode.UNSUPPORTED
    assert (await holder.lease("acme/docs")).full
    assert not world.running.task.done()
    assert metrics.UNEXPECTED.value(topic=KEY_REQUEST) == before + 1
    for topic in (KEY_REQUEST, ADMIN_REQUEST):
        [letter] = world.broker.records(dead_letter(topic))
        assert decode(DeadLetter, letter.value).error.code is ErrorCode.UNSUPPORTED
    assert world.audited("index.describe", "deny") == 1


async def test_a_key_that_is_wiped_during_a_request_is_asked_for_again(world, monkeypatch):
    await world.create("acme/docs")
    holder = await world.holder("index-1")
    decide, wiped = Answers._decide, []

    async def once(self, opened):
        if not wiped:
            wiped.append(opened)
            raise KeyWiped("this secret was wiped")
        return await decide(self, opened)

    monkeypatch.setattr(Answers, "_decide", once)
    assert (await holder.lease("acme/docs")).full
    assert wiped
    assert not world.broker.records(dead_letter(KEY_REQUEST))


async def fail(*_: object) -> None:
    raise RuntimeError("nobody foresaw this")
