"""Callers with tokens of a real OpenID Connect provider (nanoidp), through the topics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nanoidp_kit import AUDIENCE, Provider
from query_kit import ALL, World, client, workers

from schemas.audit import AuditRecord
from schemas.auth import Scope
from schemas.codec import decode
from schemas.errors import ErrorCode
from workers.client import Client
from workers.errors import Reject
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
        oidc_roles="author=Encrypt+Update+Index+Decrypt, reader=Index+Decrypt, boss=*",
        oidc_administrators="boss",
    )
    await world.open()
    yield world
    await world.aclose()


def by(world: World, token: str) -> Client:
    from pydantic import SecretStr

    settings = world.settings.model_copy(update={"token": SecretStr(token)})
    return Client(settings, broker=world.broker)


async def refused(call: Any, code: ErrorCode) -> None:
    with pytest.raises(Reject) as error:
        await call
    assert error.value.code is code, error.value


async def test_people_of_another_provider_share_by_its_groups(world, idp):
    staff = group_id(idp.issuer, "STAFF")
    async with client(world) as admin:
        await admin.create_index("acme/docs")
    with idp.running():
        tokens = {
            name: await asyncio.to_thread(idp.token, name)
            for name in ("alice", "bob", "carol", "root", "nobody")
        }
        async with (
            workers(world, *ALL),
            by(world, tokens["alice"]) as alice,
            by(world, tokens["bob"]) as bob,
            by(world, tokens["carol"]) as carol,
            by(world, tokens["root"]) as root,
            by(world, tokens["nobody"]) as nobody,
        ):
            done = await alice.ingest(
                "acme/docs", "doc", content="hello", groups=[staff], wait="searchable"
            )
            [hit] = await bob.get("acme/docs", ["doc"], include=["content"], after=[done])
            assert hit.content == "hello"
            assert await carol.get("acme/docs", ["doc"], include=["content"]) == []
            await refused(bob.ingest("acme/docs", "x", content="x"), ErrorCode.FORBIDDEN)
            await refused(nobody.count("acme/docs"), ErrorCode.FORBIDDEN)
            # Administrators by a role; users of the realm beside those of the provider.
            made = await root.create_user([Scope.INDEX])
            await refused(alice.create_user([]), ErrorCode.FORBIDDEN)
            assert (await root.log_in(made["user_id"], made["password"]))["token"]
            audited = [decode(AuditRecord, r.value) for r in world.broker.records("key-audit")]
            callers = {one.caller for one in audited if one.event == "user.create"}
            assert callers == {f"{idp.issuer}#root", f"{idp.issuer}#alice"}


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
