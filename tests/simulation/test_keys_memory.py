"""A grant leaves nothing but its lease: what it came in is overwritten, on either side."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

import workers.keys.answers as key_service
import workers.leases.grant as grants
import workers.leases.holder as holders
from schemas.auth import Auth
from schemas.topics import KEY_AUDIT
from workers.crypto.derive import Purpose
from workers.crypto.hpke import HpkePrivateKey
from workers.crypto.info import Info, info
from workers.crypto.secret import random_secret
from workers.errors import Damaged, Retry
from workers.leases.grant import LeasePayload
from workers.leases.request import ObjectItem
from workers.objects.record import AccessRecord, seal_record

# The kit of the key service lies with its unit tests; test folders are no packages.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))

from keys_world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path, allow_plain_credentials=True)
    await world.open()
    yield world
    await world.aclose()


async def test_what_a_grant_came_in_is_overwritten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.create("acme/docs")
    plaintexts: list[bytes] = []
    payloads: list[LeasePayload] = []
    open_with, build_lease = grants.open_with, holders.build_lease
    lease_payload = key_service.lease_payload

    def opened(*args: Any) -> bytes:
        plaintexts.append(open_with(*args))
        return plaintexts[-1]

    def built(payload: LeasePayload, **options: Any) -> Any:
        payloads.append(payload)
        return build_lease(payload, **options)

    def made(*args: Any) -> LeasePayload:
        payloads.append(lease_payload(*args))
        return payloads[-1]

    monkeypatch.setattr(grants, "open_with", opened)
    monkeypatch.setattr(holders, "build_lease", built)
    monkeypatch.setattr(key_service, "lease_payload", made)
    lease = await (await world.holder("query-1")).lease("acme/docs", auth=Auth(token=world.token))
    assert any(lease.tag.copy())
    assert any(lease.keys(1, Purpose.SEGMENT).copy())
    [plaintext], [granted, taken] = plaintexts, payloads
    assert not any(plaintext)
    for payload in (granted, taken):
        assert payload.keys
        assert not any(any(item.key) for item in payload.keys)


async def test_a_lease_that_is_not_granted_is_overwritten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.create("acme/docs")
    payloads: list[LeasePayload] = []
    lease_payload = key_service.lease_payload

    def made(*args: Any) -> LeasePayload:
        payloads.append(lease_payload(*args))
        return payloads[-1]

    monkeypatch.setattr(key_service, "lease_payload", made)
    holder = await world.holder("index-1")
    world.broker.drop_next(KEY_AUDIT, times=2)
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        await holder.lease("acme/docs")
    assert payloads
    assert not any(any(item.key) for payload in payloads for item in payload.keys)


def test_object_keys_before_a_damaged_record_are_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uid, group = bytes(16), str(uuid4())
    pack_uid, pack_key, private = bytes(16), random_secret(), HpkePrivateKey.generate()
    items = []
    for number in range(3):
        item = ObjectItem(bytes([number]) * 16, 1, bytes(32), b"", 0)
        record = seal_record(
            pack_key,
            AccessRecord(random_secret(), (group,)),
            index_uid=uid,
            generation=1,
            object_id=item.object_id,
            content_sha256=item.sealed_sha256,
        )
        items.append(replace(item, record=record))
    items[2] = replace(items[2], object_id=bytes(16))
    sealed = private.public.seal(info(Info.PACK, uid, 1, pack_uid), pack_key)
    body: Any = SimpleNamespace(
        objects=items, pack_keys=[pack_uid + (1).to_bytes(4, "little") + sealed]
    )
    opened: list[tuple[bytes, bytearray]] = []

    def kept(view: memoryview) -> bytearray:
        opened.append((bytes(view), bytearray(view)))
        return opened[-1][1]

    monkeypatch.setattr(key_service, "bytearray", kept, raising=False)
    with pytest.raises(Damaged):
        key_service._open_all(body, uid, {1: private}, (group,), [None] * 3)
    assert len(opened) == 2
    assert all(any(before) and not any(after) for before, after in opened)
