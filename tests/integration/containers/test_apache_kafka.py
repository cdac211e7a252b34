"""The same systems with Apache Kafka for a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_d1_example as d1
from compose_kit import composed
from stack_kit import QUERY_S

from workers.testing import SealstreamStack

pytestmark = pytest.mark.timeout(1800)


async def test_the_profile_of_compose(docker_client: Any, tmp_path: Path) -> None:
    with composed(tmp_path, COMPOSE_PROFILES="kafka") as system:
        running: Any = system
        services = set(system.compose("ps", "--services").split())
        assert "kafka" in services
        assert not services & {"tansu", "tansu-proxy"}
        await d1.test_pairs_by_the_client(running, "sealed")
        await d1.test_pairs_by_any_kafka_client(running)


async def test_a_stack_of_testcontainers(docker_client: Any) -> None:
    async with SealstreamStack(index="library", broker="kafka") as stack:
        running: Any = stack
        await d1.test_documents_by_the_client(running, "sealed")
        async with stack.client() as client:
            await client.ingest("library", "doc", content="the tide", wait="searchable")
            found = await client.search("library", "tide", timeout_s=QUERY_S)
        assert [hit.id for hit in found.hits] == ["doc"]
