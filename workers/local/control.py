"""The local stack seen from other processes: start it detached, stop it, describe it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.local.errors import StackError
from workers.local.files import read_json, tail
from workers.local.process import start_ticks
from workers.local.roles import sealstream
from workers.local.servers import weed_sockets
from workers.local.state import StackState, read_remembered, read_state, running, state_path

# Stage by stage: two of workers, which drain for up to 30 s, and four of servers, which take up to
# 10 s; more than that means it hangs.
STOP_DEADLINE_S = 180.0
_POLL_S = 0.1
_STALE_S = 10.0
_PROGRESS = re.compile(r"\d\d:\d\d:\d\d ")


def start_detached(home: Path, arguments: list[str], say: Callable[[str], None]) -> None:
    """Start `sealstream up` in the background and return when the stack is ready.

    Args:
        home: folder of the stack, absolute.
        arguments: of `up`, without `--detach`.
        say: gets the lines of progress.

    Raises:
        StackError: it did not start; nothing is left running.
        KeyboardInterrupt: interrupted; the stack was told to stop and has stopped.
    """
    log = home / "logs" / "supervisor.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        output = log.open("ab")
    except OSError as error:
        raise StackError(f"cannot use {home} as home: {error.strerror}") from error
    with output:
        shown = output.tell()
        process = subprocess.Popen(  # noqa: S603 - our own argument list
            sealstream("up", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ready = False
    try:
        while not ready:
            code = process.poll()
            state = read_state(home)
            ready = state is not None and state.pid == process.pid and state.phase == "ready"
            shown = _follow(log, shown, say)
            if code is not None:
                raise StackError(_why(home, process.pid, log))
            time.sleep(_POLL_S)
        _follow(log, shown, say)
    finally:
        if ready:
            # It shall outlive us: no ResourceWarning for a process we do not wait for.
            process.returncode = 0
        else:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()


def _follow(log: Path, start: int, say: Callable[[str], None]) -> int:
    with log.open("rb") as file:
        file.seek(start)
        text, separator, _ = file.read().rpartition(b"\n")
    for line in text.decode(errors="replace").splitlines():
        # What is no progress is an error, which is told as such in the end.
        if _PROGRESS.match(line):
            say(line)
    return start + len(text) + len(separator)


def _why(home: Path, pid: int, log: Path) -> str:
    state = read_state(home)
    if state is not None and state.pid == pid and state.error:
        return state.error
    return f"the supervisor ended; the end of {log}:\n{tail(log)}"


def stop(home: Path, deadline_s: float = STOP_DEADLINE_S) -> bool:
    """Stop the stack of a home folder; return False if none runs.

    Raises:
        StackError: it still runs after being killed.
    """
    state = running(home)
    if state is None:
        _clean(home)
        return False
    if not _signal(state, signal.SIGTERM, deadline_s) and not _signal(state, signal.SIGKILL, 30.0):
        raise StackError(f"the supervisor (process {state.pid}) cannot be stopped")
    _clean(home)
    return True


def _signal(state: StackState, number: signal.Signals, deadline_s: float) -> bool:
    """Send a signal to the supervisor and wait until it and all its children are gone."""
    end = time.monotonic() + deadline_s
    children = [(p.pid, start_ticks(p.pid)) for p in state.processes if p.pid is not None]
    if state.alive:
        os.kill(state.pid, number)
    while time.monotonic() < end:
        left = [pid for pid, ticks in children if ticks is not None and start_ticks(pid) == ticks]
        if not state.alive and not left:
            return True
        time.sleep(_POLL_S)
    return False


def _clean(home: Path) -> None:
    """Remove what a killed supervisor could not."""
    state_path(home).unlink(missing_ok=True)
    for path in weed_sockets(home, read_remembered(home).ports):
        path.unlink(missing_ok=True)


def describe(home: Path) -> dict[str, Any] | None:
    """Return the state of the running stack with each worker's own report, None if none runs.

    Every process has `name`, `state`, `pid`, `restarts`, `last_exit`, `since`; workers also have
    `health`, the content of their file, and `stuck` when that is older than 10 s.
    """
    state = running(home)
    if state is None:
        return None
    now = time.time()
    processes = []
    for process in state.processes:
        row: dict[str, Any] = {
            "name": process.name,
            "state": process.state,
            "pid": process.pid,
            "restarts": process.restarts,
            "last_exit": process.last_exit,
            "since": process.since,
        }
        health = read_json(home / "run" / f"{process.name}.json")
        if health is not None and health.get("pid") == process.pid:
            row["health"] = health
            row["stuck"] = now - health.get("time_ms", 0) / 1000 > _STALE_S
        processes.append(row)
    return {
        "home": str(home),
        "phase": state.phase,
        "supervisor": state.pid,
        "since": state.since,
        "processes": processes,
    }
