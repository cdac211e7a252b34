"""Dead letters and the records they are about: find them, and append those records again.

A replayed record is unchanged, in the same partition, with one more header: `sealstream-replay`,
the offset where it first stood, in decimal. The ingest workers order by that offset, so that a
replayed operation never overrules what came after it. A record of index-update carries its order
inside.

Requests are not replayed: whoever sent one has long stopped waiting, and its credential ended.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, NamedTuple

from schemas.codec import decode
from schemas.deadletter import DeadLetter
from schemas.errors import InvalidMessage
from schemas.topics import (
    GROUP_TOPICS,
    HEADER_REPLAY,
    INDEX_UPDATE,
    PLAINTEXT_INGEST,
    dead_letter,
    with_prefix,
)
from workers.cli.common import USAGE, complain, fail
from workers.cli.show import printable
from workers.kafka.broker import TP, Broker, Headers, Record

_REPLAYABLE: Final = (PLAINTEXT_INGEST, INDEX_UPDATE)
_MAX_DIGITS: Final = 18
_POLL_S: Final = 0.5


class Place(NamedTuple):
    """Where a record stands; `topic` with the deployment's prefix."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return printable(f"{self.topic}/{self.partition}/{self.offset}")

    @classmethod
    def of(cls, letter: DeadLetter) -> Place:
        """Return where the refused record stands."""
        source = letter.source
        return cls(source.topic, source.partition, source.offset)

    @classmethod
    def parse(cls, text: str) -> Place:
        """Return the place that `str` wrote.

        Raises:
            Exit: it is none.
        """
        topic, *numbers = text.split("/")
        if not topic or len(numbers) != 2 or not all(map(_is_number, numbers)):
            fail(f"{printable(text)}: write TOPIC/PARTITION/OFFSET, as `dlq list` prints it", USAGE)
        return cls(topic, int(numbers[0]), int(numbers[1]))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS


def topics_with_letters(prefix: str, topic: str | None) -> list[str]:
    """Return the topics, with prefix, whose dead letters are meant.

    Args:
        prefix: of the deployment.
        topic: one of them, with or without prefix; None for all.

    Raises:
        Exit: `topic` has no dead letters.
    """
    topics = [with_prefix(prefix, name) for name in GROUP_TOPICS]
    if topic is None:
        return topics
    found = [name for name in (topic, with_prefix(prefix, topic)) if name in topics][:1]
    if not found:
        fail(f"{printable(topic)} has no dead letters; topics: {', '.join(topics)}", USAGE)
    return found


def replayable_topics(prefix: str) -> list[str]:
    """Return the topics, with prefix, whose records may be appended again."""
    return [with_prefix(prefix, name) for name in _REPLAYABLE]


async def read_letters(
    broker: Broker, topics: Sequence[str], code: str | None
) -> AsyncGenerator[DeadLetter]:
    """Yield the dead letters of `topics` that exist now, those of one record as written.

    Letters are not signed: one that names a record of another topic than its own is left out, and
    `find_problem` compares the record with what the letter says about it.

    Raises:
        Retry: the broker is unavailable.
    """
    of_letters = {dead_letter(name): name for name in topics}
    existing = [name for name in of_letters if await broker.partitions(name)]
    foreign = 0
    async with aclosing(_read_existing(broker, existing)) as records:
        async for record in records:
            try:
                letter = decode(DeadLetter, record.value)
            except InvalidMessage:
                foreign += 1
                continue
            if letter.source.topic != of_letters[record.topic]:
                foreign += 1
            elif code is None or letter.error.code == code.upper():
                yield letter
    if foreign:
        complain(f"careful: {foreign:,} records in dead-letter topics are no dead letters")


async def newest_letters(
    broker: Broker, topics: Sequence[str], code: str | None, wanted: set[Place] | None
) -> dict[Place, DeadLetter]:
    """Return the newest dead letter of each record, of `wanted` records only if given."""
    found: dict[Place, DeadLetter] = {}
    async with aclosing(read_letters(broker, topics, code)) as letters:
        async for letter in letters:
            place = Place.of(letter)
            known = found.get(place)
            newer = known is None or known.failed_ms <= letter.failed_ms
            if newer and (wanted is None or place in wanted):
                found[place] = letter
    return found


async def _read_existing(broker: Broker, topics: Sequence[str]) -> AsyncGenerator[Record]:
    """Yield the records that are in the topics now."""
    if not topics:
        return
    reader = broker.topic_reader(topics, start="beginning", low_latency=False)
    await reader.start()
    caught_up = asyncio.create_task(reader.caught_up(), name="dead-letters-end")
    try:
        while not caught_up.done():
            for record in await reader.next(_POLL_S):
                yield record
    finally:
        caught_up.cancel()
        await asyncio.gather(caught_up, return_exceptions=True)
        await reader.stop()


async def read_source(broker: Broker, place: Place) -> Record | None:
    """Return the refused record, or what stands in its place now. Raises Retry."""
    if place.partition >= await broker.partitions(place.topic):
        return None
    return await broker.read(TP(place.topic, place.partition), place.offset)


def find_problem(record: Record | None, letter: DeadLetter, prefix: str) -> str | None:
    """Say why the record of `letter` cannot be replayed; None if it can."""
    if letter.source.topic not in replayable_topics(prefix):
        return "a request: its sender no longer waits, and may send it again"
    if record is None:
        return "the record is not kept any more"
    value = record.value or b""
    same = len(value) == letter.size and record.timestamp_ms == letter.source.timestamp_ms
    if letter.digest == "sha256":
        same = same and hashlib.sha256(value).hexdigest() == letter.sha256
    return None if same else "another record stands there now: the topic was made anew"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one dead letter. `problem` is None if its record was appended again."""

    place: Place
    problem: str | None = None


async def replay_letters(
    broker: Broker, letters: Iterable[DeadLetter], prefix: str, *, dry_run: bool
) -> AsyncGenerator[Outcome]:
    """Append the records of `letters` again, in the order of their places.

    Raises:
        Retry: the broker did not take a record; those before it were appended.
    """
    producer = await broker.producer()
    for letter in sorted(letters, key=Place.of):
        record = await read_source(broker, Place.of(letter))
        problem = find_problem(record, letter, prefix)
        if record is not None and problem is None and not dry_run:
            # One at a time: nothing later may arrive if this one does not.
            await producer.send_and_wait(
                record.topic,
                record.value,
                key=record.key,
                partition=record.partition,
                headers=replay_headers(record),
            )
        yield Outcome(Place.of(letter), problem)


def replay_headers(record: Record) -> Headers:
    """Return the headers of a replayed record: its own, and where it first stood."""
    if record.header(HEADER_REPLAY) is not None:
        # It was a replay itself and says already where the operation first stood.
        return record.headers
    return (*record.headers, (HEADER_REPLAY, str(record.offset).encode()))
