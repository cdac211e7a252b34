"""OpenBao as the KMS of a running stack: restarted key service, KMS stopped, frozen, and back.

The other providers do the same in one process, where time can be made to pass, too
(`tests/contract/test_kms_key_service.py`). Here all processes are real, and none but those that the
test ends is started again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from stack_kit import DEADLINE_S, QUERY_S, Stack, connect, eventually, ids, new_name

from schemas.errors import ErrorCode
from workers.client import Client
from workers.errors import Retry
from workers.local.state import read_state

pytestmark = [pytest.mark.integration, pytest.mark.long]

LEASE_S = 10
OWN_KEY = bytes(range(32))


@pytest.fixture(scope="module")
def stack(start_stack: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("openbao")
    environ = {"SEALSTREAM_LEASE_S": str(LEASE_S)}
    with start_stack(home, "--kms", "vault", environ=environ) as running:  # type: ignore[operator]
        yield running


async def running_again(stack: Stack, name: str, before: int | None) -> int:
    """Wait until a process was started again and is ready; return its id."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            state = read_state(stack.home)
            assert state is not None
            found = next(process for process in state.processes if process.name == name)
            if found.state == "ready" and found.pid not in (None, before):
                assert found.pid is not None
                return found.pid
            await asyncio.sleep(0.05)


@asynccontextmanager
async def stopped(stack: Stack) -> AsyncIterator[None]:
    """OpenBao is not there: ended, and it cannot start for want of its configuration."""
    pid = stack.pid("openbao")
    assert pid is not None
    config = stack.home / "openbao" / "config.json"
    aside = config.with_suffix(".aside")
    config.rename(aside)
    try:
        os.kill(pid, signal.SIGTERM)
        yield
    finally:
        aside.rename(config)
        await running_again(stack, "openbao", pid)


@asynccontextmanager
async def frozen(stack: Stack) -> AsyncIterator[None]:
    """OpenBao takes connections and never answers."""
    pid = stack.pid("openbao")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Indexes:
    """One index that is leased, one with another key, and some that nobody has searched yet."""

    def __init__(self, client: Client, owner: Client) -> None:
        self.client = client
        self.owner = owner
        self.leased = new_name("leased")
        self.own = new_name("own-key")
        self.cold = [new_name("cold") for _ in range(3)]

    async def create(self, *names: str) -> None:
        for index in names:
            if index == self.own:
                await self.owner.create_index(index, kms={"provider": "none"})
            else:
                await self.client.create_index(index)
            client = self.owner if index == self.own else self.client
            await client.ingest(index, "a", content="the tide comes in", wait="searchable")

    async def found(self, index: str) -> None:
        client = self.owner if index == self.own else self.client
        assert ids((await client.search(index, "tide", timeout_s=QUERY_S)).hits) == ["a"]

    async def without_kms(self, cold: str) -> None:
        """What is leased goes on beyond the life of any lease; what is new is refused."""
        with pytest.raises(Retry) as refused:
            await self.client.search(cold, "tide", timeout_s=QUERY_S)
        assert refused.value.code is ErrorCode.KEY_UNAVAILABLE
        with pytest.raises(Retry) as refused:
            await self.client.create_index(new_name("refused"))
        assert refused.value.code is ErrorCode.KEY_UNAVAILABLE
        end = time.monotonic() + 1.5 * LEASE_S
        while time.monotonic() < end:
            await self.found(self.leased)
            await self.found(self.own)
            await self.owner.ingest(self.own, "b", content="at noon")
            await self.client.ingest(self.leased, "b", content="at noon")

    async def with_kms_again(self, cold: str) -> None:
        await eventually(lambda: self.found(cold))
        await eventually(lambda: self.client.create_index(new_name("created")))
        await self.found(self.leased)
        await self.found(self.own)


async def test_openbao_stops_and_freezes_and_comes_back(stack: Stack) -> None:
    async with connect(stack) as client, connect(stack, index_key=OWN_KEY) as owner:
        indexes = Indexes(client, owner)
        await indexes.create(indexes.own, *indexes.cold)
        after_restart, after_stop, after_frost = indexes.cold

        pid = stack.pid("keys-1")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        keys = await running_again(stack, "keys-1", pid)
        await eventually(lambda: indexes.found(after_restart))
        # The owner of its own key shows it again: the new key service has never seen it.
        await eventually(lambda: indexes.found(indexes.own))
        # What the KMS gave this key service goes on without the KMS.
        await indexes.create(indexes.leased)
        await indexes.found(indexes.leased)

        async with stopped(stack):
            await indexes.without_kms(after_stop)
        await indexes.with_kms_again(after_stop)

        async with frozen(stack):
            await indexes.without_kms(after_frost)
        await indexes.with_kms_again(after_frost)

        assert stack.pid("keys-1") == keys
