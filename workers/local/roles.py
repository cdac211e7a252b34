"""The workers of the local stack: how many of each, their command lines, their readiness."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from workers.local.access import KeyPair
from workers.local.errors import StackError
from workers.local.files import read_json
from workers.local.probe import Probe
from workers.local.process import Command
from workers.local.servers import Server

ROLES = ("keys", "ingest", "index", "query")
DEFAULT_COUNTS = dict.fromkeys(ROLES, 1)
_MOST = 64
_START_DEADLINE_S = 300.0
# A worker drains within its setting `drain_s` (20 s); the rest is for closing clients.
_GRACE_S = 30.0


def parse_counts(text: str) -> dict[str, int]:
    """Return the number of workers per role from `ingest=2,index=2`; the others stay at one.

    Raises:
        ValueError: an unknown role, or no number from 1 to 64.
    """
    counts = dict(DEFAULT_COUNTS)
    for part in filter(None, (p.strip() for p in text.split(","))):
        role, _, number = part.partition("=")
        if role not in counts:
            raise ValueError(f"no such worker, use {', '.join(ROLES)}")
        if not number.isdigit() or not 1 <= int(number) <= _MOST:
            raise ValueError(f"write {role}=N with N from 1 to {_MOST}")
        counts[role] = int(number)
    return counts


def sealstream(*arguments: str) -> tuple[str, ...]:
    """Return a command line of ours, run by this Python.

    `-P`: a folder called `workers` where the user stands must not be imported instead of ours.
    """
    return (sys.executable, "-P", "-m", "workers.cli.main", *arguments)


def worker_env(
    stack: Mapping[str, str], credentials: KeyPair, extra: Mapping[str, str]
) -> dict[str, str]:
    """Return a worker's environment: ours, with nothing that would outrank `stack.env`.

    Args:
        stack: variables of `stack.env`.
        credentials: of its object store identity.
        extra: more variables, such as the KMS's for the keys worker.
    """
    private = {"VAULT_TOKEN", "SEALSTREAM_HOME", "SEALSTREAM_WORKER_ID", "AWS_SESSION_TOKEN"}
    hidden = {*stack, *private, "SEALSTREAM_TOKEN", "SEALSTREAM_KEY_SERVICE_FINGERPRINT"}
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    if inherited.get("SEALSTREAM_METRICS_PORT"):
        # Several processes cannot listen on one port: each takes a free one.
        inherited["SEALSTREAM_METRICS_PORT"] = "0"
    return {**inherited, **credentials.env(), **extra}


def worker_server(
    home: Path, role: str, number: int, env: Mapping[str, str], *, grace_s: float = _GRACE_S
) -> Server:
    """Return the process of one worker."""
    worker_id = f"{role}-{number}"
    status = home / "run" / f"{worker_id}.json"
    command = Command(
        worker_id,
        sealstream("worker", role, "--id", worker_id, "--home", str(home)),
        env,
        home / "logs" / f"{worker_id}.log",
        grace_s,
        # A killed worker leaves its file: it must not count as readiness of the next.
        fresh=(status,),
    )
    return Server(command, _says_ready(status), _START_DEADLINE_S)


def worker_identities(counts: Mapping[str, int]) -> str:
    """Return the roles that need an identity as `ROLE=N,...`: all but the key service itself."""
    return ",".join(f"{role}={count}" for role, count in counts.items() if role != "keys")


def check_counts(counts: Mapping[str, int]) -> None:
    """Refuse counts that name unknown roles.

    Raises:
        StackError: an unknown role.
    """
    if unknown := counts.keys() - set(ROLES):
        raise StackError(f"no such worker: {', '.join(sorted(unknown))}")


def _says_ready(status: Path) -> Probe:
    async def probe() -> bool:
        return bool((read_json(status) or {}).get("ready"))

    return probe
