"""`SealstreamStack`: what others' integration tests stand on."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_d1_example as d1
from stack_kit import QUERY_S, new_name

from schemas.errors import ErrorCode
from workers.errors import Reject
from workers.testing import ContainersError, Images, SealstreamStack

pytestmark = pytest.mark.timeout(1800)

README = Path(__file__).parents[3] / "workers" / "testing" / "README.md"
KEY = bytes(range(32))


def left(client: Any) -> list[str]:
    """Return what stacks have not removed, be they of this process or of one that was killed."""
    mine = {"label": "org.testcontainers=true"}
    return [
        *(one.name for one in client.containers.list(all=True, filters=mine)),
        *(one.name for one in client.volumes.list(filters=mine)),
        *(one.name for one in client.networks.list(filters=mine)),
    ]


@pytest.fixture(scope="module")
def stack(docker_client: Any) -> Iterator[SealstreamStack]:
    known = left(docker_client)
    began = time.monotonic()
    with SealstreamStack(
        index="own/key", index_options={"dimension": 4}, index_key=KEY, kms="openbao"
    ) as running:
        sys.stderr.write(f"\ntestcontainers: {time.monotonic() - began:.1f} s\n")
        yield running
    assert sorted(left(docker_client)) == sorted(known)


async def test_the_index_is_there_with_its_key(stack: SealstreamStack) -> None:
    async with stack.client() as client:
        operation = {"op": "upsert", "index": "own/key", "id": "doc", "content": "the tide"}
        operations = [operation | {"vector": [1.0, 0.0, 0.0, 0.0]}]
        results = [r async for r in client.ingest_many(operations, wait="searchable")]
        assert [r.status for r in results] == ["accepted"]
        found = await client.search("own/key", "tide", include=["content"], timeout_s=QUERY_S)
        assert [hit.content for hit in found.hits] == ["the tide"]
    async with stack.client(index_key=KEY[::-1]) as stranger:
        with pytest.raises(Reject) as refused:
            await stranger.search("own/key", "tide", timeout_s=QUERY_S)
    assert refused.value.code is ErrorCode.WRONG_KEY


async def test_d1_example(stack: Any) -> None:
    await d1.test_pairs_by_the_client(stack, "sealed")
    await d1.test_documents_by_the_client(stack, "plain")
    await d1.test_pairs_by_any_kafka_client(stack)


async def test_other_programs_reach_it(stack: SealstreamStack) -> None:
    """By variables, or by a home folder, whatever else is set around."""
    index = new_name("other")
    # Not the caller who keeps the key of one index.
    async with stack.client(index_key=None) as client:
        await client.create_index(index)
        await client.ingest(index, "doc", content="the tide", wait="searchable")
    arguments = ["search", index, "tide", "--timeout", f"{QUERY_S:g}"]
    for more, env in (
        (["--home", str(stack.home)], dict(os.environ)),
        ([], os.environ | stack.env),
    ):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "workers.cli.main", *arguments, *more],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "doc" in done.stdout


async def test_a_part_that_is_killed_comes_back(stack: SealstreamStack) -> None:
    container = stack.container("query-1").get_wrapped_container()
    container.kill()
    with pytest.raises(ContainersError, match="query-1 is exited"):
        await asyncio.to_thread(stack.wait_ready, "query-1")
    container.start()
    await asyncio.to_thread(stack.wait_ready, "query-1")
    async with stack.client() as client:
        found = await client.search("own/key", "tide", timeout_s=QUERY_S)
    assert [hit.id for hit in found.hits] == ["doc"]


async def test_asynchronously(docker_client: Any) -> None:
    known = left(docker_client)
    async with SealstreamStack(index="library") as stack:
        async with stack.client() as client:
            await client.ingest("library", "doc", content="the tide", wait="searchable")
            found = await client.search("library", "tide", timeout_s=QUERY_S)
            assert [hit.id for hit in found.hits] == ["doc"]
        home = stack.home
        assert home.exists()
    assert not home.exists()
    assert sorted(left(docker_client)) == sorted(known)
    with pytest.raises(RuntimeError, match="not started"):
        stack.client()


def test_the_readme_example(docker_client: Any, tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "test_library.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_library.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_stack_that_fails_says_why_and_leaves_nothing(docker_client: Any) -> None:
    known = left(docker_client)
    # No object store in there: `weed` is missing.
    wrong = Images(seaweedfs=Images().sealstream)
    with pytest.raises(Exception, match="weed"), SealstreamStack(images=wrong):
        pass
    # Another program under that name: it ends at once, and the buckets are never made.
    wrong = Images(openbao=Images().seaweedfs)
    with pytest.raises(Exception, match="bao"), SealstreamStack(images=wrong, kms="openbao"):
        pass
    assert sorted(left(docker_client)) == sorted(known)


def test_a_client_of_a_stack_that_does_not_run() -> None:
    stack = SealstreamStack()
    with pytest.raises(RuntimeError, match="not started"):
        stack.client()
    stack.stop()
    with pytest.raises(ValueError, match="name it"):
        SealstreamStack(index_key=KEY)
