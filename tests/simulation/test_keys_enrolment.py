"""Workers are certified for administrators, or once for whoever was invited."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from schemas.audit import AuditRecord
from schemas.codec import decode
from schemas.errors import ErrorCode
from schemas.values import decode_base64, encode_base64
from workers.crypto.sign import SigningKey
from workers.errors import Fatal, Reject
from workers.kafka.broker import TP
from workers.keys.realm import RealmPurpose, open_realm
from workers.keys.worker import KeyService
from workers.leases.certificate import WorkerIdentity, verify_certificate
from workers.leases.enrolment import Terms, sign_terms

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import World

TERMS = Terms("far-1", "index", ("acme/*",))


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    await world.create("acme/docs")
    await world.create("other")
    yield world
    await world.aclose()


def wanted(key, terms=TERMS, **changes):
    return {
        "worker_id": terms.worker_id,
        "role": terms.role,
        "indexes": list(terms.indexes),
        "sign_pub": encode_base64(key.public.raw),
        "signature": encode_base64(sign_terms(terms, key)),
        **changes,
    }


def shown(key, invitation, **changes):
    return {
        "invitation": invitation,
        "sign_pub": encode_base64(key.public.raw),
        "signature": encode_base64(sign_terms(TERMS, key)),
        **changes,
    }


def certificate(world, result):
    assert result.error is None, result.error
    encoded = decode_base64(result.result["certificate"], "certificate")
    return verify_certificate(encoded, world.directory.key_service.sign_pub, now_s=world.clock())


async def invite(world, **changes):
    args = {"worker_id": "far-1", "role": "index", "indexes": ["acme/*"], **changes}
    result = await world.admin("worker.invite", args)
    assert result.error is None, result.error
    return result.result["invitation"]


async def join(world, args):
    return await world.admin("worker.join", args, auth=None)


async def test_an_administrator_enrols_a_worker_for_some_indexes(world):
    key = SigningKey.generate()
    made = certificate(world, await world.admin("worker.enroll", wanted(key)))
    assert (made.worker_id, made.role, made.indexes) == ("far-1", "index", ("acme/*",))
    holder = await world.holder(WorkerIdentity(made, key))
    assert (await holder.lease("acme/docs")).full
    with pytest.raises(Reject, match="FORBIDDEN"):
        await holder.lease("other")
    assert world.audited("worker.enroll", "grant") == 1


async def test_nobody_is_certified_for_a_key_that_is_not_theirs(world):
    mine, theirs = SigningKey.generate(), SigningKey.generate()
    for bad in (
        wanted(mine, sign_pub=encode_base64(theirs.public.raw)),
        wanted(mine, role="ingest"),
        wanted(mine, indexes=["*"]),
        wanted(mine, worker_id="far-2"),
        wanted(mine, signature=encode_base64(bytes(64))),
        wanted(mine, sign_pub=encode_base64(b"short")),
    ):
        refused = await world.admin("worker.enroll", bad)
        assert refused.error.code is ErrorCode.UNAUTHENTICATED


async def test_only_administrators_enrol_invite_and_revoke(world):
    user = (await world.admin("user.create", {"scopes": ["Index"]})).result
    login = await world.admin(
        "user.login", {"user_id": user["user_id"], "password": user["password"]}, auth=None
    )
    auth = {"token": login.result["token"]}
    key = SigningKey.generate()
    terms = {"worker_id": "far-1", "role": "index", "indexes": ["*"]}
    for op, args in (
        ("worker.enroll", wanted(key)),
        ("worker.invite", terms),
        ("key.revoke", {"principal": "worker/index-1"}),
    ):
        refused = await world.admin(op, args, auth=auth)
        assert refused.error.code is ErrorCode.FORBIDDEN, op
    assert world.directory.revocations.epoch == 0


async def test_an_invitation_is_good_once_and_for_its_terms(world):
    invitation = await invite(world)
    key = SigningKey.generate()
    wider = sign_terms(Terms("far-1", "index", ("*",)), key)
    refused = await join(world, shown(key, invitation, signature=encode_base64(wider)))
    assert refused.error.code is ErrorCode.UNAUTHENTICATED
    made = certificate(world, await join(world, shown(key, invitation)))
    assert (made.worker_id, made.role, made.indexes) == ("far-1", "index", ("acme/*",))
    # Its answer was lost: the same worker may ask again. Another one may not, restart or not.
    assert certificate(world, await join(world, shown(key, invitation))).sign_pub == made.sign_pub
    await world.running.end()
    await world.start_service()
    thief = SigningKey.generate()
    refused = await join(world, shown(thief, invitation))
    assert refused.error.code is ErrorCode.CONFLICT


async def test_invitations_end_and_are_of_one_realm(world, tmp_path):
    invitation = await invite(world, ttl_s=60)
    key = SigningKey.generate()
    for bad in (invitation[:-8], "slwi1_" + "A" * 40, "junk"):
        refused = await join(world, shown(key, bad))
        assert refused.error.code is ErrorCode.UNAUTHENTICATED
    world.clock.pass_s(61)
    refused = await join(world, shown(key, invitation))
    assert refused.error.code is ErrorCode.EXPIRED
    # Used ones are forgotten, but only long after they have ended.
    realm = await open_realm(world.store, world.kms)
    assert realm.key(RealmPurpose.ENROLMENT) != realm.key(RealmPurpose.POLICY)


async def test_revoked_and_enrolled_anew(world):
    identity = world.identity("index-1")
    holder = await world.holder(identity)
    await holder.lease("acme/docs")
    globs = ["acme/*", "acme/dogs", "*docs"]
    done = await world.admin("key.revoke", {"principal": "worker/index-1", "indexes": globs})
    assert done.result["policy_epoch"] == 1
    assert done.result["rotated"] == {"acme/docs": "begun"}
    assert done.result["unmatched"] == ["acme/dogs"]
    await world.directory.refresh()
    with pytest.raises(Fatal, match="FORBIDDEN"):
        await holder.lease("acme/docs")
    world.clock.pass_s(2)
    key = SigningKey.generate()
    terms = Terms("index-1", "index", ("*",))
    again = certificate(world, await world.admin("worker.enroll", wanted(key, terms)))
    assert (await (await world.holder(WorkerIdentity(again, key))).lease("acme/docs")).full


async def test_revocations_survive_a_restart_and_a_bucket_put_back_is_refused(world):
    await world.admin("key.revoke", {"principal": "worker/index-1", "indexes": ["none"]})
    kept = {name for name in world.stored() if name.startswith("realm/policy/")}
    assert len(kept) == 1
    await world.admin("key.revoke", {"principal": "worker/query-1", "indexes": ["none"]})
    await world.running.end()
    # Deleted from the topic, they come back with the next start.
    world.broker.trim(TP("key-revocation", 0), 99)
    running = await world.start_service("keys-2")
    await world.directory.refresh()
    assert world.directory.revocations.find("worker", "query-1") is not None
    last = decode(AuditRecord, world.broker.records("key-audit")[-1].value)
    assert last.policy_epoch == 2
    await running.end()
    newest = max(name for name in world.stored() if name.startswith("realm/policy/"))
    await world.store.delete([newest])
    service = KeyService(
        world.settings, broker=world.broker, store=world.store, kms=world.kms, clock=world.clock
    )
    with pytest.raises(Fatal, match="older state"):
        await service.start()
    await service.stop()
