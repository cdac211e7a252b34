"""What who took a worker, the bucket or an old state gets: not more than the design says."""

from __future__ import annotations

import base64
import os
from itertools import product

import msgspec
import numpy as np
import orjson
import pytest
from query_kit import ALL, INDEX, World, client, workers

from schemas.auth import Auth
from schemas.errors import ErrorCode, ErrorInfo
from schemas.topics import INDEX_UPDATE
from schemas.update import UpdateBatch, decode_envelope
from workers.chain.head import open_head
from workers.chain.reader import ShardReader
from workers.crypto.derive import Purpose
from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info, info
from workers.crypto.lp import lp
from workers.crypto.seal import SealPurpose, open_sealed
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey
from workers.errors import Damaged, Reject
from workers.index.receive import Trust, receive
from workers.kafka.broker import Record
from workers.keys.envelope import Envelope, commitment, kms_context, sign_envelope
from workers.leases.grant import LeasePayload, ResealPayload
from workers.leases.heads import head_verifier
from workers.leases.lease import ROLE_PURPOSES
from workers.leases.request import Caller, Job
from workers.objects.envelope import Route, seal_update
from workers.objects.pack import decode_pointer, split_pack_key
from workers.objects.record import open_pack_key, open_record
from workers.storage import layout


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


async def payload(world, role):
    """Return all that a worker of a role is given: as who took it reads it from its memory."""
    holder = await world.holder(f"{role}-1")
    _, found = await holder._asking.ask(
        LeasePayload,
        kind="lease",
        index=INDEX,
        purposes=sorted(ROLE_PURPOSES[role]),
        caller=None if role == "index" else Caller(None, world.token),
    )
    return found


def opens(call):
    try:
        call()
    except (OpenFailed, Damaged, ValueError):
        return False
    return True


async def test_an_ingest_workers_keys_open_nothing_that_is_stored(world):
    await world.create(INDEX, dimension=2)
    uid = world.directory.index(INDEX).uid
    async with workers(world, *ALL), client(world) as c:
        document = {"content": "x" * 10_000, "keywords": ["k"], "vector": [1.0, 0.0]}
        operations = ({"op": "upsert", "index": INDEX, "id": n, **document} for n in "abc")
        assert [r.status async for r in c.ingest_many(operations, wait="searchable")] == [
            "accepted"
        ] * 3
        await world.directory.refresh()
        stolen = await payload(world, "ingest")
    # What is private in it: the tag key, and the halves that producers seal to.
    private = {(item.purpose, item.form) for item in stolen.keys if item.form != "public"}
    assert private == {("tag", "key")}
    assert {item.form for item in stolen.ingest} == {"seed"}
    keys = [item.key for item in (*stolen.keys, *stolen.ingest) if item.form != "public"]
    pairs = [HpkePrivateKey.from_seed(suite, key) for key, suite in product(keys, HpkeSuite)]
    service = await world.service()
    record = await service._indexes.record(INDEX)
    ring = await service._indexes.open(record)

    # Updates, other workers' too: not their key, so not their body.
    updates = [decode_envelope(r.value) for r in world.broker.records(INDEX_UPDATE)]
    assert updates
    for update in updates:
        context = info(Info.UPDATE, uid, update.shard, update.generation)
        right = ring.pair(1, Purpose.UPDATE)
        assert opens(lambda: right.open(context, update.wrapped_key))  # noqa: B023
        for pair in pairs:
            assert not opens(lambda: pair.open(context, update.wrapped_key))  # noqa: B023
        for key in keys:
            assert not opens(
                lambda: open_sealed(
                    SecretBytes(key),  # noqa: B023
                    update.body,  # noqa: B023
                    purpose=SealPurpose.UPDATE_BODY,
                    index_uid=uid,
                    object_id=lp(update.shard, update.generation),  # noqa: B023
                )
            )

    # The index: its head, and with it everything that the head names.
    head = (await world.store.get(layout.head(uid, 0))).data
    verifier = head_verifier(world.directory, INDEX)
    for key in keys:
        assert not opens(
            lambda: open_head(head, uid, 0, lambda _: SecretBytes(key), verifier)  # noqa: B023
        )

    # Contents: neither the pack's key nor a record under it, even with the pointer in hand.
    pointer, pack = await _pointer(world, ring, uid)
    wrapped = split_pack_key(pack)
    names = {"index_uid": uid, "generation": wrapped.generation}
    for pair in pairs:
        assert not opens(
            lambda: open_pack_key(pair, wrapped.sealed, pack_uid=wrapped.uid, **names)  # noqa: B023
        )
    for key in keys:
        assert not opens(
            lambda: open_record(
                SecretBytes(key),  # noqa: B023
                pointer.access,
                object_id=pointer.object_id,
                content_sha256=pointer.sha256,
                **names,
            )
        )
    packs = [k for k in world.stored() if k.startswith(layout.packs_prefix(uid))]
    sealed = (await world.store.get(packs[0])).data[pointer.offset :][: pointer.length]
    for key in keys:
        assert not opens(
            lambda: open_sealed(
                SecretBytes(key),  # noqa: B023
                sealed,
                purpose=SealPurpose.CONTENT,
                index_uid=uid,
                object_id=pointer.object_id,
            )
        )


async def _pointer(world, ring, uid):

    reader = ShardReader(
        world.store,
        None,
        uid,
        0,
        lambda generation: ring.subkey(generation, Purpose.SEGMENT),
        head_verifier(world.directory, INDEX),
    )
    snapshot = await reader.refresh()
    [(pointer, pack)] = await snapshot.objects(0, np.array([0], dtype=np.int64))
    return decode_pointer(pointer), pack


async def test_a_kek_of_ones_own_is_not_taken(world):
    """Who owns the bucket and may use the KMS wraps a key of their own, rightly."""
    await world.create(INDEX)
    uid = world.directory.index(INDEX).uid
    name = layout.envelope(uid, 0)
    before = (await world.store.get(name)).data
    members = orjson.loads(before)
    with SecretBytes(os.urandom(32)) as mine:
        wrapped = await world.kms.wrap(members["key_id"], mine, kms_context(uid, 0))
        forged = {
            **members,
            "wrapped": base64.b64encode(wrapped.data).decode(),
            "commitment": commitment(mine, uid, 0),
        }
    holder = await world.holder("query-1")
    auth = Auth(token=world.token)
    signed = sign_envelope(
        msgspec.convert({k: v for k, v in forged.items() if k != "signature"}, Envelope),
        SigningKey.generate(),
    )
    for data in (orjson.dumps(forged), signed):
        await world.store.put(name, data)
        with pytest.raises(Damaged):
            await holder.lease(INDEX, auth=auth)
    await world.store.put(name, before)
    assert (await holder.lease(INDEX, auth=auth)).full


async def test_a_catalog_put_back_is_refused(world):
    await world.create(INDEX)
    [name] = [k for k in world.stored() if k.startswith("catalog/")]
    before = (await world.store.get(name)).data
    world.clock.pass_s(20)
    # With it, the wrapping of before would be good again.
    done = await world.admin("key.rotate", {"index": INDEX, "level": "kms"})
    assert done.error is None
    await world.running.end()
    await world.store.put(name, before)
    await world.start_service("keys-2")
    holder = await world.holder("index-1")
    with pytest.raises(Damaged):
        await holder.lease(INDEX)


async def test_only_index_workers_have_records_sealed_anew(world):

    await world.create(INDEX)
    for role in ("ingest", "query"):
        holder = await world.holder(f"{role}-1")
        with pytest.raises(Reject) as refused:
            await holder._asking.ask(
                ResealPayload, kind="reseal", index=INDEX, job=Job(bytes(16), bytes(32))
            )
        assert refused.value.code is ErrorCode.FORBIDDEN
    holder = await world.holder("index-1")
    uid = world.directory.index(INDEX).uid
    await world.store.put(layout.body(uid, bytes(16)), b"exchanged")
    with pytest.raises(Damaged):
        await holder._asking.ask(
            ResealPayload, kind="reseal", index=INDEX, job=Job(bytes(16), bytes(32))
        )


async def test_an_update_under_a_key_that_has_ended_is_refused_and_the_shard_goes_on(world):
    """A writer that slept through a change of the data key: its update stops nobody."""

    await world.create(INDEX)
    uid = world.directory.index(INDEX).uid
    index, ingest = await world.holder("index-1"), world.identity("ingest-1")
    lease = await index.lease(INDEX)
    writer = await (await world.holder("ingest-1")).lease(INDEX, auth=Auth(token=world.token))
    batch = UpdateBatch(tokens=[], token_kinds=b"", ops=[], created_ms=0)
    found = {}
    for generation in (1, 2):
        route = Route(uid, 0, generation)
        sealed = seal_update(batch, route, writer.update_public, ingest, max_record_bytes=900_000)
        record = Record(
            INDEX_UPDATE,
            lease.partitions[0],
            0,
            int(world.clock() * 1000),
            route.key,
            sealed.value,
        )
        found[generation] = record
    trust = Trust(world.directory.key_service.sign_pub, world.directory.revocations)
    [one] = await receive([found[1]], lease, 0, trust, world.store, 0)
    assert one.error is None
    assert one.generation == 1
    # As a lease has it once the first generation has ended.
    later = {(2, purpose): key for (_, purpose), key in lease._privates.items()}
    lease._privates, lease._secrets, lease._publics = later, {}, {}
    [one] = await receive([found[1]], lease, 0, trust, world.store, 0)
    assert isinstance(one.error, ErrorInfo)
    assert one.error.code is ErrorCode.EXPIRED
