"""Callers with assertions of a real SAML identity provider (nanoidp), through the topics."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nanoidp_kit import AUDIENCE, RECIPIENT, Provider
from people_kit import NAMES, ROLES, makers, refused, share_by_groups
from query_kit import ALL, World, applied, by, client, workers
from saml_kit import needs_xmlsec1

from schemas.audit import AuditRecord
from schemas.auth import Scope
from schemas.codec import decode
from schemas.errors import ErrorCode, InvalidMessage
from workers.identity.claims import group_id
from workers.keys.realm import open_realm


@pytest.fixture(scope="module")
def idp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    needs_xmlsec1()
    provider = Provider(tmp_path_factory.mktemp("idp") / "nanoidp")
    with provider.running():
        yield provider


@pytest.fixture
async def world(tmp_path: Path, idp: Provider) -> Any:
    metadata = tmp_path / "idp.xml"
    metadata.write_text(await asyncio.to_thread(idp.metadata))
    world = World(
        tmp_path / "world",
        decision_cache_s=0,
        saml_issuer=f"{idp.issuer}/saml",
        saml_metadata=metadata,
        saml_audience=AUDIENCE,
        saml_recipient=RECIPIENT,
        saml_subject_attribute="uid",
        saml_roles=ROLES.replace("author=", "author=GetAccessGroups+ModifyAccessGroups+"),
        saml_administrators="boss",
    )
    await world.open()
    yield world
    await world.aclose()


async def test_people_of_another_provider_share_by_its_groups(world, idp):
    source = f"saml:{idp.issuer}/saml"
    async with client(world) as admin:
        await admin.create_index("acme/docs")
    tokens = {name: await asyncio.to_thread(idp.assertion, name) for name in NAMES}
    async with workers(world, *ALL):
        staff = group_id(source, "STAFF")
        await share_by_groups(partial(by, world), "acme/docs", tokens, staff)
    audit = [record.value for record in world.broker.records("key-audit")]
    assert makers(audit) == {f"{source}#u-root", f"{source}#u-alice"}


async def test_groups_are_those_that_the_provider_names(world, idp):
    source = f"saml:{idp.issuer}/saml"
    staff, others = group_id(source, "STAFF"), group_id(source, "OTHERS")
    async with client(world) as admin:
        await admin.create_index("acme/docs")
        user = await admin.create_user([Scope.INDEX])
        own = await admin.create_group([])
    tokens = [await asyncio.to_thread(idp.assertion, name) for name in ("alice", "carol", "root")]
    async with (
        workers(world, *ALL),
        by(world, tokens[0]) as alice,
        by(world, tokens[1]) as carol,
        by(world, tokens[2]) as root,
    ):
        # Groups of the realm have users of the realm; refused before anything is written.
        begun = len(world.broker.records("key-audit"))
        for caller in (alice, root):
            await refused(caller.create_group([]), ErrorCode.FORBIDDEN)
        for group in (staff, own):
            await refused(alice.add_members(group, [user["user_id"]]), ErrorCode.FORBIDDEN)
        async with client(world) as admin:
            with pytest.raises(InvalidMessage):
                await admin.add_members(own, [f"{source}#u-alice"])
        records = [decode(AuditRecord, one.value) for one in world.broker.records("key-audit")]
        told = [one.decision for one in records[begun:] if one.event.startswith("group.")]
        assert told == ["deny"] * 4
        # Access lists take the groups of both.
        done = await alice.ingest("acme/docs", "doc", content="hello", groups=[staff, own])
        assert await carol.get("acme/docs", ["doc"], after=[done]) == []
        listed = await alice.add_access("acme/docs", "doc", [others])
        assert {staff, own, others} < set(listed["groups"])
        [hit] = await carol.get("acme/docs", ["doc"], include=["content"], after=applied(listed))
        assert hit.content == "hello"
        # Administrators make administrators; and there is a way to end somebody before the token.
        administrators = (await open_realm(world.store, world.kms)).administrator.default_group
        await root.add_members(administrators, [user["user_id"]])
        await root.revoke(f"user/{source}#u-alice")
        await refused(alice.list_indexes(), ErrorCode.FORBIDDEN)


async def test_assertions_for_others_and_changed_ones(world, idp):
    good = await asyncio.to_thread(idp.assertion, "root")
    elsewhere = await asyncio.to_thread(idp.assertion, "root", f"{RECIPIENT}/other")
    for_another = await asyncio.to_thread(idp.assertion, "root", RECIPIENT, "another")
    async with by(world, good) as c:
        assert await c.list_indexes() == []
    for bad in (elsewhere, for_another, good[:-400] + "AAAA" + good[-396:], good[:2000]):
        async with by(world, bad) as c:
            await refused(c.list_indexes(), ErrorCode.UNAUTHENTICATED)
