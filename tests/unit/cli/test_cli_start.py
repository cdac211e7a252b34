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
    "arguments",
    [
        ["search", "notes", "tide"],
        ["index", "list"],
        ["verify", "notes"],
        ["audit", "verify"],
        ["key", "export-directory"],
    ],
    ids=" ".join,
)
def test_in_the_wrong_folder_the_missing_stack_is_named(run, arguments, tmp_path):
    done = run(*arguments)
    assert done.code == 2
    assert f"no local stack in {tmp_path / '.sealstream'}" in done.err
    assert "sealstream up" in done.err
    # A stack that has not come that far.
    (tmp_path / ".sealstream").mkdir()
    (tmp_path / ".sealstream" / "stack.env").write_text("")
    done = run(*arguments)
    assert done.code == 2
    assert "names no key service" in done.err


@pytest.mark.parametrize(
    "command", ["index", "ingest", "search", "get", "delete", "count", "ids", "dlq", "verify"]
)
def test_every_command_is_registered_and_has_help(run, command):
    assert command in {verb.name for verb in COMMANDS}
    done = run(command, "--help")
    assert done.code == 0
    assert len(done.out) > 100
