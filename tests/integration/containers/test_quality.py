"""Vaswani through the topics of systems in containers ranks as plaintext search does."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from compose_kit import composed
from stack_kit import connect

# Test folders are no packages (importlib mode): make the benchmarks importable.
sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import quality
from bench.data import collection

from workers.testing import SealstreamStack

pytestmark = [pytest.mark.timeout(1200), pytest.mark.long]


@pytest.mark.parametrize("kind", ["compose", "testcontainers"])
async def test_vaswani(docker_client: Any, tmp_path: Path, kind: str) -> None:
    vaswani = collection("vaswani")
    if vaswani is None:
        pytest.skip("the collection is not at hand, and judgements cannot be made up")
    system: AbstractContextManager[Any] = (
        composed(tmp_path) if kind == "compose" else SealstreamStack()
    )
    with system as running:
        async with connect(running) as client:
            ours = await quality._through_topics(client, vaswani)
    figures = quality._figures(vaswani, ours, quality._plaintext(vaswani))
    for figure in figures:
        sys.stderr.write(f"\n{kind}: {figure.name} {figure.value:.4f} ({figure.baseline:.4f})")
    assert [figure.name for figure in figures if not figure.met] == []
