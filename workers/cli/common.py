"""What every command shares: its options, its output, and how errors become exit codes.

0  done        1  refused        2  usage or settings        3  unavailable
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
from cyclopts import Group, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workers.settings import Settings, load_settings

OK, REFUSED, USAGE, UNAVAILABLE = 0, 1, 2, 3

_COMMON = Group("Common options", sort_key=90)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Common:
    """Options of every command."""

    home: Annotated[
        Path | None,
        Parameter(group=_COMMON, help="Folder of the local stack (default: .sealstream)."),
    ] = None
    config: Annotated[Path | None, Parameter(group=_COMMON, help="TOML file with settings.")] = None

    def settings(self, **options: Any) -> Settings:
        """Return the settings: options outrank environment, HOME/stack.env, TOML and defaults.

        Raises:
            SettingsError: see `load_settings`.
        """
        return load_settings(config=self.config, home=self.home, **options)

    def absolute_home(self) -> Path:
        """Return the home folder as an absolute path."""
        return self.settings().home.absolute()


COMMON = Common()

AsJson = Annotated[
    bool,
    Parameter(name="--json", negative="", group=_COMMON, help="Print JSON, for programs."),
]


class Exit(Exception):  # noqa: N818 - not an error by itself
    """Raised to end the command with a message and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def fail(message: str, code: int = REFUSED) -> NoReturn:
    """End the command with a message on standard error."""
    raise Exit(message, code)


def say(text: str) -> None:
    """Print a line; at once, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def say_json(value: object) -> None:
    """Print one JSON document."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_DATACLASS
    say(orjson.dumps(value, option=options, default=str).decode())


def say_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a table; plain columns when the output is no terminal."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table(*titles, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        # Text, not str: a value with brackets is no markup.
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def describe_error(error: BaseException) -> tuple[str, int] | None:
    """Return message and exit code of an error that a command may end with; None: a bug."""
    from workers.errors import Fatal, Retry, SealstreamError
    from workers.local.errors import StackError
    from workers.settings import SettingsError

    match error:
        case Exit():
            return str(error), error.code
        case SettingsError():
            lines = "\n".join(f"  {problem}" for problem in error.problems)
            return f"the settings are wrong (see `sealstream config check`):\n{lines}", USAGE
        case StackError():
            return str(error), UNAVAILABLE
        case Retry() | Fatal():
            return str(error), UNAVAILABLE
        case SealstreamError():
            return str(error), REFUSED
        case OSError():
            # A full disk, missing rights: nothing that a traceback would explain.
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror or type(error).__name__}", UNAVAILABLE
        case BaseExceptionGroup():
            described = [describe_error(inner) for inner in error.exceptions]
            return None if None in described else described[0]
        case _:
            return None
