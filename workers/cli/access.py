"""`sealstream access`: which groups a document is of. Only members of the list see or change it."""

from __future__ import annotations

from typing import Any

from cyclopts import App

from workers.cli.common import COMMON, OK, AsJson, Common, say, say_json
from workers.cli.connect import IndexKey, connected

app = App(name="access", help="Access lists of documents.")


@app.command
async def get(
    index: str,
    id: str,  # noqa: A002 - the contract's name
    /,
    *,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Print the groups of a document."""
    async with connected(common, index_key, index=index) as client:
        return _show(await client.get_access(index, id), json=json)


@app.command
async def add(
    index: str,
    id: str,  # noqa: A002 - the contract's name
    /,
    *groups: str,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Add groups to a document, and print what it is of then."""
    async with connected(common, index_key, index=index) as client:
        return _show(await client.add_access(index, id, groups), json=json)


@app.command
async def remove(
    index: str,
    id: str,  # noqa: A002 - the contract's name
    /,
    *groups: str,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Take groups from a document, and print what it is of then."""
    async with connected(common, index_key, index=index) as client:
        return _show(await client.remove_access(index, id, groups), json=json)


def _show(listed: dict[str, Any], *, json: bool) -> int:
    if json:
        say_json(listed)
    else:
        for group in listed["groups"]:
            say(str(group))
    return OK
