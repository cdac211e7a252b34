"""Print what came out of an index: it was written by others, so no byte of it may act.

A terminal obeys escape sequences and turns text around at bidirectional marks. In tables and on
terminals everything that does not print is replaced; JSON escapes it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from workers.cli.common import say, say_table

if TYPE_CHECKING:
    from schemas.errors import ErrorInfo
    from schemas.query import Hit

_MAX_CELL: Final = 60
_YEAR_10000_MS: Final = 253_402_300_800_000
_HIDDEN: Final = "\N{REPLACEMENT CHARACTER}"


def printable(text: str, *, lines: bool = False) -> str:
    """Return `text` without control, format and other characters that do not print.

    Args:
        text: from anywhere.
        lines: keep line ends and tabs; otherwise they become spaces.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else " " if char in "\n\r\t" else _HIDDEN
        for char in text.replace("\r\n", "\n")
    )


def cell(text: str) -> str:
    """Return `text` for a table: one line, printable, cut at 60 characters."""
    line = " ".join(printable(text[: 4 * _MAX_CELL]).split())
    return line if len(line) <= _MAX_CELL else line[: _MAX_CELL - 3] + "..."


def for_terminal(text: str) -> str:
    """Return `text` as it may go to standard output: into a pipe or file, unchanged."""
    return printable(text) if sys.stdout.isatty() else text


def moment(ms: object) -> str:
    """Return milliseconds since 1970 as a time in UTC; "" for what is none."""
    if not isinstance(ms, int) or not 0 <= ms < _YEAR_10000_MS:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def error_text(error: ErrorInfo) -> str:
    """Return an error in one line."""
    at = f" (field {error.field})" if error.field else ""
    return printable(f"{error.code}: {error.message}{at}")


def error_json(error: ErrorInfo) -> dict[str, Any]:
    """Return an error as the contract writes it."""
    from schemas.codec import to_plain

    return to_plain(error)


def hit_json(hit: Hit) -> dict[str, Any]:
    """Return a hit as the contract writes it."""
    from schemas.codec import to_plain

    return to_plain(hit)


def say_hits(hits: Sequence[Hit]) -> None:
    """Print hits as a table with the columns that any of them fills."""
    plain = [hit_json(hit) for hit in hits]
    columns = [name for name in _COLUMNS if any(name in hit for hit in plain)]
    say_table(
        ("", *columns),
        [
            (number, *(_short(hit.get(name)) for name in columns))
            for number, hit in enumerate(plain, 1)
        ],
    )


_COLUMNS: Final = (
    "id",
    "score",
    "distance",
    "denied",
    "version",
    "metadata",
    "content_type",
    "content",
    "associated_data",
    "groups",
    "vector",
)


def _short(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return cell(value)
        case bool():
            return "yes" if value else ""
        case float():
            return f"{value:.6g}"
        case {"base64": str(data)}:
            return f"{_decoded_bytes(data)} bytes"
        case {"f32": str(data)}:
            return f"{_decoded_bytes(data) // 4} numbers"
        case _:
            return cell(orjson.dumps(value).decode())


def _decoded_bytes(base64: str) -> int:
    return len(base64) // 4 * 3 - base64[-2:].count("=")


def say_document(hit: Hit) -> None:
    """Print one document whole: what is known about it, then its content if that is text."""
    say(cell(hit.id))
    for name, value in hit_json(hit).items():
        if name not in ("id", "content"):
            say(f"  {name}: {printable(_long(value))}")
    content = hit.content
    if content is None:
        return
    data = content.encode() if isinstance(content, str) else content.decode()
    text = _as_text(data)
    say(f"  content: {len(data)} bytes" if text is None else printable(text, lines=True))


def _as_text(data: bytes) -> str | None:
    """Return bytes as text if that is what they are, whatever their media type says."""
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def _long(value: Any) -> str:
    if isinstance(value, str):
        return value
    binary = isinstance(value, dict) and value.keys() in ({"f32"}, {"base64"})
    return _short(value) if binary else orjson.dumps(value).decode()
