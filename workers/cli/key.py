"""`sealstream key`: keys of indexes, and the workers that may have them."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import App, Parameter

from workers.cli.common import (
    COMMON,
    OK,
    REFUSED,
    USAGE,
    AsJson,
    Common,
    complain,
    fail,
    say,
    say_json,
)
from workers.cli.connect import IndexKey, check_arguments, connected, read_index_key
from workers.cli.show import cell, moment, printable

if TYPE_CHECKING:
    from workers.client import Client
    from workers.leases.enrolment import Terms

app = App(name="key", help="Keys of indexes; workers that may have them.")

_POLL_S: Final = 2.0

WorkerRole = Literal["ingest", "index", "query"]
Indexes = Annotated[
    tuple[str, ...],
    Parameter(
        name="--indexes",
        help="Names it may serve, as globs: acme/*; comma-separated, may be repeated.",
    ),
]


@app.command
async def enroll(
    *,
    role: WorkerRole,
    indexes: Indexes,
    id: Annotated[str, Parameter(name="--id")],  # noqa: A002 - the option's name
    folder: Path | None = None,
    invitation: Path | None = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Make a worker's key on this machine and have the key service certify it.

    The key never leaves the folder. The certificate lives 7 days; the worker renews it itself.

    Parameters
    ----------
    role
        The one role it may act in.
    id
        The worker's id: letters, digits, dots, dashes and underscores.
    folder
        Where its identity goes (default: HOME/workers/ID, where the worker looks).
    invitation
        File with an invitation for exactly this id, role and indexes, or - for standard input.
        Without it the token of an administrator is needed.
    """
    from workers.crypto.sign import SigningKey
    from workers.leases.certificate import read_secret_file, save_identity
    from workers.leases.enrolment import Terms

    terms = Terms(id, role, globs(indexes))
    _check_terms(terms)
    where = folder or common.settings().identity_dir(id)
    known = where / "sign.key"
    # Enrolled once more, after its certificate has ended: the same key.
    seed = read_secret_file(known) if known.exists() else os.urandom(32)
    text = None if invitation is None else read_line(invitation)
    async with connected(common, anonymous=text is not None) as client:
        certificate = await client.enroll_worker(terms, SigningKey.from_seed(seed), invitation=text)
    save_identity(where, seed, certificate)
    if json:
        say_json(
            {
                "worker_id": id,
                "role": role,
                "indexes": list(terms.indexes),
                "folder": str(where),
                "expires_ms": certificate.expires_s * 1000,
            }
        )
    else:
        say(f"enrolled {printable(id)} in {where}, until {moment(certificate.expires_s * 1000)}")
    return OK


@app.command
async def invite(
    *,
    role: WorkerRole,
    indexes: Indexes,
    id: Annotated[str, Parameter(name="--id")],  # noqa: A002 - the option's name
    ttl: int = 3600,
    file: Path | None = None,
    common: Common = COMMON,
) -> int:
    """Make an invitation with which one worker may enrol itself, once.

    Parameters
    ----------
    role
        The one role it may act in.
    id
        The worker's id.
    ttl
        Seconds within which it must be used.
    file
        Write it into this file (0600) instead of printing it.
    """
    from workers.leases.certificate import write_secret_file
    from workers.leases.enrolment import Terms

    terms = Terms(id, role, globs(indexes))
    _check_terms(terms, ttl)
    async with connected(common) as client:
        text = await client.invite_worker(id, role, terms.indexes, ttl_s=ttl)
    if file is None:
        say(text)
    else:
        write_secret_file(file, text.encode())
    return OK


@app.command
async def rotate(
    name: str,
    /,
    *,
    level: Literal["kms", "kek", "dek"] = "dek",
    wait: Annotated[bool, Parameter(negative="")] = False,
    index_key: IndexKey = None,
    new_index_key: Path | None = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Change a key of an index while it is written and searched.

    Parameters
    ----------
    name
        The index.
    level
        kms: wrap its KEK anew, under the newest version of the KMS's key. kek: a new KEK. dek: a
        new data key, to which all data move in the background; the old one is destroyed then.
    wait
        Until the data key is changed; shows how far it is. That is twice the life of a lease (12
        minutes with the setting lease_s as it comes), and what moving the data takes.
    new_index_key
        For kek, where callers keep the index's key: file with the next one, 32 raw bytes.
    """
    new_key = None if new_index_key is None else read_index_key(new_index_key)
    async with connected(common, index_key, index=name) as client:
        done = await client.rotate_key(name, level, new_index_key=new_key)
        if wait and level == "dek":
            done = await _wait(client, name)
    if json:
        say_json(done)
    else:
        say(_line(done))
    return OK


@app.command
async def status(
    name: str,
    /,
    *,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Show the generations of an index's keys, and how far a change is."""
    async with connected(common, index_key, index=name) as client:
        found = await client.key_status(name)
    if json:
        say_json(found)
    else:
        say(_line(found))
    return OK


@app.command
async def revoke(
    principal: str,
    /,
    *,
    indexes: Indexes = (),
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Take a worker's or a user's rights away, now: worker/ID or user/ID.

    The data keys of the indexes that a worker served are changed: name them with --indexes, or all
    indexes are changed. The exit code is 1 if a name matches no index.
    """
    if indexes and principal.startswith("user/"):
        fail("--indexes: names what a worker served; a user has no data keys", USAGE)
    served = globs(indexes) if indexes else ()
    check_arguments("key.revoke", {"principal": principal, "indexes": list(served)})
    async with connected(common) as client:
        done = await client.revoke(principal, indexes=served)
    if json:
        say_json(done)
    else:
        say(f"revoked {printable(principal)}")
        for index, what in done.get("rotated", {}).items():
            say(f"  {printable(index)}: change of the data key {printable(what)}")
    unmatched = done.get("unmatched", [])
    for glob in unmatched:
        complain(f"sealstream: NOT_FOUND: no index matches {cell(glob)}: no data key is changed")
    return REFUSED if unmatched else OK


@app.command(name="export-directory")
async def export_directory(*, common: Common = COMMON) -> int:
    """Print the public keys of the key service and of all indexes, as JSON."""
    from schemas.values import encode_base64
    from workers.cli.connect import check_pinned, quiet_logs
    from workers.crypto.sign import fingerprint
    from workers.kafka.open import open_broker
    from workers.leases.directory import KeyDirectory

    settings = common.settings()
    check_pinned(settings)
    quiet_logs()
    async with AsyncExitStack() as stack:
        broker = open_broker(settings, client_id="sealstream-directory")
        stack.push_async_callback(broker.aclose)
        directory = KeyDirectory(broker, settings)
        stack.push_async_callback(directory.stop)
        await directory.start()
        service = directory.key_service
        say_json(
            {
                "key_service": {
                    "sign_key": encode_base64(service.sign_pub.raw),
                    "fingerprint": fingerprint(service.sign_pub),
                    "hpke_key": encode_base64(service.hpke_pub.encode()),
                    "hpke_key_id": service.hpke_key_id.hex(),
                },
                "indexes": [
                    {
                        "index": entry.name,
                        "uid": entry.uid.hex(),
                        "shards": entry.shards,
                        "partitions": list(entry.partitions),
                        "generation": entry.generation,
                        "ingest_keys": [encode_base64(k.encode()) for k in entry.ingest_pubs],
                        "query_key": encode_base64(entry.query_pub.encode()),
                    }
                    for entry in sorted(directory.indexes(), key=lambda one: one.name)
                ],
            }
        )
    return OK


def globs(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs in `--indexes`. Raises Exit: there is none."""
    found = tuple(part.strip() for text in given for part in text.split(",") if part.strip())
    if not found:
        fail("--indexes: name the indexes, such as acme/*, or * for all", USAGE)
    return found


def _check_terms(terms: Terms, ttl_s: int = 3600) -> None:
    """Refuse what no worker can be certified for. Raises Exit."""
    check_arguments(
        "worker.invite",
        {
            "worker_id": terms.worker_id,
            "role": terms.role,
            "indexes": list(terms.indexes),
            "ttl_s": ttl_s,
        },
    )


def read_line(path: Path) -> str:
    """Return the text of a file, or of standard input for `-`. Raises Exit."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--invitation {path}: cannot be read ({type(error).__name__})", USAGE)
    return text.strip()


async def _wait(client: Client, name: str) -> dict[str, Any]:
    """Wait until no change goes on; tell each step once."""
    from workers.errors import Retry

    told = told_stage = ""
    while True:
        try:
            found = await client.key_status(name)
        except Retry as error:
            # The change goes on by itself: that nobody answers just now is no reason to give up.
            complain(f"{printable(name)}: no answer ({error.code.value}), asking again")
            await asyncio.sleep(_POLL_S)
            continue
        if found.get("rotation") is None:
            return found
        line, stage = _line(found), found["rotation"]["stage"]
        # A log gets a line for each step, a terminal also what is left.
        if stage != told_stage or (line != told and sys.stderr.isatty()):
            complain(line)
        told, told_stage = line, stage
        await asyncio.sleep(_POLL_S)


def _line(found: dict[str, Any]) -> str:
    rotation = found.get("rotation")
    text = f"{printable(str(found['index']))}: data key generation {found['generation']}"
    if rotation is None:
        return text
    shards = rotation.get("shards", [])
    left = sum(int(one["bytes_left"]) for one in shards)
    done = sum(bool(one["done"]) for one in shards)
    text += f", changing to {max(found['generations'])}: {rotation['stage']}"
    return f"{text}, {done} of {len(shards)} shards, {left:,} bytes left" if shards else text
