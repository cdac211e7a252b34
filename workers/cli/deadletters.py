"""`sealstream dlq`: see refused records, and give them to the workers again.

A dead letter says where a record stands and why it was refused; the record itself is still in its
topic. Replay reads it there and appends it, unchanged, to the same partition with the header
`sealstream-replay`: the offset where it first stood, in decimal. Readers of plaintext-ingest order
by that offset, so that a replayed operation never overrules what came after it. A record of
index-update carries its order inside.

Requests are not replayed: whoever sent one has long stopped waiting, and its credential ended.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from schemas.topics import INDEX_UPDATE, PLAINTEXT_INGEST
from workers.cli.common import (
    COMMON,
    OK,
    REFUSED,
    USAGE,
    AsJson,
    Common,
    complain,
    fail,
    say,
    say_json,
    say_table,
)
from workers.cli.connect import quiet_logs
from workers.cli.show import cell, error_text, moment, printable

if TYPE_CHECKING:
    from schemas.deadletter import DeadLetter
    from workers.kafka.broker import Broker, Headers, Record
    from workers.settings import Settings

HEADER_REPLAY: Final = "sealstream-replay"
_REPLAYABLE: Final = (PLAINTEXT_INGEST, INDEX_UPDATE)
_POLL_S: Final = 0.5

app = App(name="dlq", help="Dead letters: records that were refused.")

Topic = Annotated[
    str | None, Parameter(help="Only of this topic, such as plaintext-ingest (default: all).")
]
Code = Annotated[
    str | None, Parameter(help="Only those refused with this code, such as UNKNOWN_INDEX.")
]


@app.command(name="list")
async def list_(
    *,
    topic: Topic = None,
    code: Code = None,
    limit: int = 50,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """List dead letters, the newest last.

    Parameters
    ----------
    limit
        How many of the newest to show.
    """
    newest: deque[DeadLetter] = deque(maxlen=max(limit, 0))
    total = 0
    async with (
        _opened(common) as (settings, broker),
        aclosing(_letters(broker, settings, topic, code)) as letters,
    ):
        async for letter in letters:
            newest.append(letter)
            total += 1
    if json:
        say_json({"total": total, "letters": [_plain(letter) for letter in newest]})
        return OK
    say_table(
        ("record", "refused", "attempts", "bytes", "why"),
        [
            (
                _place(letter),
                moment(letter.failed_ms),
                letter.attempts,
                letter.size,
                error_text(letter.error),
            )
            for letter in newest
        ],
    )
    say(f"{total:,} dead letters" + (f", {len(newest)} shown" if total > len(newest) else ""))
    return OK


@app.command
async def show(place: str, /, *, json: AsJson = False, common: Common = COMMON) -> int:
    """Show one dead letter, and whether its record can still be read; never what is in it.

    Parameters
    ----------
    place
        Where the record stands, TOPIC/PARTITION/OFFSET, as `dlq list` prints it.
    """
    wanted = _parse_place(place)
    async with _opened(common) as (settings, broker):
        found = await _collect(broker, settings, wanted[0], None, {wanted})
        if not found:
            fail(f"NOT_FOUND: no dead letter of {printable(place)}")
        letter = found[wanted]
        record = await _source(broker, letter)
    problem = _mismatch(record, letter)
    facts = {"replayable": problem is None, "problem": problem, **_headers(record)}
    if json:
        say_json({**_plain(letter), **facts})
        return OK
    rows = [
        ("record", _place(letter)),
        ("why", error_text(letter.error)),
        ("refused", moment(letter.failed_ms)),
        ("produced", moment(letter.source.timestamp_ms)),
        ("attempts", letter.attempts),
        ("bytes", letter.size),
        (letter.digest, letter.sha256),
        *((name, value) for name, value in facts.items() if value is not None),
    ]
    say_table(("", ""), [(name, cell(str(v)) if name != letter.digest else v) for name, v in rows])
    return OK


@app.command
async def replay(
    *place: str,
    topic: Topic = None,
    code: Code = None,
    every: Annotated[bool, Parameter(name="--all")] = False,
    dry_run: bool = False,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Give refused records to the workers again, in their original order.

    A replayed operation does not override what came after it on the same document. The exit code
    is 1 if a record could not be replayed: it is not kept any more, or its topic was made anew.

    Parameters
    ----------
    place
        Records, TOPIC/PARTITION/OFFSET, as `dlq list` prints them.
    every
        All that --topic and --code let through.
    dry_run
        Only say what would be replayed.
    """
    if bool(place) == every:
        fail("say which records: TOPIC/PARTITION/OFFSET ..., or --all", USAGE)
    if place and (topic or code):
        fail("--topic and --code go with --all", USAGE)
    wanted = {_parse_place(one) for one in place} or None
    async with _opened(common) as (settings, broker):
        letters = await _collect(broker, settings, topic, code, wanted)
        known = {settings.topic_prefix + name for name in _REPLAYABLE}
        outcomes = [
            Outcome(one, "no dead letter of this record")
            for one in sorted((wanted or set()) - letters.keys())
        ]
        outcomes += [o async for o in _replay(broker, letters.values(), known, dry_run=dry_run)]
    problems = [one for one in outcomes if one.problem is not None]
    if json:
        say_json(
            {
                "replayed": [one.name for one in outcomes if one.problem is None],
                "dry_run": dry_run,
                "problems": [{"record": one.name, "problem": one.problem} for one in problems],
            }
        )
    else:
        for one in problems:
            complain(f"not replayed {one.name}: {one.problem}")
        verb = "would replay" if dry_run else "replayed"
        say(f"{verb} {len(outcomes) - len(problems):,} of {len(outcomes):,}")
    return REFUSED if problems else OK


Place = tuple[str, int, int]
"""Topic with prefix, partition, offset."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one dead letter. `problem` is None if its record was appended again."""

    place: Place
    problem: str | None = None

    @property
    def name(self) -> str:
        """The place as `dlq list` prints it."""
        return "/".join(map(str, self.place))


async def _replay(
    broker: Broker, letters: Iterable[DeadLetter], known: set[str], *, dry_run: bool
) -> AsyncGenerator[Outcome]:
    """Append the records of `letters` again, oldest first."""
    producer = await broker.producer()
    for letter in sorted(letters, key=_place_of):
        place = _place_of(letter)
        if letter.source.topic not in known:
            yield Outcome(place, "a request: its sender no longer waits, and may send it again")
            continue
        record = await _source(broker, letter)
        problem = _mismatch(record, letter)
        if record is not None and problem is None and not dry_run:
            # One at a time: nothing later may arrive if this one does not.
            await producer.send_and_wait(
                record.topic,
                record.value,
                key=record.key,
                partition=record.partition,
                headers=replay_headers(record),
            )
        yield Outcome(place, problem)


def replay_headers(record: Record) -> Headers:
    """Return the headers of a replayed record: its own, and where it first stood."""
    if record.header(HEADER_REPLAY) is not None:
        # It was a replay itself and says already where the operation first stood.
        return record.headers
    return (*record.headers, (HEADER_REPLAY, str(record.offset).encode()))


async def _source(broker: Broker, letter: DeadLetter) -> Record | None:
    from workers.kafka.broker import TP

    source = letter.source
    if source.partition >= await broker.partitions(source.topic):
        return None
    return await broker.read(TP(source.topic, source.partition), source.offset)


def _mismatch(record: Record | None, letter: DeadLetter) -> str | None:
    """Say why `record` is not what was refused; None if it is."""
    if record is None:
        return "the record is not kept any more"
    value = record.value or b""
    same = len(value) == letter.size and record.timestamp_ms == letter.source.timestamp_ms
    if letter.digest == "sha256":
        same = same and hashlib.sha256(value).hexdigest() == letter.sha256
    return None if same else "another record stands there now: the topic was made anew"


def _headers(record: Record | None) -> dict[str, Any]:
    """Return what may be shown of a record: never its key or value."""
    from schemas.topics import CONTENT_SEALED, HEADER_CONTENT_TYPE, HEADER_TRACEPARENT

    if record is None:
        return {}
    sealed = record.header(HEADER_CONTENT_TYPE) == CONTENT_SEALED.encode()
    trace = record.header(HEADER_TRACEPARENT)
    first = record.header(HEADER_REPLAY)
    return {
        "sealed": sealed,
        "traceparent": None if trace is None else printable(trace.decode("latin-1")),
        "replay_of_offset": None if first is None else printable(first.decode("latin-1")),
    }


async def _collect(
    broker: Broker,
    settings: Settings,
    topic: str | None,
    code: str | None,
    wanted: set[Place] | None,
) -> dict[Place, DeadLetter]:
    """Return the newest dead letter of each record, of `wanted` records only if given."""
    found = {}
    async with aclosing(_letters(broker, settings, topic, code)) as letters:
        async for letter in letters:
            if wanted is None or _place_of(letter) in wanted:
                found[_place_of(letter)] = letter
    return found


async def _letters(
    broker: Broker, settings: Settings, topic: str | None, code: str | None
) -> AsyncGenerator[DeadLetter]:
    """Yield the dead letters that exist now, by topic, in the order they were written.

    A letter that names a record of another topic than its own is nothing we wrote: left out.
    """
    from schemas.codec import decode
    from schemas.deadletter import DeadLetter
    from schemas.errors import InvalidMessage
    from schemas.topics import dead_letter

    foreign = 0
    for source in _sources(settings, topic):
        if not await broker.partitions(dead_letter(source)):
            continue
        async with aclosing(_existing(broker, dead_letter(source))) as records:
            async for record in records:
                try:
                    letter = decode(DeadLetter, record.value)
                except InvalidMessage:
                    foreign += 1
                    continue
                if letter.source.topic != source:
                    foreign += 1
                elif code is None or letter.error.code == code.upper():
                    yield letter
    if foreign:
        complain(f"careful: {foreign:,} records in dead-letter topics are no dead letters")


def _sources(settings: Settings, topic: str | None) -> Sequence[str]:
    """Return the topics whose dead letters are meant, with prefix."""
    from schemas.topics import GROUP_TOPICS, with_prefix

    prefix = settings.topic_prefix
    topics = [with_prefix(prefix, name) for name in GROUP_TOPICS]
    if topic is None:
        return topics
    found = [name for name in (topic, prefix + topic) if name in topics][:1]
    if not found:
        fail(f"{printable(topic)} has no dead letters; topics: {', '.join(topics)}", USAGE)
    return found


async def _existing(broker: Broker, topic: str) -> AsyncGenerator[Record]:
    """Yield the records that are in a topic now."""
    reader = broker.topic_reader([topic], start="beginning", low_latency=False)
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


@asynccontextmanager
async def _opened(common: Common) -> AsyncGenerator[tuple[Settings, Broker]]:
    settings = common.settings()
    quiet_logs()
    broker = connect_broker(settings)
    try:
        yield settings, broker
    finally:
        await broker.aclose()


def connect_broker(settings: Settings) -> Broker:
    """Return the configured broker."""
    from workers.kafka.open import open_broker

    return open_broker(settings, client_id="sealstream-dlq")


def _parse_place(text: str) -> Place:
    topic, _, rest = text.partition("/")
    partition, _, offset = rest.partition("/")
    if not (topic and _number(partition) and _number(offset)):
        fail(f"{printable(text)}: write TOPIC/PARTITION/OFFSET, as `dlq list` prints it", USAGE)
    return topic, int(partition), int(offset)


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18


def _place_of(letter: DeadLetter) -> Place:
    return letter.source.topic, letter.source.partition, letter.source.offset


def _place(letter: DeadLetter) -> str:
    return printable("/".join(map(str, _place_of(letter))))


def _plain(letter: DeadLetter) -> dict[str, Any]:
    from schemas.codec import to_plain

    return {"record": _place(letter), **to_plain(letter)}
