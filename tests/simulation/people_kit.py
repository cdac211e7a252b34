"""What people whom another identity provider names may do, whichever provider that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import SecretStr
from query_kit import ALL, World, workers

from schemas.audit import AuditRecord
from schemas.auth import Scope
from schemas.codec import decode
from schemas.errors import ErrorCode
from workers.client import Client
from workers.errors import Reject

NAMES = ("alice", "bob", "carol", "root", "nobody")


def by(world: World, token: str) -> Client:
    """Return a client of somebody with a token."""
    settings = world.settings.model_copy(update={"token": SecretStr(token)})
    return Client(settings, broker=world.broker)


async def refused(call: Any, code: ErrorCode) -> None:
    with pytest.raises(Reject) as error:
        await call
    assert error.value.code is code, error.value


async def share_by_groups(
    world: World, tokens: Mapping[str, str], staff: str, callers: set[str]
) -> None:
    """Let them share a document of "acme/docs" with a group, and try what they may not.

    Args:
        world: with the index.
        tokens: of `NAMES`.
        staff: id of the group of alice and bob.
        callers: what the audit calls root and alice.
    """
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
        assert {one.caller for one in audited if one.event == "user.create"} == callers
