"""`kill -9` of every kind of worker in the middle of a bulk ingest: nothing lost, nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from chaos_kit import (
    DEADLINE_S,
    QUERY_S,
    Document,
    all_committed,
    assert_verified,
    assert_whole,
    back,
    documents,
    eventually,
    kill,
)
from stack_kit import connect, new_name

from schemas.ingest import IngestResult
from workers.client import Client
from workers.errors import Retry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

ROLES = ("ingest", "index", "query", "keys")


@pytest.fixture(scope="module")
async def client(chaos: Any) -> AsyncIterator[Client]:
    async with connect(chaos) as one:
        yield one


async def ingest_and_kill(
    client: Client, stack: Any, mails: list[Document], kills: list[tuple[int, str]]
) -> dict[str, tuple[list[Document], list[IngestResult]]]:
    """Ingest into two indexes; kill the workers of a role when so many results have come.

    The second index gets its first document after the first kill: its keys have to be leased then.
    """
    early, late = new_name("kills"), new_name("kills-late")
    for index in (early, late):
        await client.create_index(index)
    names = [late if number % 5 == 4 else early for number in range(len(mails))]
    # In flight at most so many: nothing of the second index is produced before the first kill.
    in_flight = 500
    names[: kills[0][0] + in_flight + 1] = [early] * (kills[0][0] + in_flight + 1)
    operations = [mail.upsert(index) for mail, index in zip(mails, names, strict=True)]
    done: dict[str, list[IngestResult]] = {early: [], late: []}
    killed: list[tuple[str, dict[str, int]]] = []
    due = iter([*kills, (len(mails) + 1, "")])
    when, role = next(due)
    count = 0
    async for result in client.ingest_many(operations, in_flight=in_flight, timeout_s=DEADLINE_S):
        assert result.status == "accepted", result
        done[result.index].append(result)
        count += 1
        if count == when:
            # A second kill of the same workers needs them to run again.
            for name, restarts in killed:
                if name == role:
                    await back(stack, name, restarts)
            killed.append((role, await kill(stack, role)))
            when, role = next(due)
    assert count == len(mails)
    for name, restarts in killed:
        await back(stack, name, restarts)
    return {
        index: ([m for m, name in zip(mails, names, strict=True) if name == index], done[index])
        for index in (early, late)
    }


async def answered_again(client: Client, index: str) -> None:
    """Wait until queries are answered: those that a killed worker had taken are not."""

    async def answered() -> bool:
        try:
            await client.count(index, timeout_s=QUERY_S / 4)
        except Retry:
            return False
        return True

    await eventually(answered, "a query is answered")


async def audit(
    client: Client,
    stack: Any,
    filled: dict[str, tuple[list[Document], list[IngestResult]]],
) -> None:
    await all_committed(stack)
    for index, (mails, done) in filled.items():
        assert mails
        assert len(mails) == len(done)
        await answered_again(client, index)
        await assert_whole(client, index, mails, done)
        await assert_verified(stack, index)


@pytest.mark.core
async def test_kill_each_kind_in_the_middle_of_a_bulk_ingest(client: Client, chaos: Any) -> None:
    mails = documents(1500)
    step = len(mails) // (len(ROLES) + 2)
    kills = [(step * (number + 1), role) for number, role in enumerate(ROLES)]
    await audit(client, chaos, await ingest_and_kill(client, chaos, mails, kills))


@pytest.mark.long
@pytest.mark.parametrize("role", ROLES)
async def test_kill_one_kind_alone(client: Client, chaos: Any, role: str) -> None:
    mails = documents(1500)
    filled = await ingest_and_kill(client, chaos, mails, [(len(mails) // 3, role)])
    await audit(client, chaos, filled)


@pytest.mark.long
async def test_repeated_kills_of_everything(client: Client, chaos: Any) -> None:
    mails = documents()
    step = len(mails) // (2 * len(ROLES) + 2)
    kills = [(step * (n + 1), role) for n, role in enumerate((*ROLES, *reversed(ROLES)))]
    await audit(client, chaos, await ingest_and_kill(client, chaos, mails, kills))
