"""Changing the keys of an index while it is written and searched; what is gone at the end."""

from __future__ import annotations

import asyncio
import math

import msgspec
import numpy as np
import pytest
from query_kit import ALL, INDEX, PATIENCE_S, World, client, workers
from quick_kit import change_key, quick_world

from schemas.admin import KeyRotate
from schemas.auth import Auth
from schemas.codec import convert
from schemas.errors import ErrorCode, InvalidMessage
from schemas.topics import INDEX_UPDATE, dead_letter
from schemas.values import decode_base64, encode_base64
from workers.chain.head import open_head
from workers.chain.reader import ShardReader
from workers.crypto.derive import Purpose
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged, Reject
from workers.keys.lifecycle import Lifecycle
from workers.keys.user_keys import UserKeys
from workers.leases.heads import head_verifier
from workers.objects.pack import decode_pointer
from workers.storage import layout
from workers.vector.store import read_ref

DIMENSION = 4


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


@pytest.fixture
async def quick(tmp_path, monkeypatch):
    async with quick_world(tmp_path, monkeypatch) as world:
        yield world


async def rotate(world, level, index=INDEX, **changes):
    return await world.admin("key.rotate", {"index": index, "level": level}, **changes)


def around(number):
    angle = number % 100 * 0.06
    return [math.cos(angle), math.sin(angle), 0.0, 0.0]


def document(number):
    return {
        "op": "upsert",
        "index": INDEX,
        "id": f"d{number}",
        "content": f"content of number {number}",
        "keywords": [f"k{number % 7}"],
        "vector": around(number),
        "metadata": {"n": number},
    }


async def ingest(client, numbers):
    operations = (document(number) for number in numbers)
    return [r async for r in client.ingest_many(operations, wait="searchable")]


async def everything(client, count):
    """Ask in every way; return whether all answers are right."""
    assert await client.count(INDEX) == count
    found = await client.search(INDEX, keyword="k3", include=["content"])
    assert {hit.id for hit in found.hits} == {f"d{n}" for n in range(count) if n % 7 == 3}
    assert all(hit.content.startswith("content of number") for hit in found.hits)
    near = await client.search(INDEX, vector=around(10), top_k=3)
    assert near.hits[0].id == "d10"
    text = await client.search(INDEX, text="number", top_k=count)
    assert len(text.hits) == count
    prefix = await client.query(INDEX, {"text": "numb*", "syntax": True}, top_k=count)
    assert len(prefix.hits) == count
    some = await client.search(INDEX, text="content", filter={"n": {"$lt": 5}}, top_k=count)
    assert len(some.hits) == 5


async def test_a_data_key_is_changed_while_the_index_is_written_and_searched(quick, monkeypatch):
    world, advance, worked = quick, Lifecycle._advance, set()

    async def once_worked_in(lifecycle, index):
        """End a stage when its time has come, but not before the index was used in it."""
        found = await lifecycle._indexes.catalog.find(index)
        if found is None or found[0].rotation is None or found[0].rotation.stage in worked:
            await advance(lifecycle, index)

    monkeypatch.setattr(Lifecycle, "_advance", once_worked_in)
    await world.create(INDEX, dimension=DIMENSION, shards=2)
    uid = world.directory.index(INDEX).uid
    async with workers(world, *ALL), client(world) as c:
        for start in range(0, 60, 20):
            await ingest(c, range(start, start + 20))
        await everything(c, 60)
        before = await world.key_status(INDEX)
        assert before["generations"] == [1]
        old = await _subkeys(world, uid)
        begun = await rotate(world, "dek")
        assert begun.result["generations"] == [1, 2]
        assert begun.result["generation"] == 1
        again = await rotate(world, "dek")
        assert again.error.code is ErrorCode.CONFLICT
        stages, count = [], 60
        async with asyncio.timeout(PATIENCE_S):
            while (now := await world.key_status(INDEX))["rotation"] is not None:
                stages.append(now["rotation"]["stage"])
                # Searched and written to all the time.
                await everything(c, count)
                await ingest(c, [count])
                count += 1
                worked.add(stages[-1])
        assert list(dict.fromkeys(stages)) == ["prepare", "switch", "drain", "destroy"]
        assert now["generations"] == [2]
        await everything(c, count)
        # The old key is destroyed, and nothing that the heads name is of its time.
        assert [k for k in world.stored() if k.startswith(layout.deks_prefix(uid))] == [
            layout.dek(uid, 2)
        ]
        for shard in range(2):
            head = await _head(world, uid, shard)
            assert head.generations() == {2}
            assert read_ref(head.vector).generation == 2
            assert all(ref.generation == 2 for ref in head.segments)
        # Nor anything else that is stored, once what nobody names is swept.
        async with asyncio.timeout(PATIENCE_S):
            while left := await _old_segments(world, uid):
                assert left
                await asyncio.sleep(0.1)
        with pytest.raises(Damaged):
            await _head(world, uid, 0, keys=lambda generation: old)
    # A worker that begins now reads it all.
    async with workers(world, *ALL), client(world) as c:
        await everything(c, count)
        await ingest(c, [count])
    assert not world.broker.records(dead_letter(INDEX_UPDATE))
    assert not [k for k in world.stored() if k.startswith(layout.bodies_prefix(uid))]
    assert world.audited("rotate.end") == 1


async def _subkeys(world, uid):
    service = await world.service()
    record = await service._indexes.record(INDEX)
    ring = await service._indexes.open(record)
    return ring.subkey(1, Purpose.SEGMENT)


async def _head(world, uid, shard, keys=None):
    service = await world.service()
    record = await service._indexes.record(INDEX)
    ring = await service._indexes.open(record)
    data = (await world.store.get(layout.head(uid, shard))).data
    verifier = head_verifier(world.directory, INDEX)
    read = keys or (lambda generation: ring.subkey(generation, Purpose.SEGMENT))
    return open_head(data, uid, shard, read, verifier).head


async def _old_segments(world, uid, shards=2):
    """Return the stored segments and bitmaps that no head names."""
    left = []
    for shard in range(shards):
        head = await _head(world, uid, shard)
        named = {layout.segment(uid, shard, ref.uid) for ref in head.segments}
        named |= {layout.deletes(uid, shard, d.base) for d in head.deletes if d.base}
        prefix = layout.shard_prefix(uid, shard)
        left += [
            key
            for key in world.stored()
            if key.startswith((f"{prefix}segments/", f"{prefix}deletes/")) and key not in named
        ]
    return left


# --- KMS and KEK ----------------------------------------------------------------------------------


async def test_a_new_kek_reseals_the_keys_and_destroys_what_the_old_one_wrapped(world):
    await world.create(INDEX)
    uid = world.directory.index(INDEX).uid
    holder = await world.holder("index-1")
    lease = await holder.lease(INDEX)
    copies = {k: (await world.store.get(k)).data for k in world.stored() if "/keys/" in k}
    world.clock.pass_s(10)
    done = await rotate(world, "kek")
    assert done.error is None, done.error
    epoch = done.result["epoch"]
    assert epoch > 0
    after = {k: (await world.store.get(k)).data for k in world.stored() if "/keys/" in k}
    assert not set(copies) & set(after)
    assert set(after) == {
        layout.envelope(uid, epoch),
        layout.tag(uid, epoch),
        layout.dek(uid, 1, epoch),
        *(k for k in after if k.startswith(layout.ingest_prefix(uid, epoch))),
    }
    # The data keys are the same ones: nothing that is stored changes.
    other = await world.holder("query-1")
    fresh = await other.lease(INDEX, auth=Auth(token=world.token))
    assert fresh.keys(1, Purpose.SEGMENT) == lease.keys(1, Purpose.SEGMENT)
    await world.running.end()
    await world.start_service("keys-2")
    anew = await world.holder("ingest-1")
    assert (await anew.lease(INDEX, auth=Auth(token=world.token))).full
    # The old keys put back open nothing for the key service.
    for key, data in copies.items():
        await world.store.put(key, data)
    again = await rotate(world, "kek")
    assert again.result["epoch"] > epoch
    assert not [k for k in world.stored() if "/keys/" in k and k in copies]


async def test_the_kms_wraps_anew_and_an_old_envelope_is_refused(world):
    await world.create(INDEX)
    uid = world.directory.index(INDEX).uid
    before = (await world.store.get(layout.envelope(uid, 0))).data
    done = await rotate(world, "kms")
    assert done.error is None, done.error
    assert done.result["envelope"] == 1
    after = (await world.store.get(layout.envelope(uid, 0))).data
    assert after != before
    holder = await world.holder("index-1")
    assert (await holder.lease(INDEX)).full
    # The wrapping of before, put back: it would open, and is refused all the same.
    await world.store.put(layout.envelope(uid, 0), before)
    world.clock.pass_s(901)
    fresh = await world.holder("query-1")
    with pytest.raises(Damaged):
        await fresh.lease(INDEX, auth=Auth(token=world.token))
    await world.store.put(layout.envelope(uid, 0), after)
    assert (await fresh.lease(INDEX, auth=Auth(token=world.token))).full


async def test_nothing_is_changed_while_the_kms_is_down(world):
    await world.create(INDEX)
    stored = sorted(world.stored())
    world.kms.down = True
    for level in ("kms", "kek", "dek"):
        refused = await rotate(world, level)
        assert refused.error.code is ErrorCode.KEY_UNAVAILABLE, level
    world.kms.down = False
    kept = [k for k in sorted(world.stored()) if not k.startswith("realm/requests/")]
    assert kept == [k for k in stored if not k.startswith("realm/requests/")]
    assert (await world.key_status(INDEX))["generations"] == [1]
    assert (await rotate(world, "kek")).error is None


async def test_a_kms_that_returns_another_key_changes_nothing(world, monkeypatch):
    await world.create(INDEX)
    uid = world.directory.index(INDEX).uid
    before = (await world.store.get(layout.envelope(uid, 0))).data
    rewrap = world.kms.rewrap

    async def forged(key_id, wrapped, context):
        # Another key, wrapped rightly: as who owns the bucket and may ask the KMS could do.
        return await world.kms.wrap(key_id, SecretBytes(bytes(32)), context)

    monkeypatch.setattr(world.kms, "rewrap", forged)
    refused = await rotate(world, "kms")
    assert refused.error.code is ErrorCode.DAMAGED
    assert (await world.store.get(layout.envelope(uid, 0))).data == before
    monkeypatch.setattr(world.kms, "rewrap", rewrap)
    assert (await rotate(world, "kms")).error is None


async def test_only_who_administers_an_index_changes_its_keys(world):
    await world.create(INDEX)
    user = (await world.admin("user.create", {"scopes": ["Index"]})).result
    login = await world.admin(
        "user.login", {"user_id": user["user_id"], "password": user["password"]}, auth=None
    )
    auth = {"token": login.result["token"]}
    for level in ("kms", "kek", "dek"):
        refused = await rotate(world, level, auth=auth)
        assert refused.error.code is ErrorCode.FORBIDDEN
    refused = await world.admin("key.status", {"index": INDEX}, auth=auth)
    assert refused.error.code is ErrorCode.FORBIDDEN


# --- keys that callers keep -----------------------------------------------------------------------

OWN, NEXT = bytes(range(32)), bytes(range(32, 64))


def owner(world, key):
    return {"token": world.token, "index_key": encode_base64(key)}


async def change_kek(world, before, after):
    args = {"index": "mine", "level": "kek", "new_index_key": encode_base64(after)}
    return await world.admin("key.rotate", args, auth=owner(world, before))


async def user_key(world, user_id, *permissions, key=OWN):
    args = {"index": "mine", "user_id": user_id, "permissions": list(permissions)}
    done = await world.admin("user_key.create", args, auth=owner(world, key))
    return done.error or decode_base64(done.result["user_key"], "")


async def test_user_keys_go_on_when_callers_change_the_key_that_they_keep(world):
    await world.create("mine", auth=owner(world, OWN), kms={"provider": "none"})
    uid = world.directory.index("mine").uid
    keys = {"r": await user_key(world, "r", "read"), "w": await user_key(world, "w", "write")}
    keys |= {name: await user_key(world, name, "read", "write") for name in ("rw", "old", "gone")}

    async def end(user_id, key):
        args = {"index": "mine", "user_id": user_id}
        assert (await world.admin("user_key.delete", args, auth=owner(world, key))).error is None

    def user(name):
        return client(world, user_key=(name, keys[name]))

    async def check(number):
        """What each user key may do, it may; and no more."""
        for name in ("w", "rw"):
            async with user(name) as c:
                done = await c.ingest("mine", f"{name}{number}", content="x", wait="searchable")
                assert done.status == "accepted"
        for name in ("r", "rw"):
            async with user(name) as c:
                found = await c.get("mine", [f"w{number}", f"rw{number}"], include=["content"])
                assert [hit.content for hit in found] == ["x", "x"]
        async with user("w") as c:
            with pytest.raises(Reject, match="FORBIDDEN"):
                await c.count("mine")
        async with user("r") as c:
            with pytest.raises(Reject, match="FORBIDDEN"):
                await c.ingest("mine", "r", content="x")
        for name in revoked:
            async with user(name) as c:
                with pytest.raises(Reject, match="UNAUTHENTICATED"):
                    await c.count("mine")

    async with workers(world, *ALL):
        revoked = ["old"]
        await end("old", OWN)
        await check(0)
        copies = {k: (await world.store.get(k)).data for k in world.stored() if "/keys/" in k}
        done = await change_kek(world, OWN, NEXT)
        assert done.error is None, done.error
        epoch = done.result["epoch"]
        await check(1)
        revoked.append("gone")
        await end("gone", NEXT)
        await check(2)
        service = await world.service()
        for one in await service._admin._callers._user_keys.list(
            await service._indexes.record("mine")
        ):
            assert set(one.keks) == {epoch}
        # The key of before opens nothing, for nobody.
        assert (await change_kek(world, OWN, OWN)).error.code is ErrorCode.WRONG_KEY
        async with client(world, index_key=OWN) as c:
            with pytest.raises(Reject, match="WRONG_KEY"):
                await c.count("mine")
        async with client(world, index_key=NEXT) as c:
            # What users write is of the group of who made the index: not of the key's.
            assert await c.count("mine") == 0
    stored = {k for k in world.stored() if "/keys/" in k}
    assert not stored & set(copies)
    assert stored >= {layout.envelope(uid, epoch), layout.tag(uid, epoch)}
    for name in world.stored():
        data = (await world.store.get(name)).data
        assert not [key for key in (OWN, NEXT, *keys.values()) if key in data]
    # A key service that begins now is given the key by whoever comes, users too.
    await world.running.end()
    await world.start_service("keys-2")
    async with workers(world, *ALL):
        await check(3)
    # Keys put back are of an epoch that the catalog does not name.
    for name, data in copies.items():
        await world.store.put(name, data)
    assert (await change_kek(world, OWN, OWN)).error.code is ErrorCode.WRONG_KEY
    assert (await change_kek(world, NEXT, OWN)).error is None


async def test_a_user_key_made_while_the_key_changes_works_or_is_refused(world, monkeypatch):
    await world.create("mine", auth=owner(world, OWN), kms={"provider": "none"})
    between, late = [], []
    reseal, create = UserKeys.reseal, UserKeys.create

    async def resealing(self, record, index_key, *, epoch, keep):
        await reseal(self, record, index_key, epoch=epoch, keep=keep)
        if keep and not between:
            between.append(await user_key(world, "between", "read"))

    async def creating(self, record, user_id, *args, **options):
        if user_id == "late":
            late.append(await change_kek(world, NEXT, OWN))
        return await create(self, record, user_id, *args, **options)

    monkeypatch.setattr(UserKeys, "reseal", resealing)
    monkeypatch.setattr(UserKeys, "create", creating)
    assert (await change_kek(world, OWN, NEXT)).error is None
    refused = await user_key(world, "late", "read", key=NEXT)
    assert refused.code is ErrorCode.CONFLICT
    assert late[0].error is None
    await world.running.end()
    await world.start_service("keys-2")
    async with workers(world, "query"), client(world, user_key=("between", between[0])) as c:
        assert await c.count("mine") == 0
    async with client(world, index_key=OWN) as c:
        assert [one["user_id"] for one in await c.list_user_keys("mine")] == ["between"]


async def test_a_kek_of_one_user_key_is_no_other_s(world):
    """Exchanged in the record by who has the realm: of another epoch, or of another user."""
    await world.create("mine", auth=owner(world, OWN), kms={"provider": "none"})
    key = await user_key(world, "u", "read")
    service = await world.service()
    record, user_keys = await service._indexes.record("mine"), service._admin._callers._user_keys
    before = await user_keys._pages.get("u", record.uid)
    assert (await user_keys.authenticate(record, "u", key)).index_key == SecretBytes(OWN)
    later = msgspec.structs.replace(record, epoch=record.epoch + 1)
    await user_keys.reseal(later, SecretBytes(NEXT), epoch=later.epoch, keep=[record.epoch])
    sealed = (await user_keys._pages.get("u", record.uid)).keks
    assert sealed.keys() == {record.epoch, later.epoch}
    assert (await user_keys.authenticate(later, "u", key)).index_key == SecretBytes(NEXT)
    for user_id, kek in (("u", before.keks[record.epoch]), ("other", sealed[later.epoch])):
        put = msgspec.structs.replace(before, user_id=user_id, keks={later.epoch: kek})
        await user_keys._pages.change(user_id, lambda _, put=put: put, record.uid)
        with pytest.raises(Damaged):
            await user_keys.authenticate(later, user_id, key)
    await user_keys.reseal(later, SecretBytes(NEXT), epoch=later.epoch + 1, keep=[])
    assert (await user_keys._pages.get("u", record.uid)).keks.keys() == {later.epoch + 1}


async def test_user_keys_go_on_when_the_data_key_changes(quick):
    world = quick
    await world.create("mine", auth=owner(world, OWN), kms={"provider": "none"})
    kept, ended = [await user_key(world, name, "read", "write") for name in ("kept", "ended")]
    async with workers(world, *ALL), client(world, user_key=("kept", kept)) as c:
        await c.ingest("mine", "d", content="before", wait="searchable")
        assert (await rotate(world, "dek", "mine", auth=owner(world, OWN))).error is None
        async with asyncio.timeout(PATIENCE_S), client(world, index_key=OWN) as own:
            while (await own.key_status("mine"))["rotation"] is not None:
                [found] = await c.get("mine", ["d"], include=["content"])
                assert found.content == "before"
            await own.delete_user_key("mine", "ended")
        await c.ingest("mine", "d", content="after", wait="searchable")
        [found] = await c.get("mine", ["d"], include=["content"])
        assert found.content == "after"
        async with client(world, user_key=("ended", ended)) as other:
            with pytest.raises(Reject, match="UNAUTHENTICATED"):
                await other.count("mine")


async def test_who_keeps_the_key_brings_the_next_one(world):
    auth = owner(world, OWN)
    await world.create("mine", auth=auth, kms={"provider": "none"})
    await world.create(INDEX)
    stored = [k for k in world.stored() if "/keys/" in k]
    refused = await rotate(world, "kms", "mine", auth=auth)
    assert refused.error.code is ErrorCode.UNSUPPORTED
    refused = await rotate(world, "kek", "mine", auth=auth)
    assert (refused.error.code, refused.error.field) == (
        ErrorCode.INVALID_MESSAGE,
        "args.new_index_key",
    )
    args = {"index": INDEX, "level": "kek", "new_index_key": encode_base64(NEXT)}
    assert (await world.admin("key.rotate", args)).error.code is ErrorCode.UNSUPPORTED
    # What is wrong for every index is refused by whoever would send it.
    for level, key in (("dek", NEXT), ("kek", bytes(31))):
        with pytest.raises(InvalidMessage, match="key"):
            convert(
                KeyRotate, {"index": "mine", "level": level, "new_index_key": encode_base64(key)}
            )
    assert [k for k in world.stored() if "/keys/" in k] == stored
    assert (await rotate(world, "dek", "mine")).error.code is ErrorCode.WRONG_KEY
    done = await rotate(world, "dek", "mine", auth=auth)
    assert done.result["generations"] == [1, 2]


# --- shredding ------------------------------------------------------------------------------------


async def test_a_document_that_was_deleted_is_shredded_with_the_old_data_key(quick):
    """Its sealed bytes may lie in a pack for days; what opens them is nowhere any more."""
    world = quick
    await world.create(INDEX, dimension=DIMENSION)
    uid = world.directory.index(INDEX).uid
    async with workers(world, *ALL), client(world) as c:
        await ingest(c, range(10))
        large = {**document(99), "content": "the secret " * 1000}
        [done] = [r async for r in c.ingest_many([large], wait="searchable")]
        assert done.status == "accepted"
        old = await _subkeys(world, uid)
        await c.delete(INDEX, "d99", wait="searchable")
        packs = [k for k in world.stored() if k.startswith(layout.packs_prefix(uid))]
        assert packs
        await change_key(world, "dek")
        async with asyncio.timeout(PATIENCE_S):
            while await _old_segments(world, uid, shards=1):
                await asyncio.sleep(0.1)
        head = await _head(world, uid, 0)
        assert head.generations() == {2}
        assert await c.count(INDEX) == 10
    # No access record of it is left under the one key that there is.
    pointers = await _pointers(world, uid)
    assert len(pointers) == 10
    assert not {p.object_id for p in pointers} & {bytes.fromhex(done.object_id)}
    assert all(p.generation == 2 for p in pointers)
    assert old is not None


async def _pointers(world, uid):
    service = await world.service()
    record = await service._indexes.record(INDEX)
    ring = await service._indexes.open(record)
    reader = ShardReader(
        world.store,
        None,
        uid,
        0,
        lambda generation: ring.subkey(generation, Purpose.SEGMENT),
        head_verifier(world.directory, INDEX),
    )
    snapshot = await reader.refresh()
    found = []
    for segment in range(snapshot.segments):
        rows = np.arange(len(snapshot.live(segment)), dtype=np.int64)
        found += [p for p, _ in await snapshot.objects(segment, rows) if p]
    return [decode_pointer(one) for one in found]


async def test_a_shredded_index_leaves_nothing(world):
    await world.create(INDEX)
    await world.create("other")
    uid = world.directory.index(INDEX).uid
    for name in ("packs", "shards/0/segments"):
        await world.store.put(f"{uid.hex()}/{name}/{'00' * 16}", b"sealed")
    done = await world.admin("index.shred", {"index": INDEX})
    assert done.error is None, done.error
    assert done.result == {
        "index": INDEX,
        "deleted": True,
        "uid": uid.hex(),
        "objects_left": 0,
    }
    assert not [k for k in world.stored() if uid.hex() in k]
    await world.directory.refresh()
    assert world.directory.find(INDEX) is None
    assert world.directory.find("other") is not None
    assert world.audited("index.shred", "grant") == 1
    again = await world.admin("index.shred", {"index": INDEX})
    assert again.error.code is ErrorCode.UNKNOWN_INDEX
