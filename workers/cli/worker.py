"""`sealstream worker`: one worker process, what a container runs."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Annotated, Any, Literal

import structlog
from cyclopts import Parameter

from workers.cli.common import COMMON, OK, UNAVAILABLE, Common
from workers.errors import SealstreamError
from workers.settings import Settings

Role = Literal["ingest", "index", "query", "keys"]
_ROLES: tuple[Role, ...] = ("keys", "ingest", "index", "query")
Run = Callable[[Settings, asyncio.Event], Awaitable[None]]


def worker(
    role: Literal["ingest", "index", "query", "keys", "all"],
    /,
    *,
    worker_id: Annotated[str | None, Parameter(name=["--id", "--worker-id"])] = None,
    common: Common = COMMON,
) -> int:
    """Run one worker until SIGTERM or Ctrl-C; it finishes what it has begun.

    Parameters
    ----------
    role
        What it does; `all` runs one of each in this process.
    worker_id
        Its id, unique in the realm (default: the setting worker_id, else ROLE-HOSTNAME).
    """
    roles = _ROLES if role == "all" else (role,)
    return asyncio.run(_serve(roles, worker_id, common))


async def _serve(roles: tuple[Role, ...], worker_id: str | None, common: Common) -> int:
    from workers.crypto.secret import harden_process
    from workers.telemetry.logs import configure

    settings = common.settings(worker_id=worker_id)
    harden_process()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        if len(roles) == 1:
            own = _with_id(settings, roles[0])
            configure(own.worker_id or roles[0], settings.log_level)
            await _runner(roles[0])(own, stop)
        else:
            configure("all", settings.log_level)
            await _run_all(roles, settings, stop)
    except SealstreamError:
        raise
    except Exception:
        # Python's own traceback would print foreign texts, which may quote what they choked on.
        structlog.get_logger("worker").exception("ended by an unexpected error")
        return UNAVAILABLE
    return OK


async def _run_all(roles: tuple[Role, ...], settings: Settings, stop: asyncio.Event) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for role in roles:
                own = settings.model_copy(update={"worker_id": f"{role}-1"})
                group.create_task(_run_one(_runner(role), own, stop))
                # The metrics are those of the process: one endpoint tells all of them.
                settings = settings.model_copy(update={"metrics_port": None})
    except* Exception as failures:
        # The first failure ended the others: it is the one to tell.
        raise failures.exceptions[0] from None


async def _run_one(run: Run, settings: Settings, stop: asyncio.Event) -> None:
    try:
        await run(settings, stop)
    finally:
        stop.set()


def _with_id(settings: Settings, role: str) -> Settings:
    if settings.worker_id is not None:
        return settings
    host = socket.gethostname().partition(".")[0]
    return settings.model_copy(update={"worker_id": f"{role}-{host}"[:64]})


def _runner(role: Role) -> Run:
    module: Any = import_module(f"workers.{role}.worker")
    run: Run = module.run
    return run
