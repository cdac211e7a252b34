"""`sealstream index`: create, list, describe, delete, shred."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

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
    say_table,
)
from workers.cli.connect import IndexKey, check_arguments, check_index, connected
from workers.cli.show import cell, moment, printable

app = App(name="index", help="Indexes.")

_PROVIDERS = ("local", "vault", "aws", "gcp", "azure", "pkcs11")


@app.command
async def create(
    name: str,
    /,
    *,
    dimension: int | None = None,
    metric: Literal["cosine", "euclidean", "dot"] | None = None,
    shards: int | None = None,
    precision: Literal["float32", "float16", "int8"] | None = None,
    analyzer: str | None = None,
    field: Annotated[tuple[str, ...], Parameter(name="--field")] = (),
    padding: Literal["off", "standard", "strict"] | None = None,
    visibility: Literal["members", "index"] | None = None,
    overwrite: Literal["members", "scope"] | None = None,
    kms: str | None = None,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Create an index; a message produced after this is accepted.

    Parameters
    ----------
    name
        1 to 128 of a-z 0-9 . _ / - such as acme/docs.
    dimension
        Numbers in each vector (default: the index takes no vectors).
    metric
        How vectors are compared (default: cosine).
    shards
        About one per 5 million documents (default: 1).
    precision
        How vectors are stored (default: float16).
    analyzer
        How text is cut into words (default: english).
    field
        Weight of a text field in ranked search, such as title=2; may be repeated.
    padding
        How much sizes are blurred (default: standard).
    visibility
        What a caller sees of documents that its groups may not read: nothing (members, the
        default) or their ids (index).
    overwrite
        Who may replace a document: members of its access list (the default), or everybody with
        the scope Update.
    kms
        Where the index's key is wrapped, PROVIDER or PROVIDER:KEY (default: the deployment's own).
        With --index-key the caller keeps the key instead.
    """
    if kms is not None and index_key is not None:
        fail("--kms and --index-key: who keeps the key? give one of them", USAGE)
    config = {
        "dimension": dimension,
        "metric": metric,
        "shards": shards,
        "storage_precision": precision,
        "analyzer": analyzer,
        "fields": _weights(field) or None,
        "padding": padding,
        "visibility": visibility,
        "overwrite": overwrite,
        "kms": {"provider": "none"} if index_key is not None else _kms(kms),
    }
    given = {option: value for option, value in config.items() if value is not None}
    check_index(name)
    check_arguments("index.create", {"index": name, **given})
    _check_analyzer(analyzer)
    async with connected(common, index_key) as client:
        created = await client.create_index(name, **given)
    if json:
        say_json(created)
    else:
        say(f"created {printable(name)}")
        if index_key is not None:
            complain(f"keep {index_key} safe: without it nobody can open the index")
    return OK


def _weights(fields: tuple[str, ...]) -> dict[str, float]:
    weights = {}
    for field in fields:
        name, _, weight = field.rpartition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            fail(f"--field {field}: write NAME=WEIGHT, such as title=2", USAGE)
        if not name:
            fail(f"--field {field}: write NAME=WEIGHT, such as title=2", USAGE)
    return weights


def _check_analyzer(name: str | None) -> None:
    from workers.text.analyzer import analyzer_names

    if name is not None and name not in analyzer_names():
        fail(f"--analyzer {cell(name)}: known are {', '.join(analyzer_names())}", USAGE)


def _kms(spec: str | None) -> dict[str, str] | None:
    if spec is None:
        return None
    provider, _, key = spec.partition(":")
    if provider == "none":
        fail("--kms none: the caller keeps the key: give --index-key FILE", USAGE)
    if provider not in _PROVIDERS:
        fail(f"--kms {spec}: write PROVIDER:KEY; providers: {', '.join(_PROVIDERS)}", USAGE)
    return {"provider": provider, **({"key_id": key} if key else {})}


@app.command(name="list")
async def list_(*, json: AsJson = False, common: Common = COMMON) -> int:
    """List the indexes."""
    async with connected(common) as client:
        indexes = await client.list_indexes()
    if json:
        say_json(indexes)
        return OK
    say_table(
        ("index", "shards", "dimension", "metric", "kms", "created"),
        [
            (
                cell(str(one.get("index"))),
                one.get("shards"),
                one.get("dimension"),
                one.get("metric"),
                one.get("kms"),
                moment(one.get("created_ms")),
            )
            for one in indexes
        ],
    )
    return OK


@app.command
async def describe(
    name: str,
    /,
    *,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Show the settings and keys of an index."""
    async with connected(common, index_key, index=name) as client:
        found = await client.describe_index(name)
    if json:
        say_json(found)
    else:
        say_table(("", ""), [*_flat(found)])
    return OK


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            rows += _flat(inner, f"{prefix}{name}.")
        elif name.endswith("_ms"):
            rows.append((prefix + name.removesuffix("_ms"), moment(inner)))
        elif inner not in (None, {}, []):
            rows.append((prefix + name, printable(str(inner))))
    return rows


@app.command
async def delete(
    name: str,
    /,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="")] = False,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Delete an index with all its documents and keys. There is no way back.

    Parameters
    ----------
    yes
        Do not ask. Without a terminal nothing is asked.
    """
    check_index(name)
    confirm(name, "delete", yes=yes)
    async with connected(common, index_key) as client:
        deleted = await client.delete_index(name)
    if json:
        say_json(deleted)
    else:
        say(f"deleted {printable(name)}")
    return OK


@app.command
async def shred(
    name: str,
    /,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="")] = False,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Delete an index with all its documents and keys, and scan the bucket for what is left.

    Where the bucket keeps old versions, those must be deleted too. What a thief copied stays
    readable until the key that wraps the index's key is destroyed in the KMS.

    Parameters
    ----------
    yes
        Do not ask. Without a terminal nothing is asked.
    """
    check_index(name)
    confirm(name, "shred", yes=yes)
    async with connected(common, index_key) as client:
        done = await client.shred_index(name)
    if json:
        say_json(done)
    else:
        say(f"shredded {printable(name)}: {done['objects_left']} objects left")
    return OK if not done["objects_left"] else REFUSED


def confirm(name: str, what: str, *, yes: bool) -> None:
    """Let the user type the name, on a terminal only. Raises Exit."""
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        sys.stderr.write(
            f"{what} {printable(name)} with all its documents and keys? Type its name: "
        )
        sys.stderr.flush()
        if sys.stdin.readline().strip() != name:
            fail(f"not {'deleted' if what == 'delete' else 'shredded'}")
