"""The access-record codec: what it binds, and what it refuses."""

from __future__ import annotations

import os
from dataclasses import replace
from uuid import uuid4

import pytest

from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.secret import random_secret
from workers.objects.record import (
    PackKey,
    RecordContext,
    open_record,
    record_version,
    seal_record,
)

GROUPS = [str(uuid4()), str(uuid4())]


@pytest.fixture(params=list(HpkeSuite))
def private(request: pytest.FixtureRequest) -> HpkePrivateKey:
    return HpkePrivateKey.generate(request.param)


def context() -> RecordContext:
    return RecordContext(os.urandom(16), 3, os.urandom(16), os.urandom(32))


def test_what_is_sealed_opens(private):
    at = context()
    pack = PackKey.make(private.public, at.index_uid, 3, os.urandom(16))
    key = random_secret()
    record = seal_record(pack, at, key, [*GROUPS, GROUPS[0].upper()], 7)
    opened_pack = PackKey.open(private, at.index_uid, 3, pack.wrapped)
    assert opened_pack.uid == pack.uid
    opened = open_record(opened_pack, at, record, min_version=7)
    assert opened.object_key == key
    assert sorted(opened.groups) == sorted(GROUPS)
    assert opened.version == record_version(record) == 7


def test_a_pack_key_is_bound_to_its_index_generation_and_uid(private):
    at = context()
    pack = PackKey.make(private.public, at.index_uid, 3, os.urandom(16))
    moved = os.urandom(16) + pack.wrapped[16:]
    for uid, generation, wrapped in (
        (os.urandom(16), 3, pack.wrapped),
        (at.index_uid, 4, pack.wrapped),
        (at.index_uid, 3, moved),
        (at.index_uid, 3, pack.wrapped[:20]),
        (at.index_uid, 3, b""),
    ):
        with pytest.raises(OpenFailed):
            PackKey.open(private, uid, generation, wrapped)
    with pytest.raises(ValueError, match="16 bytes"):
        PackKey.make(private.public, at.index_uid, 3, b"short")


@pytest.mark.parametrize(
    "change",
    [
        {"index_uid": bytes(16)},
        {"generation": 4},
        {"object_id": bytes(16)},
        {"sealed_sha256": bytes(32)},
    ],
)
def test_a_record_is_bound_to_its_context(private, change):
    at = context()
    pack = PackKey.make(private.public, at.index_uid, 3, os.urandom(16))
    record = seal_record(pack, at, random_secret(), GROUPS)
    with pytest.raises(OpenFailed):
        open_record(pack, replace(at, **change), record)


def test_changed_or_rolled_back_records_are_refused(private):
    at = context()
    pack = PackKey.make(private.public, at.index_uid, 3, os.urandom(16))
    record = seal_record(pack, at, random_secret(), GROUPS, 2)
    with pytest.raises(OpenFailed, match="older"):
        open_record(pack, at, record, min_version=3)
    for offset in (0, 4, 5, 17, len(record) - 1):
        broken = bytearray(record)
        broken[offset] ^= 1
        with pytest.raises(OpenFailed):
            open_record(pack, at, bytes(broken))
    for size in (0, 4, 20, len(record) - 1):
        with pytest.raises(OpenFailed):
            open_record(pack, at, record[:size])
    with pytest.raises(OpenFailed):
        record_version(b"")


def test_an_access_list_has_groups_and_a_version(private):
    at = context()
    pack = PackKey.make(private.public, at.index_uid, 3, os.urandom(16))
    for groups, version in (([], 1), (["not a uuid"], 1), (GROUPS, 0), (GROUPS, 2**32)):
        with pytest.raises(ValueError):
            seal_record(pack, at, random_secret(), groups, version)
    assert "SecretBytes(32)" not in repr(pack)
