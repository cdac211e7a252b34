"""`sealstream health`: whether the workers of this home folder work."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from workers.cli.common import (
    COMMON,
    OK,
    UNAVAILABLE,
    AsJson,
    Common,
    complain,
    say_json,
    say_table,
)


def health(
    *,
    alive: Annotated[bool, Parameter(negative="")] = False,
    max_age: float | None = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Tell whether the workers that run in this home folder work; asks nobody but their files.

    The exit code is 0 if there is one and all are ready, else 3. For a container's own worker:
    what restarts it should ask with --alive, what sends it work without.

    Parameters
    ----------
    alive
        Enough that a worker is not stuck: it may still be starting, or waiting for a server.
    max_age
        Seconds since its last sign of life after which a worker counts as stuck (default: 20).
    """
    from workers.runtime.alive import MAX_AGE_S, look

    run_dir = common.settings().run_dir
    found = look(run_dir, max_age_s=MAX_AGE_S if max_age is None else max_age, ready=not alive)
    if json:
        say_json([one.status | {"problem": one.problem} for one in found])
    elif found:
        rows = [
            (one.worker, one.problem or ("alive" if alive else "ready"), one.status.get("batches"))
            for one in found
        ]
        say_table(("worker", "state", "batches"), rows)
    else:
        complain(f"no worker writes to {run_dir}")
    return OK if found and not any(one.problem for one in found) else UNAVAILABLE
