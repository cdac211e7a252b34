"""What broker, store and logs hold: of sealed messages nothing, of clear ones no more than is said.

Every document is full of canaries: 16 random bytes in id, content, text, keyword, metadata and
associated data, 8 random numbers in the vector. The stack is the one that all the other tests have
used, so everything that they left behind is searched, too.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from stack_kit import QUERY_S, Stack, bare, connect, ids, new_name

from schemas.errors import ErrorCode
from schemas.topics import ALL_TOPICS
from schemas.values import Vector
from workers.client import Client
from workers.errors import Reject
from workers.kafka.open import open_broker
from workers.local.canary import (
    Canary,
    Scan,
    random_text,
    scan_store,
    scan_topics,
    text_canary,
    vector_canary,
)
from workers.storage.open import open_store

TEXTS = ("id", "content", "text", "keyword", "metadata", "field", "query", "filter")


@dataclass
class Secrets:
    """One document's canaries, and the queries that name them."""

    text: dict[str, str]
    vector: np.ndarray

    @classmethod
    def make(cls) -> Secrets:
        vector = np.random.default_rng().normal(size=16).astype(np.float32)
        return cls({name: random_text() for name in TEXTS}, vector)

    def canaries(self, prefix: str = "") -> list[Canary]:
        found = [text_canary(prefix + name, text) for name, text in self.text.items()]
        return [*found, vector_canary(prefix + "vector", self.vector)]


async def use(client: Client, index: str, secret: Secrets, *, padding: int = 0) -> None:
    """Write and read the document in every way that there is."""
    text = secret.text
    done = await client.ingest(
        index,
        text["id"],
        content=f"Secret: {text['content']}. " + "x" * padding,
        text={"body": f"words {text['text']} more", "title": text["field"]},
        keywords=[text["keyword"]],
        vector=secret.vector,
        metadata={"note": text["metadata"], "year": 1999},
        wait="searchable",
    )
    everything = ["score", "distance", "metadata", "content", "vector", "groups"]
    queries: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"keyword": text["keyword"]}, {}),
        ({"text": text["text"]}, {}),
        ({"text": f'"words {text["text"]}"', "syntax": True}, {}),
        ({"text": f"{text['field'][:20]}*", "syntax": True}, {}),
        ({"vector": secret.vector}, {"top_k": 1}),
        ({"hybrid": {"text": text["text"], "vector": Vector.of(secret.vector).to_json()}}, {}),
        ({"filter_only": True, "order_by": "note"}, {"filter": {"note": text["metadata"]}}),
        ({"get": [text["id"]]}, {}),
        ({"ids": True}, {}),
    ]
    for query, options in queries:
        result = await client.query(
            index, query, include=everything, after=[done], timeout_s=QUERY_S, **options
        )
        assert text["id"] in ids(result.hits), query
    # What finds nothing must not be told either.
    for query, options in (
        ({"text": text["query"]}, {}),
        ({"count": True}, {"filter": {"note": text["filter"]}}),
    ):
        await client.query(index, query, timeout_s=QUERY_S, **options)
    # Nor what is refused.
    with pytest.raises(Reject) as refused:
        await client.ingest(index, text["id"], content=text["content"], vector=secret.vector[:3])
    assert refused.value.code is ErrorCode.DIMENSION_MISMATCH
    await client.add_keywords(index, text["id"], [text["query"]])
    await client.remove_keywords(index, text["id"], [text["query"]], wait="searchable")


def scan_logs(stack: Stack, canaries: Sequence[Canary]) -> Scan:
    scan = Scan()
    for path in sorted((stack.home / "logs").rglob("*")):
        if path.is_file():
            scan.look(canaries, f"log {path.name}", path.name.encode(), path.read_bytes())
    assert scan.things >= 9
    return scan


@dataclass
class Evidence:
    """What a scan of everything found, as canary -> places: topics, `bucket`, `logs`."""

    places: dict[str, set[str]]
    canaries: set[str]

    def of(self, prefix: str) -> dict[str, set[str]]:
        """Place -> canaries of one of the stories below, without the prefix."""
        found: dict[str, set[str]] = {}
        for canary, places in self.places.items():
            if canary.startswith(prefix):
                for place in places:
                    found.setdefault(place, set()).add(canary.removeprefix(prefix))
        assert any(canary.startswith(prefix) for canary in self.canaries)
        return found


@pytest.fixture(scope="module")
async def evidence(stack: Stack) -> Evidence:
    """Everything is written and read first, then all is searched once."""
    canaries: list[Canary] = []
    for protection in ("sealed", "signed", "plain"):
        index = new_name("leaks")
        async with connect(stack, protection) as client:
            await client.create_index(index, dimension=16)
            for name, padding in (("", 0), ("large ", 50_000), ("deleted ", 0)):
                secret = Secrets.make()
                canaries += secret.canaries(f"{protection} {name}")
                await use(client, index, secret, padding=padding)
                if protection != "sealed":
                    break
            else:
                await client.delete(index, secret.text["id"], wait="searchable")
    canaries += await query_in_clear(stack)

    settings = stack.settings
    broker = open_broker(settings)
    store = open_store(settings, read_only=True)
    try:
        topics = [settings.topic_prefix + topic.name for topic in ALL_TOPICS]
        sent = await scan_topics(broker, topics, canaries)
        stored = await scan_store(store, canaries)
    finally:
        await broker.aclose()
        await store.aclose()
    assert sent.things > 10
    assert stored.things > 5
    places: dict[str, set[str]] = {}
    for leak in sent.leaks:
        places.setdefault(leak.canary, set()).add(leak.place.split("/")[0])
    for where, scan in (("bucket", stored), ("logs", scan_logs(stack, canaries))):
        for leak in scan.leaks:
            places.setdefault(leak.canary, set()).add(where)
    return Evidence(places, {canary.name for canary in canaries})


async def query_in_clear(stack: Stack) -> list[Canary]:
    """Ask without `reply.public_key`, which a local stack allows, for a sealed document."""
    secret = Secrets.make()
    index = new_name("leaks")
    async with connect(stack, "sealed") as client:
        await client.create_index(index, dimension=16)
        await use(client, index, secret)
    token = stack.settings.token
    assert token is not None
    request_id = str(uuid.uuid4())
    message = {
        "v": 1,
        "request_id": request_id,
        "index": index,
        "auth": {"token": token.get_secret_value()},
        "query": {"ids": True},
        "include": ["content", "metadata", "vector"],
        "timeout_ms": int(QUERY_S * 1000),
    }
    async with bare(stack) as kafka, kafka.listen("query-result") as results:
        await kafka.produce("query-request", index.encode(), message)
        await results.until(
            lambda: [
                v for v in results.values("query-result") if v.get("request_id") == request_id
            ],
            "the query-result",
        )
    return secret.canaries("unsealed ")


def test_nothing_of_sealed_messages_shows(evidence: Evidence) -> None:
    assert evidence.of("sealed ") == {}


# `field` is asked for by a prefix only, which is shorter than the canary.
WRITTEN = {"id", "content", "text", "field", "keyword", "metadata", "query", "vector"}
ASKED = {"id", "text", "keyword", "metadata", "query", "filter", "vector"}


@pytest.mark.parametrize("protection", ["signed", "plain"])
def test_clear_messages_show_only_where_the_contract_says(
    evidence: Evidence, protection: str
) -> None:
    """The positive control, too: the same search finds what is there to be found."""
    # Results are sealed to the client; the key of an ingest-result names the document.
    assert evidence.of(f"{protection} ") == {
        "plaintext-ingest": WRITTEN,
        "query-request": ASKED,
        "ingest-result": {"id"},
    }


def test_unsealed_results_show_what_was_asked_for(evidence: Evidence) -> None:
    assert evidence.of("unsealed ") == {
        "query-result": {"id", "content", "metadata", "vector"},
    }
