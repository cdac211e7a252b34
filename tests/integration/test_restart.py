"""`down`, then `up`: everything is still searchable and writable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kafka_kit import kafka
from stack_kit import QUERY_S, connect, ids, new_name

from workers.client import Client
from workers.local.state import running
from workers.settings import Settings, load_settings

pytestmark = pytest.mark.integration

VECTOR = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)


@dataclass(frozen=True)
class OwnStack:
    """A stack of this test alone, driven by the commands that its owner has."""

    home: Path

    @property
    def settings(self) -> Settings:
        return load_settings(home=self.home, environ={})

    def command(self, *arguments: str) -> None:
        prefixes = ("SEALSTREAM_", "AWS_", "VAULT_")
        done = subprocess.run(
            [sys.executable, "-m", "workers.cli.main", *arguments, "--home", str(self.home)],
            capture_output=True,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith(prefixes)},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def stack(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[OwnStack]:
    one = OwnStack(tmp_path / "home")
    with ExitStack() as cleanup:
        options: list[str] = []
        if pytestconfig.getoption("broker") == "kafka":
            broker = cleanup.enter_context(kafka(tmp_path / "kafka", topics=True))
            options = ["--kafka", broker.bootstrap]
        cleanup.callback(one.command, "down")
        one.command("up", "--detach", *options)
        yield one


async def test_everything_outlives_a_restart(stack: OwnStack) -> None:
    index, own, key = new_name("restart"), new_name("restart-own-key"), bytes(range(32))

    async def check(client: Client, owner: Client, more: list[str]) -> None:
        async def found(query: object, **options: object) -> list[str]:
            result = await client.query(index, query, timeout_s=QUERY_S, **options)
            return ids(result.hits)

        assert await found({"keyword": "k"}) == ["doc", *more]
        assert set(await found({"text": "words"})) == {"doc", *more}
        assert (await found({"vector": VECTOR}))[0] == "doc"
        assert await found({"filter_only": True}, filter={"year": 1999}) == ["doc"]
        assert await found({"get": ["gone"]}) == []
        [hit] = await client.get(index, ["doc"], include=["content"], timeout_s=QUERY_S)
        assert hit.content == "words " * 2000
        owned = await owner.search(own, "secret", timeout_s=QUERY_S)
        assert ids(owned.hits) == ["mine"]

    async with connect(stack) as client, connect(stack, index_key=key) as owner:
        await client.create_index(index, dimension=4, shards=2)
        await client.ingest(
            index,
            "doc",
            content="words " * 2000,
            keywords=["k"],
            vector=VECTOR,
            metadata={"year": 1999},
            wait="searchable",
        )
        await client.ingest(index, "gone", content="words", keywords=["k"])
        await client.delete(index, "gone", wait="searchable")
        await owner.create_index(own, kms={"provider": "none"})
        await owner.ingest(own, "mine", content="a secret", wait="searchable")
        await check(client, owner, [])

    stack.command("down")
    assert running(stack.home) is None
    stack.command("up", "--detach")

    async with connect(stack) as client, connect(stack, index_key=key) as owner:
        await check(client, owner, [])
        await client.ingest(index, "new", content="words", keywords=["k"], wait="searchable")
        await check(client, owner, ["new"])
        other = new_name("restart")
        await client.create_index(other)
        done = await client.ingest(other, "x", content="words")
        assert ids((await client.search(other, "words", after=[done], timeout_s=QUERY_S)).hits) == [
            "x"
        ]
        assert index in {one["index"] for one in await client.list_indexes()}
