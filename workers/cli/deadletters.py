"""`sealstream dlq`: see refused records, and give them to the workers again.

A dead letter says where a record stands and why it was refused. What the record holds is never
shown: it may be somebody's plaintext.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

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
from workers.cli.show import error_text, moment, printable

if TYPE_CHECKING:
    from schemas.deadletter import DeadLetter
    from workers.cli.letters import Outcome
    from workers.kafka.broker import Broker, Record
    from workers.settings import Settings

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
    from workers.cli.letters import Place, read_letters, topics_with_letters

    if limit < 1:
        fail("--limit: at least 1", USAGE)
    newest: list[tuple[int, int, DeadLetter]] = []
    total = 0
    async with _opened(common) as (settings, broker):
        topics = topics_with_letters(settings.topic_prefix, topic)
        async with aclosing(read_letters(broker, topics, code)) as letters:
            async for letter in letters:
                total += 1
                add = heapq.heappush if len(newest) < limit else heapq.heappushpop
                add(newest, (letter.failed_ms, total, letter))
    shown = [letter for _, _, letter in sorted(newest)]
    if json:
        say_json({"total": total, "letters": [_plain(letter) for letter in shown]})
        return OK
    say_table(
        ("record", "refused", "attempts", "bytes", "why"),
        [
            (
                Place.of(letter),
                moment(letter.failed_ms),
                letter.attempts,
                letter.size,
                error_text(letter.error),
            )
            for letter in shown
        ],
    )
    say(f"{total:,} dead letters" + (f", {len(shown)} shown" if total > len(shown) else ""))
    return OK


@app.command
async def show(place: str, /, *, json: AsJson = False, common: Common = COMMON) -> int:
    """Show one dead letter, and whether its record can be replayed.

    Parameters
    ----------
    place
        Where the record stands, TOPIC/PARTITION/OFFSET, as `dlq list` prints it.
    """
    from workers.cli.letters import (
        Place,
        find_problem,
        newest_letters,
        read_source,
        topics_with_letters,
    )

    wanted = Place.parse(place)
    async with _opened(common) as (settings, broker):
        topics = topics_with_letters(settings.topic_prefix, wanted.topic)
        found = await newest_letters(broker, topics, None, {wanted})
        if not found:
            fail(f"NOT_FOUND: there is no dead letter of {wanted}")
        letter = found[wanted]
        record = await read_source(broker, wanted)
    problem = find_problem(record, letter, settings.topic_prefix)
    facts = {"replayable": problem is None, "problem": problem, **_headers(record)}
    if json:
        say_json({**_plain(letter), **facts})
        return OK
    rows = [
        ("record", wanted),
        ("why", error_text(letter.error)),
        ("refused", moment(letter.failed_ms)),
        ("produced", moment(letter.source.timestamp_ms)),
        ("attempts", letter.attempts),
        ("bytes", letter.size),
        (letter.digest, letter.sha256),
        *((name, value) for name, value in facts.items() if value is not None),
    ]
    say_table(("", ""), rows)
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

    A replayed operation does not override what came after it on the same document.
    The exit code is 1 if a record could not be replayed.

    Parameters
    ----------
    place
        Records, TOPIC/PARTITION/OFFSET, as `dlq list` prints them.
    every
        All of plaintext-ingest and index-update that --topic and --code let through.
    dry_run
        Only say what would be replayed.
    """
    from workers.cli.letters import (
        Outcome,
        Place,
        newest_letters,
        replay_letters,
        replayable_topics,
        topics_with_letters,
    )

    if bool(place) == every:
        fail("say which records: TOPIC/PARTITION/OFFSET ..., or --all", USAGE)
    if place and (topic or code):
        fail("--topic and --code go with --all", USAGE)
    wanted = {Place.parse(one) for one in place} or None
    async with _opened(common) as (settings, broker):
        prefix = settings.topic_prefix
        topics = topics_with_letters(prefix, topic)
        if every and topic is None:
            topics = replayable_topics(prefix)
        letters = await newest_letters(broker, topics, code, wanted)
        missing = sorted((wanted or set()) - letters.keys())
        outcomes = [Outcome(one, "there is no dead letter of this record") for one in missing]
        replayed = replay_letters(broker, letters.values(), prefix, dry_run=dry_run)
        outcomes += [outcome async for outcome in replayed]
    _tell(outcomes, dry_run=dry_run, json=json)
    return REFUSED if any(outcome.problem for outcome in outcomes) else OK


def _tell(outcomes: list[Outcome], *, dry_run: bool, json: bool) -> None:
    done = [str(one.place) for one in outcomes if one.problem is None]
    problems = [one for one in outcomes if one.problem is not None]
    if json:
        told = [{"record": str(one.place), "problem": one.problem} for one in problems]
        say_json({"replayed": done, "dry_run": dry_run, "problems": told})
        return
    for one in problems:
        complain(f"not replayed {one.place}: {one.problem}")
    say(f"{'would replay' if dry_run else 'replayed'} {len(done):,} of {len(outcomes):,}")


def _plain(letter: DeadLetter) -> dict[str, Any]:
    from schemas.codec import to_plain
    from workers.cli.letters import Place

    return {"record": str(Place.of(letter)), **to_plain(letter)}


def _headers(record: Record | None) -> dict[str, Any]:
    """Return what may be shown of a record: never its key or value."""
    from schemas.topics import (
        CONTENT_SEALED,
        HEADER_CONTENT_TYPE,
        HEADER_REPLAY,
        HEADER_TRACEPARENT,
    )

    if record is None:
        return {}
    trace, first = record.header(HEADER_TRACEPARENT), record.header(HEADER_REPLAY)
    return {
        "sealed": record.header(HEADER_CONTENT_TYPE) == CONTENT_SEALED.encode(),
        "traceparent": None if trace is None else printable(trace.decode("latin-1")),
        "replay_of_offset": None if first is None else printable(first.decode("latin-1")),
    }


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
