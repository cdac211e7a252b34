"""`sealstream up --kafka`: the local stack on a broker that somebody else runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.cli.main import run
from workers.local import access
from workers.local.errors import StackError, StartFailed
from workers.local.state import Remembered, read_remembered
from workers.local.supervisor import Stack, StackOptions
from workers.local.topics import await_broker
from workers.settings import Settings

BROKER = "kafka.example.org:9093"


def choose(home: Path, kafka: str | None) -> Remembered:
    """Let a stack settle what it runs, without running it."""
    Stack(StackOptions(home=home, kafka=kafka), print)._choose()
    return read_remembered(home)


def test_the_home_remembers_its_broker(tmp_path: Path) -> None:
    assert choose(tmp_path, BROKER).kafka == BROKER
    (tmp_path / "stack.env").touch()
    assert choose(tmp_path, None).kafka == BROKER
    # The same brokers may be reached elsewhere.
    assert choose(tmp_path, "10.0.0.1:9092").kafka == "10.0.0.1:9092"


def test_a_home_keeps_to_its_kind_of_broker(tmp_path: Path) -> None:
    assert choose(tmp_path, None).kafka is None
    (tmp_path / "stack.env").touch()
    with pytest.raises(StackError, match="without --kafka"):
        choose(tmp_path, BROKER)


def test_what_clients_are_told() -> None:
    pair = access.KeyPair("a", "s")
    ports = {"s3": 1, "kafka": 2}
    ours = access.stack_variables(ports, pair)
    assert ours["SEALSTREAM_KAFKA_BOOTSTRAP"] == "127.0.0.1:2"
    assert ours["SEALSTREAM_IDEMPOTENT_PRODUCER"] == "false"
    theirs = access.stack_variables(ports, pair, BROKER)
    assert theirs["SEALSTREAM_KAFKA_BOOTSTRAP"] == BROKER
    assert theirs["SEALSTREAM_IDEMPOTENT_PRODUCER"] == "auto"


def test_an_address_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "--kafka", "kafka.example.org", "--home", str(tmp_path)]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


async def test_a_broker_that_does_not_answer_is_named() -> None:
    settings = Settings(kafka_bootstrap="127.0.0.1:9")
    with pytest.raises(StartFailed, match=r"Kafka at 127\.0\.0\.1:9"):
        await await_broker(settings, deadline_s=0.0)
