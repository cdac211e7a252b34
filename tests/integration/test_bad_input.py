"""Bad input on the running stack: its code, exactly one dead letter, and nobody minds.

Every case is produced at once; then a good message on every partition must be served, every bad
record must have its one dead letter, and every worker must still be the process that it was.
"""

from __future__ import annotations

import base64
import json
import math
import os
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from stack_kit import QUERY_S, Bare, Listening, Stack, bare, connect, ids, new_name, worker_pids

from schemas.auth import Credential
from schemas.codec import to_plain
from schemas.errors import ErrorCode
from schemas.values import encode_base64
from workers.client import Client
from workers.client.session import Session
from workers.crypto.hpke import HpkePrivateKey
from workers.crypto.info import Info, info
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.leases.credential import seal_credential, seal_value, sign_message

PARTITIONS = 4
SEALED = ("content-type", b"application/vnd.sealstream.sealed")
DEEP = 100_000
INVALID, UNAUTHENTICATED = "INVALID_MESSAGE", "UNAUTHENTICATED"
Place = tuple[str, int, int]


@dataclass
class World:
    """An index, the credential for it, and what a caller with a session can make."""

    stack: Stack
    client: Client
    index: str
    owned: str
    kafka: Bare

    @property
    def token(self) -> str:
        token = self.stack.settings.token
        assert token is not None
        return token.get_secret_value()

    @property
    def session(self) -> Session:
        assert self.client._ingestor is not None
        return self.client._ingestor._connection.session

    @property
    def directory(self) -> Any:
        assert self.client._directory is not None
        return self.client._directory

    def credential(self, signer: SigningKey, **changes: Any) -> dict[str, str]:
        """A sealed credential of the local administrator, or what `changes` make of it."""
        members = {
            "token": self.token,
            "index": self.index,
            "exp": int(time.time()) + 600,
            "cnf": encode_base64(signer.public.raw),
            **changes,
        }
        service = self.directory.key_service.hpke_pub
        index = members["index"]
        try:
            return to_plain(seal_credential(service, Credential(**members)))
        except ValueError:
            # What our own type refuses to be is sealed as a hostile client would.
            plain = json.dumps({"v": 1, **{k: v for k, v in members.items() if v}}).encode()
            return {"sealed": encode_base64(service.seal(info(Info.CREDENTIAL, index), plain))}


@pytest.fixture(scope="module")
async def world(stack: Stack) -> AsyncIterator[World]:
    index, owned = new_name("bad"), new_name("bad-owned")
    async with connect(stack) as client, bare(stack) as kafka:
        await client.create_index(index, dimension=4)
        async with connect(stack, index_key=os.urandom(32)) as owner:
            await owner.create_index(owned, kms={"provider": "none"})
            # The workers have the key of the index once somebody who has it has used it. Before, a
            # query that is sealed with a wrong one has no answer: nobody can read whom to answer.
            await owner.ingest(owned, "mine", content="x", wait="searchable")
            await owner.count(owned, timeout_s=QUERY_S)
        yield World(stack, client, index, owned, kafka)


@dataclass
class Bad:
    """A record and the code that it must get. `told`: a result says so, too."""

    name: str
    code: str
    key: bytes | None
    value: bytes | dict[str, Any] | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    told: bool = False


def f32(*numbers: float) -> dict[str, str]:
    return {"f32": base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()}


def broken_json(good: dict[str, Any]) -> list[tuple[str, bytes | None]]:
    """What is no message at all, whatever the topic."""
    text = json.dumps(good).encode()
    return [
        ("null", None),
        ("empty", b""),
        ("no JSON", b"hello"),
        ("half a message", text[: len(text) // 2]),
        ("something after it", text + b"}"),
        ("no UTF-8", b"\xff\xfe\x00\x80"),
        ("no UTF-8 inside", text.replace(b'"v"', b'"\xff"')),
        ("a lone surrogate", text.replace(b'"v"', rb'"\ud800"')),
        ("NUL bytes", bytes(1000)),
        ("a list", b"[" + text + b"]"),
        ("a number", b"1"),
        ("a JSON null", b"null"),
        ("nested lists", b"[" * DEEP),
        ("nested lists, closed", b"[" * DEEP + b"]" * DEEP),
        ("nested objects", b'{"v":' * DEEP + b"1" + b"}" * DEEP),
        ("nested in a member", text[:-1] + b',"metadata":' + b"[" * DEEP + b"]" * DEEP + b"}"),
        ("a key twice", text[:-1] + b',"v":1}'),
        ("random bytes", os.urandom(5000)),
    ]


def bad_ingest(world: World) -> list[Bad]:
    index, auth = world.index, {"token": world.token}
    good = {"v": 1, "index": index, "id": "bad", "auth": auth, "content": "x"}
    key = f"{index}/bad".encode()
    text = json.dumps(good).encode()
    cases = [Bad(name, INVALID, key, value) for name, value in broken_json(good)]

    def case(name: str, code: str = INVALID, **changes: Any) -> None:
        message = {k: v for k, v in {**good, **changes}.items() if v is not ...}
        cases.append(Bad(name, code, key, json.dumps(message).encode(), told=code != INVALID))

    case("an unknown field", colour="red")
    case("another version", v=2)
    case("no version", v=...)
    case("no credential", auth=...)
    case("two credentials", auth={"token": "a", "sealed": "AAAA"})
    case("an unknown op", op="drop")
    case("a delete with content", op="delete")
    case("keywords without keywords", op="add_keywords", content=...)
    case("a wrong type", content=5)
    case("an object for a string", content={"base64": "AAAA", "more": 1})
    case("no base64", content={"base64": "!!!"})
    case("an empty keyword", keywords=[""])
    case("a nested metadata value", metadata={"a": {"b": 1}})
    case("an integer beyond 64 bits", metadata={"a": 2**80})
    case("no group id", groups=["everybody"])
    case("an empty id", id="")
    case("a long id", id="x" * 513)
    case("a bad index name", index="Not A Name")
    case("a path for an index name", index="../../etc/passwd")
    case("a reply key that is none", reply={"public_key": "AAAA"})
    case("a version below zero", if_version=-1)
    case("NaN", vector=[1.0, math.nan, 0.0, 0.0])
    case("Infinity", vector=[1.0, math.inf, 0.0, 0.0])
    case("NaN in metadata", metadata={"a": math.nan})
    case("NaN as float32", vector=f32(1.0, math.nan, 0.0, 0.0))
    case("-Infinity as float32", vector=f32(1.0, -math.inf, 0.0, 0.0))
    case("half a float32", vector={"f32": base64.b64encode(bytes(5)).decode()})
    case("words for numbers", vector=["1", "2", "3", "4"])
    case("an empty vector", vector=[])
    cases.append(
        Bad("1e999", INVALID, key, text[:-1] + b',"vector":[1e999,0,0,0]}'),
    )
    cases.append(Bad("beyond float32", INVALID, key, text[:-1] + b',"vector":[1e99,0,0,0]}'))
    case("a dimension too few", "DIMENSION_MISMATCH", vector=[1.0, 2.0, 3.0])
    case("a dimension too many", "DIMENSION_MISMATCH", vector=f32(1, 2, 3, 4, 5))
    case("over max_content_bytes", "TOO_LARGE", content="x" * (512 * 1024 + 1))
    case("a token of nobody", UNAUTHENTICATED, auth={"token": "mallory"})
    # Over our limit of a message, under what this broker takes.
    cases.append(Bad("a large message", "TOO_LARGE", key, b'{"v":1,"id":"' + b"x" * 1_060_000))
    # The key decides the partition, so a wrong one would break the order.
    for name, wrong in (
        ("a wrong Kafka key", f"{index}/other".encode()),
        ("a Kafka key of another index", b"other/bad"),
        ("a binary Kafka key", b"\xff\x00"),
        ("an empty Kafka key", b""),
        ("no Kafka key", None),
    ):
        # A result goes to the partition of its key: without one it would be a random one.
        cases.append(Bad(name, INVALID, wrong, text, told=wrong is not None))
    unknown = {**good, "index": "never/made"}
    cases.append(Bad("an unknown index", "UNKNOWN_INDEX", b"never/made/bad", unknown, told=True))
    return cases + bad_credentials(world, "plaintext-ingest", good, key) + bad_seals(world)


def bad_credentials(world: World, topic: str, good: dict[str, Any], key: bytes) -> list[Bad]:
    """Credentials that are wrong, and right ones of somebody else. All in clear messages."""
    signer, other = SigningKey.generate(), SigningKey.generate()
    now = int(time.time())

    def message(auth: dict[str, str], **changes: Any) -> dict[str, Any]:
        more = {"message_id": str(uuid.uuid4()), "issued_ms": int(time.time() * 1000)}
        if topic == "query-request":
            more["request_id"] = str(uuid.uuid4())
        return {**good, "auth": auth, **more, **changes}

    def case(
        name: str,
        code: str,
        auth: dict[str, str],
        *,
        by: SigningKey | None = signer,
        where: str = topic,
        **changes: Any,
    ) -> Bad:
        value = json.dumps(message(auth, **changes)).encode()
        record_key = key
        if "index" in changes and topic == "plaintext-ingest":
            record_key = f"{changes['index']}/bad".encode()
        headers = []
        if by is not None:
            headers = [("sealstream-sig", sign_message(by, where, record_key, value))]
        return Bad(name, code, record_key, value, headers, told=True)

    right = world.credential(signer)
    wrong_key = encode_base64(os.urandom(32))
    owned = {"index": world.owned, "token": None}
    return [
        case(
            "garbage for a credential", UNAUTHENTICATED, {"sealed": encode_base64(os.urandom(99))}
        ),
        case("a short credential", UNAUTHENTICATED, {"sealed": "AAAA"}),
        case("an expired one", "EXPIRED", world.credential(signer, exp=now - 10)),
        case("one that lives too long", UNAUTHENTICATED, world.credential(signer, exp=2**39)),
        case("one for another index", UNAUTHENTICATED, world.credential(signer, index=world.owned)),
        case("one with a token of nobody", UNAUTHENTICATED, world.credential(signer, token="x")),
        # Copied from a message that was seen: worth nothing without the session key.
        case("a copied one, unsigned", UNAUTHENTICATED, right, by=None),
        case("a copied one, signed by another", UNAUTHENTICATED, right, by=other),
        case("a signature for another topic", UNAUTHENTICATED, right, where="elsewhere"),
        case(
            "a wrong index key",
            "WRONG_KEY",
            world.credential(signer, **owned, index_key=wrong_key),
            index=world.owned,
        ),
        case(
            "a short index key",
            INVALID,
            world.credential(signer, **owned, index_key=encode_base64(bytes(16))),
            index=world.owned,
        ),
    ]


def sealed_value(index: str, key_id: str, suite: int, sealed: bytes) -> dict[str, Any]:
    return {
        "v": 1,
        "index": index,
        "key_id": key_id,
        "suite": suite,
        "sealed": encode_base64(sealed),
    }


def bad_seals(world: World) -> list[Bad]:
    index = world.index
    key = f"{index}/{os.urandom(16).hex()}".encode()
    public = world.directory.index(index).ingest_pub
    stranger = HpkePrivateKey.generate(public.suite).public
    good = json.loads(seal_value(Info.INGEST_VALUE, public, index, b"{}"))
    to_stranger = json.loads(seal_value(Info.INGEST_VALUE, stranger, index, b"{}"))
    flipped = bytearray(base64.b64decode(good["sealed"]))
    flipped[-1] ^= 1
    cases = [
        ("a sealed message that is none", key, {"v": 1}, INVALID),
        ("garbage under seal", key, b"\x00" * 50, INVALID),
        ("sealed to an unknown key", key, to_stranger, "EXPIRED"),
        ("a seal that does not open", key, {**good, "sealed": encode_base64(flipped)}, INVALID),
        ("a short seal", key, {**good, "sealed": "AAAA"}, INVALID),
        ("another suite", key, {**good, "suite": 1 if public.suite == 2 else 2}, INVALID),
        (
            "sealed, for an unknown index",
            b"never/made/" + b"0" * 32,
            {**good, "index": "never/made"},
            "UNKNOWN_INDEX",
        ),
        ("sealed, with a telling key", f"{index}/doc".encode(), good, INVALID),
        ("sealed, and nothing inside", key, good, INVALID),
    ]
    return [Bad(name, code, k, value, [SEALED]) for name, k, value, code in cases]


def bad_queries(world: World) -> list[Bad]:
    index, auth = world.index, {"token": world.token}
    good: dict[str, Any] = {"v": 1, "index": index, "auth": auth, "query": {"keyword": "k"}}
    key = index.encode()
    cases = [
        Bad(name, INVALID, key, value)
        for name, value in broken_json({**good, "request_id": str(uuid.uuid4())})
    ]

    def case(name: str, code: str = INVALID, *, told: bool = True, **changes: Any) -> None:
        message = {**good, "request_id": str(uuid.uuid4()), **changes}
        message = {k: v for k, v in message.items() if v is not ...}
        cases.append(Bad(name, code, key, json.dumps(message).encode(), told=told))

    case("an unknown field", colour="red")
    case("no request id", told=False, request_id=...)
    case("a request id that is none", told=False, request_id="one")
    case("no query", query=...)
    case("a query and a batch", queries=[{"count": True}])
    case("two kinds in one", query={"keyword": "k", "text": "t"})
    case("an unknown kind", query={"sql": "select 1"})
    case("an unknown field of a kind", query={"keyword": "k", "colour": 1})
    case("top_k below one", top_k=0)
    case("top_k too large", top_k=1_000_000)
    case("a wrong type", top_k="ten")
    case("an unknown include", include=["everything"])
    case("an unknown operator", filter={"year": {"$regex": ".*"}})
    case("a filter too deep", filter=nested_filter(40))
    case("a filter too large", filter={"$or": [{"a": n} for n in range(1000)]})
    case("a broken phrase", query={"text": '"red', "syntax": True})
    case("a cursor that is none", query={"ids": True}, cursor="AAAA")
    case("a topic that is not for results", told=False, reply={"topic": "plaintext-ingest"})
    case("a reply key that is none", reply={"public_key": "AAAA"})
    case("NaN", query={"vector": [math.nan, 0, 0, 0]})
    case("Infinity", query={"vector": [math.inf, 0, 0, 0]})
    case("NaN as float32", query={"vector": f32(math.nan, 0, 0, 0)})
    case("a wrong dimension", "DIMENSION_MISMATCH", query={"vector": [1.0, 2.0]})
    case("an unknown index", "UNKNOWN_INDEX", index="never/made")
    case("a bad index name", index="Not A Name")
    case("a token of nobody", UNAUTHENTICATED, auth={"token": "mallory"})
    case("no credential", auth=...)
    case("a large message", "TOO_LARGE", told=False, query={"text": "x" * 1_060_000})
    # NaN and Infinity are no JSON: nothing of such a message can be read.
    for one in cases:
        if one.name in ("NaN", "Infinity"):
            one.told = False
    return cases + bad_credentials(world, "query-request", good, key)


def nested_filter(depth: int) -> dict[str, Any]:
    condition: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        condition = {"$not": condition}
    return condition


async def produce(world: World, topic: str, cases: list[Bad]) -> dict[Place, Bad]:
    return {
        await world.kafka.produce(topic, one.key, one.value, headers=one.headers): one
        for one in cases
    }


def letters(heard: Listening, topic: str) -> dict[Place, list[dict[str, Any]]]:
    found: dict[Place, list[dict[str, Any]]] = {}
    for letter in heard.values(f"{topic}.dead-letter"):
        source = letter["source"]
        place = (source["topic"], source["partition"], source["offset"])
        found.setdefault(place, []).append(letter)
    return found


def assert_letters(heard: Listening, topic: str, sent: dict[Place, Bad]) -> None:
    """Exactly one dead letter each, with the right code, and none for anything else."""
    found = letters(heard, topic)
    got = {
        sent[place].name if place in sent else f"a good record at {place}": [
            letter["error"]["code"] for letter in several
        ]
        for place, several in found.items()
    }
    assert got == {one.name: [one.code] for one in sent.values()}
    for place, [letter] in found.items():
        value = sent[place].value
        raw = json.dumps(value).encode() if isinstance(value, dict) else value or b""
        assert letter["size"] == len(raw)


async def good_on_every_partition(world: World) -> list[str]:
    """Documents whose keys cover every partition, so that each has a good last record."""
    names: list[str] = []
    seen: set[int] = set()
    async with world.kafka.listen("ingest-result") as results:
        while len(seen) < PARTITIONS:
            name = f"good-{uuid.uuid4().hex}"
            message = {
                "v": 1,
                "index": world.index,
                "id": name,
                "auth": {"token": world.token},
                "content": "good",
                "keywords": ["good"],
            }
            key = f"{world.index}/{name}".encode()
            _, partition, _ = await world.kafka.produce("plaintext-ingest", key, message)
            seen.add(partition)
            names.append(name)

        def accepted() -> bool:
            done = {v.get("id") for v in results.values("ingest-result") if v.get("position")}
            return done.issuperset(names)

        await results.until(accepted, "the good documents are accepted")
    return names


@pytest.fixture
def same_workers(stack: Stack) -> Callable[[], None]:
    before = worker_pids(stack)

    def check() -> None:
        assert worker_pids(stack) == before

    return check


async def test_plaintext_ingest(world: World, same_workers: Callable[[], None]) -> None:
    topic = "plaintext-ingest"
    async with world.kafka.listen(f"{topic}.dead-letter", "ingest-result") as heard:
        sent = await produce(world, topic, bad_ingest(world))
        names = await good_on_every_partition(world)
        await heard.until(lambda: letters(heard, topic).keys() >= sent.keys(), "the dead letters")
        await heard.poll()
        assert_letters(heard, topic, sent)
        results = [v for v in heard.values("ingest-result") if v.get("status") == "rejected"]
        told = {
            (v["source"]["topic"], v["source"]["partition"], v["source"]["offset"]): v["error"][
                "code"
            ]
            for v in results
        }
        for place, one in sent.items():
            if one.told:
                assert told.get(place) == one.code, one.name
    found = await world.client.query(
        world.index, {"keyword": "good"}, top_k=1000, timeout_s=QUERY_S
    )
    # Searchable a moment later than accepted: the positions are those of bare results.
    assert set(ids(found.hits)) <= set(names)
    assert await world.client.count(world.index, timeout_s=QUERY_S) <= len(names)
    same_workers()


@pytest.mark.core
async def test_query_request(world: World, same_workers: Callable[[], None]) -> None:
    topic = "query-request"
    async with world.kafka.listen(f"{topic}.dead-letter", "query-result") as heard:
        sent = await produce(world, topic, bad_queries(world))
        await heard.until(lambda: letters(heard, topic).keys() >= sent.keys(), "the dead letters")
        for _ in range(2 * PARTITIONS):
            await world.client.query(world.index, {"count": True}, timeout_s=QUERY_S)
        await heard.poll()
        assert_letters(heard, topic, sent)

        def codes() -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for value in heard.values("query-result"):
                if value.get("error"):
                    found.setdefault(value["request_id"], []).append(value["error"]["code"])
            return found

        wanted = {
            json.loads(one.value)["request_id"]: [one.code]
            for one in sent.values()
            if one.told and isinstance(one.value, bytes)
        }
        await heard.until(lambda: codes().keys() >= wanted.keys(), "the error results")
        assert {name: codes()[name] for name in wanted} == wanted
    same_workers()


@pytest.mark.core
async def test_a_wrong_key_by_the_client(world: World) -> None:
    with pytest.raises(Reject) as short:
        connect(world.stack, index_key=bytes(31))
    assert short.value.code is ErrorCode.WRONG_KEY
    async with connect(world.stack, index_key=os.urandom(32)) as stranger:
        for attempt in (
            lambda: stranger.ingest(world.owned, "x", content="x"),
            lambda: stranger.search(world.owned, "x", timeout_s=QUERY_S),
            lambda: stranger.get(world.owned, ["mine"], timeout_s=QUERY_S),
            lambda: stranger.count(world.owned, timeout_s=QUERY_S),
            lambda: stranger.delete(world.owned, "mine"),
            lambda: stranger.describe_index(world.owned),
            lambda: stranger.delete_index(world.owned),
        ):
            with pytest.raises(Reject) as refused:
                await attempt()
            assert refused.value.code is ErrorCode.WRONG_KEY


@pytest.mark.core
async def test_a_wrong_key_for_an_index_nobody_asked_before(world: World) -> None:
    """No query worker holds a key that opens the sealed request: the refusal finds its way."""
    index = new_name("cold")
    async with connect(world.stack, index_key=os.urandom(32)) as owner:
        await owner.create_index(index, kms={"provider": "none"})
        async with connect(world.stack, index_key=os.urandom(32)) as stranger:
            with pytest.raises(Reject) as refused:
                await stranger.search(index, "x", timeout_s=QUERY_S)
        assert refused.value.code is ErrorCode.WRONG_KEY
        assert await owner.count(index, timeout_s=QUERY_S) == 0


async def test_an_old_operation_is_no_news(world: World) -> None:
    """A signed record from the past, produced again, does not undo what came after it."""
    doc, topic = f"replayed-{uuid.uuid4().hex}", "plaintext-ingest"
    key = f"{world.index}/{doc}".encode()
    signer = SigningKey.generate()
    auth = world.credential(signer)
    async with world.kafka.listen("ingest-result") as results:

        async def put(content: str, issued_ms: int) -> Place:
            message = {
                "v": 1,
                "index": world.index,
                "id": doc,
                "auth": auth,
                "content": content,
                "message_id": str(uuid.uuid4()),
                "issued_ms": issued_ms,
            }
            value = json.dumps(message).encode()
            signature = sign_message(signer, topic, key, value)
            return await world.kafka.produce(
                topic, key, value, headers=[("sealstream-sig", signature)]
            )

        now_ms = int(time.time() * 1000)
        await put("new", now_ms)
        old = await put("old", now_ms - 120_000)

        def refusal() -> Any:
            for value in results.values("ingest-result"):
                source = value.get("source", {})
                place = (source.get("topic"), source.get("partition"), source.get("offset"))
                if place == old and value["status"] == "rejected":
                    return value
            return None

        assert (await results.until(refusal, "the refusal"))["error"]["code"] == "CONFLICT"
    [hit] = await world.client.get(world.index, [doc], include=["content"], timeout_s=QUERY_S)
    assert hit.content == "new"


GARBAGE = [None, b"", b"garbage", b"\xff" * 500, b"{}", b"[" * DEEP, os.urandom(2000)]


@pytest.mark.parametrize("topic", ["index-update", "key-request", "admin-request"])
async def test_garbage_on_internal_work_topics(
    world: World, same_workers: Callable[[], None], topic: str
) -> None:
    """Refused with a dead letter each, on every partition, and the work goes on."""
    entry = world.directory.index(world.index)
    keys = [None, b"nobody/0", b"\x00", f"{entry.uid.hex()}/0".encode()]
    partitions = sorted(await world.kafka.producer.partitions_for(topic))
    async with world.kafka.listen(f"{topic}.dead-letter") as heard:
        sent = {
            await world.kafka.produce(topic, key, value, partition=partition)
            for partition in partitions
            for key in keys
            for value in (GARBAGE if key == keys[-1] else GARBAGE[:3])
            # A broker refuses a record with neither key nor value.
            if key is not None or value is not None
        }
        await heard.until(lambda: letters(heard, topic).keys() >= sent, "the dead letters")
        done = await world.client.ingest(
            world.index, "after", content="after", wait="searchable", timeout_s=QUERY_S
        )
        await heard.poll()
        assert {place: len(several) for place, several in letters(heard, topic).items()} == (
            dict.fromkeys(sent, 1)
        )
    await world.client.query(world.index, {"text": "after"}, after=[done], timeout_s=QUERY_S)
    other = new_name("bad")
    await world.client.create_index(other)
    await world.client.ingest(other, "x", content="x", wait="searchable", timeout_s=QUERY_S)
    same_workers()


async def test_garbage_on_topics_that_everybody_reads(
    world: World, same_workers: Callable[[], None]
) -> None:
    """What the key service or an index worker did not sign is believed by nobody."""
    index = world.index
    entry = world.directory.index(index)
    forged_event = {
        "v": 1,
        "index": index,
        "shard": 0,
        "version": 10**6,
        "applied": {"partition": entry.partitions[0], "offset": 10**9},
        "documents": 0,
        "segments": 0,
        "head_sha256": "00" * 32,
        "signature": encode_base64(bytes(64)),
    }
    now_ms = int(time.time() * 1000)
    forged_entry = {
        "v": 1,
        "kind": "index",
        "index": index,
        "uid": "00" * 16,
        "version": 2**52,
        "expires_ms": now_ms + 10**9,
        "deleted": True,
        "signature": encode_base64(bytes(64)),
    }
    forged_service = {
        "v": 1,
        "kind": "key-service",
        "version": 2**52,
        "expires_ms": now_ms + 10**9,
        "sign_key": encode_base64(SigningKey.generate().public.raw),
        "hpke_keys": [],
        "signature": encode_base64(bytes(64)),
    }
    forged: dict[str, list[tuple[bytes, Any]]] = {
        "index-event": [(f"{index}/0".encode(), forged_event)],
        "key-directory": [(index.encode(), forged_entry), (b"key-service", forged_service)],
        "key-revocation": [(b"everybody", {"v": 1, "principal": "everybody"})],
        "ingest-result": [(f"{index}/x".encode(), {"v": 1, "status": "accepted"})],
        "query-result": [(str(uuid.uuid4()).encode(), {"v": 1, "status": "ok"})],
        "admin-result": [(str(uuid.uuid4()).encode(), {"v": 1, "status": "ok"})],
        "key-grant": [(b"ingest-1", {"v": 1}), (b"query-1", {"v": 1})],
        "key-audit": [(b"keys-1", {"v": 1})],
    }
    for topic, records in forged.items():
        for key, value in records:
            for one in (value, *GARBAGE):
                await world.kafka.produce(topic, key, one)
    # Both who listened all the time and who comes now.
    await use(world.client, index)
    async with connect(world.stack) as fresh:
        await use(fresh, index)
    same_workers()


async def use(client: Client, index: str) -> None:
    name = f"used-{uuid.uuid4().hex}"
    done = await client.ingest(index, name, content=name, wait="searchable", timeout_s=QUERY_S)
    found = await client.query(
        index, {"get": [name]}, include=["content"], after=[done], timeout_s=QUERY_S
    )
    assert [hit.content for hit in found.hits] == [name]
    other = new_name("bad")
    await client.create_index(other)
    await client.ingest(other, "x", content="x", wait="searchable", timeout_s=QUERY_S)
