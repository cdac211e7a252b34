"""Access lists, visibility and overwriting, with all workers and the client between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from query_kit import ALL, World, applied, client, workers

from schemas.audit import AuditRecord
from schemas.auth import Scope
from schemas.codec import decode
from schemas.errors import ErrorCode
from workers.client import Client
from workers.errors import Damaged, Fatal, Reject
from workers.identity import password as passwords

SHOWN = ["score", "content"]


@pytest.fixture(scope="module", autouse=True)
def cheap() -> Any:
    """What Argon2id costs is no part of these tests."""
    before, passwords.MEMORY_KIB = passwords.MEMORY_KIB, 64
    yield
    passwords.MEMORY_KIB = before


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    world = World(Path(tmp_path_factory.mktemp("world")), decision_cache_s=0)
    await world.open()
    async with workers(world, *ALL):
        yield world
    await world.aclose()


class User:
    """A user with a client of its own."""

    def __init__(self, world: Any, made: dict[str, Any]) -> None:
        self.world = world
        self.id = made["user_id"]
        self.group = made["default_group"]
        self.password = made["password"]
        self.token = ""

    async def log_in(self) -> User:
        async with client(self.world, anonymous=True) as c:
            self.token = (await c.log_in(self.id, self.password))["token"]
        return self

    def client(self, **options: Any) -> Client:
        from pydantic import SecretStr

        settings = self.world.settings.model_copy(update={"token": SecretStr(self.token)})
        return Client(settings, broker=self.world.broker, **options)


async def user(world: Any, *scopes: Scope) -> User:
    async with client(world) as admin:
        return await User(world, await admin.create_user(scopes or tuple(Scope))).log_in()


async def index(world: Any, **config: Any) -> str:
    name = f"i{uuid4()}"
    async with client(world) as admin:
        await admin.create_index(name, **config)
    return name


async def read(who: User, name: str, *ids: str, **options: Any) -> dict[str, Any]:
    async with who.client() as c:
        hits = await c.get(name, ids, include=["content"], **options)
    return {hit.id: hit.content for hit in hits}


async def refused(call: Any, code: ErrorCode) -> Reject:
    with pytest.raises(Reject) as error:
        await call
    assert error.value.code is code, error.value
    return error.value


def denied(world: Any, event: str) -> list[AuditRecord]:
    found = [decode(AuditRecord, r.value) for r in world.broker.records("key-audit")]
    return [one for one in found if one.event == event and one.decision == "deny"]


async def test_members_share_a_document_and_take_it_back(world):
    name = await index(world)
    alice, bob, eve = [await user(world) for _ in range(3)]
    async with alice.client() as c:
        done = await c.ingest(name, "doc", content="secret", keywords=["k"], wait="searchable")
        assert (await c.get_access(name, "doc"))["groups"] == [alice.group]
        assert await read(alice, name, "doc", after=[done]) == {"doc": "secret"}
        assert await read(bob, name, "doc") == {}
        # Who is no member neither sees nor changes the list.
        async with eve.client() as e:
            await refused(e.get_access(name, "doc"), ErrorCode.FORBIDDEN)
            await refused(e.add_access(name, "doc", [eve.group]), ErrorCode.FORBIDDEN)
            await refused(e.get_access(name, "none"), ErrorCode.NOT_FOUND)
        assert denied(world, "access.add")[-1].caller == eve.id
        added = await c.add_access(name, "doc", [bob.group.upper()])
        assert added["groups"] == sorted([alice.group, bob.group])
        assert added["access_version"] == 2
        assert await read(bob, name, "doc", after=applied(added)) == {"doc": "secret"}
        again = await c.add_access(name, "doc", [bob.group])
        assert again["access_version"] == 2
    # A member may change it, and take the maker out.
    async with bob.client() as c:
        removed = await c.remove_access(name, "doc", [alice.group])
        assert removed["groups"] == [bob.group]
        await refused(c.remove_access(name, "doc", [bob.group]), ErrorCode.CONFLICT)
    assert await read(alice, name, "doc", after=applied(removed)) == {}
    assert await read(bob, name, "doc", after=applied(removed)) == {"doc": "secret"}
    # Searches and counts see what the list says now.
    for who, count in ((alice, 0), (bob, 1)):
        async with who.client() as c:
            assert await c.count(name) == count
            hits = (await c.search(name, "secret")).hits
            assert [hit.id for hit in hits] == ["doc"] * count


async def test_a_changed_list_decides_who_overwrites_and_deletes(world):
    name = await index(world)
    alice, bob = [await user(world) for _ in range(2)]
    async with alice.client() as a, bob.client() as b:
        await a.ingest(name, "doc", content="one", wait="searchable")
        await refused(b.ingest(name, "doc", content="two", wait="searchable"), ErrorCode.FORBIDDEN)
        await a.add_access(name, "doc", [bob.group])
        await b.ingest(name, "doc", content="two", wait="searchable")
        # The new writing has the list of its writer.
        assert (await b.get_access(name, "doc"))["groups"] == [bob.group]
        assert (await b.get_access(name, "doc"))["access_version"] == 1
        assert await read(alice, name, "doc") == {}
        await refused(a.delete(name, "doc", wait="searchable"), ErrorCode.FORBIDDEN)
        changed = await b.add_access(name, "doc", [alice.group])
        assert changed["access_version"] == 2
        await a.delete(name, "doc", wait="searchable")
        await refused(b.get_access(name, "doc"), ErrorCode.NOT_FOUND)


async def test_the_settings_visibility_and_overwrite(world):
    open_ = await index(world, visibility="index", overwrite="scope")
    alice, bob = await user(world), await user(world)
    weak = await user(world, Scope.ENCRYPT, Scope.INDEX)
    async with alice.client() as a, bob.client() as b, weak.client() as w:
        done = await a.ingest(open_, "doc", content="one", wait="searchable")
        [hit] = (await b.search(open_, "one", include=SHOWN, after=[done])).hits
        assert (hit.id, hit.denied, hit.content, hit.score) == ("doc", True, None, None)
        changed = await a.add_access(open_, "doc", [bob.group])
        [hit] = (await b.search(open_, "one", include=SHOWN, after=applied(changed))).hits
        assert (hit.denied, hit.content) == (False, "one")
        changed = await a.remove_access(open_, "doc", [bob.group])
        [hit] = await b.get(open_, ["doc"], include=["content"], after=applied(changed))
        assert (hit.denied, hit.content) == (True, None)
        # The scope alone overwrites here, but only one's own scope.
        await refused(w.ingest(open_, "doc", content="w", wait="searchable"), ErrorCode.FORBIDDEN)
        await b.ingest(open_, "doc", content="two", wait="searchable")


async def test_content_is_closed_before_the_shard_knows(tmp_path):
    world = World(tmp_path, decision_cache_s=0)
    await world.open()
    try:
        name = await index(world)
        alice, bob = await user(world), await user(world)
        async with workers(world, *ALL):
            async with alice.client() as a:
                done = await a.ingest(name, "doc", content="secret", wait="searchable")
                changed = await a.add_access(name, "doc", [bob.group])
            seen = await read(bob, name, "doc", after=[done, *applied(changed)])
            assert seen == {"doc": "secret"}
        # No index worker applies what follows: records and lists in the shard stay as they are.
        async with workers(world, "query"), alice.client() as a, bob.client() as b:
            await a.remove_access(name, "doc", [bob.group])
            [hit] = await b.get(name, ["doc"], include=["content"])
            assert (hit.denied, hit.content) == (True, None)
            assert denied(world, "objects")[-1].why is ErrorCode.FORBIDDEN
            assert await read(alice, name, "doc") == {"doc": "secret"}
    finally:
        await world.aclose()


async def test_lists_survive_compaction_and_other_writings(world):
    name = await index(world)
    alice, bob = await user(world), await user(world)
    async with alice.client() as a:
        for number in range(3):
            await a.ingest(name, f"d{number}", content="x", wait="searchable")
        for number in range(3):
            changed = await a.add_access(name, f"d{number}", [bob.group])
        # Enough segments that they are merged.
        for number in range(12):
            done = await a.ingest(name, f"e{number}", content="y", wait="searchable")
        seen = await read(bob, name, *(f"{c}{n}" for c in "de" for n in range(3)), after=[done])
        assert seen == {f"d{n}": "x" for n in range(3)}
        changed = await a.remove_access(name, "d1", [bob.group])
    assert set(await read(bob, name, "d0", "d1", "d2", after=applied(changed))) == {"d0", "d2"}


async def test_groups_with_scopes_of_their_own(world):
    name = await index(world)
    owner = await user(world)
    reader = await user(world, Scope.INDEX)
    async with owner.client() as c:
        group = await c.create_group([Scope.DECRYPT, Scope.UPDATE, Scope.ENCRYPT, Scope.DELETE])
        await c.add_members(group, [reader.id])
        await c.ingest(name, "shared", content="s", groups=[group])
        await c.ingest(name, "own", content="o", wait="searchable")
        await c.add_access(name, "own", [reader.group])
        done = await c.ingest(name, "other", content="p", wait="searchable")
    # Decrypt only by the group, so only what is of the group; and it is found by own scope.
    seen = await read(reader, name, "shared", "own", "other", after=[done])
    assert seen == {"shared": "s", "own": None}
    async with reader.client() as c:
        # Encrypt and Update by the group: for documents of the group.
        await c.ingest(name, "shared", content="t", groups=[group], wait="searchable")
        await refused(
            c.ingest(name, "own", content="t", groups=[group], wait="searchable"),
            ErrorCode.FORBIDDEN,
        )
        await refused(c.ingest(name, "new", content="n"), ErrorCode.FORBIDDEN)
        await c.ingest(name, "new", content="n", groups=[group], wait="searchable")
        await refused(c.get_access(name, "shared"), ErrorCode.FORBIDDEN)
        await c.delete(name, "shared", wait="searchable")
        await refused(c.delete(name, "own", wait="searchable"), ErrorCode.FORBIDDEN)


async def test_an_old_list_put_back_opens_nothing(world):
    name = await index(world)
    alice, bob = await user(world), await user(world)
    async with alice.client() as a:
        await a.ingest(name, "doc", content="secret", wait="searchable")
        await a.add_access(name, "doc", [bob.group])
        uid = (await a.describe_index(name))["uid"]
        before = {
            key: (await world.store.get(key)).data
            for key in world.stored()
            if f"realm/access/{uid}" in key
        }
        assert len(before) == 1
        await a.remove_access(name, "doc", [bob.group])
    await world.latest.end()
    for key, data in before.items():
        await world.store.put(key, data)
    await world.start_service()
    async with alice.client() as a, bob.client() as b:
        with pytest.raises(Damaged):
            await b.get_access(name, "doc")
        with pytest.raises(Damaged):
            await a.get(name, ["doc"], include=["content"])
    for key in before:
        await world.store.delete([key])
    await world.latest.end()
    await world.start_service()
    async with alice.client() as a:
        with pytest.raises(Damaged):
            await a.get_access(name, "doc")


async def test_user_keys_through_the_client(world):
    name = await index(world)
    async with client(world) as admin:
        keys = {
            user_id: await admin.create_user_key(name, user_id, permissions)
            for user_id, permissions in (("r", ["read"]), ("w", ["write"]))
        }
        listed = await admin.list_user_keys(name)
        assert [one["user_id"] for one in listed] == ["r", "w"]
    async with (
        client(world, user_key=("r", keys["r"])) as reader,
        client(world, user_key=("w", keys["w"])) as writer,
    ):
        done = await writer.ingest(name, "doc", content="x", keywords=["k"])
        hits = await reader.get(name, ["doc"], include=["content"], after=[done])
        assert [hit.content for hit in hits] == ["x"]
        await refused(reader.ingest(name, "e", content="y"), ErrorCode.FORBIDDEN)
        await refused(reader.add_keywords(name, "doc", ["z"]), ErrorCode.FORBIDDEN)
        await refused(writer.get(name, ["doc"]), ErrorCode.FORBIDDEN)
        await refused(writer.get_access(name, "doc"), ErrorCode.FORBIDDEN)
        await refused(reader.add_access(name, "doc", [str(uuid4())]), ErrorCode.FORBIDDEN)
        assert len((await reader.get_access(name, "doc"))["groups"]) == 1
        async with client(world) as admin:
            await admin.delete_user_key(name, "r")
        await refused(reader.get(name, ["doc"]), ErrorCode.UNAUTHENTICATED)


async def test_a_user_key_in_the_settings_counts_instead_of_a_token(world, tmp_path):
    name = await index(world)
    async with client(world) as admin:
        key = await admin.create_user_key(name, "r", ["read"])
        await admin.ingest(name, "doc", content="x", wait="searchable")
    path = tmp_path / "user.key"
    path.write_bytes(key)
    settings = world.settings.model_copy(update={"user_id": "r", "user_key_file": path})
    path.chmod(0o644)
    with pytest.raises(Fatal, match="chmod"):
        Client(settings, broker=world.broker)
    path.chmod(0o600)
    async with Client(settings, broker=world.broker) as reader:
        assert await reader.count(name) == 1
        await refused(reader.ingest(name, "e", content="y"), ErrorCode.FORBIDDEN)


async def test_application_tokens_through_the_client(world):
    alice = await user(world)
    async with alice.client() as a:
        for data in ("text", b"\x00\xff"):
            made = await a.create_token(data, 60)
            assert await a.open_token(made["token"]) == data


async def test_an_anonymous_client_only_logs_in(world):
    alice = await user(world)
    async with client(world, anonymous=True) as c:
        with pytest.raises(Reject, match="no credential"):
            await c.list_indexes()
        with pytest.raises(Reject, match="no credential"):
            await c.query("any", {"count": True})
        new = await c.change_password(alice.id, alice.password)
        assert await c.log_in(alice.id, new)
    async with alice.client() as a:
        await refused(a.list_indexes(), ErrorCode.UNAUTHENTICATED)
