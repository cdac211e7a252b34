from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workers.local.errors import StartFailed
from workers.local.process import Child, Command, describe_exit, start_ticks
from workers.local.servers import Server
from workers.local.service import Service, run_once

IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
    " time.sleep(600)"
)


def command(tmp_path: Path, code: str, grace_s: float = 60.0, **more: object) -> Command:
    argv = (sys.executable, "-c", code)
    env = {"PATH": os.environ["PATH"]}
    return Command("toy", argv, env, tmp_path / "logs" / "toy.log", grace_s, **more)  # type: ignore[arg-type]


async def printed(child: Child, text: str) -> None:
    async with asyncio.timeout(60):
        while text not in child.log_tail():
            await asyncio.sleep(0.01)


def service(command: Command, ready: object, lines: list[str], deadline_s: float = 60.0) -> Service:
    server = Server(command, ready, deadline_s)  # type: ignore[arg-type]
    return Service(server, say=lines.append, changed=lambda: None, force=asyncio.Event())


async def yes() -> bool:
    return True


async def never() -> bool:
    return False


async def test_a_child_tells_its_exit_code_and_log(tmp_path: Path) -> None:
    child = Child(command(tmp_path, "import sys; print('bye'); sys.exit(7)"))
    assert await child.wait() == 7
    assert child.log_tail() == "bye"
    again = Child(command(tmp_path, "print('second')"))
    await again.wait()
    assert again.log_tail() == "second"
    assert (tmp_path / "logs" / "toy.log").read_text() == "bye\nsecond\n"


async def test_stop_asks_first(tmp_path: Path) -> None:
    child = Child(command(tmp_path, "import time; print('up', flush=True); time.sleep(600)"))
    await printed(child, "up")
    await child.stop(asyncio.Event())
    assert child.exit_code == -signal.SIGTERM


async def test_stop_kills_after_the_grace_time(tmp_path: Path) -> None:
    child = Child(command(tmp_path, IGNORES_SIGTERM, grace_s=0.1))
    await printed(child, "up")
    await child.stop(asyncio.Event())
    assert child.exit_code == -signal.SIGKILL


async def test_stop_kills_at_once_when_forced(tmp_path: Path) -> None:
    child = Child(command(tmp_path, IGNORES_SIGTERM, grace_s=600))
    await printed(child, "up")
    force = asyncio.Event()
    stopping = asyncio.ensure_future(child.stop(force))
    await asyncio.sleep(0)
    force.set()
    await stopping
    assert child.exit_code == -signal.SIGKILL


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from workers.local.process import Child, Command
async def main():
    # The grandchild holds the pipe open as long as it lives.
    argv = (sys.executable, "-c", "import time; time.sleep(600)")
    child = Child(Command("toy", argv, {{}}, Path({str(tmp_path / "toy.log")!r})))
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    assert start_ticks(pid) is not None
    watch = os.pidfd_open(pid)
    try:
        parent.kill()
        parent.wait()
        readable, _, _ = select.select([watch], [], [], 60)
        assert readable, "the child outlived its parent"
    finally:
        os.close(watch)


async def test_files_of_the_last_run_are_removed_before_the_next(tmp_path: Path) -> None:
    stale = tmp_path / "status.json"
    stale.write_text("ready")
    child = Child(command(tmp_path, "pass", fresh=(stale,)))
    assert not stale.exists()
    await child.wait()


def test_pids_are_told_apart_by_their_start() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    assert start_ticks(os.getpid()) == ticks
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    assert start_ticks(ended.pid) is None


def test_exits_in_words() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-200) == "killed by signal 200"


async def test_a_service_that_ends_while_starting_shows_its_log(tmp_path: Path) -> None:
    one = service(command(tmp_path, "print('no such disk'); raise SystemExit(4)"), never, [])
    with pytest.raises(StartFailed, match=r"(?s)exit code 4.*toy.log.*no such disk"):
        await one.start()
    await one.stop()


async def test_a_service_that_is_never_ready_has_a_deadline(tmp_path: Path) -> None:
    one = service(command(tmp_path, "import time; time.sleep(600)"), never, [], deadline_s=0.1)
    with pytest.raises(StartFailed, match="was not ready"):
        await one.start()
    await one.stop()
    assert one.state.state == "stopped"


async def test_a_missing_program_is_told(tmp_path: Path) -> None:
    missing = Command("toy", (str(tmp_path / "absent"),), {}, tmp_path / "toy.log")
    with pytest.raises(StartFailed, match="toy cannot be started: No such file"):
        await service(missing, yes, []).start()


async def test_a_killed_service_is_started_again_and_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    one = service(command(tmp_path, "import time; time.sleep(600)"), yes, lines)
    async with asyncio.TaskGroup() as keepers:
        await one.start()
        keepers.create_task(one.keep())
        first = one.state.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(60):
            while one.state.restarts == 0 or one.state.state != "ready":
                await asyncio.sleep(0.01)
        assert one.state.pid not in (None, first)
        assert one.state.last_exit == "killed by SIGKILL"
        await one.stop()
    assert lines == ["toy ended (killed by SIGKILL); starting it in 0.5 s", "toy runs again"]


async def test_stop_ends_the_back_off(tmp_path: Path) -> None:
    lines: list[str] = []
    one = service(command(tmp_path, "import time; time.sleep(600)"), yes, lines)
    async with asyncio.TaskGroup() as keepers:
        await one.start()
        keepers.create_task(one.keep())
        assert one.state.pid is not None
        os.kill(one.state.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while not lines:
                await asyncio.sleep(0.01)
        await one.stop()


async def test_run_once(tmp_path: Path) -> None:
    await run_once(command(tmp_path, "pass"), 60)
    with pytest.raises(StartFailed, match=r"(?s)toy failed \(exit code 1\).*oh no"):
        await run_once(command(tmp_path, "raise SystemExit('oh no')"), 60)
    with pytest.raises(StartFailed, match="did not end within"):
        await run_once(command(tmp_path, "import time; time.sleep(600)"), 0.1)
