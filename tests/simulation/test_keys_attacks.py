"""What the key service and the lease holder refuse, with which code."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import msgspec
import orjson
import pytest

from schemas.codec import decode, encode
from schemas.errors import ErrorCode
from schemas.grant import KeyGrant
from schemas.topics import KEY_GRANT, KEY_REQUEST
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.sign import SigningKey
from workers.errors import Fatal, Reject, Retry
from workers.kafka.broker import Record
from workers.keys.realm import open_realm
from workers.leases.certificate import WorkerIdentity, issue_certificate
from workers.leases.directory import (
    KEY_SERVICE_KEY,
    IndexRecord,
    KeyDirectory,
    sign_record,
)
from workers.leases.grant import LeasePayload, Pending, open_grant, verify_grant
from workers.leases.lease import INTAKE_PURPOSES, ROLE_PURPOSES
from workers.leases.request import VERSION, Caller, RequestBody, seal_request

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import World

# Each record has a place of its own, as in Kafka: copies and dead letters are told apart by it.
OFFSETS = count()


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    await world.create("acme/docs")
    # Records are handed in one by one from here on.
    await world.running.end()
    yield world
    await world.aclose()


@pytest.fixture
async def service(world):
    return await world.service()


async def certified(world, role="index", indexes=("*",), life_s=86_400, issuer=None):
    """Return an identity as an administrator of the realm could have made it."""
    realm = await open_realm(world.store, world.kms)
    key = SigningKey.generate()
    certificate = issue_certificate(
        issuer or realm.signing_key,
        worker_id=f"{role}-x",
        role=role,
        indexes=indexes,
        sign_pub=key.public.raw,
        life_s=life_s,
        now_s=world.clock(),
    )
    return WorkerIdentity(certificate, key)


def ask(world, identity, **changes):
    """Return a pending request and the record that asks it."""
    ephemeral = HpkePrivateKey.generate(HpkeSuite.X25519)
    now_ms = int(world.clock() * 1000)
    values = {
        "v": VERSION,
        "kind": "lease",
        "request_id": os.urandom(16),
        "worker_id": identity.worker_id,
        "certificate": identity.certificate.encoded,
        "reply_partition": 0,
        "index": "acme/docs",
        "uid": b"",
        "generation": 0,
        "purposes": sorted(INTAKE_PURPOSES[identity.role]),
        "ephemeral": ephemeral.public.encode(),
        "issued_ms": now_ms,
        "expires_ms": now_ms + 30_000,
        **changes,
    }
    body = RequestBody(**values)
    value = seal_request(body, identity, world.directory.key_service)
    record = Record(KEY_REQUEST, 0, next(OFFSETS), now_ms, identity.worker_id.encode(), value)
    return Pending(body, hashlib.sha256(value).digest(), ephemeral), record


async def answer(world, service, record):
    """Hand a record in; return the grant's value, or the code of the dead letter."""
    topic = f"{KEY_REQUEST}.dead-letter"
    grants, letters = len(world.broker.records(KEY_GRANT)), len(world.broker.records(topic))
    await service.handle(record)
    granted = world.broker.records(KEY_GRANT)[grants:]
    refused = world.broker.records(topic)[letters:]
    assert len(granted) + len(refused) == 1
    return granted[0].value if granted else orjson.loads(refused[0].value)["error"]["code"]


def denied(world, value):
    """Return the code of a signed refusal."""
    grant = verify_grant(value, world.directory.key_service.sign_pub)
    assert grant.header.deny is not None
    assert grant.sealed == b""
    return grant.header.deny.code


def accept(world, value, pending):
    signed = verify_grant(value, world.directory.key_service.sign_pub)
    return open_grant(signed, pending, LeasePayload, now_s=world.clock())


async def test_a_right_request_is_granted(world, service):
    pending, record = ask(world, await certified(world))
    payload = accept(world, await answer(world, service, record), pending)
    assert payload.index == "acme/docs"
    assert {item.purpose for item in payload.keys} == ROLE_PURPOSES["index"]


@pytest.mark.parametrize("role", ["ingest", "index", "query"])
async def test_no_role_gets_keys_of_another(world, service, role):
    identity = await certified(world, role)
    caller = None if role == "index" else Caller(None, world.token)
    everything = set().union(*ROLE_PURPOSES.values()) | {"object"}
    for purpose in sorted(everything - ROLE_PURPOSES[role]):
        _, record = ask(world, identity, purposes=[purpose], caller=caller)
        assert denied(world, await answer(world, service, record)) is ErrorCode.FORBIDDEN
    for purposes in ([], ["no-such-key"], ["update", "update"]):
        _, record = ask(world, identity, purposes=purposes, caller=caller)
        assert denied(world, await answer(world, service, record)) is ErrorCode.FORBIDDEN


@pytest.mark.parametrize("role", ["ingest", "query"])
async def test_working_keys_need_a_caller(world, service, role):
    identity = await certified(world, role)
    for purpose in sorted(ROLE_PURPOSES[role] - INTAKE_PURPOSES[role]):
        _, record = ask(world, identity, purposes=[purpose])
        assert denied(world, await answer(world, service, record)) is ErrorCode.FORBIDDEN


async def test_foreign_indexes_are_forbidden_whether_they_exist_or_not(world, service):
    identity = await certified(world, indexes=("other/*",))
    for index in ("acme/docs", "acme/none"):
        _, record = ask(world, identity, index=index)
        assert denied(world, await answer(world, service, record)) is ErrorCode.FORBIDDEN
    uid = world.directory.index("acme/docs").uid
    _, record = ask(world, identity, index="", uid=uid)
    assert denied(world, await answer(world, service, record)) is ErrorCode.FORBIDDEN


async def test_who_cannot_be_verified_is_not_answered(world, service):
    good = await certified(world)
    stranger = await certified(world, issuer=SigningKey.generate())
    assert await answer(world, service, ask(world, stranger)[1]) == "UNAUTHENTICATED"
    # Somebody else's certificate with one's own key.
    thief = WorkerIdentity(good.certificate, SigningKey.generate())
    assert await answer(world, service, ask(world, thief)[1]) == "UNAUTHENTICATED"
    _, record = ask(world, good, worker_id="index-y")
    assert await answer(world, service, record) == "UNAUTHENTICATED"
    _, record = ask(world, good)
    # Sealed and sent under the other name, too: the certificate still says who it is.
    _, claimed = ask(world, good, worker_id="index-y")
    claimed = replace(claimed, key=b"index-y", offset=next(OFFSETS))
    assert await answer(world, service, claimed) == "UNAUTHENTICATED"
    renamed = replace(record, key=b"index-y", offset=next(OFFSETS))
    assert await answer(world, service, renamed) == "UNAUTHENTICATED"
    for value in (b"", b"{}", b"\xff", record.value[:-9]):
        junk = replace(record, value=value, offset=next(OFFSETS))
        assert await answer(world, service, junk) in ("INVALID_MESSAGE", "UNAUTHENTICATED")


async def test_time_limits_of_requests_and_certificates(world, service):
    short = await certified(world, life_s=60)
    world.clock.pass_s(61)
    assert await answer(world, service, ask(world, short)[1]) == "EXPIRED"
    holder = await world.holder(short)
    with pytest.raises(Fatal, match="EXPIRED"):
        await holder.lease("acme/docs")
    identity, now_ms = await certified(world), int(world.clock() * 1000)
    for changes, code in (
        ({"issued_ms": now_ms - 31_000, "expires_ms": now_ms - 1_000}, "EXPIRED"),
        ({"expires_ms": now_ms + 30_001}, "INVALID_MESSAGE"),
        ({"issued_ms": now_ms + 90_000, "expires_ms": now_ms + 91_000}, "UNAUTHENTICATED"),
        ({"v": 2}, "INVALID_MESSAGE"),
        ({"reply_partition": 99}, "INVALID_MESSAGE"),
    ):
        assert await answer(world, service, ask(world, identity, **changes)[1]) == code


async def test_copies_are_refused_and_redeliveries_are_not(world, service):
    pending, record = ask(world, await certified(world))
    accept(world, await answer(world, service, record), pending)
    # The same record again, as after a crash before its commit.
    accept(world, await answer(world, service, record), pending)
    for copy in (replace(record, offset=next(OFFSETS)), replace(record, partition=1)):
        assert await answer(world, service, copy) == "CONFLICT"
    assert world.audited("lease", "deny") == 2
    world.clock.pass_s(31)
    assert await answer(world, service, replace(record, offset=next(OFFSETS))) == "EXPIRED"


async def test_a_grant_is_taken_only_for_what_was_asked(world, service):
    identity = await certified(world)
    pending, record = ask(world, identity)
    value = await answer(world, service, record)
    other, _ = ask(world, identity)
    body = pending.body
    wrong = {
        "another request": other,
        "another digest": replace(pending, sha256=bytes(32)),
        "another worker": replace(pending, body=msgspec.structs.replace(body, worker_id="z")),
        "another index": replace(pending, body=msgspec.structs.replace(body, index="other")),
        "another generation": replace(pending, body=msgspec.structs.replace(body, generation=2)),
        "other purposes": replace(pending, body=msgspec.structs.replace(body, purposes=["tag"])),
        "another ephemeral key": replace(pending, ephemeral=other.ephemeral),
    }
    for name, asked in wrong.items():
        with pytest.raises(Reject) as refused:
            accept(world, value, asked)
        assert refused.value.code is ErrorCode.UNAUTHENTICATED, name
    accept(world, value, pending)
    world.clock.pass_s(301)
    with pytest.raises(Reject, match="EXPIRED"):
        accept(world, value, pending)


async def test_a_changed_grant_does_not_verify(world, service):
    pending, record = ask(world, await certified(world))
    grant = decode(KeyGrant, await answer(world, service, record))
    for change in (
        {"to": "index-y"},
        {"index": "other"},
        {"generation": 2},
        {"purposes": ["tag"]},
        {"expires_ms": grant.expires_ms + 1},
        {"not_before_ms": grant.not_before_ms - 1},
        {"request_sha256": "00" * 32},
        {"sealed": "AAAA"},
        {"sealed": None},
        {"signature": "AAAA"},
    ):
        changed = encode(msgspec.structs.replace(grant, **change))
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            accept(world, changed, pending)
    assert accept(world, encode(grant), pending).index == "acme/docs"


async def test_asking_for_another_generation_is_refused(world, service):
    _, record = ask(world, await certified(world), generation=2)
    assert denied(world, await answer(world, service, record)) is ErrorCode.CONFLICT


async def test_a_key_below_the_floor_is_refused(world):
    world.settings = world.settings.model_copy(update={"hpke_suite": "mlkem768-x25519"})
    service = await world.service()
    _, record = ask(world, await certified(world))
    assert denied(world, await answer(world, service, record)) is ErrorCode.UNSUPPORTED


async def test_a_holder_ignores_replayed_and_forged_grants(world):
    await world.start_service()
    holder = await world.holder("index-1")
    await holder.lease("acme/docs")
    [grant] = [r for r in world.broker.records(KEY_GRANT) if r.key == b"index-1"]
    forged = msgspec.structs.replace(decode(KeyGrant, grant.value), generation=9)
    for value in (grant.value, encode(forged), b"junk"):
        await world.producer.send_and_wait(
            KEY_GRANT, value, key=b"index-1", partition=grant.partition
        )
    # An answer that comes after them proves that they were read.
    with pytest.raises(Reject, match="UNKNOWN_INDEX"):
        await holder.lease("none")
    assert holder._asking.refused == 3


async def test_the_directory_believes_only_the_pinned_key_service(world, service):
    good = [r for r in world.broker.records("key-directory") if r.key == b"acme/docs"][-1]
    version = world.directory.version("acme/docs")
    entry = world.directory.index("acme/docs")
    forged = IndexRecord(
        version=version + 1, expires_ms=2**52, index="acme/docs", uid="00" * 16, deleted=True
    )
    signed = sign_record("acme/docs", forged, SigningKey.generate())
    realm = await open_realm(world.store, world.kms)
    older = msgspec.structs.replace(forged, version=version - 1)
    old = sign_record("acme/docs", older, realm.signing_key)
    moved = good.value
    before = world.directory.refused
    for key, value in (
        (b"acme/docs", signed),
        (b"acme/docs", old),
        (b"other", moved),
        (KEY_SERVICE_KEY.encode(), signed),
        (b"acme/docs", b"junk"),
        (b"acme/docs", b"[]"),
    ):
        await world.producer.send_and_wait("key-directory", value, key=key)
    await world.directory.refresh()
    assert world.directory.refused == before + 6
    assert world.directory.index("acme/docs") == entry
    assert world.directory.find("other") is None
    stranger = KeyDirectory(world.broker, world.settings, fingerprint="00" * 32, clock=world.clock)
    await stranger.start()
    try:
        assert stranger.find("acme/docs") is None
        with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
            _ = stranger.key_service
    finally:
        await stranger.stop()
    # Nothing is believed for ever.
    world.clock.pass_s(7 * 86_400 + 1)
    assert world.directory.find("acme/docs") is None
