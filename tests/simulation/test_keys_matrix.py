"""Every operation by every kind of caller: who may, who may not, why, and that the audit has it.

One row is an operation, one column a caller. A cell is OK or the code of the refusal. All callers
show sealed credentials and sign what they send; the columns:

    nobody       a token that this realm never made
    expired      a token that has ended
    elsewhere    a credential that was made for another index
    lacking      a user without the scope that the operation takes, else with all
    stranger     a user with all scopes, in no group of the document, the index, the group
    reader       a user key of the index that may read
    writer       a user key of the index that may write
    revoked      a user that was deleted, whose token has not ended
    right        a member with the scope that the operation takes, and no other
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from query_kit import ALL, PATIENCE_S, Caller, World, client, until, workers

from schemas.admin import AdminResult
from schemas.audit import AuditRecord
from schemas.auth import Auth, Scope
from schemas.codec import convert, decode, encode, to_plain
from schemas.errors import ErrorCode
from schemas.ingest import IngestRequest, IngestResult
from schemas.query import QueryRequest, QueryResult
from schemas.sealed import SealedValue
from schemas.topics import (
    HEADER_SIGNATURE,
    INGEST_RESULT,
    PLAINTEXT_INGEST,
    QUERY_REQUEST,
    QUERY_RESULT,
    dead_letter,
)
from schemas.values import encode_base64
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info, info
from workers.identity import password as passwords
from workers.identity.token import make_token
from workers.keys.realm import RealmPurpose, open_realm
from workers.leases.credential import sign_message

OK = None
E = ErrorCode
INDEX, ELSEWHERE = "acme/docs", "acme/other"


@dataclass
class Who:
    """A caller: what its credential holds, and the scopes it asks for."""

    caller: Caller
    fields: dict[str, Any] = field(default_factory=dict)
    elsewhere: bool = False

    def auth(self, index: str | None) -> Auth:
        if self.elsewhere:
            index = ELSEWHERE
        return self.caller.auth(index, **self.fields)


@dataclass
class Stage:
    """The world, with documents, groups and callers in it."""

    world: World
    owner: dict[str, Any]
    group: str
    keys: dict[str, bytes]
    stranger: dict[str, Any]
    revoked: dict[str, Any]
    by_scopes: dict[frozenset[Scope], dict[str, Any]] = field(default_factory=dict)

    def token(self, made: dict[str, Any], *, life_s: int = 3600, key: Any = None) -> str:
        now_s = time.time() - (7200 if life_s < 0 else 0)
        return make_token(key or self.token_key, made["user_id"], now_s=now_s, life_s=abs(life_s))

    token_key: Any = None

    async def user(self, scopes: frozenset[Scope], *, member: bool) -> dict[str, Any]:
        """Return a user with these scopes, who is in the group or not."""
        name = scopes | ({"member"} if member else set())
        if name not in self.by_scopes:
            async with client(self.world) as admin:
                made = await admin.create_user(sorted(scopes))
                if member:
                    await admin.add_members(self.group, [made["user_id"]])
            self.by_scopes[name] = made
        return self.by_scopes[name]

    async def who(self, column: str, scope: Scope | None) -> Who:
        caller = Caller(self.world)
        every = frozenset(Scope)
        if column == "nobody":
            return Who(caller, {"token": "slid1_AAAA"})
        if column in ("reader", "writer"):
            key = encode_base64(self.keys[column])
            return Who(caller, {"user_id": column, "user_key": key})
        if column == "stranger":
            return Who(caller, {"token": self.token(self.stranger)})
        if column == "revoked":
            return Who(caller, {"token": self.token(self.revoked)})
        if column == "lacking":
            made = await self.user(every - ({scope} if scope else set()), member=True)
            return Who(caller, {"token": self.token(made)})
        wanted = frozenset({scope}) if scope and column == "right" else every
        made = await self.user(wanted, member=True)
        life_s = -60 if column == "expired" else 3600
        token = {"token": self.token(made, life_s=life_s)}
        return Who(caller, token, elsewhere=column == "elsewhere")

    def denials(self) -> list[AuditRecord]:
        found = [decode(AuditRecord, r.value) for r in self.world.broker.records("key-audit")]
        return [one for one in found if one.decision == "deny"]


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> Any:
    before, passwords.MEMORY_KIB = passwords.MEMORY_KIB, 64
    world = World(Path(tmp_path_factory.mktemp("world")), decision_cache_s=0)
    await world.open()
    async with workers(world, *ALL):
        realm = await open_realm(world.store, world.kms)
        async with client(world) as admin:
            # The administrators' group owns the indexes; who is in it may administer them.
            group = realm.administrator.default_group
            keys = {}
            for name in (INDEX, ELSEWHERE):
                await admin.create_index(name)
            for user_id, permission in (("reader", "read"), ("writer", "write")):
                keys[user_id] = await admin.create_user_key(INDEX, user_id, [permission])
            owner = await admin.create_user(list(Scope))
            stranger = await admin.create_user(list(Scope))
            revoked = await admin.create_user(list(Scope))
            await admin.add_members(group, [owner["user_id"], revoked["user_id"]])
            await admin.delete_user(revoked["user_id"])
            for number in range(40):
                await admin.ingest(INDEX, f"doc-{number}", content="x", wait="accepted")
            await admin.ingest(INDEX, "doc", content="word", keywords=["k"], wait="searchable")
        await world.directory.refresh()
        yield Stage(
            world,
            owner,
            group,
            keys,
            stranger,
            revoked,
            token_key=realm.key(RealmPurpose.IDENTITY_TOKEN),
        )
    await world.aclose()
    passwords.MEMORY_KIB = before


# --- how an operation is sent -----------------------------------------------------------------


async def ingest(stage: Stage, who: Who, body: dict[str, Any]) -> ErrorCode | None:
    """Send a message in clear, with a sealed credential, and return its last word."""
    world = stage.world
    plain = {
        "v": 1,
        "index": INDEX,
        "auth": to_plain(who.auth(INDEX)),
        "message_id": str(uuid4()),
        "issued_ms": int(time.time() * 1000),
        **body,
    }
    value = encode(convert(IngestRequest, plain))
    key = f"{INDEX}/{body['id']}".encode()
    signature = sign_message(who.caller.session, PLAINTEXT_INGEST, key, value)
    at = await world.producer.send_and_wait(
        PLAINTEXT_INGEST, value, key=key, headers=((HEADER_SIGNATURE, signature),)
    )

    def results() -> list[IngestResult]:
        records = [r for r in world.broker.records(INGEST_RESULT) if r.key == key]
        found = [decode(IngestResult, record.value) for record in records]
        return [
            one
            for one in found
            if one.source and (one.source.partition, one.source.offset) == tuple(at)
        ]

    [first] = await until(world, results)
    if first.error is not None:
        return first.error.code
    async with client(world) as admin:
        # Once the shard has it, a late refusal has been told.
        await admin.query(INDEX, {"count": True}, after=[first])
    late = [one.error.code for one in results() if one.error is not None]
    return late[0] if late else OK


async def query(stage: Stage, who: Who, body: dict[str, Any]) -> tuple[Any, QueryResult]:
    world, reply = stage.world, HpkePrivateKey.generate(HpkeSuite.X25519)
    request_id = str(uuid4())
    plain = {
        "v": 1,
        "request_id": request_id,
        "index": INDEX,
        "auth": to_plain(who.auth(INDEX)),
        "message_id": str(uuid4()),
        "issued_ms": int(time.time() * 1000),
        "reply": {"public_key": encode_base64(reply.public.encode())},
        **body,
    }
    value = encode(convert(QueryRequest, plain))
    signature = sign_message(who.caller.session, QUERY_REQUEST, b"k", value)
    await world.producer.send_and_wait(
        QUERY_REQUEST, value, key=b"k", headers=((HEADER_SIGNATURE, signature),)
    )
    [record] = await until(
        world,
        lambda: [r for r in world.broker.records(QUERY_RESULT) if r.key == request_id.encode()],
    )
    sealed = decode(SealedValue, record.value)
    opened = reply.open(info(Info.QUERY_RESULT, request_id), sealed.ciphertext())
    result = decode(QueryResult, opened)
    return result.error.code if result.error else OK, result


async def admin(
    stage: Stage, who: Who, op: str, args: dict[str, Any], index: str | None
) -> tuple[Any, AdminResult]:
    result = await stage.world.admin(
        op, args, auth={"sealed": who.auth(index).sealed}, caller=who.caller
    )
    return result.error.code if result.error else OK, result


# --- the rows ---------------------------------------------------------------------------------

Send = Callable[[Stage, Who], Awaitable[Any]]


@dataclass
class Row:
    """An operation, the scope it takes, and what differs from the common answers."""

    name: str
    scope: Scope | None
    send: Send
    differs: dict[str, Any] = field(default_factory=dict)
    events: tuple[str, ...] = ("decision", "refusal")


_COMMON = {
    "nobody": E.UNAUTHENTICATED,
    "expired": E.EXPIRED,
    "elsewhere": E.UNAUTHENTICATED,
    "lacking": E.FORBIDDEN,
    "stranger": E.FORBIDDEN,
    "reader": E.FORBIDDEN,
    "writer": E.FORBIDDEN,
    "revoked": E.UNAUTHENTICATED,
    "right": OK,
}
COLUMNS = tuple(_COMMON)
_numbers = iter(range(40))


def writing(name: str, scope: Scope, make: Callable[[], dict[str, Any]], **differs: Any) -> Row:
    async def send(stage: Stage, who: Who) -> Any:
        return await ingest(stage, who, make())

    return Row(name, scope, send, {"writer": OK, **differs})


def reading(name: str, scope: Scope, body: dict[str, Any], shows: Any, **differs: Any) -> Row:
    """A query; a stranger is not refused but finds nothing."""

    async def send(stage: Stage, who: Who) -> Any:
        code, result = await query(stage, who, body)
        if code is OK:
            return OK if shows(result) else "nothing"
        return code

    return Row(name, scope, send, {"reader": OK, "stranger": "nothing", **differs})


def administering(
    op: str,
    scope: Scope | None,
    args: Callable[[Stage], Awaitable[dict[str, Any]] | dict[str, Any]],
    *,
    index: str | None = INDEX,
    **differs: Any,
) -> Row:
    async def send(stage: Stage, who: Who) -> Any:
        given = args(stage)
        if not isinstance(given, dict):
            given = await given
        named = given.get("index") if index is not None else None
        code, _ = await admin(stage, who, op, given, named)
        return code

    if index is None:
        # A user key is for an index: it says nothing where there is none.
        differs = {"reader": E.UNAUTHENTICATED, "writer": E.UNAUTHENTICATED, **differs}
    return Row(op, scope, send, differs, (op,))


async def _fresh_user(stage: Stage) -> dict[str, Any]:
    async with client(stage.world) as c:
        return await c.create_user([])


async def _delete_fresh_user(stage: Stage) -> dict[str, Any]:
    return {"user_id": (await _fresh_user(stage))["user_id"]}


async def _add_fresh_user(stage: Stage) -> dict[str, Any]:
    return {"group_id": stage.group, "user_ids": [(await _fresh_user(stage))["user_id"]]}


async def _delete_fresh_index(stage: Stage) -> dict[str, Any]:
    name = f"i{uuid4()}"
    async with client(stage.world) as c:
        await c.create_index(name)
    await stage.world.directory.refresh()
    return {"index": name}


async def _delete_fresh_key(stage: Stage) -> dict[str, Any]:
    user_id = str(uuid4())
    async with client(stage.world) as c:
        await c.create_user_key(INDEX, user_id, ["read"])
    return {"index": INDEX, "user_id": user_id}


async def _app_token(stage: Stage) -> dict[str, Any]:
    async with client(stage.world) as c:
        return {"token": (await c.create_token("data", 600))["token"]}


def found(result: QueryResult) -> bool:
    return any(hit.id == "doc" for hit in result.hits)


ROWS = [
    # A new document belongs to who makes it: everybody with the scope is right.
    writing(
        "upsert new",
        Scope.ENCRYPT,
        lambda: {"id": f"new-{uuid4()}", "content": "n"},
        stranger=OK,
    ),
    writing("delete", Scope.DELETE, lambda: {"op": "delete", "id": f"doc-{next(_numbers)}"}),
    writing(
        "add_keywords",
        Scope.INDEX,
        lambda: {"op": "add_keywords", "id": "doc", "keywords": [str(uuid4())]},
    ),
    writing(
        "remove_keywords",
        Scope.INDEX,
        lambda: {"op": "remove_keywords", "id": "doc", "keywords": [str(uuid4())]},
    ),
    # A pair without a document is nobody's: there the scope alone decides.
    writing(
        "add_keywords without a document",
        Scope.INDEX,
        lambda: {"op": "add_keywords", "id": f"pair-{uuid4()}", "keywords": ["k2"]},
        stranger=OK,
    ),
    reading("keyword", Scope.INDEX, {"query": {"keyword": "k"}}, found),
    reading("text", Scope.INDEX, {"query": {"text": "word"}}, found),
    reading("get", Scope.INDEX, {"query": {"get": ["doc"]}}, found),
    reading("ids", Scope.INDEX, {"query": {"ids": True}}, found),
    reading("filter_only", Scope.INDEX, {"query": {"filter_only": True}, "top_k": 100}, found),
    reading("count", Scope.INDEX, {"query": {"count": True}}, lambda r: (r.count or 0) > 20),
    administering("index.list", Scope.INDEX, lambda _: {}, index=None, stranger=OK),
    administering(
        "index.create",
        Scope.INDEX,
        lambda _: {"index": f"i{uuid4()}"},
        stranger=OK,
        reader=E.UNAUTHENTICATED,
        writer=E.UNAUTHENTICATED,
    ),
    administering(
        "index.describe", Scope.INDEX, lambda _: {"index": INDEX}, stranger=OK, reader=OK, writer=OK
    ),
    administering(
        "index.delete",
        Scope.INDEX,
        _delete_fresh_index,
        # A user key of another index.
        reader=E.UNAUTHENTICATED,
        writer=E.UNAUTHENTICATED,
    ),
    administering(
        "user_key.create",
        Scope.INDEX,
        lambda _: {"index": INDEX, "user_id": str(uuid4()), "permissions": ["read"]},
    ),
    administering("user_key.list", Scope.INDEX, lambda _: {"index": INDEX}),
    administering("user_key.delete", Scope.INDEX, _delete_fresh_key),
    administering("user.create", Scope.MODIFY_ACCESS_GROUPS, lambda _: {"scopes": []}, index=None),
    administering("user.delete", Scope.MODIFY_ACCESS_GROUPS, _delete_fresh_user, index=None),
    administering(
        "group.create",
        Scope.MODIFY_ACCESS_GROUPS,
        lambda _: {"scopes": []},
        index=None,
        stranger=OK,
    ),
    administering("group.add_members", Scope.MODIFY_ACCESS_GROUPS, _add_fresh_user, index=None),
    administering("group.remove_members", Scope.MODIFY_ACCESS_GROUPS, _add_fresh_user, index=None),
    administering(
        "access.get", Scope.GET_ACCESS_GROUPS, lambda _: {"index": INDEX, "id": "doc"}, reader=OK
    ),
    administering(
        "access.add",
        Scope.MODIFY_ACCESS_GROUPS,
        lambda _: {"index": INDEX, "id": "doc", "groups": [str(uuid4())]},
    ),
    administering(
        "access.remove",
        Scope.MODIFY_ACCESS_GROUPS,
        lambda _: {"index": INDEX, "id": "doc", "groups": [str(uuid4())]},
    ),
    administering(
        "token.create",
        Scope.CREATE_TOKEN,
        lambda _: {"data": "x", "ttl_s": 60},
        index=None,
        stranger=OK,
    ),
    administering("token.open", Scope.GET_TOKEN_CONTENTS, _app_token, index=None, stranger=OK),
]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_cell(stage: Stage, row: Row, column: str) -> None:
    who = await stage.who(column, row.scope)
    before = len(stage.denials())
    async with asyncio.timeout(PATIENCE_S):
        answer = await row.send(stage, who)
    assert answer == {**_COMMON, **row.differs}[column]
    if isinstance(answer, ErrorCode):
        await until(stage.world, lambda: len(stage.denials()) > before)
        events = {(one.event, one.why) for one in stage.denials()[before:]}
        assert any(event in row.events and why is answer for event, why in events), events
        if answer is E.FORBIDDEN and "refusal" not in dict(events):
            # Who was known is named; index workers, who tell of a refusal, meet no callers.
            assert all(one.caller for one in stage.denials()[before:])
    elif answer is OK:
        assert not [one for one in stage.denials()[before:] if one.event in row.events]


@pytest.mark.parametrize("column", COLUMNS)
async def test_overwriting(stage: Stage, column: str) -> None:
    """Takes Encrypt, and Update with a document that is there."""
    who = await stage.who(column, None)
    doc = f"over-{uuid4()}"
    async with client(stage.world) as c:
        await c.ingest(INDEX, doc, content="one", wait="searchable")
    if column in ("lacking", "right"):
        scopes = {Scope.ENCRYPT} if column == "lacking" else {Scope.ENCRYPT, Scope.UPDATE}
        made = await stage.user(frozenset(scopes), member=True)
        who = Who(who.caller, {"token": stage.token(made)})
    before = len(stage.denials())
    answer = await ingest(stage, who, {"id": doc, "content": "two"})
    assert answer == {**_COMMON, "writer": OK}[column]
    if answer is not OK:
        await until(stage.world, lambda: len(stage.denials()) > before)
        assert {one.why for one in stage.denials()[before:]} == {answer}


@pytest.mark.parametrize("column", COLUMNS)
async def test_content(stage: Stage, column: str) -> None:
    """Takes Decrypt besides Index, and a group of the document."""
    who = await stage.who(column, Scope.DECRYPT)
    if column == "right":
        made = await stage.user(frozenset({Scope.INDEX, Scope.DECRYPT}), member=True)
        who = Who(who.caller, {"token": stage.token(made)})
    before = len(stage.denials())
    code, result = await query(stage, who, {"query": {"get": ["doc"]}, "include": ["content"]})
    contents = [hit.content for hit in result.hits]
    expected = {**_COMMON, "reader": OK, "stranger": OK}[column]
    assert code == expected
    assert contents == (["word"] if column in ("reader", "right") else [])
    if code is not OK:
        await until(stage.world, lambda: len(stage.denials()) > before)
        assert {one.why for one in stage.denials()[before:]} == {code}


async def test_no_credential_at_all(stage: Stage) -> None:
    """Refused where the message is read: nobody is asked, so the audit has nothing to say."""
    world = stage.world
    value = encode({"v": 1, "index": INDEX, "id": "x", "content": "y"})
    await world.producer.send_and_wait(PLAINTEXT_INGEST, value, key=b"none")
    letters = dead_letter(PLAINTEXT_INGEST)
    known = len(world.broker.records(letters))
    await until(world, lambda: len(world.broker.records(letters)) >= max(1, known))


async def test_a_copied_credential_with_ones_own_reply_key(stage: Stage) -> None:
    who = await stage.who("stranger", None)
    right = await stage.who("right", Scope.INDEX)
    # The thief shows the credential of another, signs with a session of its own and asks for
    # answers to its own key.
    stolen = right.auth(INDEX)
    thief = Who(who.caller)
    thief.auth = lambda _index: stolen  # type: ignore[method-assign]
    code, result = await query(stage, thief, {"query": {"get": ["doc"]}})
    assert code is E.UNAUTHENTICATED
    assert not result.hits
    code = await ingest(stage, thief, {"op": "add_keywords", "id": "doc", "keywords": ["z"]})
    assert code is E.UNAUTHENTICATED
    code, _ = await admin(stage, thief, "index.describe", {"index": INDEX}, INDEX)
    assert code is E.UNAUTHENTICATED
    before = len(stage.denials())
    assert before
