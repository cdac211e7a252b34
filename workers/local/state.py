"""What runs in a home folder: the lock, the state file, and what is remembered between runs.

    HOME/stack.json       remembered: ports, KMS, the broker if it is not ours
    HOME/run/lock         held (flock) by the supervisor as long as it lives
    HOME/run/stack.json   written by the supervisor on every change, removed when it has stopped

A state file whose supervisor (pid and start time) is gone is stale; nobody needs to remove it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from workers.local.errors import AlreadyRunning, StackError
from workers.local.files import read_json, write_json
from workers.local.process import start_ticks

Phase = Literal["starting", "ready", "stopping", "failed"]


@dataclass(slots=True)
class ProcessState:
    """One child as the supervisor sees it. `since`: Unix seconds of the last change."""

    name: str
    pid: int | None = None
    state: Literal["starting", "ready", "backing off", "stopped"] = "starting"
    restarts: int = 0
    last_exit: str | None = None
    since: float = field(default_factory=time.time)


@dataclass(slots=True)
class StackState:
    """The state file. `error` says why the phase is `failed`."""

    pid: int
    ticks: int
    phase: Phase = "starting"
    since: float = field(default_factory=time.time)
    servers_only: bool = False
    workers: dict[str, int] = field(default_factory=dict)
    processes: list[ProcessState] = field(default_factory=list)
    error: str | None = None

    @property
    def alive(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return start_ticks(self.pid) == self.ticks


@dataclass(slots=True)
class Remembered:
    """What must be the same at the next start."""

    ports: dict[str, int] = field(default_factory=dict)
    kms: str = "local"
    # Bootstrap servers of a broker that somebody else runs; None: Tansu, which we run.
    kafka: str | None = None


def state_path(home: Path) -> Path:
    """Return the state file of a home folder."""
    return home / "run" / "stack.json"


def write_state(home: Path, state: StackState) -> None:
    """Write the state file."""
    write_json(state_path(home), asdict(state))


def read_state(home: Path) -> StackState | None:
    """Return the state file's content, stale or not; None if there is none to understand."""
    raw = read_json(state_path(home))
    if raw is None:
        return None
    try:
        processes = [ProcessState(**process) for process in raw.pop("processes")]
        return StackState(processes=processes, **raw)
    except (TypeError, KeyError):
        return None


def running(home: Path) -> StackState | None:
    """Return the state of the stack that runs in this home folder, None if none does."""
    state = read_state(home)
    return state if state is not None and state.alive else None


def read_remembered(home: Path) -> Remembered:
    """Return what the last run left, or the defaults."""
    raw: dict[str, Any] = read_json(home / "stack.json") or {}
    ports, kafka = raw.get("ports"), raw.get("kafka")
    numbers = ports if isinstance(ports, dict) else {}
    return Remembered(
        ports={name: port for name, port in numbers.items() if isinstance(port, int)},
        kms=str(raw.get("kms", "local")),
        kafka=kafka if isinstance(kafka, str) else None,
    )


def write_remembered(home: Path, remembered: Remembered) -> None:
    """Keep what must be the same at the next start."""
    write_json(home / "stack.json", asdict(remembered))


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the home folder: the kernel lets go of it when this process ends, however it ends.

    Raises:
        AlreadyRunning: another process holds it.
        StackError: the folder cannot be made or written.
    """
    path = home / "run" / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StackError(f"cannot use {home} as home: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"a local stack already uses {home}") from None
        yield
    finally:
        os.close(descriptor)
