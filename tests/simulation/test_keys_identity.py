"""Users, groups, tokens and user keys through the topics."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.audit import AuditRecord
from schemas.auth import Auth, Scope
from schemas.codec import decode
from schemas.errors import ErrorCode
from schemas.topics import ADMIN_REQUEST, ADMIN_RESULT
from schemas.values import encode_base64
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.errors import Reject, Retry
from workers.identity import password as passwords
from workers.identity.standalone import LOGIN_LIFE_S
from workers.identity.token import make_token
from workers.kafka.broker import Record
from workers.keys.realm import RealmPurpose, open_realm

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import Caller, World

ALL = [scope.value for scope in Scope]


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """What Argon2id costs is no part of these tests."""
    monkeypatch.setattr(passwords, "MEMORY_KIB", 64)


async def ok(world, op, args, **changes):
    result = await world.admin(op, args, **changes)
    assert result.error is None, result.error
    return result.result


async def refused(world, op, args, code, **changes):
    result = await world.admin(op, args, **changes)
    assert result.error is not None, result.result
    assert result.error.code is code
    last = audits(world)[-1]
    assert (last.event, last.decision, last.why) == (op, "deny", code)
    return result.error


def audits(world):
    found = [decode(AuditRecord, r.value) for r in world.broker.records("key-audit")]
    return [record for record in found if record.event != "checkpoint"]


async def user(world, *scopes, **changes):
    """Create a user and log it in; return what user.create said, and its token in `token`."""
    made = await ok(world, "user.create", {"scopes": [s.value for s in scopes]}, **changes)
    return {**made, "token": await token(world, made)}


async def token(world, made, password=None):
    args = {"user_id": made["user_id"], "password": password or made["password"]}
    return (await ok(world, "user.login", args, auth=None))["token"]


def by(who):
    return {"auth": {"token": who["token"]}}


async def test_a_user_logs_in_and_acts_with_its_own_scopes(world):
    await world.create("acme/docs")
    made = await user(world, Scope.INDEX, Scope.DECRYPT)
    assert len(made["password"]) == 32
    listed = await ok(world, "index.list", {}, **by(made))
    assert [one["index"] for one in listed["indexes"]] == ["acme/docs"]
    await refused(world, "token.create", {"data": "x", "ttl_s": 9}, ErrorCode.FORBIDDEN, **by(made))
    holder = await world.holder("query-1")
    decision = await holder.decide("acme/docs", Auth(token=made["token"]))
    assert decision.caller == made["user_id"]
    assert decision.scopes == {Scope.INDEX, Scope.DECRYPT}
    assert decision.groups == (made["default_group"],)
    ingest = await world.holder("ingest-1")
    only_reads = (await user(world, Scope.DECRYPT))["token"]
    with pytest.raises(Reject, match="FORBIDDEN"):
        await ingest.decide("acme/docs", Auth(token=only_reads))


async def test_the_password_is_shown_once_and_kept_nowhere(world):
    made = await user(world, Scope.INDEX)
    for key in world.stored():
        data = (await world.store.get(key)).data
        assert made["password"].encode() not in data
        assert made["user_id"].encode() not in data
        assert made["user_id"] not in key
    for topic in ("key-audit", "key-directory", ADMIN_REQUEST, ADMIN_RESULT):
        for record in world.broker.records(topic):
            assert made["password"].encode() not in (record.value or b"")


async def test_a_request_that_is_delivered_again_makes_the_same_user_and_password(world):
    await world.running.end()
    service = await world.service()
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    made = await world.admin_record("user.create", {"scopes": ["Index"]}, reply)
    await service.handle(Record(ADMIN_REQUEST, 0, 7, 0, *made))
    # Another instance, which has no memory of it, gets the very same record.
    other = await world.service()
    await other.handle(Record(ADMIN_REQUEST, 0, 7, 0, *made))
    # And a copy of it.
    await other.handle(Record(ADMIN_REQUEST, 0, 8, 0, *made))
    third = await world.service()
    await third.handle(Record(ADMIN_REQUEST, 0, 9, 0, *made))
    results = [world.open_result(r, reply) for r in world.broker.records(ADMIN_RESULT)]
    assert results[0].result == results[1].result
    # The copy: by memory a dead letter, by what is stored an error.
    assert len(results) == 3
    assert results[2].error.code is ErrorCode.CONFLICT
    assert world.audited("user.create", "deny") == 2


async def test_login_tells_nobody_who_exists(world, monkeypatch):
    made = await user(world, Scope.INDEX)
    work = []
    real = passwords.is_password
    monkeypatch.setattr(passwords, "is_password", lambda *a: work.append(1) or real(*a))
    errors = []
    for user_id in (made["user_id"], str(uuid4())):
        for op in ("user.login", "user.change_password"):
            args = {"user_id": user_id, "password": "wrong"}
            before = len(work)
            error = await refused(world, op, args, ErrorCode.UNAUTHENTICATED, auth=None)
            errors.append((op, error.message, error.field, len(work) - before))
            assert audits(world)[-1].caller == user_id
    assert errors[:2] == errors[2:]
    assert all(cost > 0 for *_, cost in errors)
    admin = {"user_id": (await open_realm(world.store, world.kms)).administrator.id}
    await refused(
        world, "user.login", {**admin, "password": "x"}, ErrorCode.UNAUTHENTICATED, auth=None
    )


async def test_password_checks_run_a_few_at_a_time_beside_the_loop(monkeypatch):
    checks = passwords.Passwords()
    known = await checks.hash("right")
    running, most = 0, 0
    real = passwords.is_password

    def slow(*arguments):
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return real(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(passwords, "is_password", slow)
    tried = [checks.check("wrong", known) for _ in range(passwords.MAX_WAITING + 5)]
    done = await asyncio.gather(*tried, return_exceptions=True)
    overloaded = [one for one in done if isinstance(one, Retry)]
    assert len(overloaded) == 5
    assert overloaded[0].code is ErrorCode.OVERLOADED
    assert most <= passwords.WORKERS
    assert await checks.check("right", known)
    assert not await checks.check("right", None)
    checks.close()


async def test_a_changed_password_ends_old_tokens(world):
    made = await user(world, Scope.INDEX)
    args = {"user_id": made["user_id"], "password": made["password"]}
    changed = await ok(world, "user.change_password", args, auth=None)
    assert changed["password"] != made["password"]
    await refused(world, "index.list", {}, ErrorCode.UNAUTHENTICATED, **by(made))
    await refused(world, "user.login", args, ErrorCode.UNAUTHENTICATED, auth=None)
    again = {"token": await token(world, made, changed["password"])}
    await ok(world, "index.list", {}, **by(again))


async def test_a_password_change_that_is_delivered_again_returns_the_same(world):
    made = await user(world, Scope.INDEX)
    await world.running.end()
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    args = {"user_id": made["user_id"], "password": made["password"]}
    asked = await world.admin_record("user.change_password", args, reply, auth=None)
    for _ in range(2):
        service = await world.service()
        await service.handle(Record(ADMIN_REQUEST, 0, 70, 0, *asked))
    first, second = [world.open_result(r, reply) for r in world.broker.records(ADMIN_RESULT)[-2:]]
    assert first.result == second.result
    assert first.error is None


async def test_tokens_end_and_application_tokens_are_no_identity(world):
    made = await user(world, Scope.CREATE_TOKEN, Scope.GET_TOKEN_CONTENTS, Scope.INDEX)
    world.clock.pass_s(LOGIN_LIFE_S)
    await refused(world, "index.list", {}, ErrorCode.EXPIRED, **by(made))
    made["token"] = await token(world, made)
    for data in ("text é", {"base64": encode_base64(b"\xff\x00")}):
        app = await ok(world, "token.create", {"data": data, "ttl_s": 60}, **by(made))
        opened = await ok(world, "token.open", {"token": app["token"]}, **by(made))
        assert opened["data"] == data
        assert opened["expires_ms"] == app["expires_ms"]
    bad = ErrorCode.UNAUTHENTICATED
    await refused(world, "index.list", {}, bad, auth={"token": app["token"]})
    # Nor with the prefix of the other kind, nor the other way round.
    disguised = "slid1_" + app["token"].removeprefix("slap1_")
    await refused(world, "index.list", {}, bad, auth={"token": disguised})
    swapped = {"token": "slap1_" + made["token"].removeprefix("slid1_")}
    await refused(world, "token.open", swapped, ErrorCode.INVALID_MESSAGE, **by(made))
    world.clock.pass_s(60)
    expired = {"token": app["token"]}
    await refused(world, "token.open", expired, ErrorCode.EXPIRED, **by(made))
    writer = await user(world, Scope.ENCRYPT)
    await refused(world, "token.open", expired, ErrorCode.FORBIDDEN, **by(writer))


async def test_only_administrators_make_users_and_only_with_scopes_they_have(world):
    made = await user(world, *Scope)
    await refused(world, "user.create", {"scopes": []}, ErrorCode.FORBIDDEN, **by(made))
    other = await user(world, Scope.INDEX)
    # Any user may delete any user: not here.
    delete = {"user_id": other["user_id"]}
    await refused(world, "user.delete", delete, ErrorCode.FORBIDDEN, **by(made))
    await ok(world, "user.delete", delete, **by(other))
    await refused(world, "index.list", {}, ErrorCode.UNAUTHENTICATED, **by(other))
    await refused(world, "user.delete", delete, ErrorCode.NOT_FOUND)
    # The group of the administrator makes administrators.
    realm = await open_realm(world.store, world.kms)
    group = realm.administrator.default_group
    few = await user(world, Scope.INDEX, Scope.MODIFY_ACCESS_GROUPS)
    await ok(world, "group.add_members", {"group_id": group, "user_ids": [few["user_id"]]})
    await ok(world, "user.create", {"scopes": ["Index"]}, **by(few))
    await refused(world, "user.create", {"scopes": ["Decrypt"]}, ErrorCode.FORBIDDEN, **by(few))
    keeper = {"user_id": realm.administrator.id}
    await refused(world, "user.delete", keeper, ErrorCode.FORBIDDEN, **by(few))
    await ok(world, "group.remove_members", {"group_id": group, "user_ids": [few["user_id"]]})
    await refused(world, "user.create", {"scopes": []}, ErrorCode.FORBIDDEN, **by(few))


async def test_only_members_change_a_group(world):
    maker = await user(world, Scope.MODIFY_ACCESS_GROUPS, Scope.DECRYPT)
    friend, stranger = [await user(world, Scope.INDEX) for _ in range(2)]
    group = await ok(world, "group.create", {"scopes": ["Decrypt"]}, **by(maker))
    await refused(world, "group.create", {"scopes": ["Delete"]}, ErrorCode.FORBIDDEN, **by(maker))
    await refused(world, "group.create", {"scopes": []}, ErrorCode.FORBIDDEN, **by(friend))
    add = {"group_id": group["group_id"], "user_ids": [friend["user_id"]]}
    # Not even the administrator.
    for who in (by(stranger), by(friend), {}):
        await refused(world, "group.add_members", add, ErrorCode.FORBIDDEN, **who)
    await ok(world, "group.add_members", add, **by(maker))
    # A member without the scope may not either.
    await refused(world, "group.remove_members", add, ErrorCode.FORBIDDEN, **by(friend))
    unknown = {**add, "user_ids": [str(uuid4())]}
    await refused(world, "group.add_members", unknown, ErrorCode.NOT_FOUND, **by(maker))
    own = {"group_id": maker["default_group"], "user_ids": [friend["user_id"]]}
    await refused(world, "group.add_members", own, ErrorCode.FORBIDDEN, **by(maker))
    await world.create("acme/docs")
    holder = await world.holder("query-1")
    decision = await holder.decide("acme/docs", Auth(token=friend["token"]))
    assert set(decision.groups) == {friend["default_group"], group["group_id"]}
    assert decision.scopes == {Scope.INDEX}
    assert decision.groups_with(Scope.DECRYPT) == (group["group_id"],)
    assert set(decision.groups_with(Scope.INDEX)) == set(decision.groups)
    await ok(world, "group.remove_members", add, **by(maker))
    world.clock.pass_s(61)
    decision = await holder.decide("acme/docs", Auth(token=friend["token"]))
    assert decision.groups == (friend["default_group"],)


async def test_a_credential_asks_for_less_of_group_scopes_too(world):
    maker = await user(world, Scope.MODIFY_ACCESS_GROUPS, Scope.DECRYPT, Scope.INDEX)
    group = await ok(world, "group.create", {"scopes": ["Decrypt", "Index"]}, **by(maker))
    member = await user(world, Scope.INDEX)
    args = {"group_id": group["group_id"], "user_ids": [member["user_id"]]}
    await ok(world, "group.add_members", args, **by(maker))
    await world.create("a")
    caller = Caller(world, token=member["token"])
    holder = await world.holder("query-1")
    auth = caller.auth("a", scopes=(Scope.INDEX,))
    decision = await holder.decide("a", auth, **caller.proof(topic="query-request"))
    assert decision.any_scopes == {Scope.INDEX}


async def put_back(world, kind, change):
    """Change records and put every object of the kind back as it was before."""
    before = {k: (await world.store.get(k)).data for k in world.stored() if f"realm/{kind}/" in k}
    assert before
    await change()
    return before


@pytest.mark.parametrize("how", ["older", "deleted"])
async def test_a_user_record_put_back_is_refused(world, how):
    made, other = await user(world, Scope.INDEX), await user(world, Scope.INDEX)
    before = await put_back(
        world, "users", lambda: ok(world, "user.delete", {"user_id": made["user_id"]})
    )
    await refused(world, "index.list", {}, ErrorCode.UNAUTHENTICATED, **by(made))
    await world.latest.end()
    for key, data in before.items():
        if how == "older":
            await world.store.put(key, data)
        else:
            await world.store.delete([key])
    # A new process knows the floors from key-directory alone.
    await world.start_service()
    await refused(world, "index.list", {}, ErrorCode.DAMAGED, **by(made))
    login = {"user_id": made["user_id"], "password": made["password"]}
    await refused(world, "user.login", login, ErrorCode.DAMAGED, auth=None)
    assert other["user_id"] != made["user_id"]


async def test_a_record_moved_to_another_page_does_not_open(world):
    made = await user(world, Scope.INDEX)
    [page] = [k for k in world.stored() if "realm/users/" in k]
    group = await ok(world, "group.create", {"scopes": []})
    [groups] = [k for k in world.stored() if "realm/groups/" in k]
    assert group
    await world.latest.end()
    await world.store.put(page, (await world.store.get(groups)).data)
    await world.start_service()
    await refused(world, "index.list", {}, ErrorCode.DAMAGED, **by(made))


async def test_a_floor_that_was_not_published_is_published_by_the_repetition(world):
    await world.running.end()
    service = await world.service()
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    made = await world.admin_record("user.create", {"scopes": ["Index"]}, reply)
    world.broker.drop_next("key-directory")
    with pytest.raises(Retry):
        await service.handle(Record(ADMIN_REQUEST, 0, 7, 0, *made))
    assert not world.broker.records(ADMIN_RESULT)
    await service.handle(Record(ADMIN_REQUEST, 0, 7, 0, *made))
    [result] = world.broker.records(ADMIN_RESULT)
    assert world.open_result(result, reply).error is None
    assert any((r.key or b"").startswith(b"#users/") for r in world.broker.records("key-directory"))


async def test_two_instances_change_records_side_by_side(world):
    await world.start_service("keys-2")
    made = [ok(world, "user.create", {"scopes": ["Index"]}) for _ in range(12)]
    users = await asyncio.gather(*made)
    assert len({one["user_id"] for one in users}) == 12
    for one in users:
        await token(world, one)


async def test_expired_request_ids_are_forgotten(world):
    await user(world, Scope.INDEX)
    remembered = [k for k in world.stored() if "realm/requests/" in k]
    assert len(remembered) == 1
    await world.running.end()
    service = await world.service()
    await service._once.sweep()
    assert [k for k in world.stored() if "realm/requests/" in k] == remembered
    world.clock.pass_s(661)
    await service._once.sweep()
    assert not [k for k in world.stored() if "realm/requests/" in k]


async def test_user_keys_read_or_write_and_end(world):
    await world.create("acme/docs")
    await world.create("other")
    keys = {}
    for name, permissions in (("r", ["read"]), ("w", ["write"]), ("rw", ["write", "read"])):
        args = {"index": "acme/docs", "user_id": name, "permissions": permissions}
        keys[name] = (await ok(world, "user_key.create", args))["user_key"]
    await refused(world, "user_key.create", args, ErrorCode.CONFLICT)
    listed = await ok(world, "user_key.list", {"index": "acme/docs"})
    assert [(k["user_id"], k["permissions"]) for k in listed["user_keys"]] == [
        ("r", ["read"]),
        ("rw", ["read", "write"]),
        ("w", ["write"]),
    ]
    ingest, query = await world.holder("ingest-1"), await world.holder("query-1")
    topics = {ingest: "plaintext-ingest", query: "query-request"}

    async def decided(holder, name, index="acme/docs", key=None):
        caller = Caller(world)
        auth = caller.auth(index, user_id=name, user_key=key or keys[name])
        return await holder.decide(index, auth, **caller.proof(topic=topics[holder]))

    for holder, allowed in ((ingest, {"w", "rw"}), (query, {"r", "rw"})):
        for name in keys:
            if name in allowed:
                assert (await decided(holder, name)).caller.endswith(f"/{name}")
            else:
                with pytest.raises(Reject, match="FORBIDDEN"):
                    await decided(holder, name)
    for wrong in ({"index": "other"}, {"key": keys["r"]}, {"key": encode_base64(b"short")}):
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            await decided(ingest, "rw", **wrong)
    # A user key administers nothing.
    auth = {"user_id": "rw", "user_key": keys["rw"]}
    index = {"index": "acme/docs"}
    assert (await ok(world, "index.describe", index, auth=auth))["index"] == "acme/docs"
    for op, args in (
        ("index.delete", index),
        ("user_key.list", index),
        ("user_key.delete", {**index, "user_id": "r"}),
        ("user_key.create", {**index, "user_id": "x", "permissions": ["read"]}),
    ):
        await refused(world, op, args, ErrorCode.FORBIDDEN, auth=auth)
    stranger = await user(world, *Scope)
    await refused(world, "user_key.list", index, ErrorCode.FORBIDDEN, **by(stranger))
    # Revoked.
    before = await put_back(
        world, "user-keys", lambda: ok(world, "user_key.delete", {**index, "user_id": "rw"})
    )
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        await decided(query, "rw")
    await decided(query, "r")
    # Put back, it opens nothing.
    await world.latest.end()
    for key, data in before.items():
        await world.store.put(key, data)
    await world.start_service()
    with pytest.raises(Reject, match="DAMAGED"):
        await decided(query, "rw")


async def test_a_user_key_opens_an_index_whose_callers_keep_its_key(world):
    own = bytes(range(32))
    auth = {"token": world.token, "index_key": encode_base64(own)}
    made = await world.create("mine", kms={"provider": "none"}, auth=auth)
    args = {"index": "mine", "user_id": "u", "permissions": ["read"]}
    await refused(world, "user_key.create", args, ErrorCode.WRONG_KEY)
    key = (await ok(world, "user_key.create", args, auth=auth))["user_key"]
    await world.latest.end()
    await world.start_service()
    # Nobody with the index's own key has come since the start.
    holder = await world.holder("query-1")
    caller = Caller(world)
    shown = caller.auth("mine", user_id="u", user_key=key)
    proof = caller.proof(topic="query-request")
    await holder.decide("mine", shown, **proof)
    lease = await holder.lease("mine", auth=shown, **caller.shown("query-request"))
    assert lease.uid.hex() == made["uid"]
    for stored in world.stored():
        assert own not in (await world.store.get(stored)).data
    await ok(world, "index.delete", {"index": "mine"}, auth=auth)
    assert not [k for k in world.stored() if "realm/user-keys/" in k]


async def test_a_forged_identity_token_is_refused(world):
    realm = await open_realm(world.store, world.kms)
    made = await user(world, Scope.INDEX)
    for purpose in (RealmPurpose.APP_TOKEN, RealmPurpose.USER):
        forged = make_token(realm.key(purpose), made["user_id"], now_s=time.time(), life_s=60)
        await refused(world, "index.list", {}, ErrorCode.UNAUTHENTICATED, auth={"token": forged})
    stranger = make_token(
        realm.key(RealmPurpose.IDENTITY_TOKEN), str(uuid4()), now_s=time.time(), life_s=60
    )
    await refused(world, "index.list", {}, ErrorCode.UNAUTHENTICATED, auth={"token": stranger})


async def test_nothing_secret_is_in_the_logs(world, capfd):
    made = await user(world, *Scope)
    app = await ok(world, "token.create", {"data": "canary-data", "ttl_s": 60}, **by(made))
    args = {"user_id": made["user_id"], "password": "wrong-canary"}
    await refused(world, "user.login", args, ErrorCode.UNAUTHENTICATED, auth=None)
    with contextlib.suppress(Reject):
        await (await world.holder("query-1")).decide("none", Auth(token=made["token"]))
    out, err = capfd.readouterr()
    for secret in (made["password"], made["token"], app["token"], "canary-data", "wrong-canary"):
        assert secret not in out + err
