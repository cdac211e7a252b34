"""Callers with tokens of a real OpenID Connect provider (nanoidp), through the topics."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nanoidp_kit import AUDIENCE, Provider
from people_kit import NAMES, ROLES, makers, refused, share_by_groups
from query_kit import ALL, World, by, client, workers

from schemas.errors import ErrorCode
from workers.identity import jwks
from workers.identity.claims import group_id


@pytest.fixture(scope="module")
def idp(tmp_path_factory: pytest.TempPathFactory) -> Provider:
    return Provider(tmp_path_factory.mktemp("idp") / "nanoidp")


@pytest.fixture
async def world(tmp_path: Path, idp: Provider) -> Any:
    world = World(
        tmp_path,
        decision_cache_s=0,
        oidc_issuer=idp.issuer,
        oidc_audience=AUDIENCE,
        oidc_roles=ROLES,
        oidc_administrators="boss",
    )
    await world.open()
    yield world
    await world.aclose()


async def test_people_of_another_provider_share_by_its_groups(world, idp):
    async with client(world) as admin:
        await admin.create_index("acme/docs")
    with idp.running():
        tokens = {name: await asyncio.to_thread(idp.token, name) for name in NAMES}
        staff = group_id(idp.issuer, "STAFF")
        async with workers(world, *ALL):
            await share_by_groups(partial(by, world), "acme/docs", tokens, staff)
    audit = [record.value for record in world.broker.records("key-audit")]
    assert makers(audit) == {f"{idp.issuer}#root", f"{idp.issuer}#alice"}


async def test_tokens_for_others_and_after_a_rotation(world, idp, monkeypatch):
    monkeypatch.setattr(jwks, "AGAIN_S", 0.0)
    with idp.running():
        old = await asyncio.to_thread(idp.token, "root")
        for_another = await asyncio.to_thread(idp.token, "root", "id_token")
        async with by(world, old) as c:
            assert await c.list_indexes() == []
        # Made for the application, not for this service.
        async with by(world, for_another) as c:
            await refused(c.list_indexes(), ErrorCode.UNAUTHENTICATED)
        async with by(world, old[:-8] + "AAAAAAAA") as c:
            await refused(c.list_indexes(), ErrorCode.UNAUTHENTICATED)
    # Without the provider the keys that are known still count.
    async with by(world, old) as c:
        assert await c.list_indexes() == []
    idp.new_keys()
    with idp.running():
        new = await asyncio.to_thread(idp.token, "root")
        async with by(world, new) as c:
            assert await c.list_indexes() == []
        async with by(world, old) as c:
            await refused(c.list_indexes(), ErrorCode.UNAUTHENTICATED)
