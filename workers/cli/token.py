"""`sealstream token`: application tokens, data that can be opened until it expires."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from workers.cli.common import COMMON, OK, USAGE, AsJson, Common, complain, fail, say, say_json
from workers.cli.connect import connected
from workers.cli.show import moment

app = App(name="token", help="Application tokens: sealed data with an expiry.")


@app.command
async def create(
    file: Annotated[Path, Parameter(allow_leading_hyphen=True)] = Path("-"),
    /,
    *,
    ttl: int,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Seal a file, or standard input, into a token and print it.

    Parameters
    ----------
    ttl
        Seconds for which it can be opened.
    """
    data = _read(file)
    async with connected(common) as client:
        made = await client.create_token(data, ttl)
    if json:
        say_json(made)
    else:
        say(made["token"])
        complain(f"it ends {moment(made['expires_ms'])}")
    return OK


@app.command(name="open")
async def open_(
    file: Annotated[Path, Parameter(allow_leading_hyphen=True)] = Path("-"),
    /,
    *,
    common: Common = COMMON,
) -> int:
    """Write what is in a token, given in a file or on standard input, to standard output."""
    try:
        token = _read(file).decode("ascii").strip()
    except UnicodeDecodeError:
        fail("that is no token", USAGE)
    async with connected(common) as client:
        data = await client.open_token(token)
    sys.stdout.buffer.write(data.encode() if isinstance(data, str) else data)
    sys.stdout.flush()
    return OK


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        fail(f"{file}: {error.strerror or type(error).__name__}", USAGE)
