"""Kafka's own console programs: JSON typed by hand goes in, a result comes out."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from typing import Any

import pytest
from kafka_kit import java, need
from stack_kit import QUERY_S, Stack, connect

pytestmark = pytest.mark.core

INDEX = "console-notes"
# On a machine that may be busy with anything else.
SECONDS = 240


def produce(bootstrap: str, topic: str, key: str, message: dict[str, Any]) -> None:
    done = subprocess.run(
        [
            *java("org.apache.kafka.tools.ConsoleProducer"),
            *("--bootstrap-server", bootstrap, "--topic", topic),
            *("--reader-property", "parse.key=true", "--reader-property", "key.separator=|"),
        ],
        input=f"{key}|{json.dumps(message)}\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr


def results(bootstrap: str, topic: str, name: str, value: str) -> list[dict[str, Any]]:
    """Return the results of which a member has a value, once there is one."""
    end = time.monotonic() + SECONDS
    while not (found := [one for one in consume(bootstrap, topic) if one.get(name) == value]):
        assert time.monotonic() < end, f"no result in {topic}"
    return found


def consume(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    """Return what is in a topic, until nothing comes for a while (which it complains about).

    That may be nothing: to find the topic takes a part of the while.
    """
    done = subprocess.run(
        [
            *java("org.apache.kafka.tools.consumer.ConsoleConsumer"),
            *("--bootstrap-server", bootstrap, "--topic", topic),
            *("--from-beginning", "--timeout-ms", "3000"),
        ],
        capture_output=True,
        # Other tests' results may be in the topic, sealed ones too.
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=SECONDS,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


async def test_a_message_typed_by_hand_is_found(stack: Stack) -> None:
    need(own=True)
    settings = stack.settings
    assert settings.token is not None
    auth = {"token": settings.token.get_secret_value()}
    bootstrap = settings.kafka_bootstrap
    async with connect(stack) as client:
        await client.create_index(INDEX)
        # As in the README.
        document = {"v": 1, "index": INDEX, "id": "doc-1", "content": "the tide comes in at noon"}
        document |= {"keywords": ["tide"], "auth": auth}
        produce(bootstrap, "plaintext-ingest", f"{INDEX}/doc-1", document)
        done = results(bootstrap, "ingest-result", "index", INDEX)
        assert [(r["id"], r["status"]) for r in done] == [("doc-1", "accepted")]
        position = done[0]["position"]

        request_id = str(uuid.uuid4())
        request = {
            "v": 1,
            "request_id": request_id,
            "index": INDEX,
            "auth": auth,
            "query": {"keyword": "tide"},
            "include": ["content"],
            "min_position": [{"shard": position["shard"], "offset": position["offset"]}],
            "timeout_ms": int(QUERY_S * 1000),
        }
        produce(bootstrap, "query-request", INDEX, request)
        answers = results(bootstrap, "query-result", "request_id", request_id)
        assert [a["status"] for a in answers] == ["ok"]
        [hit] = answers[0]["hits"]
        assert (hit["id"], hit["content"]) == ("doc-1", "the tide comes in at noon")
