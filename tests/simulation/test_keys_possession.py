"""A credential counts only beside a message that its owner signed, for the key service too."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from schemas.auth import Auth
from schemas.topics import PLAINTEXT_INGEST, QUERY_REQUEST
from workers.errors import Reject
from workers.leases.credential import Proof, sign_message

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import Caller, World

INPUTS = {"ingest": PLAINTEXT_INGEST, "query": QUERY_REQUEST}


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    await world.create("acme/docs")
    yield world
    await world.aclose()


def proof(caller, topic, value=b"{}", key=b"k"):
    return Proof.made(sign_message(caller.session, topic, key, value), key, value)


@pytest.mark.parametrize("role", ["ingest", "query"])
async def test_without_a_message_of_its_owner_a_credential_gives_no_keys(world, role):
    """As a worker would ask that got hold of somebody's credential, and of nothing signed."""
    holder = await world.holder(f"{role}-1")
    caller, topic = world.admin_caller, INPUTS[role]
    auth = caller.auth("acme/docs")
    good = proof(caller, topic)
    elsewhere = INPUTS["ingest" if role == "query" else "query"]
    for bad in (
        None,
        proof(Caller(world), topic),
        # What the owner did sign: for workers of the other role, or for the key service itself.
        proof(caller, elsewhere),
        proof(caller, "admin-request"),
        msgspec.structs.replace(good, key=b"other"),
        msgspec.structs.replace(good, value_sha256=bytes(32)),
        msgspec.structs.replace(good, signature=bytes(64)),
    ):
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await holder.lease("acme/docs", auth=auth, proof=bad)
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await holder.open_objects(
                await holder.lease("acme/docs"), auth, [_item(world)], proof=bad
            )
    assert world.audited("lease", "deny") == 7
    assert (await holder.lease("acme/docs", auth=auth, proof=good)).full


async def test_a_decision_is_not_made_without_a_proof(world):
    holder = await world.holder("ingest-1")
    caller = world.admin_caller
    auth = caller.auth("acme/docs")
    thief = Caller(world)
    for shown in (thief.proof(), caller.proof(topic=QUERY_REQUEST)):
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await holder.decide("acme/docs", auth, **shown)
    assert world.audited("decision", "grant") == 0
    assert world.audited("decision", "deny") == 2
    await holder.decide("acme/docs", auth, **caller.proof())
    assert world.audited("decision", "grant") == 1


async def test_the_topics_prefix_is_signed_too(tmp_path):
    """A message to one deployment proves nothing in another one on the same broker."""
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    try:
        await world.create("acme/docs")
        holder = await world.holder("query-1")
        caller = world.admin_caller
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await holder.lease(
                "acme/docs",
                auth=caller.auth("acme/docs"),
                proof=proof(caller, f"other-{QUERY_REQUEST}"),
            )
    finally:
        await world.aclose()


async def test_a_token_in_clear_needs_no_proof_where_it_is_allowed(world):
    holder = await world.holder("query-1")
    assert (await holder.lease("acme/docs", auth=Auth(token=world.token))).full


def _item(world):
    from workers.leases.lease import ObjectRequest

    return ObjectRequest(bytes(16), 1, bytes(32), b"record", b"pack key of some length" * 2)
