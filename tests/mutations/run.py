"""Show that every defence has a test that notices when it is gone.

    python tests/mutations/run.py [PART OF A NAME ...]

Works on a copy of the checkout in a temporary folder. First all the tests that are named must pass
there; then each defence is removed in turn, and one of its tests must fail. Exit code 1 if a
mutation is not caught, or does not apply any more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutations import MUTATIONS, Mutation
from mutations_identity import IDENTITY

ROOT = Path(__file__).resolve().parents[2]
_FAILED = 1
# For the tests of a mutation, besides the time that all of them took without any.
_HANGS_S = 300.0


def main(wanted: list[str]) -> int:
    """Run the mutations whose name holds one of `wanted`, or all."""
    chosen = [
        m for m in (*MUTATIONS, *IDENTITY) if not wanted or any(part in m.name for part in wanted)
    ]
    if not chosen:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory(prefix="sealstream-mutations-") as folder:
        copy = Path(folder)
        for name in ("schemas", "workers", "tests"):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        shutil.copy(ROOT / "pyproject.toml", copy)
        misfits = [m.name for m in chosen if (copy / m.file).read_text().count(m.old) != 1]
        for name in misfits:
            print(f"DOES NOT APPLY  {name}")
        every = sorted({test for mutation in chosen for test in mutation.tests})
        began_s = time.monotonic()
        # Without a deadline: pytest ends a test that hangs, and a slow machine is no failure.
        if _pytest(copy, every, None) != 0:
            print("the tests fail without any mutation")
            return 1
        deadline_s = _HANGS_S + time.monotonic() - began_s
        survivors = [
            m.name for m in chosen if m.name not in misfits and not _caught(copy, m, deadline_s)
        ]
    print(f"{len(chosen) - len(survivors) - len(misfits)} of {len(chosen)} mutations caught")
    return 1 if survivors or misfits else 0


def _caught(copy: Path, mutation: Mutation, deadline_s: float) -> bool:
    file = copy / mutation.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    began_s = time.monotonic()
    try:
        caught = _pytest(copy, list(mutation.tests), deadline_s) == _FAILED
    finally:
        file.write_text(text, encoding="utf-8")
    print(
        f"{'caught  ' if caught else 'SURVIVED'}  {mutation.name}"
        f"  ({time.monotonic() - began_s:.0f} s)",
        flush=True,
    )
    return caught


def _pytest(copy: Path, tests: list[str], deadline_s: float | None) -> int:
    """Return pytest's exit code; a test that never ends counts as one that fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        return subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=deadline_s,
        ).returncode
    except subprocess.TimeoutExpired:
        return _FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
