"""Workers that freeze in the middle of work, are replaced, and wake up again: they change nothing.

Frozen with SIGSTOP, a worker keeps its sockets, its fetched records and what it was about to write;
the group gives its partitions to another. Thawed with SIGCONT, it goes on where it was.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest
from chaos_kit import (
    AT_ONCE,
    DEADLINE_S,
    QUERY_S,
    Document,
    all_committed,
    assert_verified,
    assert_whole,
    documents,
    eventually,
    frozen,
)
from stack_kit import Bare, Listening, Stack, bare, connect, new_name

from schemas.ingest import IngestResult
from schemas.topics import INDEX_EVENT, INDEX_UPDATE, PLAINTEXT_INGEST
from schemas.update import decode_envelope
from workers.client import Client
from workers.local.files import read_json
from workers.storage import layout
from workers.storage.open import open_store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

SHARDS = 4  # one in every partition of index-update


@pytest.fixture(scope="module")
async def client(chaos: Stack) -> AsyncIterator[Client]:
    async with connect(chaos) as one:
        yield one


async def partitions(stack: Stack, **counts: int) -> None:
    """Wait until workers (`index_1=2`) say that they own so many partitions."""
    for name, count in counts.items():
        path = stack.home / "run" / f"{name.replace('_', '-')}.json"

        async def owns(path: Any = path, count: int = count) -> bool:
            return len((read_json(path) or {}).get("partitions", ())) == count

        await eventually(owns, f"{name} has {count} partitions")


async def ingest(client: Client, operations: list[dict[str, Any]], **options: Any) -> list[Any]:
    results = client.ingest_many(operations, timeout_s=DEADLINE_S, **options)
    done = [result async for result in results]
    assert all(result.status == "accepted" for result in done)
    return done


class Heads:
    """What was published of an index, by its events, and what stands in the store."""

    def __init__(self, stack: Stack, events: Listening, index: str, uid: bytes) -> None:
        self._store = open_store(stack.settings, read_only=True)
        self._events = events
        self._index = index
        self._uid = uid

    async def all(self) -> list[dict[str, Any]]:
        await self._events.poll()
        return [e for e in self._events.values(INDEX_EVENT) if e["index"] == self._index]

    async def newest(self) -> dict[int, dict[str, Any]]:
        """Return the newest event of each shard."""
        return {event["shard"]: event for event in await self.all()}

    async def stored(self) -> dict[int, str]:
        """Return the SHA-256 of each shard's head."""
        found = {}
        for shard in range(SHARDS):
            data = (await self._store.get(layout.head(self._uid, shard))).data
            found[shard] = hashlib.sha256(data).hexdigest()
        return found

    async def announced(self) -> bool:
        """Whether the newest event of each shard tells of the head that stands there."""
        newest = await self.newest()
        return {n: event["head_sha256"] for n, event in newest.items()} == await self.stored()

    async def aclose(self) -> None:
        await self._store.aclose()


def other_of(name: str) -> str:
    role, _, number = name.partition("-")
    return f"{role}-{3 - int(number)}"


async def test_frozen_index_worker_is_fenced(client: Client, chaos: Stack) -> None:
    index = new_name("zombie-index")
    created = await client.create_index(index, shards=SHARDS)
    mails = documents(900)
    bulk, more, last = mails[:600], mails[600:800], mails[800:]
    await partitions(chaos, index_1=2, index_2=2)
    async with bare(chaos) as kafka, kafka.listen(INDEX_EVENT) as events:
        heads = Heads(chaos, events, index, bytes.fromhex(created["uid"]))
        writing = asyncio.create_task(
            ingest(client, [mail.upsert(index) for mail in bulk], in_flight=200)
        )

        async def begun() -> Any:
            return await heads.all()

        owner = (await eventually(begun, "the first publication"))[-1]["worker"]
        heir = other_of(owner)
        pid = chaos.pid(owner)
        assert pid is not None
        known = len(await heads.all())
        with frozen(pid) as thaw:
            done = await writing
            await partitions(chaos, **{heir.replace("-", "_"): SHARDS})
            done += await ingest(client, [mail.upsert(index) for mail in more], wait="searchable")
            await eventually(heads.announced, "the heir has announced its heads")
            before = await heads.newest()
            # From the heir's first word about a shard on, the owner said nothing about it.
            since = (await heads.all())[known:]
            for shard in range(SHARDS):
                said = [event["worker"] for event in since if event["shard"] == shard]
                assert owner not in said[said.index(heir) if heir in said else len(said) :]
            thaw()
            # It takes part again: what it had begun is over.
            await partitions(chaos, index_1=2, index_2=2)
        for shard, sha256 in (await heads.stored()).items():
            # Its heads are those of the heir, or followed from these: no version was replaced.
            newest = (await heads.newest())[shard]
            assert newest["version"] > before[shard]["version"] or (
                sha256 == before[shard]["head_sha256"]
            )
        done += await ingest(client, [mail.upsert(index) for mail in last], wait="searchable")
        await eventually(heads.announced, "all heads are announced")
        history: dict[tuple[int, int], set[str]] = defaultdict(set)
        for event in await heads.all():
            history[event["shard"], event["version"]].add(event["head_sha256"])
        forks = {place: found for place, found in history.items() if len(found) > 1}
        assert not forks
        await heads.aclose()
    assert chaos.pid(owner) == pid
    await all_committed(chaos)
    await assert_whole(client, index, mails, done)
    await assert_verified(chaos, index)


async def read_all(kafka: Bare, updates: Listening) -> None:
    """Read on to where the topic ends now."""
    async with kafka.listen(INDEX_UPDATE) as now:
        ends = await now.positions()

    async def behind() -> bool:
        at = await updates.positions()
        return any(at[place] < end for place, end in ends.items())

    while await behind():
        await updates.poll()


def by(worker: str, updates: Listening) -> list[Any]:
    return [one for one in updates.records if decode_envelope(one.value).worker == worker]


async def freeze_ingest(client: Client, stack: Stack, zombie: str) -> int:
    """Freeze an ingest worker with work in hand, change the same documents, thaw it.

    Its work piles up while it is frozen for a moment, so that it fetches more than one batch; it is
    frozen again, for long, when the first of them is out.

    Returns how many updates it wrote after it was thawed.
    """
    index = new_name("zombie-ingest")
    await client.create_index(index)
    await partitions(stack, ingest_1=2, ingest_2=2)
    mails = documents(2400)
    pid = stack.pid(zombie)
    assert pid is not None
    async with bare(stack) as kafka, connect(stack, "plain") as quick:
        async with kafka.listen(PLAINTEXT_INGEST, INDEX_UPDATE) as begun:
            with frozen(pid):
                writing = asyncio.create_task(
                    ingest(quick, [mail.upsert(index) for mail in mails], in_flight=len(mails))
                )
                await begun.until(
                    lambda: (
                        sum(one.topic == PLAINTEXT_INGEST for one in begun.records) == len(mails)
                    ),
                    "all mails are sent",
                )
                begun.forget(PLAINTEXT_INGEST)
            await begun.until(lambda: by(zombie, begun), "the worker begins")
        with frozen(pid) as thaw:
            done = await writing
            renewed, deleted, kept = mails[0::3], mails[1::3], mails[2::3]
            changes = [
                {**mail.upsert(index), "content": f"{mail.text} renewedcontent"} for mail in renewed
            ] + [{"op": "delete", "index": index, "id": mail.id} for mail in deleted]
            done += await ingest(client, changes, wait="searchable")
            async with kafka.listen(INDEX_UPDATE) as updates:
                thaw()
                await partitions(stack, ingest_1=2, ingest_2=2)
                await all_committed(stack)
                await read_all(kafka, updates)
                late = len(by(zombie, updates))
    assert stack.pid(zombie) == pid
    await assert_changed(client, index, renewed, deleted, kept, done)
    await assert_verified(stack, index)
    return late


async def assert_changed(
    client: Client,
    index: str,
    renewed: list[Document],
    deleted: list[Document],
    kept: list[Document],
    done: list[IngestResult],
) -> None:
    """The last operation on every document stands, and was applied once."""
    versions = {**{mail.id: 2 for mail in renewed}, **{mail.id: 1 for mail in kept}}
    assert await client.count(index, after=done, timeout_s=QUERY_S) == len(versions)
    listed = sorted([name async for name in client.ids(index, timeout_s=QUERY_S)])
    assert listed == sorted(versions)
    found = {}
    names = [mail.id for mail in (*renewed, *deleted, *kept)]
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        hits = await client.get(index, part, include=["content", "groups"], timeout_s=QUERY_S)
        found |= {hit.id: hit for hit in hits}
    assert {name: hit.version for name, hit in found.items()} == versions
    new = await client.search(
        index, "renewedcontent", top_k=5000, include=["score"], timeout_s=QUERY_S
    )
    assert sorted(hit.id for hit in new.hits) == sorted(mail.id for mail in renewed)
    assert all(str(found[mail.id].content).endswith("renewedcontent") for mail in renewed)
    assert all(found[mail.id].content == mail.text for mail in kept)


@pytest.mark.long
async def test_late_duplicates_of_a_frozen_ingest_worker_change_nothing(
    client: Client, chaos: Stack
) -> None:
    # Nearly always the first round has late duplicates; a worker may be caught between batches.
    for zombie in ("ingest-1", "ingest-2", "ingest-1"):
        if await freeze_ingest(client, chaos, zombie):
            return
    pytest.fail("no frozen worker had anything in hand")
