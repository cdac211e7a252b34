"""Certificates: made, renewed while a worker runs, revoked; outages of the key service."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from schemas.auth import Auth
from schemas.topics import KEY_REQUEST, KEY_REVOCATION, dead_letter
from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey
from workers.errors import Fatal, Reject, Retry
from workers.index import worker as index_worker
from workers.kafka.broker import Record
from workers.keys.realm import open_realm
from workers.leases.certificate import MAX_LIFE_S, verify_certificate
from workers.leases.directory import KeyDirectory
from workers.leases.heads import head_verifier
from workers.leases.revocation import HEAD_GRACE_MS, Revocation, sign_revocation
from workers.leases.signed import signature_headers, verify_record

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import PATIENCE_S, World


@pytest.fixture
async def world(tmp_path, monkeypatch):
    # Holders renew when the tests say so, and not when a second has passed besides.
    monkeypatch.setattr("workers.leases.holder._TICK_S", 3600.0)
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    await world.create("acme/docs")
    yield world
    await world.aclose()


async def alive(world):
    """Let the key service renew its own directory entry, as it does every hour."""
    await world.running.end()
    await world.start_service()
    await world.directory.refresh()


async def revoke(world, worker_id, *, epoch=1, signer=None, **changes):
    realm = await open_realm(world.store, world.kms)
    values = {
        "principal": worker_id,
        "kind": "worker",
        "policy_epoch": epoch,
        "revoked_ms": int(world.clock() * 1000),
        **changes,
    }
    revocation = Revocation(**values)
    value = sign_revocation(revocation, signer or realm.signing_key)
    await world.producer.send_and_wait(KEY_REVOCATION, value, key=revocation.key.encode())
    await world.directory.refresh()
    return revocation, value


# --- renewal --------------------------------------------------------------------------------------


async def test_a_certificate_is_renewed_at_half_of_its_life_and_swapped(world):
    identity = world.identity("index-1")
    holder = await world.holder(identity)
    first = identity.certificate
    await holder.tick()
    await holder.settled()
    assert identity.certificate is first
    world.clock.pass_s(MAX_LIFE_S / 2 + 1)
    await alive(world)
    await holder.tick()
    await holder.settled()
    second = identity.certificate
    assert second.expires_s > first.expires_s
    assert (second.worker_id, second.role, second.indexes, second.sign_pub) == (
        first.worker_id,
        first.role,
        first.indexes,
        first.sign_pub,
    )
    verify_certificate(second.encoded, world.directory.key_service.sign_pub, now_s=world.clock())
    # Kept for the next start, and good when the first one has ended.
    assert world.identity("index-1").certificate.encoded == second.encoded
    world.clock.pass_s(MAX_LIFE_S / 2)
    await alive(world)
    assert (await holder.lease("acme/docs")).full
    assert world.audited("certificate", "grant") == 1


async def test_a_renewal_that_fails_is_tried_again_until_the_end(world):
    identity = world.identity("index-1")
    holder = await world.holder(identity, ask_timeout_s=0.05)
    first = identity.certificate
    world.clock.pass_s(MAX_LIFE_S / 2 + 1)
    await alive(world)
    await world.latest.end()
    for _ in range(3):
        await holder.tick()
        await holder.settled()
    # One request a minute, not one a second.
    asked = [r for r in world.broker.records(KEY_REQUEST) if r.key == b"index-1"]
    assert len(asked) == 1
    assert identity.certificate is first
    world.clock.pass_s(61)
    await world.start_service()
    await world.directory.refresh()
    slow = await world.holder(identity)
    await slow.tick()
    await slow.settled()
    assert identity.certificate is not first


async def test_a_certificate_for_another_worker_is_not_taken(world):
    mine, other = world.identity("index-1"), world.identity("query-1")
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        mine.renew(other.certificate)


# --- revocation -----------------------------------------------------------------------------------


async def test_a_revoked_worker_gets_and_keeps_nothing(world):
    identity = world.identity("index-1")
    holder = await world.holder(identity)
    other = await world.holder("query-1")
    lease = await holder.lease("acme/docs")
    await other.lease("acme/docs", auth=Auth(token=world.token))
    await revoke(world, "index-1")
    await holder.tick()
    assert lease.wiped
    with pytest.raises(Fatal, match="FORBIDDEN"):
        await holder.lease("acme/docs")
    # The key service knows too, whatever the worker says; neither keys nor a new certificate.
    holder._directory = holder._asking._directory = await _deaf(world)
    for asked in (holder.lease("acme/docs"), holder._asking.ask(object, kind="certificate")):
        with pytest.raises(Reject, match="FORBIDDEN"):
            await asked
    assert (await other.lease("acme/docs", auth=Auth(token=world.token))).full
    await holder._directory.stop()


async def _deaf(world):
    """Return a directory of somebody who does not hear of revocations."""
    directory = KeyDirectory(world.broker, world.settings, clock=world.clock)
    await directory.start()
    directory.revocations = type(directory.revocations)()
    return directory


async def test_what_a_revoked_worker_wrote_is_refused(world):
    identity = world.identity("index-1")
    service = world.directory.key_service.sign_pub
    headers = signature_headers(identity, Info.INDEX_EVENT, b"k", b"v")
    record = Record("index-event", 0, 0, 0, b"k", b"v", headers)
    revocations = world.directory.revocations
    verify_record(record, service, ("index",), Info.INDEX_EVENT, revocations=revocations)
    verify = head_verifier(world.directory, "acme/docs")
    parts = (b"uid", 0, b"sealed")
    signature = identity.signing_key.sign(Info.HEAD, *parts)
    encoded = identity.certificate.encoded
    world.clock.pass_s(10)
    revocation, _ = await revoke(world, "index-1")
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        verify_record(record, service, ("index",), Info.INDEX_EVENT, revocations=revocations)
    # Heads stay that were written before, and in the time in which an honest worker ends.
    verify(encoded, signature, parts, revocation.revoked_ms - 1)
    verify(encoded, signature, parts, revocation.revoked_ms + HEAD_GRACE_MS - 1)
    with pytest.raises(BadSignature):
        verify(encoded, signature, parts, revocation.revoked_ms + HEAD_GRACE_MS)


async def test_enrolled_anew_a_worker_may_work_again(world):
    await revoke(world, "index-1", revoked_ms=int((world.clock() - 10) * 1000))
    assert (await (await world.holder("index-1")).lease("acme/docs")).full


async def test_only_the_pinned_key_service_revokes(world):
    revocations = world.directory.revocations
    before = world.directory.refused
    await revoke(world, "index-1", signer=SigningKey.generate())
    _, good = await revoke(world, "query-1", epoch=2)
    for key, value in (
        (b"worker/index-1", good),
        (b"user/query-1", good),
        (b"worker/index-1", b"junk"),
        (b"worker/index-1", b"{}"),
    ):
        await world.producer.send_and_wait(KEY_REVOCATION, value, key=key)
    # An older one does not replace a newer one.
    await revoke(world, "query-1", epoch=1, revoked_ms=1)
    assert world.directory.refused == before + 6
    assert revocations.find("worker", "index-1") is None
    assert revocations.find("worker", "query-1").revoked_ms > 1
    assert revocations.epoch == 2


async def test_a_revoked_callers_decisions_end_at_once(world):
    holder = await world.holder("ingest-1")
    auth = Auth(token=world.token)
    decision = await holder.decide("acme/docs", auth)
    assert await holder.decide("acme/docs", auth) is decision
    await revoke(world, decision.caller, kind="user")
    await holder.tick()
    with pytest.raises(Reject, match="FORBIDDEN"):
        await holder.decide("acme/docs", auth)
    fresh = await world.holder("query-1")
    with pytest.raises(Reject, match="FORBIDDEN"):
        await fresh.lease("acme/docs", auth=auth)


# --- outage ---------------------------------------------------------------------------------------


async def test_an_outage_piles_up_no_requests_and_ends_by_itself(world):
    holder = await world.holder("index-1", ask_timeout_s=0.05)
    await world.running.end()
    for _ in range(20):
        with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
            await holder.lease("acme/docs")
    asked = lambda: len(  # noqa: E731
        [r for r in world.broker.records(KEY_REQUEST) if r.key == b"index-1"]
    )
    assert asked() == 1
    # Now and then one tries.
    world.clock.pass_s(6)
    results = await asyncio.gather(
        *(holder.lease("acme/docs") for _ in range(5)), return_exceptions=True
    )
    assert all(isinstance(one, Retry) for one in results)
    assert asked() == 2
    # Back again, it is asked at once: no restart, no waiting.
    holder._asking._timeout_s = PATIENCE_S
    await world.start_service()
    await world.directory.refresh()
    assert (await holder.lease("acme/docs")).full
    letters = world.broker.records(dead_letter(KEY_REQUEST))
    assert len(letters) <= 2


async def test_a_request_that_is_given_up_counts_as_silence(world, monkeypatch):
    monkeypatch.setattr("workers.leases.asking.SILENCE_S", 0.0)
    holder = await world.holder("index-1")
    await world.running.end()
    requests = world.broker.topic_reader([KEY_REQUEST], start="end")
    await requests.start()
    asked = asyncio.create_task(holder.lease("acme/docs"))
    assert await requests.next(PATIENCE_S)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    with pytest.raises(Retry, match="did not answer lately"):
        await holder.lease("acme/docs")


async def test_an_idle_worker_that_is_revoked_ends(world, monkeypatch):
    monkeypatch.setattr("workers.leases.holder._TICK_S", 0.01)
    settings = world.settings.model_copy(update={"worker_id": "index-1"})
    working = asyncio.create_task(
        index_worker.serve(settings, asyncio.Event(), broker=world.broker, store=world.store)
    )
    other = await world.holder("index-1")
    await other.lease("acme/docs")
    await revoke(world, "index-1")
    with pytest.raises(Fatal, match="revoked"):
        async with asyncio.timeout(PATIENCE_S):
            await working
