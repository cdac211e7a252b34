"""`sealstream`: the command line.

Every command is a function in a module of this package, imported when it is called or its help is
shown. To add one, add its line to `COMMANDS`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Final, NamedTuple, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from workers.cli.common import OK, UNAVAILABLE, USAGE, complain, describe_error

_STACK = Group("Run it here", sort_key=1)
_SEARCH = Group("Documents and search", sort_key=2)
_ADMIN = Group("Administration", sort_key=3)
_OPERATE = Group("Operation", sort_key=4)


class Verb(NamedTuple):
    """One command: its name, `module:function or App`, and where it stands in the help."""

    name: str
    target: str
    group: Group
    help: str


COMMANDS: Final[tuple[Verb, ...]] = (
    Verb("demo", "workers.cli.demo:demo", _STACK, "Show the whole story, then stop."),
    Verb("up", "workers.cli.stack:up", _STACK, "Start S3, Kafka and all workers here."),
    Verb("down", "workers.cli.stack:down", _STACK, "Stop them; the data stays."),
    Verb("status", "workers.cli.stack:status", _STACK, "Show what runs."),
    Verb("ingest", "workers.cli.ingest:ingest", _SEARCH, "Store documents in an index."),
    Verb("search", "workers.cli.search:search", _SEARCH, "Search an index."),
    Verb("get", "workers.cli.documents:get", _SEARCH, "Show documents by id."),
    Verb("delete", "workers.cli.documents:delete", _SEARCH, "Delete documents."),
    Verb("count", "workers.cli.documents:count", _SEARCH, "Count documents."),
    Verb("ids", "workers.cli.documents:ids", _SEARCH, "Print the ids of all documents."),
    Verb("index", "workers.cli.index:app", _ADMIN, "Create, list, delete, shred indexes."),
    Verb("user", "workers.cli.user:app", _ADMIN, "Create, log in, delete users."),
    Verb("group", "workers.cli.group:app", _ADMIN, "Create groups, change who is in them."),
    Verb("access", "workers.cli.access:app", _ADMIN, "See and change who may read a document."),
    Verb("token", "workers.cli.token:app", _ADMIN, "Seal data that expires, and open it."),
    Verb("user-key", "workers.cli.userkey:app", _ADMIN, "Keys of single users of an index."),
    Verb("key", "workers.cli.key:app", _ADMIN, "Change keys, enrol and revoke workers."),
    Verb("audit", "workers.cli.audit:app", _OPERATE, "Check the key service's audit."),
    Verb("dlq", "workers.cli.deadletters:app", _OPERATE, "See and replay refused records."),
    Verb("verify", "workers.cli.verify:verify", _OPERATE, "Check every stored byte of an index."),
    Verb("worker", "workers.cli.worker:worker", _OPERATE, "Run one worker process."),
    Verb("topics", "workers.cli.topics:app", _OPERATE, "Create the Kafka topics."),
    Verb("config", "workers.cli.config:app", _OPERATE, "Explain the settings."),
    Verb("health", "workers.cli.health:health", _OPERATE, "Tell whether the workers here work."),
    Verb("provision", "workers.cli.provision:app", _OPERATE, "Files for parts that run apart."),
    Verb("realm", "workers.cli.realm:app", _OPERATE, "Make the root of a deployment."),
    Verb("bench", "workers.cli.bench:bench", _OPERATE, "Measure, against baselines."),
)


def build(*, overview: bool = False) -> App:
    """Return the application with all its commands.

    Args:
        overview: with the short texts of `COMMANDS`, which would hide each command's own help;
            cyclopts shows no text of commands that it has not imported.
    """
    app = App(
        name="sealstream",
        help="Encrypted search: documents in through Kafka, sealed in S3, searched without"
        " showing broker or storage a word.",
        help_format="plaintext",
        version=lambda: version("sealstream"),
        default_parameter=Parameter(negative=""),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app.register_install_completion_command(show=False)
    for verb in COMMANDS:
        text = verb.help if overview else None
        app.command(verb.target, name=verb.name, group=verb.group, help=text)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    app = build(overview=not arguments or arguments[0] in ("-h", "--help"))
    try:
        result = app(arguments, exit_on_error=False, print_error=True)
    except CycloptsError:
        return USAGE
    except KeyboardInterrupt:
        complain("interrupted")
        return UNAVAILABLE
    except BrokenPipeError:
        # `sealstream ... | head` is no error; nothing more can be written anyway.
        sys.stderr.close()
        return OK
    except Exception as error:
        described = describe_error(error)
        if described is None:
            raise
        message, code = described
        complain(f"sealstream: {message}")
        return code
    return result if isinstance(result, int) else OK


def main() -> NoReturn:
    """Entry point of the script.

    Ends the process without Python's own clean-up: now and then the object store's threads would
    touch the interpreter while it goes, and abort a command that has done its work.
    https://github.com/PyO3/pyo3-async-runtimes/issues/40
    """
    code = run()
    for stream in (sys.stdout, sys.stderr):
        # Closed, or a pipe whose reader has gone: nobody to tell.
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
