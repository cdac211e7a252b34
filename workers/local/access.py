"""Who may do what in the local object store, and the variables that say how to reach the stack.

One identity for each part, so that a mistake of one cannot touch the rest:

    admin                        everything                       for the owner: `stack.env`
    keys, ingest, index, query   what the role needs (`rights`)   the workers of that role
    broker                       the broker's bucket              Tansu
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.local.files import read_json, write_json, write_private
from workers.local.ports import LOOPBACK
from workers.local.rights import role_policy
from workers.settings import parse_env_file

BUCKET = "sealstream"
BROKER_BUCKET = "sealstream-kafka"
REGION = "us-east-1"


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """Access key and secret key of one identity; without repr."""

    access: str
    secret: str

    def env(self) -> dict[str, str]:
        """Return the usual variables."""
        return {"AWS_ACCESS_KEY_ID": self.access, "AWS_SECRET_ACCESS_KEY": self.secret}


_ROLES = ("keys", "ingest", "index", "query")
_RIGHTS: dict[str, dict[str, list[str]]] = {
    "admin": {"actions": ["Admin"]},
    **{role: {"policyNames": [role]} for role in _ROLES},
    "broker": {
        "actions": [f"{action}:{BROKER_BUCKET}" for action in ("Read", "Write", "List", "Tagging")]
    },
}


def load_identities(path: Path) -> dict[str, KeyPair]:
    """Return the key pairs in SeaweedFS's identity file; write it if it is absent or incomplete."""
    known = _parse(read_json(path) or {})
    if known.keys() != _RIGHTS.keys():
        known = {
            name: known.get(name) or KeyPair(secrets.token_hex(10), secrets.token_urlsafe(30))
            for name in _RIGHTS
        }
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": pair.access, "secretKey": pair.secret}],
            **_RIGHTS[name],
        }
        for name, pair in known.items()
    ]
    policies = [
        {"name": role, "content": json.dumps(role_policy(role, BUCKET), separators=(",", ":"))}
        for role in _ROLES
    ]
    write_json(path, {"identities": identities, "policies": policies})
    return known


def _parse(config: Mapping[str, Any]) -> dict[str, KeyPair]:
    pairs = {}
    for identity in config.get("identities", ()):
        try:
            credential = identity["credentials"][0]
            pair = KeyPair(credential["accessKey"], credential["secretKey"])
        except (KeyError, IndexError, TypeError):
            continue
        if identity.get("name") in _RIGHTS:
            pairs[identity["name"]] = pair
    return pairs


def stack_variables(
    ports: Mapping[str, int], admin: KeyPair, kafka: str | None = None
) -> dict[str, str]:
    """Return what `stack.env` says about the servers.

    Args:
        ports: of our servers.
        admin: credentials of the owner.
        kafka: bootstrap servers of a broker that somebody else runs; None: Tansu.
    """
    return {
        "SEALSTREAM_KAFKA_BOOTSTRAP": kafka or f"{LOOPBACK}:{ports['kafka']}",
        # Tansu has none: need not be asked.
        "SEALSTREAM_IDEMPOTENT_PRODUCER": "auto" if kafka else "false",
        # Tansu lets a first member wait for half of this; and a killed worker is soon replaced.
        "SEALSTREAM_KAFKA_SESSION_TIMEOUT_S": "10",
        "SEALSTREAM_S3_ENDPOINT": f"http://{LOOPBACK}:{ports['s3']}",
        "SEALSTREAM_S3_BUCKET": BUCKET,
        "SEALSTREAM_S3_PREFIX": "",
        **admin.env(),
        "AWS_REGION": REGION,
        "SEALSTREAM_ALLOW_PLAIN_CREDENTIALS": "true",
        "SEALSTREAM_ALLOW_PLAIN_RESULTS": "true",
    }


def write_env(path: Path, variables: Mapping[str, str]) -> None:
    """Write `KEY=value` lines, 0600."""
    text = "".join(f"{name}={value}\n" for name, value in variables.items())
    write_private(path, text.encode())


def merge_env(path: Path, variables: Mapping[str, str]) -> None:
    """Set variables in a file of `KEY=value` lines; the others stay."""
    old = parse_env_file(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_env(path, {**old, **variables})
