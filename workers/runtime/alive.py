"""Whether the workers of a home folder work: reads the files that `health.py` writes.

    python -m workers.runtime.alive [HOME]      exit code 0: all are ready, 1: not

What asks every few seconds (a container runtime) takes this rather than `sealstream health`, which
tells more: only the standard library is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MAX_AGE_S: Final = 20.0
# Longer than a worker pauses before it asks again, so that one that is denied does not seem ready.
_DENIED_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Found:
    """A worker's own word. `problem` says what is wrong with it; None: nothing."""

    worker: str
    problem: str | None
    status: dict[str, Any]


def look(run_dir: Path, *, max_age_s: float = MAX_AGE_S, ready: bool = True) -> list[Found]:
    """Return every worker that says something in `run_dir`, by name.

    Args:
        run_dir: `run` of the workers' home folder.
        max_age_s: seconds after which a file was left by a worker that is stuck or was killed.
        ready: also require that the worker has its partitions, and that the object store has not
            denied it anything lately: it waits for that, and a restart need not help.
    """
    now_s = time.time()
    found = []
    for path in sorted(run_dir.glob("*.json")):
        try:
            status = json.loads(path.read_bytes())
            worker, age_s = str(status["worker"]), now_s - status["time_ms"] / 1000
            denied_s = now_s - status.get("store_denied_ms", 0) / 1000
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of something else, or gone meanwhile
        problem = None
        if age_s > max_age_s:
            problem = f"silent for {age_s:.0f} s"
        elif ready and denied_s <= _DENIED_S:
            problem = "denied by the object store: see its credentials and policies"
        elif ready and not status.get("ready"):
            problem = "not ready"
        found.append(Found(worker, problem, status))
    return found


def main(arguments: list[str]) -> int:
    """Print a line for each worker; return 0 if there is one and all are ready, else 1."""
    home = arguments[0] if arguments else os.environ.get("SEALSTREAM_HOME") or ".sealstream"
    found = look(Path(home) / "run")
    lines = [f"{one.worker}: {one.problem or 'ready'}" for one in found]
    sys.stdout.write("\n".join(lines or ["no worker"]) + "\n")
    return 0 if found and not any(one.problem for one in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
