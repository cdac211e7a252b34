"""Records and words move from one key generation to the next without anybody reading them."""

from __future__ import annotations

import hashlib
import os

import msgspec
import pytest

from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info, info
from workers.crypto.secret import random_secret
from workers.errors import Damaged
from workers.leases.request import Job
from workers.objects.pack import split_pack_key, wrap_pack_key
from workers.objects.record import AccessRecord, open_pack_key, open_record, seal_record
from workers.objects.reseal import (
    Resealed,
    ResealPairs,
    Wanted,
    WantedRecord,
    decode_job,
    drop_jobs,
    read_job,
    reseal,
    write_job,
)
from workers.storage.memory import MemoryStore

UID = bytes(range(16))
GROUP = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def pairs():
    def pair():
        return HpkePrivateKey.generate(HpkeSuite.X25519)

    return ResealPairs({1: pair(), 2: pair()}, {1: pair(), 2: pair()}, 2)


def job(pairs, count=3, version=4):
    pack_uid, pack_key = os.urandom(16), random_secret()
    keys = [random_secret() for _ in range(count)]
    records = [
        WantedRecord(
            bytes([n]) * 16,
            hashlib.sha256(bytes([n])).digest(),
            seal_record(
                pack_key,
                AccessRecord(key, (GROUP,), version),
                index_uid=UID,
                generation=1,
                object_id=bytes([n]) * 16,
                content_sha256=hashlib.sha256(bytes([n])).digest(),
            ),
            0,
        )
        for n, key in enumerate(keys)
    ]
    wrapped = wrap_pack_key(pairs.objects[1].public, pack_key, UID, 1, pack_uid)
    words = pairs.queries[1].public.seal(info(Info.VOCABULARY, UID, 1), b"words")
    return Wanted([wrapped], records, [words]), keys, pack_uid


def test_what_was_resealed_opens_under_the_new_generation_alone(pairs):
    wanted, keys, pack_uid = job(pairs)
    done = decode_job(reseal(msgspec.msgpack.encode(wanted), pairs, UID), Resealed)
    new = split_pack_key(done.pack_keys[0])
    assert (new.uid, new.generation) == (pack_uid, 2)
    with open_pack_key(
        pairs.objects[2], new.sealed, index_uid=UID, generation=2, pack_uid=pack_uid
    ) as pack_key:
        for item, record, key in zip(wanted.records, done.records, keys, strict=True):
            found = open_record(
                pack_key,
                record,
                index_uid=UID,
                generation=2,
                object_id=item.object_id,
                content_sha256=item.sealed_sha256,
            )
            # The same list, of the same version, and the same key of the content.
            assert (found.object_key, found.groups, found.version) == (key, (GROUP,), 4)
    about = info(Info.VOCABULARY, UID, 2)
    assert pairs.queries[2].open(about, done.vocabulary[0]) == b"words"
    for old in (pairs.objects[1], pairs.queries[1]):
        with pytest.raises(Exception, match="open"):
            old.open(about, done.vocabulary[0])


@pytest.mark.parametrize(
    "change",
    [
        {"object_id": bytes(15) + b"x"},
        {"sealed_sha256": bytes(32)},
        {"record": b"junk"},
        {"pack": 1},
        {"pack": -1},
    ],
)
def test_what_was_exchanged_is_not_resealed(pairs, change):
    wanted, _, _ = job(pairs)
    records = [msgspec.structs.replace(wanted.records[0], **change), *wanted.records[1:]]
    bad = msgspec.structs.replace(wanted, records=records)
    with pytest.raises(Damaged):
        reseal(msgspec.msgpack.encode(bad), pairs, UID)


def test_another_index_or_junk_is_damage(pairs):
    wanted, _, _ = job(pairs)
    with pytest.raises(Damaged):
        reseal(msgspec.msgpack.encode(wanted), pairs, bytes(16))
    with pytest.raises(Damaged):
        reseal(b"junk", pairs, UID)
    bad = msgspec.structs.replace(wanted, vocabulary=[b"junk"])
    with pytest.raises(Damaged):
        reseal(msgspec.msgpack.encode(bad), pairs, UID)


async def test_a_job_is_what_was_asked_for():
    store = MemoryStore()
    made = await write_job(store, UID, b"data")
    assert await read_job(store, UID, made) == b"data"
    with pytest.raises(Damaged):
        await read_job(store, UID, Job(made.uid, bytes(32)))
    await drop_jobs(store, UID, made)
    with pytest.raises(Damaged):
        await read_job(store, UID, made)
