"""deploy/kafka/acls.json, who may do what in Kafka, against the contract."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from schemas.topics import (
    ADMIN_REQUEST,
    ALL_TOPICS,
    GROUP_TOPICS,
    INDEX_EVENT,
    INDEX_UPDATE,
    KEY_AUDIT,
    KEY_DIRECTORY,
    KEY_GRANT,
    KEY_REQUEST,
    KEY_REVOCATION,
    PLAINTEXT_INGEST,
    QUERY_REQUEST,
    dead_letter,
)
from workers.index.worker import GROUP as INDEX_GROUP
from workers.ingest.worker import GROUP as INGEST_GROUP
from workers.keys.worker import GROUP as KEYS_GROUP
from workers.query.worker import GROUP as QUERY_GROUP

DEPLOY = Path(__file__).parents[3] / "deploy" / "kafka"
TABLE: dict[str, Any] = json.loads((DEPLOY / "acls.json").read_text())
WORKERS = {"keys": KEYS_GROUP, "ingest": INGEST_GROUP, "index": INDEX_GROUP, "query": QUERY_GROUP}
# Held only while dead letters are replayed: leave it out of what is always so.
STANDING = {name: row for name, row in TABLE.items() if name != "replay"}


def writers(topic: str) -> set[str]:
    return {
        name
        for name, row in STANDING.items()
        if topic in {*row.get("write", ()), *row.get("write_prefixed", ())}
    }


def readers(topic: str) -> set[str]:
    return {name for name, row in STANDING.items() if topic in row.get("read", ())}


def test_every_topic_has_writers_and_readers() -> None:
    for spec in ALL_TOPICS:
        assert writers(spec.name), spec.name
        assert readers(spec.name), spec.name
    named = {
        topic
        for row in TABLE.values()
        for part in ("read", "write", "write_prefixed")
        for topic in row.get(part, ())
    }
    assert named == {spec.name for spec in ALL_TOPICS}


def test_each_worker_has_its_own_group_alone() -> None:
    assert {name: row["groups"] for name, row in TABLE.items() if "groups" in row} == {
        role: [group] for role, group in WORKERS.items()
    }


def test_who_writes_what_others_trust() -> None:
    assert writers(INDEX_UPDATE) == {"ingest", "keys"}
    assert writers(INDEX_EVENT) == {"index"}
    for topic in (KEY_GRANT, KEY_DIRECTORY, KEY_REVOCATION, KEY_AUDIT):
        assert writers(topic) == {"keys"}, topic


def test_who_reads_what_others_send() -> None:
    assert readers(KEY_REQUEST) == {"keys"}
    assert readers(ADMIN_REQUEST) == {"keys"}
    assert readers(PLAINTEXT_INGEST) == {"ingest"}
    assert readers(QUERY_REQUEST) == {"query"}
    assert readers(INDEX_UPDATE) == {"index"}
    for role in WORKERS:
        # A dead letter is for operators, and written by who reads the topic.
        for topic in GROUP_TOPICS:
            letters = dead_letter(topic)
            assert role not in readers(letters)
            assert (role in writers(letters)) == (role in readers(topic)), (role, topic)


def commands(*options: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "acls.py"), "--bootstrap-server", "b:9093", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_prefix_and_users_of_ones_own() -> None:
    found = commands("--topic-prefix", "eu.", "--user", "query=ann", "--user", "query=bob")
    query = [line for line in found if "User:ann" in line]
    assert query
    for line in query:
        assert "--allow-principal User:bob" in line
        assert "sealstream-query" not in line.replace("eu.sealstream-query", "")
    assert any("--group eu.sealstream-query" in line for line in query)
    assert "prefixed --topic eu.query-result" in "".join(query)
    assert not any("--topic query-request" in line for line in found)
