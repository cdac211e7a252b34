"""The local stack under a benchmark: a running one, or one of its own in a temporary folder."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from workers.local.control import start_detached, stop
from workers.local.state import read_state, running


def progress(text: str) -> None:
    """Say on standard error what is going on; standard output is the report's."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


@asynccontextmanager
async def local_stack(home: Path | None, *, servers_only: bool = False) -> AsyncIterator[Path]:
    """Yield the folder of a running stack; stop it afterwards if it was started here.

    Args:
        home: its absolute folder; None takes a temporary one, which is removed.
        servers_only: S3 and Kafka suffice.
    """
    if home is not None:
        async with _in(home, servers_only):
            yield home
        return
    # Short: SeaweedFS puts sockets there, whose names may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ssb-", ignore_cleanup_errors=True) as folder:
        async with _in(Path(folder), servers_only):
            yield Path(folder)


@asynccontextmanager
async def _in(home: Path, servers_only: bool) -> AsyncIterator[None]:
    if running(home) is not None:
        yield
        return
    progress(f"starting a local stack in {home}")
    arguments = ["--home", str(home), *(["--servers-only"] if servers_only else [])]
    await asyncio.to_thread(start_detached, home, arguments, progress)
    try:
        yield
    finally:
        progress("stopping the local stack")
        await asyncio.to_thread(stop, home)


class Usage:
    """CPU seconds and memory of every process of a stack (Linux; empty elsewhere)."""

    def __init__(self, home: Path) -> None:
        state = read_state(home)
        processes = () if state is None else state.processes
        self._pids = {p.name: p.pid for p in processes if p.pid is not None}
        self._pids["bench"] = os.getpid()

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds used so far, by process; `bench` is this one."""
        ticks = os.sysconf("SC_CLK_TCK")
        found = {}
        for name, pid in self._pids.items():
            fields = _proc(pid, "stat").rpartition(")")[2].split()
            if fields:
                found[name] = (int(fields[11]) + int(fields[12])) / ticks
        return found

    def peak_mib(self) -> dict[str, float]:
        """Return the peak of the resident memory so far, by process."""
        found = {}
        for name, pid in self._pids.items():
            for line in _proc(pid, "status").splitlines():
                if line.startswith("VmHWM:"):
                    found[name] = round(int(line.split()[1]) / 1024, 1)
        return found


def grouped(cpu_s: dict[str, float]) -> dict[str, float]:
    """Sum CPU seconds by kind of process: `ingest-1` and `ingest-2` are `ingest`."""
    sums: dict[str, float] = {}
    for name, seconds in cpu_s.items():
        kind = name.rsplit("-", 1)[0] if name[-1].isdigit() else name.partition("-")[0]
        sums[kind] = sums.get(kind, 0.0) + seconds
    return sums


def _proc(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8")
    except OSError:
        return ""
