"""Damage on the running stack: seen by a query worker that was killed and starts cold."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chaos_kit import QUERY_S, assert_verified, back, eventually, kill
from damage_kit import flip
from stack_kit import Stack, connect, new_name

from schemas.errors import ErrorCode
from workers.client import Client
from workers.errors import Reject, Retry
from workers.storage import layout
from workers.storage.open import open_store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

LONG = "a long content with many words " * 150
NAMES = [f"doc-{number}" for number in range(40)]


def note(name: str) -> dict[str, Any]:
    """Metadata that does not compress away: segments below 64 KiB live in the head.

    One document has more than that alone: how many come together into a segment is chance.
    """
    size = 80_000 if name == NAMES[0] else 2000
    return {"metadata": {"note": random.Random(name).randbytes(size).hex()}}


async def ask(client: Client, index: str) -> Any:
    """Return all contents, or the code of the error; again while a killed worker is missed."""

    async def answered() -> Any:
        try:
            return await client.get(
                index, NAMES, include=["content", "metadata"], timeout_s=QUERY_S / 2
            )
        except Reject as error:
            return error.code
        except Retry:
            return None

    return await eventually(answered, "an answer")


async def test_damage_seen_by_a_worker_that_was_killed(chaos: Stack) -> None:
    index, other = new_name("damage"), new_name("damage-other")
    store = open_store(chaos.settings)
    async with connect(chaos) as client:
        created = await client.create_index(index)
        await client.create_index(other)
        uid = bytes.fromhex(created["uid"])
        for name in (index, other):
            operations = [
                {"op": "upsert", "index": name, "id": one, "content": f"{one} {LONG}", **note(one)}
                for one in NAMES
            ]
            async for result in client.ingest_many(operations, wait="searchable"):
                assert result.status == "accepted"
        whole = await ask(client, index)
        assert [hit.content for hit in whole] == [f"{one} {LONG}" for one in NAMES]

        async def keys(prefix: str) -> list[str]:
            return [info.key async for info in store.list(prefix)]

        # Segments and packs are hit all at once: which of them a query meets is their business.
        for changed in (
            [layout.head(uid, 0)],
            await keys(layout.segments_prefix(uid, 0)),
            await keys(layout.packs_prefix(uid)),
        ):
            before = {key: (await store.get(key)).data for key in changed}
            assert before
            for key, data in before.items():
                await store.put(key, flip(data, [(0, len(data))]))
            await back(chaos, "query", await kill(chaos, "query"))
            pid = chaos.pid("query-1")
            assert await ask(client, index) is ErrorCode.DAMAGED
            assert len(await ask(client, other)) == len(NAMES)
            for key, data in before.items():
                await store.put(key, data)
            assert await ask(client, index) == whole
            assert chaos.pid("query-1") == pid
    await store.aclose()
    await assert_verified(chaos, index)
