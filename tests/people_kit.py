"""What people whom another identity provider names may do, whichever provider that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from schemas.audit import AuditRecord
from schemas.auth import Scope
from schemas.codec import decode
from schemas.errors import ErrorCode
from workers.client import Client
from workers.errors import Reject

# On a machine that may be busy with anything else.
QUERY_S = 60.0
NAMES = ("alice", "bob", "carol", "root", "nobody")
ROLES = "author=Encrypt+Update+Index+Decrypt, reader=Index+Decrypt, boss=*"


async def refused(call: Any, code: ErrorCode) -> None:
    with pytest.raises(Reject) as error:
        await call
    assert error.value.code is code, error.value


async def share_by_groups(
    by: Callable[[str], Client], index: str, tokens: Mapping[str, str], staff: str
) -> None:
    """Let them share a document with a group, and try what they may not.

    Args:
        by: makes a client of somebody with a token.
        index: an index that is there.
        tokens: of `NAMES`.
        staff: id of the group of alice and bob.
    """
    async with (
        by(tokens["alice"]) as alice,
        by(tokens["bob"]) as bob,
        by(tokens["carol"]) as carol,
        by(tokens["root"]) as root,
        by(tokens["nobody"]) as nobody,
    ):
        done = await alice.ingest(
            index, "doc", content="hello", text={"body": "hello"}, groups=[staff], wait="searchable"
        )
        [hit] = await bob.get(index, ["doc"], include=["content"], after=[done], timeout_s=QUERY_S)
        assert hit.content == "hello"
        assert await carol.get(index, ["doc"], include=["content"], timeout_s=QUERY_S) == []
        await refused(bob.ingest(index, "x", content="x"), ErrorCode.FORBIDDEN)
        await refused(nobody.count(index, timeout_s=QUERY_S), ErrorCode.FORBIDDEN)
        # Administrators by a role; users of the realm beside those of the provider.
        made = await root.create_user([Scope.INDEX])
        await refused(alice.create_user([]), ErrorCode.FORBIDDEN)
        assert (await root.log_in(made["user_id"], made["password"]))["token"]


def makers(audit: Iterable[bytes | None]) -> set[str]:
    """Return who made users, or tried, as records of the audit name them."""
    records = [decode(AuditRecord, value) for value in audit if value is not None]
    return {one.caller for one in records if one.event == "user.create" and one.caller is not None}
