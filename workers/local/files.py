"""Small files that are complete or absent, and private."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson


def write_private(path: Path, data: bytes) -> None:
    """Write a file as 0600 in one step: readers see the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        # The draft may be left from an earlier process with the same id, with another mode.
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as private JSON."""
    write_private(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it is absent or no JSON object."""
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def tail(path: Path, lines: int = 20, *, start: int = 0) -> str:
    """Return the last lines of a log, at most 16 KiB of it and nothing before byte `start`."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
