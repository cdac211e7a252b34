"""The access-record codec: what it binds, and what it refuses."""

from __future__ import annotations

import os
from uuid import uuid4

import pytest

from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info, info
from workers.crypto.secret import random_secret
from workers.objects.record import (
    AccessRecord,
    open_pack_key,
    open_record,
    record_version,
    seal_record,
)

GROUPS = (str(uuid4()), str(uuid4()))
CONTEXT = {
    "index_uid": os.urandom(16),
    "generation": 3,
    "object_id": os.urandom(16),
    "content_sha256": os.urandom(32),
}


def test_what_is_sealed_opens():
    pack, key = random_secret(), random_secret()
    groups = (*GROUPS, GROUPS[0].upper())
    sealed = seal_record(pack, AccessRecord(key, groups, 7), **CONTEXT)
    opened = open_record(pack, sealed, **CONTEXT, min_version=7)
    assert opened.object_key == key
    assert opened.groups == tuple(sorted(GROUPS))
    assert opened.version == record_version(sealed) == 7
    assert repr(opened).startswith("AccessRecord(groups")


@pytest.mark.parametrize("name", CONTEXT)
def test_a_record_is_bound_to_its_context(name):
    pack = random_secret()
    sealed = seal_record(pack, AccessRecord(random_secret(), GROUPS), **CONTEXT)
    value = CONTEXT[name]
    other = value + 1 if isinstance(value, int) else bytes(len(value))
    with pytest.raises(OpenFailed):
        open_record(pack, sealed, **{**CONTEXT, name: other})
    with pytest.raises(OpenFailed):
        open_record(random_secret(), sealed, **CONTEXT)


def test_changed_or_rolled_back_records_are_refused():
    pack = random_secret()
    sealed = seal_record(pack, AccessRecord(random_secret(), GROUPS, 2), **CONTEXT)
    with pytest.raises(OpenFailed, match="older"):
        open_record(pack, sealed, **CONTEXT, min_version=3)
    for offset in (0, 4, 5, 17, len(sealed) - 1):
        broken = bytearray(sealed)
        broken[offset] ^= 1
        with pytest.raises(OpenFailed):
            open_record(pack, bytes(broken), **CONTEXT)
    for size in (0, 4, 20, len(sealed) - 1):
        with pytest.raises(OpenFailed):
            open_record(pack, sealed[:size], **CONTEXT)


@pytest.mark.parametrize(
    ("groups", "version"), [((), 1), (("not a uuid",), 1), (GROUPS, 0), (GROUPS, 2**32)]
)
def test_an_access_list_has_groups_and_a_version(groups, version):
    with pytest.raises(ValueError):
        seal_record(random_secret(), AccessRecord(random_secret(), groups, version), **CONTEXT)


@pytest.mark.parametrize("suite", list(HpkeSuite))
def test_a_pack_key_is_bound_to_its_index_generation_and_pack(suite):
    private = HpkePrivateKey.generate(suite)
    uid, pack_uid, key = os.urandom(16), os.urandom(16), random_secret()
    sealed = private.public.seal(info(Info.PACK, uid, 3, pack_uid), key)
    context = {"index_uid": uid, "generation": 3, "pack_uid": pack_uid}
    assert open_pack_key(private, sealed, **context) == key
    for change in ({"index_uid": bytes(16)}, {"generation": 4}, {"pack_uid": bytes(16)}):
        with pytest.raises(OpenFailed):
            open_pack_key(private, sealed, **{**context, **change})
    short = private.public.seal(info(Info.PACK, uid, 3, pack_uid), b"short")
    for wrong in (short, sealed[:-1], b""):
        with pytest.raises(OpenFailed):
            open_pack_key(private, wrong, **context)
