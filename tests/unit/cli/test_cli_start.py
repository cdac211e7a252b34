"""What happens before a command runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers.cli.main import COMMANDS

HEAVY = ("numpy", "aiokafka", "obstore", "numkong", "cryptography", "wordllama", "snowballstemmer")


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_imports_nothing_heavy():
    statement = (
        "import contextlib, io\nfrom workers.cli.main import run\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert run(['--help']) == 0"
    )
    assert not imported_by(statement) & set(HEAVY)


@pytest.mark.parametrize(
    "module", ["index", "ingest", "search", "documents", "deadletters", "verify"]
)
def test_commands_import_their_libraries_when_they_run(module):
    assert not imported_by(f"import workers.cli.{module}") & set(HEAVY)


@pytest.mark.parametrize(
    "command", ["index", "ingest", "search", "get", "delete", "count", "ids", "dlq", "verify"]
)
def test_every_command_is_registered_and_has_help(run, command):
    assert command in {verb.name for verb in COMMANDS}
    done = run(command, "--help")
    assert done.code == 0
    assert len(done.out) > 100
