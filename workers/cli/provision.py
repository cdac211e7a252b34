"""`sealstream provision`: files for a deployment whose parts run apart, as in containers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from workers.cli.common import COMMON, OK, USAGE, Common, fail, say

app = App(
    name="provision",
    help="Credentials and identities for parts that run apart: one folder for each, in this order.",
)

Folder = Annotated[Path, Parameter(name="--out")]
_OUT = Path("/provision")


@app.command(name="secrets")
def make_secrets(
    *,
    out: Folder = _OUT,
    kms: Literal["openbao", "local"] = "openbao",
    broker_access_key: Annotated[str | None, Parameter(env_var="BROKER_S3_ACCESS_KEY_ID")] = None,
    broker_secret_key: Annotated[
        str | None, Parameter(env_var="BROKER_S3_SECRET_ACCESS_KEY")
    ] = None,
    common: Common = COMMON,
) -> int:
    """Draw storage credentials, rights, certificates and keys that are not there yet.

    Parameters
    ----------
    out
        Folder with one folder for each part.
    kms
        What wraps the root of all keys: an OpenBao that sets itself up, or a key file.
    broker_access_key
        Access key of a broker that keeps its log in the object store.
    broker_secret_key
        Its secret key.
    """
    from workers.local.access import KeyPair
    from workers.local.provision import Plan
    from workers.local.provision import make_secrets as work

    if (broker_access_key is None) != (broker_secret_key is None):
        fail("--broker-access-key and --broker-secret-key go together", USAGE)
    settings = common.settings()
    broker = None
    if broker_access_key and broker_secret_key:
        broker = KeyPair(broker_access_key, broker_secret_key)
    work(out, Plan(settings.s3_bucket, settings.s3_prefix, broker=broker, kms=kms))
    say(f"secrets: in {out}")
    return OK


@app.command(name="buckets")
async def make_buckets(
    *,
    out: Folder = _OUT,
    broker: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> int:
    """Make the bucket, and prove that the object store has conditional writes and range reads.

    Parameters
    ----------
    out
        As for `provision secrets`.
    broker
        Also make the bucket of a broker that keeps its log in the object store.
    """
    from workers.local.provision import make_buckets as work

    await work(out, common.settings(), broker=broker)
    say("buckets: there, with all that is needed")
    return OK


@app.command(name="realm")
async def make_realm(
    *, out: Folder = _OUT, client_kafka: str = "localhost:9092", common: Common = COMMON
) -> int:
    """Make the realm if there is none, enrol the workers, write who the key service is.

    Parameters
    ----------
    out
        As for `provision secrets`.
    client_kafka
        Bootstrap servers, HOST:PORT, as clients outside reach them.
    """
    from workers.local.provision import make_realm as work

    await work(out, common.settings(), client_kafka)
    say("realm: there, the workers are enrolled")
    return OK
