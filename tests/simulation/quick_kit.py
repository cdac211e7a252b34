"""A world in real time in which everything takes seconds: leases, changes of keys, sweeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from query_kit import INDEX, PATIENCE_S, World

LEASE_S = 2


@asynccontextmanager
async def quick_world(
    home: Path, patch: pytest.MonkeyPatch, store: Callable[[Any], Any] = lambda store: store
) -> AsyncIterator[World]:
    """Run a key service whose leases live for two seconds; index workers sweep all the time.

    Args:
        home: an empty folder.
        patch: shortens what would take longer.
        store: puts a store of the key service's own before the world's.
    """
    patch.setattr("workers.keys.lifecycle.CLOCK_SKEW_S", 0)
    patch.setattr("workers.keys.worker._ADVANCE_S", 0.0)
    patch.setattr("workers.index.background.ROUND_S", 0.2)
    patch.setattr("workers.index.background._RECOVER_S", 0.5)
    # Who lost its lease to a machine that stood still asks for another one, and not in a while.
    patch.setattr("workers.runtime.policy.RetryPolicy.delay_s", lambda *_: 0.05)
    # Sweeps all the time: what they note about garbage has to outlive the key generations.
    patch.setattr("workers.index.sweeping.SWEEP_S", 0.0)
    world = World(home, allow_plain_credentials=True)
    world.settings = world.settings.model_copy(update={"lease_s": LEASE_S})
    world.store = store(world.store)
    await world.open()
    yield world
    await world.aclose()


async def change_key(world: World, level: str) -> None:
    """Change a key of `INDEX` and wait until that is done everywhere."""
    done = await world.admin("key.rotate", {"index": INDEX, "level": level})
    assert done.error is None, done.error
    async with asyncio.timeout(PATIENCE_S):
        while (await world.key_status(INDEX))["rotation"] is not None:
            await asyncio.sleep(0.1)
