"""Vaswani through the topics of Apache Kafka ranks as plaintext search does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stack_kit import Stack, connect

# Test folders are no packages (importlib mode): make the benchmarks importable.
sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import quality
from bench.data import collection

pytestmark = [pytest.mark.timeout(1200), pytest.mark.long]


async def test_vaswani(stack: Stack) -> None:
    vaswani = collection("vaswani")
    if vaswani is None:
        pytest.skip("the collection is not at hand, and judgements cannot be made up")
    async with connect(stack) as client:
        ours = await quality._through_topics(client, vaswani)
    figures = quality._figures(vaswani, ours, quality._plaintext(vaswani))
    for figure in figures:
        sys.stderr.write(f"\n{figure.name} {figure.value:.4f} ({figure.baseline:.4f})")
    assert [figure.name for figure in figures if not figure.met] == []
