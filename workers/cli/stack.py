"""`sealstream up`, `down`, `status`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from workers.cli.common import (
    COMMON,
    OK,
    UNAVAILABLE,
    USAGE,
    AsJson,
    Common,
    complain,
    fail,
    say,
    say_json,
    say_table,
)

Flag = Annotated[bool, Parameter(show_default=False)]


def up(
    *,
    detach: Flag = False,
    workers: Annotated[str, Parameter(show_default=False)] = "",
    kms: Literal["local", "vault"] | None = None,
    kafka: Annotated[str | None, Parameter(show_default=False)] = None,
    servers_only: Flag = False,
    common: Common = COMMON,
) -> int:
    """Start the local stack: S3, Kafka and all workers, in one folder.

    Returns when everything is ready (with --detach), or runs until Ctrl-C, SIGTERM or
    `sealstream down`. The data stays in the folder; `up` again continues with it.

    Parameters
    ----------
    detach
        Run in the background; return when everything is ready.
    workers
        Number of workers per kind, such as ingest=2,index=2 (default: one of each).
    kms
        Where the realm's root is wrapped: a key file in the folder, or an OpenBao server started
        beside the others. Fixed when the folder is made (default: local).
    kafka
        Bootstrap servers, HOST:PORT, of a broker that somebody else runs, instead of the one that
        comes along. What it asks of clients (TLS, SASL) is in the settings; so is topic_prefix,
        which lets several stacks share it. Fixed when the folder is made.
    servers_only
        Start S3 and Kafka only: no topics, no workers.
    """
    from workers.local.control import start_detached
    from workers.local.roles import parse_counts
    from workers.local.state import running
    from workers.local.supervisor import StackOptions

    try:
        counts = parse_counts(workers)
    except ValueError as error:
        fail(f"--workers: {error}", USAGE)
    # Checked like the setting that it is.
    home = common.settings(kafka_bootstrap=kafka).home.absolute()
    if (state := running(home)) is not None:
        say(f"already {state.phase} in {home} (process {state.pid}): see `sealstream status`")
        return OK if state.phase == "ready" else UNAVAILABLE
    if detach:
        arguments = ["--home", str(home)]
        arguments += ["--workers", workers] if workers else []
        arguments += ["--kms", kms] if kms else []
        arguments += ["--kafka", kafka] if kafka else []
        arguments += ["--servers-only"] if servers_only else []
        arguments += ["--config", str(common.config.absolute())] if common.config else []
        start_detached(home, arguments, say)
        return OK
    options = StackOptions(
        home=home, workers=counts, kms=kms, kafka=kafka, servers_only=servers_only
    )
    return asyncio.run(_supervise(options))


async def _supervise(options: Any) -> int:
    from workers.local.state import locked
    from workers.local.supervisor import Stack

    # What clients of servers that are not up yet complain about; failures are told by `Stack`.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    stop = asyncio.Event()
    with locked(options.home):
        stack = Stack(options, _stamped)

        def ask() -> None:
            if stop.is_set():
                complain("stopping at once")
                stack.force.set()
            else:
                stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, ask)
        await stack.run(stop, lambda: _ready(options.home, options.servers_only))
    _stamped("stopped")
    return OK


def _stamped(text: str) -> None:
    say(f"{time.strftime('%H:%M:%S')} {text}")


def _ready(home: Path, servers_only: bool) -> None:
    what = "S3 and Kafka run" if servers_only else "everything runs"
    _stamped(f"{what}; how to reach it is in {home / 'stack.env'}, logs are in {home / 'logs'}")
    if sys.stdout.isatty():
        _stamped("Ctrl-C stops it")


def down(*, common: Common = COMMON) -> int:
    """Stop the local stack; its data stays.

    Workers finish what they have begun, then the servers end. Nothing to stop is no error.
    """
    from workers.local.control import stop

    home = common.absolute_home()
    say(f"stopped {home}" if stop(home) else f"nothing runs in {home}")
    return OK


def status(*, json: AsJson = False, common: Common = COMMON) -> int:
    """Show what runs: servers, workers, their last errors.

    The exit code is 0 if everything is ready and 3 if not.
    """
    from workers.local.control import describe

    home = common.absolute_home()
    report = describe(home)
    if json:
        say_json(report or {"home": str(home), "phase": "stopped", "processes": []})
    elif report is None:
        say(f"nothing runs in {home}")
    else:
        _show(report)
    return OK if report is not None and _all_ready(report) else UNAVAILABLE


def _all_ready(report: dict[str, Any]) -> bool:
    processes = report["processes"]
    ready = all(p["state"] == "ready" and not p.get("stuck", False) for p in processes)
    return report["phase"] == "ready" and ready


def _show(report: dict[str, Any]) -> None:
    say(f"{report['phase']} in {report['home']} (process {report['supervisor']})")
    now = time.time()
    rows = []
    for process in report["processes"]:
        health = process.get("health", {})
        state = "stuck" if process.get("stuck") else process["state"]
        facts = ", ".join(f"{k} {_short(v)}" for k, v in health.items() if k not in _ROUTINE)
        rows.append(
            (
                process["name"],
                state,
                process["pid"],
                _duration(now - process["since"]),
                process["restarts"],
                process["last_exit"],
                facts,
            )
        )
    say_table(("process", "state", "pid", "for", "restarts", "last exit", "facts"), rows)
    for process in report["processes"]:
        for error in process.get("health", {}).get("errors", [])[-3:]:
            ago = _duration(now - error["time_ms"] / 1000)
            times = f" ({error['count']} times)" if error["count"] > 1 else ""
            say(f"{process['name']}, {ago} ago, {error['where']}: {error['error']}{times}")


_ROUTINE = frozenset({"worker", "pid", "started_ms", "time_ms", "last_work_ms", "errors", "ready"})


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
