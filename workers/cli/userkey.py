"""`sealstream user-key`: keys with which single users read from an index or write to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from workers.cli.common import (
    COMMON,
    OK,
    USAGE,
    AsJson,
    Common,
    complain,
    fail,
    say_json,
    say_table,
)
from workers.cli.connect import IndexKey, connected
from workers.cli.show import cell, moment, printable

app = App(name="user-key", help="Keys of single users of an index.")


@contextmanager
def new_private_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Make a file that only its owner reads, before there is something to lose; or remove it again.

    Yields:
        What writes its contents.

    Raises:
        Exit: it exists, or cannot be made.
    """
    try:
        path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        fail(f"--out {path}: {error.strerror or type(error).__name__}", USAGE)
    written: list[int] = []
    try:
        yield lambda data: written.append(path.write_bytes(data))
    finally:
        if not written:
            path.unlink()


@app.command
async def create(
    index: str,
    user_id: str,
    /,
    *,
    out: Path,
    read: Annotated[bool, Parameter(negative="")] = False,
    write: Annotated[bool, Parameter(negative="")] = False,
    index_key: IndexKey = None,
    common: Common = COMMON,
) -> int:
    """Make a user's key of an index that your group created.

    Parameters
    ----------
    out
        New file (0600) for the key, 32 raw bytes. It is kept nowhere else.
    read
        It may search and read.
    write
        It may store, replace and delete.
    """
    permissions = [name for name, given in (("read", read), ("write", write)) if given]
    if not permissions:
        fail("--read, --write, or both", USAGE)
    with new_private_file(out) as write_key:
        async with connected(common, index_key, index=index) as client:
            write_key(await client.create_user_key(index, user_id, permissions))
    complain(f"wrote {out}; nobody can show the key again")
    return OK


@app.command(name="list")
async def list_(
    index: str,
    /,
    *,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """List who has a key of an index."""
    async with connected(common, index_key, index=index) as client:
        keys = await client.list_user_keys(index)
    if json:
        say_json(keys)
        return OK
    say_table(
        ("user", "may", "created"),
        [
            (cell(str(one["user_id"])), " ".join(one["permissions"]), moment(one["created_ms"]))
            for one in keys
        ],
    )
    return OK


@app.command
async def delete(
    index: str,
    user_id: str,
    /,
    *,
    index_key: IndexKey = None,
    common: Common = COMMON,
) -> int:
    """End a user's key: workers refuse it within a minute."""
    async with connected(common, index_key, index=index) as client:
        await client.delete_user_key(index, user_id)
    complain(f"ended the key of {printable(user_id)}")
    return OK
