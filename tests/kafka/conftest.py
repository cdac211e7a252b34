"""Tests about Apache Kafka itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Test folders are no packages (importlib mode): make the kits importable.
for folder in (HERE, HERE.parent / "integration"):
    sys.path.insert(0, str(folder))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.kafka)
            if config.getoption("broker") != "kafka":
                item.add_marker(pytest.mark.skip(reason="on Apache Kafka only: --broker kafka"))
