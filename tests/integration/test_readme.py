"""What the README tells a newcomer to type works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stack_kit import Stack

from workers.client import Client

README = Path(__file__).parents[2] / "README.md"


def _programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
async def notes(stack: Stack) -> None:
    async with Client(stack.settings) as client:
        await client.create_index("notes")


@pytest.mark.core
@pytest.mark.usefixtures("notes")
def test_both_programs_run(stack: Stack) -> None:
    bare, sealed = _programs()
    environment = {**os.environ, **stack.env, "SEALSTREAM_HOME": str(stack.home)}
    for program in (bare, sealed):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    assert "doc-2" in done.stdout
    assert "high water at noon" in done.stdout
