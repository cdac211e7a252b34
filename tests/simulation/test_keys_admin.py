"""Operations on indexes through the topics."""

from __future__ import annotations

import sys
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.auth import Auth, Scope
from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.sealed import SealedValue
from schemas.topics import ADMIN_REQUEST, ADMIN_RESULT, INDEX_UPDATE
from schemas.values import encode_base64
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.errors import Reject, Retry
from workers.kafka.broker import Record
from workers.storage import layout

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import Caller, World

LETTERS = f"{ADMIN_REQUEST}.dead-letter"


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


async def test_shards_get_partitions_in_turn_and_the_directory_shows_them(world):
    count = await world.broker.partitions(INDEX_UPDATE)
    given = []
    for number, shards in enumerate((1, 3, 2)):
        made = await world.create(f"i{number}", shards=shards)
        entry = world.directory.index(f"i{number}")
        assert list(entry.partitions) == made["partitions"]
        assert entry.shards == shards == len(made["partitions"])
        given += made["partitions"]
    assert given == [number % count for number in range(6)]
    assert world.directory.by_uid(entry.uid) == entry


async def test_the_answer_comes_after_the_directory_entry(world):
    result = await world.admin("index.create", {"index": "acme/docs"})
    assert result.status == "ok"
    assert any(r.key == b"acme/docs" for r in world.broker.records("key-directory"))
    # Intent and outcome, both before the answer.
    assert world.audited("index.create", "none") == world.audited("index.create", "grant") == 1


async def test_create_describe_list_delete(world):
    made = await world.create("acme/docs", dimension=4, metric="dot", fields={"title": 2.0})
    assert made["config"]["metric"] == "dot"
    assert made["kms"] == {"provider": "local", "key_id": "local"}
    assert (await world.admin("index.describe", {"index": "acme/docs"})).result == made
    await world.create("b")
    listed = (await world.admin("index.list", {})).result["indexes"]
    assert [one["index"] for one in listed] == ["acme/docs", "b"]
    exists = await world.admin("index.create", {"index": "b"})
    assert exists.error.code is ErrorCode.INDEX_EXISTS
    for op in ("index.describe", "index.delete"):
        missing = await world.admin(op, {"index": "none"})
        assert missing.error.code is ErrorCode.UNKNOWN_INDEX
    uid = bytes.fromhex(made["uid"])
    await world.store.put(layout.head(uid, 0), b"head")
    holder = await world.holder("index-1")
    lease = await holder.lease("acme/docs")
    assert (await world.admin("index.delete", {"index": "acme/docs"})).status == "ok"
    assert not [key for key in world.stored() if uid.hex() in key]
    await world.directory.refresh()
    assert world.directory.find("acme/docs") is None
    with pytest.raises(Reject, match="UNKNOWN_INDEX"):
        await holder.lease("acme/docs")
    assert lease.wiped
    again = await world.create("acme/docs")
    assert again["uid"] != made["uid"]
    assert (await holder.lease("acme/docs")).uid.hex() == again["uid"]
    with pytest.raises(Reject, match="UNKNOWN_INDEX"):
        await holder.lease(None, uid=uid)


async def test_a_deletion_that_was_interrupted_goes_on(world):
    made = await world.create("acme/docs")
    uid = bytes.fromhex(made["uid"])
    await world.running.end()
    service = await world.service()
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    key, value, headers = await world.admin_record("index.delete", {"index": "acme/docs"}, reply)
    record = Record(ADMIN_REQUEST, 0, 0, 0, key, value, headers)
    world.broker.drop_next("key-directory")
    with pytest.raises(Retry):
        await service.handle(record)
    assert [k for k in world.stored() if uid.hex() in k]
    # Nobody gets its keys any more, and the name is not free yet.
    again = await world.service()
    await again.handle(record)
    [result] = world.broker.records(ADMIN_RESULT)[-1:]
    assert world.open_result(result, reply).status == "ok"
    assert not [k for k in world.stored() if uid.hex() in k]


async def test_names_and_arguments_that_are_refused(world):
    for args, code, field in (
        ({"index": "key-service"}, ErrorCode.INVALID_MESSAGE, "args.index"),
        (
            {"index": "a", "kms": {"provider": "aws", "key_id": "k"}},
            ErrorCode.UNSUPPORTED,
            "args.kms.provider",
        ),
        ({"index": "a", "kms": {"provider": "none"}}, ErrorCode.WRONG_KEY, "auth.index_key"),
        ({"index": "a", "analyzer": "klingon"}, ErrorCode.UNSUPPORTED, "args.analyzer"),
    ):
        refused = await world.admin("index.create", args)
        assert refused.error.code is code
        assert refused.error.field == field
    auth = {"token": world.token, "index_key": encode_base64(bytes(32))}
    refused = await world.admin("index.create", {"index": "a"}, auth=auth)
    assert refused.error.code is ErrorCode.INVALID_MESSAGE
    refused = await world.admin("kms.get", {"index": "a"})
    assert refused.error.code is ErrorCode.UNSUPPORTED
    assert not [key for key in world.stored() if "/keys/" in key]


async def test_who_may_not(world):
    await world.create("acme/docs")
    for token in ("slid1_AAAA", "nonsense"):
        refused = await world.admin("index.list", {}, auth={"token": token})
        assert refused.error.code is ErrorCode.UNAUTHENTICATED
    # An index key alone does not say who asks for something new.
    none = {"index": "mine", "kms": {"provider": "none"}}
    alone = {"index_key": encode_base64(bytes(32))}
    refused = await world.admin("index.create", none, auth=alone)
    assert refused.error.code is ErrorCode.UNAUTHENTICATED
    # Fewer scopes than the operation takes.
    caller = world.admin_caller
    auth = {"sealed": caller.auth("acme/docs", scopes=(Scope.DECRYPT,)).sealed}
    refused = await world.admin("index.delete", {"index": "acme/docs"}, auth=auth)
    assert refused.error.code is ErrorCode.FORBIDDEN
    assert (await world.admin("index.describe", {"index": "acme/docs"})).status == "ok"


async def test_a_sealed_credential_must_be_proved(world):
    await world.create("acme/docs")
    caller, thief = world.admin_caller, Caller(world)
    auth = {"sealed": caller.auth("acme/docs").sealed}
    args = {"index": "acme/docs"}
    assert (await world.admin("index.describe", args, auth=auth)).status == "ok"
    refused = await world.admin("index.describe", args, auth=auth, caller=thief)
    assert refused.error.code is ErrorCode.UNAUTHENTICATED
    foreign = {"sealed": caller.auth("other").sealed}
    refused = await world.admin("index.describe", args, auth=foreign)
    assert refused.error.code is ErrorCode.UNAUTHENTICATED


async def test_copies_and_old_requests_are_not_run(world):
    await world.running.end()
    service = await world.service()
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    key, value, headers = await world.admin_record("index.create", {"index": "a"}, reply)
    first = Record(ADMIN_REQUEST, 0, 0, 0, key, value, headers)
    await service.handle(first)
    await service.handle(first)
    assert len(world.broker.records(ADMIN_RESULT)) == 2
    await service.handle(Record(ADMIN_REQUEST, 0, 1, 0, key, value, headers))
    assert len(world.broker.records(ADMIN_RESULT)) == 2
    assert len(world.broker.records(LETTERS)) == 1
    world.clock.pass_s(601)
    await service.handle(Record(ADMIN_REQUEST, 0, 2, 0, key, value, headers))
    world.clock.pass_s(-601)
    for offset, junk in enumerate((b"", b"{}", b"\xff"), 3):
        await service.handle(Record(ADMIN_REQUEST, 0, offset, 0, key, junk, headers))
    stranger = HpkePrivateKey.generate(HpkeSuite.X25519).public
    sealed = encode(SealedValue.of(b"x" * 64, key_id=bytes(16), suite=stranger.suite))
    await service.handle(Record(ADMIN_REQUEST, 0, 6, 0, key, sealed, headers))
    assert len(world.broker.records(LETTERS)) == 6
    assert len(world.broker.records(ADMIN_RESULT)) == 2


async def test_a_copy_after_a_restart_is_not_run(world):
    await world.create("a")
    await world.running.end()
    service = await world.service()
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    args = {"principal": "worker/index-1", "indexes": ["none"]}
    key, value, headers = await world.admin_record("key.revoke", args, reply)
    await service.handle(Record(ADMIN_REQUEST, 0, 0, 0, key, value, headers))
    assert world.audited("key.revoke", "grant") == 1
    other = await world.service()
    await other.handle(Record(ADMIN_REQUEST, 0, 1, 0, key, value, headers))
    assert world.audited("key.revoke", "grant") == 1
    assert world.audited("key.revoke", "deny") == 1


async def test_a_copied_deletion_does_not_delete_the_next_index_of_the_name(world):
    await world.create("a")
    await world.running.end()
    service = await world.service()
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    key, value, headers = await world.admin_record("index.delete", {"index": "a"}, reply)
    await service.handle(Record(ADMIN_REQUEST, 0, 0, 0, key, value, headers))
    world.clock.pass_s(61)
    again = await world.admin_record("index.create", {"index": "a"}, reply)
    await service.handle(Record(ADMIN_REQUEST, 0, 1, 0, *again))
    # It never saw the deletion.
    other = await world.service()
    await other.handle(Record(ADMIN_REQUEST, 0, 2, 0, key, value, headers))
    results = [world.open_result(r, reply) for r in world.broker.records(ADMIN_RESULT)[-3:]]
    assert [one.status for one in results] == ["ok", "ok", "error"]
    assert results[-1].error.code is ErrorCode.CONFLICT
    await world.directory.refresh()
    assert world.directory.find("a") is not None


async def test_a_reply_key_that_nothing_can_be_sealed_to_is_refused(world):
    await world.running.end()
    service = await world.service()
    # Nobody has to be known to send this: the key service must outlive it.
    low = encode_base64(b"\x01" + bytes(32))
    reply = HpkePrivateKey.generate(HpkeSuite.X25519)
    changes = {"public_key": low, "auth": {"token": "nobody"}}
    key, value, headers = await world.admin_record("index.list", {}, reply, **changes)
    await service.handle(Record(ADMIN_REQUEST, 0, 0, 0, key, value, headers))
    assert len(world.broker.records(LETTERS)) == 1
    assert not world.broker.records(ADMIN_RESULT)


async def test_a_request_without_a_time_only_where_clear_credentials_are_allowed(tmp_path):
    world = World(tmp_path)
    await world.open()
    try:
        await world.running.end()
        service = await world.service()
        reply = HpkePrivateKey.generate(HpkeSuite.X25519)
        for offset, changes in enumerate(({"issued_ms": None}, {})):
            key, value, headers = await world.admin_record("index.list", {}, reply, **changes)
            await service.handle(Record(ADMIN_REQUEST, 0, offset, 0, key, value, headers))
        assert len(world.broker.records(LETTERS)) == len(world.broker.records(ADMIN_RESULT)) == 1
    finally:
        await world.aclose()


async def test_names_stand_nowhere_in_the_bucket(world):
    name = f"secret-{uuid4()}"
    await world.create(name)
    holder = await world.holder("ingest-1")
    await holder.lease(name, auth=Auth(token=world.token))
    for key in world.stored():
        assert name not in key
        assert name.encode() not in (await world.store.get(key)).data
