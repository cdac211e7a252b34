"""Leases, decisions and object keys through the topics: who gets what, and who does not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.auth import Auth, Scope
from schemas.codec import decode
from schemas.errors import ErrorCode
from schemas.sealed import SealedValue
from schemas.topics import PLAINTEXT_INGEST, QUERY_REQUEST
from workers.crypto.derive import Purpose
from workers.crypto.hpke import HpkePrivateKey
from workers.crypto.info import Info, info
from workers.crypto.secret import random_secret
from workers.errors import Damaged, Reject, Retry
from workers.leases.credential import seal_value
from workers.leases.lease import INTAKE_PURPOSES, ROLE_PURPOSES, ObjectRequest
from workers.objects.record import AccessRecord, seal_record

# The kit of the key service lies with its unit tests; test folders are no packages.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import Caller, World

INPUTS = {"ingest": PLAINTEXT_INGEST, "query": QUERY_REQUEST}


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


async def test_each_role_gets_exactly_the_keys_of_the_table(world):
    made = await world.create("acme/docs", shards=3, dimension=8)
    auth = world.admin_caller.auth("acme/docs")
    held = {}
    for role in ("ingest", "index", "query"):
        holder = await world.holder(f"{role}-1")
        shown = world.admin_caller.shown(INPUTS.get(role, ""))
        held[role] = await holder.lease(
            "acme/docs", auth=None if role == "index" else auth, **shown
        )
        assert held[role].full
        assert held[role].purposes == ROLE_PURPOSES[role]
        assert held[role].uid.hex() == made["uid"]
        assert held[role].config.dimension == 8
        assert list(held[role].partitions) == made["partitions"] == [0, 1, 2]
    ingest, index, query = held["ingest"], held["index"], held["query"]
    # The halves belong together, and to what the directory shows.
    entry = world.directory.index("acme/docs")
    assert index.private_key(1, Purpose.UPDATE).public == ingest.update_public
    assert query.private_key(1, Purpose.QUERY).public == ingest.query_public == entry.query_pub
    assert index.keys(1, Purpose.SEGMENT) == query.keys(1, Purpose.SEGMENT)
    assert index.keys(1, Purpose.VECTOR) == query.keys(1, Purpose.VECTOR)
    assert ingest.tag == query.tag
    for purpose in (Purpose.OBJECT, Purpose.UPDATE, Purpose.SEGMENT):
        with pytest.raises(Reject, match="FORBIDDEN"):
            ingest.private_key(1, purpose)
    with pytest.raises(Reject, match="FORBIDDEN"):
        _ = index.tag
    with pytest.raises(Reject, match="FORBIDDEN"):
        _ = index.object_public
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        index.keys(2, Purpose.SEGMENT)


async def test_without_a_caller_only_the_intake_key(world):
    await world.create("acme/docs")
    for role in ("ingest", "query"):
        holder = await world.holder(f"{role}-1")
        lease = await holder.lease("acme/docs")
        assert not lease.full
        assert lease.purposes == INTAKE_PURPOSES[role]
        with pytest.raises(Reject, match="FORBIDDEN"):
            _ = lease.tag
        full = await holder.lease("acme/docs", auth=Auth(token=world.token))
        assert full.full
        assert await holder.lease("acme/docs") is full


async def test_a_sealed_message_is_opened_before_its_caller_is_known(world):
    await world.create("acme/docs")
    entry = world.directory.index("acme/docs")
    for role, kind, public in (
        ("ingest", Info.INGEST_VALUE, entry.ingest_pub),
        ("query", Info.QUERY_VALUE, entry.query_pub),
    ):
        holder = await world.holder(f"{role}-1")
        value = decode(SealedValue, seal_value(kind, public, "acme/docs", b'{"v":1}'))
        assert await holder.open_value(kind, value) == b'{"v":1}'
        stranger = HpkePrivateKey.generate(public.suite).public
        other = decode(SealedValue, seal_value(kind, stranger, "acme/docs", b"{}"))
        with pytest.raises(Reject, match="EXPIRED"):
            await holder.open_value(kind, other)
        moved = decode(SealedValue, seal_value(kind, public, "other", b"{}"))
        with pytest.raises(Reject, match="UNKNOWN_INDEX"):
            await holder.open_value(kind, moved)


async def test_the_ingest_key_rotates_daily_and_old_messages_still_open(world):
    await world.create("acme/docs")
    holder = await world.holder("ingest-1")
    old = world.directory.index("acme/docs").ingest_pub
    value = decode(SealedValue, seal_value(Info.INGEST_VALUE, old, "acme/docs", b"old"))
    world.clock.pass_s(86_400)
    lease = await holder.lease("acme/docs", auth=Auth(token=world.token))
    await world.directory.refresh()
    entry = world.directory.index("acme/docs")
    assert entry.ingest_pub != old
    assert entry.ingest_pubs[1:] == (old,)
    assert await holder.open_value(Info.INGEST_VALUE, value) == b"old"
    # A message sealed to a key that is younger than the lease gets it renewed.
    world.clock.pass_s(86_400 * 3)
    other = await world.holder("ingest-1")
    await other.lease("acme/docs")
    await world.directory.refresh()
    newest = world.directory.index("acme/docs")
    assert newest.ingest_pub not in entry.ingest_pubs
    assert old not in newest.ingest_pubs
    new = decode(SealedValue, seal_value(Info.INGEST_VALUE, newest.ingest_pub, "acme/docs", b"new"))
    assert await holder.open_value(Info.INGEST_VALUE, new) == b"new"
    with pytest.raises(Reject, match="EXPIRED"):
        await other.open_value(Info.INGEST_VALUE, value)
    assert lease.wiped


async def test_an_index_worker_finds_an_index_by_its_uid(world):
    made = await world.create("acme/docs")
    holder = await world.holder("index-1")
    lease = await holder.lease(None, uid=bytes.fromhex(made["uid"]))
    assert lease.index == "acme/docs"
    assert await holder.lease("acme/docs") is lease
    with pytest.raises(Reject, match="UNKNOWN_INDEX"):
        await holder.lease(None, uid=bytes(16))


async def test_unknown_indexes_are_not_remembered(world):
    holder = await world.holder("ingest-1")
    auth = Auth(token=world.token)
    for _ in range(2):
        with pytest.raises(Reject, match="UNKNOWN_INDEX"):
            await holder.lease("new", auth=auth)
        with pytest.raises(Reject, match="UNKNOWN_INDEX"):
            await holder.decide("new", auth)
    await world.create("new")
    assert (await holder.decide("new", auth)).scopes == frozenset(Scope)
    assert (await holder.lease("new", auth=auth)).full


async def test_a_decision_names_the_caller_and_is_reused(world):
    await world.create("acme/docs")
    holder = await world.holder("ingest-1")
    caller = world.admin_caller
    auth = caller.auth("acme/docs", scopes=(Scope.ENCRYPT, Scope.INDEX))
    decision = await holder.decide("acme/docs", auth, **caller.proof())
    assert decision.scopes == {Scope.ENCRYPT, Scope.INDEX}
    assert decision.default_group in decision.groups
    assert decision.cnf == caller.session.public.raw
    before = world.audited("decision")
    assert await holder.decide("acme/docs", auth, **caller.proof(b"other")) is decision
    assert world.audited("decision") == before
    world.clock.pass_s(61)
    assert await holder.decide("acme/docs", auth, **caller.proof()) is not decision
    with pytest.raises(Reject, match="FORBIDDEN"):
        decision.require(Scope.DECRYPT)


async def test_a_decision_ends_with_its_index(world):
    await world.create("acme/docs")
    holder = await world.holder("ingest-1")
    caller = world.admin_caller
    auth = caller.auth("acme/docs")
    decision = await holder.decide("acme/docs", auth, **caller.proof())
    assert (await world.admin("index.delete", {"index": "acme/docs"})).status == "ok"
    await world.directory.refresh()
    with pytest.raises(Reject, match="UNKNOWN_INDEX"):
        await holder.decide("acme/docs", auth, **caller.proof())
    await world.create("acme/docs")
    assert await holder.decide("acme/docs", auth, **caller.proof()) is not decision


async def test_a_copied_credential_is_useless(world):
    await world.create("acme/docs")
    holder = await world.holder("ingest-1")
    caller = world.admin_caller
    auth = caller.auth("acme/docs")
    await holder.decide("acme/docs", auth, **caller.proof())
    thief = Caller(world)
    for changes in (
        thief.proof(),
        {**caller.proof(), "signature": None},
        {**caller.proof(), "signed": ("query-request", b"k", b"{}")},
        {**caller.proof(), "signed": ("plaintext-ingest", b"other", b"{}")},
        {**caller.proof(), "signed": ("plaintext-ingest", b"k", b"{ }")},
        {**caller.proof(), "issued_ms": int((world.clock() + 3600) * 1000)},
    ):
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await holder.decide("acme/docs", auth, **changes)
    with pytest.raises(Reject, match="INVALID_MESSAGE"):
        await holder.decide("acme/docs", auth, **{**caller.proof(), "message_id": None})


async def test_credentials_are_bound_to_index_time_and_life(world):
    await world.create("acme/docs")
    await world.create("other")
    ingest, query = await world.holder("ingest-1"), await world.holder("query-1")
    caller = world.admin_caller
    foreign = caller.auth("other")
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        await ingest.decide("acme/docs", foreign, **caller.proof())
    with pytest.raises(Reject, match="EXPIRED"):
        await ingest.decide("acme/docs", caller.auth("acme/docs", life_s=-1), **caller.proof())
    bad = caller.auth("acme/docs", token="slid1_AAAA")
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        await ingest.decide("acme/docs", bad, **caller.proof())
    # A credential that can only write outlives an hour, and only with an ingest worker.
    long = caller.auth("acme/docs", scopes=(Scope.ENCRYPT,), life_s=86_400)
    assert (await ingest.decide("acme/docs", long, **caller.proof())).scopes == {Scope.ENCRYPT}
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        await query.decide("acme/docs", long, **caller.proof(topic=QUERY_REQUEST))
    for scopes in ((), (Scope.ENCRYPT, Scope.DECRYPT)):
        auth = caller.auth("acme/docs", scopes=scopes, life_s=86_400)
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await ingest.decide("acme/docs", auth, **caller.proof())
    # No scope that a query worker could serve: no keys either.
    auth = caller.auth("acme/docs", scopes=(Scope.CREATE_TOKEN,))
    for holder in (query, ingest):
        with pytest.raises(Reject, match="FORBIDDEN"):
            await holder.lease("acme/docs", auth=auth, **caller.shown(INPUTS[holder.role]))


async def test_an_index_worker_meets_no_callers(world):
    await world.create("acme/docs")
    holder = await world.holder("index-1")
    with pytest.raises(Reject, match="FORBIDDEN"):
        await holder.decide("acme/docs", Auth(token=world.token))


async def test_leases_are_renewed_at_two_thirds_and_wiped_at_their_end(world):
    await world.create("acme/docs")
    holder = await world.holder("query-1")
    first = await holder.lease("acme/docs", auth=Auth(token=world.token))
    world.clock.pass_s(199)
    await holder.tick()
    assert await holder.lease("acme/docs") is first
    world.clock.pass_s(2)
    before = world.audited("lease", "grant")
    await holder.tick()
    await holder.settled()
    assert world.audited("lease", "grant") == before + 1
    second = await holder.lease("acme/docs")
    assert second is not first
    assert second.full
    assert not first.wiped
    # Long work that holds a key of the first one goes on with it.
    key = second.keys(1, Purpose.SEGMENT)
    assert key is first.keys(1, Purpose.SEGMENT)
    world.clock.pass_s(100)
    await holder.tick()
    assert first.wiped
    assert not key.wiped
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        _ = first.tag
    # What nothing uses is not renewed for ever.
    for _ in range(8):
        world.clock.pass_s(210)
        await holder.tick()
        await holder.settled()
    assert second.wiped
    assert key.wiped
    count = world.audited("lease", "grant")
    world.clock.pass_s(210)
    await holder.tick()
    await holder.settled()
    assert world.audited("lease", "grant") == count


async def test_one_request_serves_all_who_ask_at_once(world):
    await world.create("acme/docs")
    holder = await world.holder("ingest-1")
    auth = Auth(token=world.token)
    leases = await asyncio.gather(*(holder.lease("acme/docs", auth=auth) for _ in range(20)))
    decisions = await asyncio.gather(*(holder.decide("acme/docs", auth) for _ in range(20)))
    assert len(set(map(id, leases))) == len(set(map(id, decisions))) == 1
    assert world.audited("lease") == world.audited("decision") == 1


def pack_of(lease, records):
    """Seal access records as an ingest worker does."""
    uid, key = os.urandom(16), random_secret()
    sealed = lease.object_public.seal(info(Info.PACK, lease.uid, 1, uid), key)
    wrapped = uid + (1).to_bytes(4, "little") + sealed
    items = []
    for object_key, groups in records:
        context = {"object_id": os.urandom(16), "content_sha256": os.urandom(32)}
        record = seal_record(
            key,
            AccessRecord(object_key, groups),
            index_uid=lease.uid,
            generation=1,
            **context,
        )
        items.append(
            ObjectRequest(context["object_id"], 1, context["content_sha256"], record, wrapped)
        )
    return items


async def test_object_keys_are_for_the_groups_of_the_record(world):
    await world.create("acme/docs")
    auth = Auth(token=world.token)
    ingest, query = await world.holder("ingest-1"), await world.holder("query-1")
    mine = (await ingest.decide("acme/docs", auth)).default_group
    made = await ingest.lease("acme/docs", auth=auth)
    lease = await query.lease("acme/docs", auth=auth)
    keys = [random_secret() for _ in range(3)]
    items = pack_of(made, [(keys[0], (mine,)), (keys[1], (str(uuid4()),))])
    items += pack_of(made, [(keys[2], (str(uuid4()), mine.upper()))])
    assert await query.open_objects(lease, auth, items) == [keys[0], None, keys[2]]
    assert await query.open_objects(lease, auth, []) == []
    many = items * 400
    opened = await query.open_objects(lease, auth, many)
    assert opened == [keys[0], None, keys[2]] * 400
    # A record beside another object, or in another pack, is damage, not a miss.
    for wrong in (
        replace(items[0], sealed_sha256=hashlib.sha256(b"").digest()),
        replace(items[0], object_id=bytes(16)),
        replace(items[0], pack_key=items[2].pack_key),
        replace(items[0], generation=2),
        replace(items[0], pack_key=b"short"),
    ):
        with pytest.raises(Damaged):
            await query.open_objects(lease, auth, [wrong])
    # Neither who wrote it, nor who may not decrypt.
    with pytest.raises(Reject, match="FORBIDDEN"):
        await ingest.open_objects(made, auth, items)
    caller = world.admin_caller
    blind = caller.auth("acme/docs", scopes=(Scope.INDEX,))
    with pytest.raises(Reject, match="FORBIDDEN"):
        await query.open_objects(lease, blind, items, **caller.shown(QUERY_REQUEST))


async def test_tokens_in_clear_only_where_allowed(tmp_path):
    world = World(tmp_path)
    await world.open()
    try:
        await world.create("acme/docs")
        holder = await world.holder("ingest-1")
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await holder.decide("acme/docs", Auth(token=world.token))
        # The key service does not rely on the worker for that.
        with pytest.raises(Reject) as refused:
            await holder.lease("acme/docs", auth=Auth(token=world.token))
        assert refused.value.code is ErrorCode.UNAUTHENTICATED
        caller = world.admin_caller
        auth = caller.auth("acme/docs")
        assert (await holder.decide("acme/docs", auth, **caller.proof())).cnf
        assert (await holder.lease("acme/docs", auth=auth, **caller.shown())).full
    finally:
        await world.aclose()
