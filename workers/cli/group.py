"""`sealstream group`: groups of users. Only members change a group."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from workers.cli.common import COMMON, OK, AsJson, Common, say, say_json
from workers.cli.connect import connected
from workers.cli.show import printable
from workers.cli.user import Scopes, checked_scopes
from workers.identity.claims import group_id as id_of

app = App(name="group", help="Groups of users: who shares documents.")


@app.command
async def create(
    *,
    scope: Scopes = (),
    all_scopes: Annotated[bool, Parameter(negative="")] = False,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Create a group, with yourself as its first member, and print its id.

    Its scopes are what members may do with documents of the group, besides their own scopes.

    Parameters
    ----------
    all_scopes
        Give every scope that there is.
    """
    scopes = checked_scopes(scope, everything=all_scopes)
    async with connected(common) as client:
        group_id = await client.create_group(scopes)
    if json:
        say_json({"group_id": group_id})
    else:
        say(group_id)
    return OK


@app.command
async def add(
    group_id: str, /, *user_ids: str, json: AsJson = False, common: Common = COMMON
) -> int:
    """Make users members of a group that you are a member of."""
    async with connected(common) as client:
        await client.add_members(group_id, user_ids)
    if json:
        say_json({"group_id": group_id, "added": len(user_ids)})
    else:
        say(f"added {len(user_ids)} to {printable(group_id)}")
    return OK


@app.command
async def remove(
    group_id: str, /, *user_ids: str, json: AsJson = False, common: Common = COMMON
) -> int:
    """End memberships of a group that you are a member of."""
    async with connected(common) as client:
        await client.remove_members(group_id, user_ids)
    if json:
        say_json({"group_id": group_id, "removed": len(user_ids)})
    else:
        say(f"removed {len(user_ids)} from {printable(group_id)}")
    return OK


@app.command(name="id")
def show_id(source: str, name: str, /, *, json: AsJson = False, common: Common = COMMON) -> int:
    """Print the id of a group that another identity provider names.

    It is computed, nobody is asked: whether there is such a group cannot be told.

    Parameters
    ----------
    source
        The setting oidc_issuer; for SAML the word saml:, then the setting saml_issuer.
    name
        Of the group, as tokens of the provider have it.
    """
    found = id_of(source, name)
    if json:
        say_json({"group_id": found})
    else:
        say(found)
    return OK
