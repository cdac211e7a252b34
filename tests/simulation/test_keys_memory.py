"""A grant leaves nothing but its lease: what it came in is overwritten, on either side."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import workers.keys.answers as key_service
import workers.leases.grant as grants
import workers.leases.holder as holders
from schemas.auth import Auth
from workers.crypto.derive import Purpose
from workers.leases.grant import LeasePayload

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
