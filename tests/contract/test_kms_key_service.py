"""The key service on every KMS: it starts anew on it, and outlives its failures."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "keys"))
sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))
sys.path.insert(0, str(Path(__file__).parent / "kms_worlds"))

from keys_world import Caller, ShakyKms
from kms_world import PATIENCE_S, Fault
from kms_world import World as KmsWorld
from kms_worlds import WORLDS
from query_kit import ALL, World, client, stored, workers

from schemas.auth import Auth
from schemas.errors import ErrorCode
from schemas.topics import QUERY_REQUEST
from schemas.values import encode_base64
from workers.crypto.derive import Purpose
from workers.crypto.secret import SecretBytes
from workers.errors import Retry
from workers.kms.base import Wrapped
from workers.kms.deadline import deadline
from workers.leases.lease import Lease

# A call to a KMS that fails may take so long: many are made to one that does not answer.
HASTE_S = 1.0


class HastyKms(ShakyKms):
    """A KMS whose calls have a deadline of their own, while it fails a short one."""

    deadline_s = PATIENCE_S

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        async with deadline(self.deadline_s):
            return await super().wrap(key_id, plaintext, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        async with deadline(self.deadline_s):
            return await super().unwrap(key_id, wrapped, context)

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        async with deadline(self.deadline_s):
            return await super().rewrap(key_id, wrapped, context)


@pytest.fixture(scope="session", params=WORLDS)
async def kms_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[KmsWorld]:
    async with WORLDS[request.param](tmp_path_factory.mktemp("kms")) as running:
        yield running


@pytest.fixture
async def world(kms_world: KmsWorld, tmp_path: Path) -> AsyncIterator[World]:
    """A realm whose root is wrapped by this KMS."""
    made = World(tmp_path, allow_plain_credentials=True)
    await made.kms.aclose()
    made.kms = HastyKms(kms_world.open())
    await made.open()
    yield made
    await made.aclose()
    await made.kms.aclose()


@asynccontextmanager
async def failing(kms_world: KmsWorld, world: World, fault: Fault) -> AsyncIterator[None]:
    """The KMS fails; who asks it does not wait for long."""
    kms = world.kms
    async with kms_world.fault(fault):
        kms.deadline_s = HASTE_S
        yield
    kms.deadline_s = PATIENCE_S


@asynccontextmanager
async def stopped(kms_world: KmsWorld, world: World) -> AsyncIterator[None]:
    """The KMS is stopped; one that is a file or a library fails where it is called."""
    fault = next((f for f in (Fault.UNREACHABLE, Fault.FROZEN) if f in kms_world.faults), None)
    if fault is not None:
        async with failing(kms_world, world, fault):
            yield
        return
    world.kms.down = True
    yield
    world.kms.down = False


def segment_key(lease: Lease) -> bytes:
    return lease.keys(lease.generation, Purpose.SEGMENT).copy()


async def test_a_key_service_that_starts_anew_opens_every_index(
    kms_world: KmsWorld, world: World
) -> None:
    await world.create("acme/docs")
    own = {"provider": kms_world.provider, "key_id": kms_world.two}
    made = await world.create("apart", kms=own)
    assert made["kms"] == own
    holder = await world.holder("index-1")
    before = [segment_key(await holder.lease(name)) for name in ("acme/docs", "apart")]
    await world.latest.end()
    await world.kms.aclose()
    world.kms = HastyKms(kms_world.open())
    await world.start_service("keys-2")
    again = await world.holder("index-1")
    after = [segment_key(await again.lease(name)) for name in ("acme/docs", "apart")]
    assert before == after
    assert len(set(after)) == 2


@pytest.mark.parametrize("fault", [Fault.FROZEN, Fault.BROKEN, Fault.DENIED])
async def test_a_kms_that_fails_stops_what_is_new_and_nothing_else(
    kms_world: KmsWorld, world: World, fault: Fault
) -> None:
    if fault not in kms_world.faults:
        return
    key = os.urandom(32)
    caller = Caller(world, index_key=key)
    auth = {"token": world.token, "index_key": encode_base64(key)}
    await world.create("acme/docs")
    await world.create("mine", auth=auth, kms={"provider": "none"})
    holder, newcomer = await world.holder("index-1"), await world.holder("query-1")
    await holder.lease("acme/docs")
    async with failing(kms_world, world, fault), asyncio.timeout(PATIENCE_S):
        waiting = asyncio.ensure_future(newcomer.lease("acme/docs", auth=Auth(token=world.token)))
        # An index whose key is elsewhere goes on meanwhile.
        shown = caller.shown(QUERY_REQUEST)
        assert (await newcomer.lease("mine", auth=caller.auth("mine"), **shown)).full
        with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
            await waiting
        refused = await world.admin("index.create", {"index": "new"})
        assert refused.error is not None
        assert refused.error.code is ErrorCode.KEY_UNAVAILABLE
        # What is leased is renewed from what the key service has cached.
        world.clock.pass_s(210)
        await holder.tick()
        await holder.settled()
        assert (await holder.lease("acme/docs")).expires_s > world.clock() + 200
    await eventually(lambda: newcomer.lease("acme/docs", auth=Auth(token=world.token)))
    assert (await newcomer.lease("acme/docs", auth=Auth(token=world.token))).full
    await world.create("new")


async def test_documents_are_found_after_a_restart_and_after_an_outage(
    kms_world: KmsWorld, world: World
) -> None:
    await world.create("docs", kms={"provider": kms_world.provider, "key_id": kms_world.two})
    await world.create("cold")
    async with workers(world, *ALL), client(world) as first:
        await stored(first, "docs", "a", content="the tide comes in")
    # Another key service with another client, and workers without any lease.
    await world.latest.end()
    await world.kms.aclose()
    world.kms = HastyKms(kms_world.open())
    await world.start_service("keys-2")
    holder = await world.holder("index-1")
    async with workers(world, *ALL), client(world) as second:
        await stored(second, "docs", "b", content="high tide at noon")
        assert len((await second.search("docs", "tide")).hits) == 2
        async with stopped(kms_world, world), asyncio.timeout(PATIENCE_S):
            with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
                await second.search("cold", "tide")
            assert len((await second.search("docs", "tide")).hits) == 2
        await eventually(lambda: second.search("cold", "tide"))

    await holder.lease("docs")
    async with stopped(kms_world, world), asyncio.timeout(PATIENCE_S):
        # For 900 s the key service goes by what it has.
        for _ in range(3):
            world.clock.pass_s(290)
            await holder.tick()
            await holder.settled()
            assert (await holder.lease("docs")).expires_s > world.clock() + 200
        world.clock.pass_s(290)
        await holder.tick()
        await holder.settled()
        world.clock.pass_s(20)
        with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
            await holder.lease("docs")
    await eventually(lambda: holder.lease("docs"))


async def eventually(ask: Callable[[], Awaitable[object]]) -> None:
    """Wait until what was refused for want of keys is not: nothing was restarted."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await ask()
                return
            except Retry:
                await asyncio.sleep(0.05)
