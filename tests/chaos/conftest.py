from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Test folders are no packages (importlib mode): make the kits importable.
TESTS = Path(__file__).parents[1]
for folder in ("chaos", "integration", "unit/keys"):
    sys.path.insert(0, str(TESTS / folder))


@pytest.fixture(scope="session")
def chaos(
    start_stack: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A stack in which ingest and index workers can stand in for each other, and soon do."""
    home = tmp_path_factory.mktemp("chaos")
    environ = {"SEALSTREAM_KAFKA_SESSION_TIMEOUT_S": "6"}
    with start_stack(home, "--workers", "ingest=2,index=2", environ=environ) as running:
        yield running
