"""`sealstream realm`: the root of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from workers.cli.common import COMMON, OK, USAGE, AsJson, Common, fail, say, say_json

if TYPE_CHECKING:
    from workers.leases.certificate import Role

app = App(name="realm", help="The realm: root of keys, key-service identity, local administrator.")


@app.command
async def init(
    *,
    workers: str = "ingest=1,index=1,query=1",
    env_file: Path | None = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Make the realm if there is none, and enrol this machine's workers.

    Prints the fingerprint to pin and an identity token of the local administrator. May run again:
    it finds the realm, renews certificates and makes another token.

    Parameters
    ----------
    workers
        How many identities to make in HOME/workers for each kind.
    env_file
        Write token and fingerprint into this file (KEY=value lines, 0600) instead of printing.
    """
    from workers.keys.realm import init_realm
    from workers.local.access import merge_env

    counts = _counts(workers)
    info = await init_realm(common.settings(), workers=counts)
    variables = {
        "SEALSTREAM_TOKEN": info.token,
        "SEALSTREAM_KEY_SERVICE_FINGERPRINT": info.fingerprint,
    }
    if env_file is not None:
        merge_env(env_file, variables)
        variables = {"SEALSTREAM_KEY_SERVICE_FINGERPRINT": info.fingerprint}
    if json:
        say_json(variables)
    else:
        for name, value in variables.items():
            say(f"{name}={value}")
    return OK


def _counts(text: str) -> dict[Role, int]:
    from workers.local.roles import parse_counts

    named = {part.partition("=")[0].strip() for part in text.split(",")}
    if "keys" in named:
        fail("--workers: the key service has the realm's own identity, none in HOME/workers", USAGE)
    try:
        counts = parse_counts(text)
    except ValueError as error:
        fail(f"--workers: {error}", USAGE)
    kinds: tuple[Role, ...] = ("ingest", "index", "query")
    return {role: counts[role] for role in kinds if role in named}
