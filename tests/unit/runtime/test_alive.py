"""What container runtimes are told of a worker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers.cli import main as cli
from workers.runtime import alive
from workers.runtime.alive import look, main
from workers.runtime.health import Health


@pytest.fixture(autouse=True)
def now_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """The time of who looks: it stands still, or a worker could grow too old on a busy machine."""
    now_s = time.time()
    monkeypatch.setattr(alive, "time", SimpleNamespace(time=lambda: now_s))
    return now_s


async def written(run_dir: Path, worker: str, *, ready: bool) -> None:
    """Let a worker write its file; it stays as if the worker had been killed then."""
    path = run_dir / f"{worker}.json"
    health = Health(worker, path)
    if ready:
        health.set("ready", True)
    stop = asyncio.Event()
    task = asyncio.create_task(health.run(stop))
    while not path.exists():
        await asyncio.sleep(0)
    kept = path.read_bytes()
    stop.set()
    await task
    path.write_bytes(kept)


async def test_a_worker_that_is_ready(tmp_path: Path) -> None:
    await written(tmp_path / "run", "ingest-1", ready=True)
    [found] = look(tmp_path / "run")
    assert (found.worker, found.problem) == ("ingest-1", None)
    assert main([str(tmp_path)]) == 0


async def test_a_worker_that_still_starts_is_alive(tmp_path: Path) -> None:
    await written(tmp_path / "run", "ingest-1", ready=False)
    assert [one.problem for one in look(tmp_path / "run")] == ["not ready"]
    assert [one.problem for one in look(tmp_path / "run", ready=False)] == [None]
    assert main([str(tmp_path)]) == 1


async def test_a_worker_that_is_stuck(tmp_path: Path) -> None:
    await written(tmp_path / "run", "ingest-1", ready=True)
    path = tmp_path / "run" / "ingest-1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time_ms": 1}))
    [found] = look(tmp_path / "run", ready=False)
    assert (found.problem or "").startswith("silent for")
    assert main([str(tmp_path)]) == 1


async def test_all_workers_of_a_home_count(tmp_path: Path) -> None:
    await written(tmp_path / "run", "ingest-1", ready=True)
    await written(tmp_path / "run", "index-1", ready=False)
    assert [one.worker for one in look(tmp_path / "run")] == ["index-1", "ingest-1"]
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"worker": 1}', '{"phase": "ready"}'])
def test_other_files_are_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stack.json").write_text(text)
    assert look(tmp_path / "run") == []
    assert main([str(tmp_path)]) == 1


def test_no_worker_is_not_well(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1


async def test_the_command_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(tmp_path)]
    assert cli.run(["health", *home]) == 3
    await written(tmp_path / "run", "ingest-1", ready=False)
    assert cli.run(["health", *home]) == 3
    assert cli.run(["health", "--alive", *home]) == 0
    capsys.readouterr()
    assert cli.run(["health", "--json", *home]) == 3
    [said] = json.loads(capsys.readouterr().out)
    assert (said["worker"], said["problem"]) == ("ingest-1", "not ready")


def test_asking_loads_nothing_of_ours(tmp_path: Path) -> None:
    """A container runtime asks every few seconds, on every worker."""
    program = (
        "import sys, workers.runtime.alive;"
        "print([m for m in sys.modules if m.partition('.')[0] in ('pydantic', 'orjson', 'numpy')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_age_is_by_the_clock_of_this_machine(tmp_path: Path, now_s: float) -> None:
    (tmp_path / "run").mkdir()
    status = {"worker": "w", "time_ms": (now_s - 30) * 1000, "ready": True}
    (tmp_path / "run" / "w.json").write_text(json.dumps(status))
    assert [one.problem for one in look(tmp_path / "run", max_age_s=60.0)] == [None]
    assert look(tmp_path / "run")[0].problem is not None
