"""Users, groups, access lists and user keys on the running stack, by the commands people type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stack_kit import QUERY_S, Shell, Stack, connect, ids, new_name, of_token

from schemas.errors import ErrorCode
from workers.client import Client
from workers.errors import Reject


def log_in(stack: Stack, made: dict[str, Any]) -> str:
    return Shell(stack).run("user", "login", made["user_id"], stdin=made["password"] + "\n").strip()


async def shown(client: Client, index: str, *wanted: str, **options: Any) -> dict[str, Any]:
    hits = await client.get(index, list(wanted), include=["content"], timeout_s=QUERY_S, **options)
    return {hit.id: hit.content for hit in hits}


async def test_people_share_what_they_may(stack: Stack, tmp_path: Path) -> None:
    admin = Shell(stack)
    index = new_name("team")
    admin.run("index", "create", index)
    alice, bob = [admin.json("user", "create", "--all-scopes") for _ in range(2)]
    reader = admin.json("user", "create", "--scope", "index", "--scope", "decrypt")
    tokens = {name: log_in(stack, who) for name, who in (("alice", alice), ("bob", bob))}
    as_alice, as_bob = (Shell(stack, tokens[name]) for name in ("alice", "bob"))
    # A password that is wrong is refused, and so is a user who may not.
    assert "UNAUTHENTICATED" in admin.run(
        "user", "login", alice["user_id"], stdin="wrong\n", code=1
    )
    assert "FORBIDDEN" in as_alice.run("user", "create", code=1)

    group = as_alice.run("group", "create", "--scope", "decrypt").strip()
    as_alice.run("group", "add", group, bob["user_id"])
    mail = tmp_path / "docs.jsonl"
    mail.write_text(
        json.dumps({"id": "ours", "content": "for both", "groups": [group]})
        + "\n"
        + json.dumps({"id": "mine", "content": "for one"})
        + "\n"
    )
    as_alice.run("ingest", index, str(mail), "--wait", "searchable")
    async with (
        of_token(stack, tokens["alice"]) as a,
        of_token(stack, tokens["bob"]) as b,
        of_token(stack, log_in(stack, reader)) as r,
    ):
        both = {"ours": "for both", "mine": "for one"}
        assert await shown(a, index, "ours", "mine") == both
        assert await shown(b, index, "ours", "mine") == {"ours": "for both"}
        assert await shown(r, index, "ours", "mine") == {}
        assert ids((await b.search(index, "both one", timeout_s=QUERY_S)).hits) == ["ours"]
        with pytest.raises(Reject) as refused:
            await r.ingest(index, "x", content="x")
        assert refused.value.code is ErrorCode.FORBIDDEN

        # Give and take away.
        assert as_alice.run("access", "get", index, "mine").split() == [alice["default_group"]]
        assert "FORBIDDEN" in as_bob.run(
            "access", "add", index, "mine", bob["default_group"], code=1
        )
        given = as_alice.json("access", "add", index, "mine", bob["default_group"])
        assert await _eventually(b, index, given, "ours", "mine") == both
        taken = as_alice.json("access", "remove", index, "mine", bob["default_group"])
        assert await _eventually(b, index, taken, "ours", "mine") == {"ours": "for both"}

    # A user key, and its end.
    key_file = tmp_path / "reader.key"
    admin.run("user-key", "create", index, "guest", "--read", "--out", str(key_file))
    [listed] = admin.json("user-key", "list", index)
    assert (listed["user_id"], listed["permissions"]) == ("guest", ["read"])
    async with connect(stack, user_key=("guest", key_file.read_bytes())) as guest:
        assert await guest.count(index, timeout_s=QUERY_S) == 0
        with pytest.raises(Reject) as refused:
            await guest.ingest(index, "x", content="x")
        assert refused.value.code is ErrorCode.FORBIDDEN
    admin.run("user-key", "delete", index, "guest")
    async with connect(stack, user_key=("guest", key_file.read_bytes())) as guest:
        with pytest.raises(Reject) as refused:
            await guest.count(index, timeout_s=QUERY_S)
        assert refused.value.code is ErrorCode.UNAUTHENTICATED

    # Tokens with data in them; a user who leaves.
    token = admin.run("token", "create", "--ttl", "60", stdin="a note")
    assert admin.run("token", "open", stdin=token) == "a note"
    admin.run("user", "delete", bob["user_id"])
    assert "UNAUTHENTICATED" in as_bob.run("index", "list", code=1)


async def _eventually(
    client: Client, index: str, changed: dict[str, Any], *wanted: str
) -> dict[str, Any]:
    """Return what is shown once the changed list has reached the shard."""
    position = changed["position"]
    result = await client.query(
        index,
        {"get": list(wanted)},
        include=["content"],
        min_position=[{"shard": position["shard"], "offset": position["offset"]}],
        timeout_s=QUERY_S,
    )
    return {hit.id: hit.content for hit in result.hits}
