from __future__ import annotations

import asyncio
import hashlib

import pytest

from schemas.codec import encode
from schemas.deadletter import DeadLetter, DeadLetterSource
from schemas.errors import ErrorCode, ErrorInfo
from schemas.topics import ALL_TOPICS, HEADER_REPLAY, dead_letter
from workers.cli.letters import Place, newest_letters, replay_headers, replay_letters
from workers.errors import Retry
from workers.kafka.broker import TP, Record
from workers.kafka.memory import MemoryBroker
from workers.runtime.deadletter import DeadLetters

TOPIC = "plaintext-ingest"
SECRET = b"somebody's plaintext"


def use(monkeypatch: pytest.MonkeyPatch, broker: MemoryBroker) -> MemoryBroker:
    """Let commands connect to `broker`. Each runs in a loop of its own, to which events bind."""

    def connect(_settings: object) -> MemoryBroker:
        broker._changed = asyncio.Event()
        return broker

    monkeypatch.setattr("workers.cli.deadletters.connect_broker", connect)
    monkeypatch.setattr("workers.cli.deadletters.quiet_logs", lambda: None)
    return broker


@pytest.fixture
def broker(monkeypatch) -> MemoryBroker:
    return use(monkeypatch, MemoryBroker({spec.name: 2 for spec in ALL_TOPICS}))


async def refused(
    broker: MemoryBroker,
    topic: str = TOPIC,
    *,
    partition: int = 0,
    value: bytes = SECRET,
    code: ErrorCode = ErrorCode.UNKNOWN_INDEX,
    sealed: bool = False,
    headers=(),
) -> Record:
    """Append a record and the dead letter that a worker would write about it."""
    producer = await broker.producer()
    place = await producer.send_and_wait(
        topic, value, key=b"key", partition=partition, headers=headers
    )
    record = next(
        r
        for r in broker.records(topic)
        if (r.partition, r.offset) == (place.partition, place.offset)
    )
    letters = DeadLetters(producer, b"h" * 32)
    error = ErrorInfo(code=code, message="there is no such index", field="index")
    await letters.send(record, error, 1, sealed=sealed)
    return record


async def forged(broker: MemoryBroker, topic: str, value: bytes) -> None:
    producer = await broker.producer()
    await producer.send_and_wait(dead_letter(topic), value)


def letter(topic: str = TOPIC, partition: int = 0, offset: int = 0, **fields) -> DeadLetter:
    return DeadLetter(
        error=fields.pop("error", ErrorInfo(code=ErrorCode.FORBIDDEN, message="no")),
        source=DeadLetterSource(
            topic=topic, partition=partition, offset=offset, timestamp_ms=fields.pop("at", 0)
        ),
        **{"sha256": "0" * 64, "size": 0, "attempts": 1, "failed_ms": 5, **fields},
    )


async def test_list_shows_where_and_why_never_what(run, broker):
    await refused(broker, partition=1)
    await refused(broker, "query-request", code=ErrorCode.FORBIDDEN)
    done = run("dlq", "list")
    assert done.code == 0
    assert f"{TOPIC}/1/0" in done.out
    assert "UNKNOWN_INDEX: there is no such index (field index)" in done.out
    assert "query-request/0/0" in done.out
    assert "2 dead letters\n" in done.out
    listed = run("dlq", "list", "--json").json
    assert listed["total"] == 2
    assert listed["letters"][0]["error"]["code"] == "UNKNOWN_INDEX"
    assert SECRET.decode() not in done.out + str(listed)


async def test_list_can_be_narrowed(run, broker):
    for number in range(5):
        await refused(broker, value=b"v%d" % number)
    await refused(broker, "query-request", code=ErrorCode.FORBIDDEN)
    newest = run("dlq", "list", "--topic", TOPIC, "--limit", "2", "--json").json
    assert newest["total"] == 5
    assert [one["record"] for one in newest["letters"]] == [f"{TOPIC}/0/3", f"{TOPIC}/0/4"]
    coded = run("dlq", "list", "--code", "forbidden", "--json").json
    assert [one["record"] for one in coded["letters"]] == ["query-request/0/0"]
    assert "5 dead letters, 2 shown" in run("dlq", "list", "--topic", TOPIC, "--limit", "2").out
    assert run("dlq", "list", "--topic", "index-event").code == 2
    assert run("dlq", "list", "--limit", "0").code == 2


async def test_topics_that_were_never_made_have_no_letters(run, broker, monkeypatch):
    use(monkeypatch, MemoryBroker({}))
    assert run("dlq", "list").out.endswith("0 dead letters\n")


async def test_what_is_no_dead_letter_is_left_out_and_told(run, broker):
    await forged(broker, TOPIC, b"junk")
    await forged(broker, TOPIC, encode(letter(topic="query-request")))
    await forged(
        broker,
        TOPIC,
        encode(
            letter(
                failed_ms=2**62,
                at=-1,
                error=ErrorInfo(code=ErrorCode.DAMAGED, message="\x1b[2J"),
            )
        ),
    )
    done = run("dlq", "list")
    assert done.code == 0
    assert "1 dead letters" in done.out
    assert "careful: 2 records" in done.err
    assert "\x1b" not in done.out
    assert "\x1b" not in run("dlq", "show", f"{TOPIC}/0/0").out


async def test_show_tells_whether_a_record_can_be_replayed(run, broker):
    await refused(broker, headers=(("traceparent", b"00-ab"),))
    shown = run("dlq", "show", f"{TOPIC}/0/0", "--json").json
    assert shown["replayable"] is True
    assert shown["sealed"] is False
    assert shown["traceparent"] == "00-ab"
    assert shown["digest"] == "hmac-sha256"
    text = run("dlq", "show", f"{TOPIC}/0/0").out
    assert "UNKNOWN_INDEX" in text
    assert SECRET.decode() not in text + str(shown)
    await refused(broker, "query-request")
    assert run("dlq", "show", "query-request/0/0", "--json").json["replayable"] is False
    assert run("dlq", "show", f"{TOPIC}/0/9").code == 1
    for place in ("x", f"{TOPIC}/0", f"{TOPIC}/0/x", f"{TOPIC}/0/1/2", f"{TOPIC}/0/" + "9" * 19):
        assert run("dlq", "show", place).code == 2


async def test_replay_appends_the_same_record_and_where_it_first_stood(run, broker):
    original = await refused(broker, partition=1, headers=(("sealstream-sig", b"s" * 64),))
    await refused(broker, partition=1, value=b"other")
    done = run("dlq", "replay", f"{TOPIC}/1/0")
    assert (done.code, done.out) == (0, "replayed 1 of 1\n")
    *_, copy = broker.records(TOPIC)
    assert (copy.partition, copy.offset) == (1, 2)
    assert (copy.key, copy.value) == (original.key, original.value)
    assert copy.headers == (("sealstream-sig", b"s" * 64), (HEADER_REPLAY, b"0"))


async def test_replay_takes_a_place_once_however_many_letters_it_has(run, broker):
    await refused(broker)
    await forged(broker, TOPIC, broker.records(dead_letter(TOPIC))[0].value)
    assert run("dlq", "replay", f"{TOPIC}/0/0", f"{TOPIC}/0/0").out == "replayed 1 of 1\n"
    assert len(broker.records(TOPIC)) == 2


async def test_a_replay_of_a_replay_keeps_the_first_place():
    first = Record(TOPIC, 0, 7, 0, b"k", b"v", (("a", b"b"),))
    again = Record(TOPIC, 0, 99, 0, b"k", b"v", replay_headers(first))
    assert replay_headers(first) == (("a", b"b"), (HEADER_REPLAY, b"7"))
    assert replay_headers(again) == again.headers


async def test_replay_all_goes_in_the_order_of_the_records(run, broker):
    for number in (0, 1, 2):
        await refused(broker, value=b"v%d" % number)
    await refused(broker, value=b"w", code=ErrorCode.FORBIDDEN)
    await refused(broker, "index-update", value=b"u")
    await refused(broker, "query-request")
    dry = run("dlq", "replay", "--all", "--dry-run")
    assert (dry.code, dry.out) == (0, "would replay 5 of 5\n")
    assert len(broker.records(TOPIC)) == 4
    done = run("dlq", "replay", "--all", "--code", "UNKNOWN_INDEX", "--json").json
    assert done == {
        "replayed": ["index-update/0/0", f"{TOPIC}/0/0", f"{TOPIC}/0/1", f"{TOPIC}/0/2"],
        "dry_run": False,
        "problems": [],
    }
    assert [r.value for r in broker.records(TOPIC)[4:]] == [b"v0", b"v1", b"v2"]
    assert len(broker.records("query-request")) == 1


async def test_what_cannot_be_replayed_is_told(run, broker):
    await refused(broker, "query-request")
    done = run("dlq", "replay", "query-request/0/0", f"{TOPIC}/0/5")
    assert done.code == 1
    assert "not replayed query-request/0/0: a request" in done.err
    assert f"not replayed {TOPIC}/0/5: there is no dead letter" in done.err
    assert done.out == "replayed 0 of 2\n"
    assert len(broker.records("query-request")) == 1


@pytest.mark.parametrize("sealed", [True, False])
async def test_another_record_in_that_place_is_never_replayed(run, broker, sealed):
    """The topic was made anew, or somebody wrote the letter who may not produce."""
    record = await refused(broker, sealed=sealed)
    digest = hashlib.sha256(b"another").hexdigest() if sealed else "0" * 64
    about = {
        "failed_ms": 2**50,
        "sha256": digest,
        "digest": "sha256" if sealed else "hmac-sha256",
        "size": len(record.value),
        "at": record.timestamp_ms if sealed else record.timestamp_ms + 1,
    }
    await forged(broker, TOPIC, encode(letter(**about)))
    done = run("dlq", "replay", f"{TOPIC}/0/0")
    assert done.code == 1
    assert "made anew" in done.err
    assert len(broker.records(TOPIC)) == 1


async def test_records_that_are_not_kept_are_told(run, broker):
    await refused(broker)
    await forged(broker, TOPIC, encode(letter(partition=77)))
    broker.trim(TP(TOPIC, 0), 1)
    done = run("dlq", "replay", "--all")
    assert done.code == 1
    assert done.err.count("not kept any more") == 2


async def test_the_prefix_of_a_deployment(run, broker, monkeypatch):
    made = use(monkeypatch, MemoryBroker({"prod." + spec.name: 1 for spec in ALL_TOPICS}))
    monkeypatch.setenv("SEALSTREAM_TOPIC_PREFIX", "prod.")
    await refused(made, f"prod.{TOPIC}")
    assert run("dlq", "list", "--topic", TOPIC, "--json").json["total"] == 1
    assert run("dlq", "replay", f"prod.{TOPIC}/0/0").code == 0
    assert len(made.records(f"prod.{TOPIC}")) == 2


async def test_replay_says_which_records(run, broker):
    for arguments in (
        (),
        (f"{TOPIC}/0/0", "--all"),
        (f"{TOPIC}/0/0", "--code", "X"),
        ("nonsense",),
    ):
        assert run("dlq", "replay", *arguments).code == 2


async def test_an_unavailable_broker_stops_the_replay_in_order(broker):
    for number in (0, 1, 2):
        await refused(broker, value=b"v%d" % number)
    letters = await newest_letters(broker, [TOPIC], None, None)
    broker.drop_next(TOPIC)
    with pytest.raises(Retry):
        await anext(replay_letters(broker, letters.values(), "", dry_run=False))
    assert len(broker.records(TOPIC)) == 3


def test_places_are_read_as_written():
    place = Place("prod.plaintext-ingest", 3, 12)
    assert Place.parse(str(place)) == place
