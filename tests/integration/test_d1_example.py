"""The worked example of CYBERCRYPT D1's explainer on the running stack, and its exact answers.

keyword4 gives id1, id2, id3; after Delete(keyword4, id1) it gives id2, id3.
"""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from stack_kit import QUERY_S, Stack, bare, connect, ids, new_name

from workers.client import Client
from workers.client.session import Protection

PAIRS = {
    "id1": ["keyword1", "keyword2", "keyword4"],
    "id2": ["keyword2", "keyword3", "keyword4"],
    "id3": ["keyword4"],
}
BEFORE = {
    "keyword1": ["id1"],
    "keyword2": ["id1", "id2"],
    "keyword3": ["id2"],
    "keyword4": ["id1", "id2", "id3"],
    "keyword5": [],
}
AFTER = {**BEFORE, "keyword4": ["id2", "id3"]}


async def answers(client: Client, index: str, after: list[Any]) -> dict[str, list[str]]:
    return {
        keyword: ids(
            (await client.search(index, keyword=keyword, after=after, timeout_s=QUERY_S)).hits
        )
        for keyword in BEFORE
    }


@pytest.mark.parametrize(
    "protection", [pytest.param("sealed", marks=pytest.mark.core), "signed", "plain"]
)
async def test_pairs_by_the_client(stack: Stack, protection: Protection) -> None:
    index = new_name("d1")
    async with connect(stack, protection) as client:
        await client.create_index(index)
        done = [await client.add_keywords(index, id_, words) for id_, words in PAIRS.items()]
        assert await answers(client, index, done) == BEFORE
        gone = await client.remove_keywords(index, "id1", ["keyword4"])
        assert await answers(client, index, [gone]) == AFTER


@pytest.mark.parametrize("protection", ["sealed", "signed", "plain"])
async def test_documents_by_the_client(stack: Stack, protection: Protection) -> None:
    """The same with documents behind the identifiers; their contents come back, too."""
    index = new_name("d1-documents")
    async with connect(stack, protection) as client:
        await client.create_index(index)
        done = [
            await client.ingest(index, id_, content=f"the content of {id_}", keywords=words)
            for id_, words in PAIRS.items()
        ]
        assert await answers(client, index, done) == BEFORE
        gone = await client.remove_keywords(index, "id1", ["keyword4"], wait="searchable")
        assert await answers(client, index, [gone]) == AFTER
        # The pair is gone, the document is not.
        hits = await client.get(
            index, ["id1", "id2", "id3"], include=["content"], timeout_s=QUERY_S
        )
        assert {hit.id: hit.content for hit in hits} == {
            id_: f"the content of {id_}" for id_ in PAIRS
        }


@pytest.mark.core
async def test_pairs_by_any_kafka_client(stack: Stack) -> None:
    """No library of ours: JSON written by hand, the identity token in clear (a local stack)."""
    index = new_name("d1-bare")
    async with connect(stack) as client:
        await client.create_index(index)
    token = stack.settings.token
    assert token is not None
    auth = {"token": token.get_secret_value()}

    async with bare(stack) as kafka, kafka.listen("ingest-result", "query-result") as results:

        async def tell(op: str, id_: str, keywords: list[str]) -> dict[str, int]:
            message = {
                "v": 1,
                "op": op,
                "index": index,
                "id": id_,
                "auth": auth,
                "keywords": keywords,
            }
            place = await kafka.produce("plaintext-ingest", f"{index}/{id_}".encode(), message)

            def result() -> Any:
                for value in results.values("ingest-result"):
                    source = value.get("source", {})
                    if (
                        source.get("topic"),
                        source.get("partition"),
                        source.get("offset"),
                    ) == place:
                        return value
                return None

            value = await results.until(result, "the ingest-result")
            assert (value["status"], value["index"], value["id"]) == ("accepted", index, id_)
            assert "error" not in value
            return {"shard": value["position"]["shard"], "offset": value["position"]["offset"]}

        async def ask(keyword: str, position: dict[str, int]) -> list[str]:
            request_id = str(uuid.uuid4())
            message = {
                "v": 1,
                "request_id": request_id,
                "index": index,
                "auth": auth,
                "query": {"keyword": keyword},
                "min_position": [position],
                "timeout_ms": int(QUERY_S * 1000),
            }
            await kafka.produce("query-request", index.encode(), message)

            def result() -> Any:
                return next(
                    (
                        v
                        for v in results.values("query-result")
                        if v.get("request_id") == request_id
                    ),
                    None,
                )

            value = await results.until(result, "the query-result")
            assert value["status"] == "ok", value
            return [hit["id"] for hit in value.get("hits", [])]

        positions = [await tell("add_keywords", id_, words) for id_, words in PAIRS.items()]
        last = max(positions, key=lambda position: position["offset"])
        assert {keyword: await ask(keyword, last) for keyword in BEFORE} == BEFORE
        last = await tell("remove_keywords", "id1", ["keyword4"])
        assert {keyword: await ask(keyword, last) for keyword in AFTER} == AFTER
