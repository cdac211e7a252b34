"""Where the vectors are: ours beside this file, the published ones in the shared folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]


@pytest.fixture(scope="session")
def published() -> Callable[[str], Any]:
    """Load a published vector file from `$SEALSTREAM_SHARED/vectors`, by default `../shared`."""
    shared = Path(os.environ.get("SEALSTREAM_SHARED") or REPO.parent / "shared")

    def load(name: str) -> Any:
        path = shared / "vectors" / name
        if not path.is_file():
            pytest.skip(
                f"published vectors not found: no {name} in {path.parent}"
                " (set SEALSTREAM_SHARED to the folder that holds vectors/)"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    return load


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Load one of our own vector files."""

    def load(name: str) -> Any:
        return json.loads((HERE / f"golden_{name}.json").read_text(encoding="utf-8"))

    return load
