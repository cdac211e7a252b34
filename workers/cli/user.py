"""`sealstream user`: users of the standalone identity provider."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from workers.cli.common import COMMON, OK, USAGE, AsJson, Common, complain, fail, say, say_json
from workers.cli.connect import connected
from workers.cli.show import moment, printable

app = App(name="user", help="Users: who may ask for what.")

Scopes = Annotated[
    tuple[str, ...],
    Parameter(
        name="--scope",
        help="Encrypt, Decrypt, Update, Delete, CreateToken, GetTokenContents, GetAccessGroups,"
        " ModifyAccessGroups or Index; may be repeated.",
    ),
]


@app.command
async def create(
    *,
    scope: Scopes = (),
    all_scopes: Annotated[bool, Parameter(negative="")] = False,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Create a user and print its id and password. The password is shown this once.

    Parameters
    ----------
    all_scopes
        Give every scope that there is.
    """
    scopes = checked_scopes(scope, everything=all_scopes)
    async with connected(common) as client:
        made = await client.create_user(scopes)
    if json:
        say_json(made)
        return OK
    for name in ("user_id", "password", "default_group"):
        say(f"{name} {made[name]}")
    complain("keep the password: nobody can show it again")
    return OK


def checked_scopes(names: tuple[str, ...], *, everything: bool) -> list[str]:
    """Return the scopes that were named, in any case of letters. Raises Exit."""
    from schemas.auth import Scope

    known = {scope.value.lower(): scope.value for scope in Scope}
    if everything:
        return list(known.values())
    for name in names:
        if name.lower() not in known:
            fail(f"--scope {printable(name)}: one of {', '.join(known.values())}", USAGE)
    return [known[name.lower()] for name in names]


@app.command
async def login(
    user_id: str,
    /,
    *,
    env_file: Path | None = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Print an identity token for a user. Asks for the password, or reads a line of standard input.

    Parameters
    ----------
    env_file
        Write SEALSTREAM_TOKEN into this file (KEY=value lines, 0600) instead of printing it.
    """
    from workers.local.access import merge_env

    password = _password()
    async with connected(common, anonymous=True) as client:
        done = await client.log_in(user_id, password)
    if env_file is not None:
        merge_env(env_file, {"SEALSTREAM_TOKEN": done.pop("token")})
        complain(f"wrote {env_file}; the token ends {moment(done['expires_ms'])}")
        return OK
    if json:
        say_json(done)
    else:
        say(done["token"])
        complain(f"the token ends {moment(done['expires_ms'])}")
    return OK


@app.command
async def password(user_id: str, /, *, json: AsJson = False, common: Common = COMMON) -> int:
    """Exchange a user's password for a new one, which is printed; all its tokens end.

    Asks for the present password, or reads a line of standard input.
    """
    present = _password()
    async with connected(common, anonymous=True) as client:
        changed = await client.change_password(user_id, present)
    if json:
        say_json({"user_id": user_id, "password": changed})
    else:
        say(changed)
        complain("keep the password: nobody can show it again")
    return OK


@app.command
async def delete(user_id: str, /, *, json: AsJson = False, common: Common = COMMON) -> int:
    """Delete a user; its tokens end."""
    async with connected(common) as client:
        await client.delete_user(user_id)
    if json:
        say_json({"user_id": user_id, "deleted": True})
    else:
        say(f"deleted {printable(user_id)}")
    return OK


def _password() -> str:
    """Return a password that was typed or piped in; never an argument, which others can see."""
    if sys.stdin.isatty():
        return getpass.getpass("Password: ")
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        fail("no password on standard input", USAGE)
    return line
