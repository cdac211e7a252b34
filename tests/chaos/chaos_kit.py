"""What the tests on kills, zombies and damage share: documents, processes, and the final audit."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ErrorCode
from schemas.ingest import IngestResult
from schemas.query import Hit
from schemas.topics import INDEX_UPDATE, PLAINTEXT_INGEST
from workers.client import Client
from workers.errors import Reject
from workers.index.worker import GROUP as INDEX_GROUP
from workers.ingest.worker import GROUP as INGEST_GROUP
from workers.kafka.open import open_broker

ENRON = Path(__file__).parents[3] / "shared" / "data" / "enron" / "mails.jsonl"
# Kills cost a session timeout, a start and a rebalance each, on a machine that may be busy.
DEADLINE_S = 240.0
QUERY_S = 60.0
AT_ONCE = 200


# --- documents -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """A document, and one word of it that few others have."""

    id: str
    text: str
    word: str

    def upsert(self, index: str) -> dict[str, Any]:
        return {"op": "upsert", "index": index, "id": self.id, "content": self.text}


def documents(count: int | None = None) -> list[Document]:
    """Return Enron mails where they are at hand, else generated ones; all of them for None."""
    texts = dict(_mails(count)) if ENRON.exists() else dict(_generated(count or 5172))
    words = {name: _words(text) for name, text in texts.items()}
    spread = Counter(word for found in words.values() for word in found)
    return [
        Document(name, text, min(words[name], key=lambda word: (spread[word], word)))
        for name, text in texts.items()
        if words[name]
    ]


def _mails(count: int | None) -> Iterator[tuple[str, str]]:
    with ENRON.open() as lines:
        for number, line in enumerate(lines):
            if number == count:
                return
            mail = json.loads(line)
            yield mail["id"], f"{mail['subject']}\n{mail['text']}"


def _generated(count: int) -> Iterator[tuple[str, str]]:
    for number in range(count):
        yield f"doc-{number}", f"common words and uniqueword{number:05d}x of document {number}"


def _words(text: str) -> set[str]:
    """Return words that every analyser keeps: letters between spaces, nothing short."""
    return set(re.findall(r"(?<![^\s])[a-z]{5,}(?:\d+x)?(?![^\s])", text))


# --- the audit -----------------------------------------------------------------------------------


async def assert_whole(
    client: Client, index: str, expected: Sequence[Document], done: Sequence[IngestResult] = ()
) -> None:
    """Every document is there, once: by `ids`, `count`, version and one of its own words."""
    names = sorted(one.id for one in expected)
    count = await client.count(index, after=done, timeout_s=QUERY_S)
    listed = sorted([name async for name in client.ids(index, timeout_s=QUERY_S)])
    assert (count, listed) == (len(names), names)
    for start in range(0, len(expected), AT_ONCE):
        part = expected[start : start + AT_ONCE]
        hits = await client.get(
            index, [one.id for one in part], include=["groups"], timeout_s=QUERY_S
        )
        # An upsert that was applied twice would be version 2.
        assert [(hit.id, hit.version) for hit in hits] == [(one.id, 1) for one in part]
        await _assert_found(client, index, part)


async def _assert_found(client: Client, index: str, part: Sequence[Document]) -> None:
    """Each document is found once by its word; in smaller batches where the words are common."""
    try:
        found = await client.query(
            index, [{"text": one.word} for one in part], top_k=6000, timeout_s=QUERY_S
        )
    except Reject as refused:
        if refused.code is not ErrorCode.TOO_LARGE or len(part) == 1:
            raise
        middle = len(part) // 2
        await _assert_found(client, index, part[:middle])
        await _assert_found(client, index, part[middle:])
        return
    assert found.results is not None
    for one, answer in zip(part, found.results, strict=True):
        assert _times(answer.hits, one.id) == 1, (one.id, one.word)


def _times(hits: Sequence[Hit], name: str) -> int:
    return sum(hit.id == name for hit in hits)


async def assert_verified(stack: Any, index: str) -> None:
    """`sealstream verify` opens every stored byte of the index, and all fits together."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.cli.main", "verify", index, "--home", str(stack.home)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def all_committed(stack: Any) -> None:
    """Wait until everything produced has been worked on, what was begun twice included."""
    broker = open_broker(stack.settings, client_id="chaos-lag")
    try:

        async def nothing_left() -> bool:
            left = {
                **await broker.lag(INGEST_GROUP, [PLAINTEXT_INGEST]),
                **await broker.lag(INDEX_GROUP, [INDEX_UPDATE]),
            }
            return not any(left.values())

        await eventually(nothing_left, "all records are committed")
    finally:
        await broker.aclose()


# --- processes -----------------------------------------------------------------------------------


def states(stack: Any, role: str) -> dict[str, Any]:
    """What the supervisor says of the workers of a role."""
    return {p.name: p for p in stack.state.processes if p.name.startswith(f"{role}-")}


async def kill(stack: Any, role: str) -> dict[str, int]:
    """`kill -9` all workers of a role at once; return how often each was started again so far."""
    before = states(stack, role)
    for one in before.values():
        os.kill(one.pid, signal.SIGKILL)
    return {name: one.restarts for name, one in before.items()}


async def back(stack: Any, role: str, restarts: dict[str, int]) -> None:
    """Wait until the supervisor has started all that `kill` ended, and they are ready."""

    async def ready() -> bool:
        return all(
            one.state == "ready" and one.restarts > restarts[name]
            for name, one in states(stack, role).items()
        )

    await eventually(ready, f"{role} workers run again")


@contextmanager
def frozen(pid: int) -> Iterator[Callable[[], None]]:
    """Stop a process with SIGSTOP; yields what thaws it, which happens in any case at the end."""
    os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        os.kill(pid, signal.SIGCONT)

    try:
        yield thaw
    finally:
        thaw()


async def eventually(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Ask again and again until `condition` gives something true; return that."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (found := await condition()):
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None
    return found
