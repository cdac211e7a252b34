"""The files of a deployment whose parts run apart, each in a container of its own.

    make_secrets    once, before anything runs, without a network
    make_buckets    when the object store answers
    make_realm      when the key-management service answers, too

Everything is below one folder, one folder for each part, to be mounted there and nowhere else:

    s3/                 SeaweedFS: its options, and who may do what in which bucket
    kms/                OpenBao: configuration, certificate, unseal key; it sets itself up
    keys-1/, ingest-1/, index-1/, query-1/
                        home of one worker: its identity, its storage credentials, who the key
                        service is; for `keys-1` also how to reach the KMS
    operator/           home for the command line, with the administrator's token
    operator/client.env how clients outside reach it all

Each step may run again: it keeps what is there and renews certificates.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from workers.keys.realm import RealmInfo, init_realm
from workers.kms.registry import open_kms
from workers.leases.certificate import Role
from workers.local.access import BROKER_BUCKET, KeyPair, merge_env
from workers.local.certificates import make_server_certificate
from workers.local.files import write_json, write_private
from workers.local.openbao import KEY, KMS_SPEC, MOUNT, POLICY, POLICY_NAME
from workers.local.rights import bucket_policy, role_policy
from workers.local.topics import persist
from workers.settings import Settings, load_settings, parse_env_file
from workers.storage.open import open_store

Kms = Literal["openbao", "local"]
WORKERS: Final = ("keys-1", "ingest-1", "index-1", "query-1")
_ENROLLED: Final[tuple[Role, ...]] = ("ingest", "index", "query")

# Inside the containers.
S3_PORT: Final = 8333
KMS_PORT: Final = 8200
HOME: Final = Path("/var/lib/sealstream")
_S3_FILES, _S3_DATA = Path("/s3"), Path("/data")
_KMS_FILES, _KMS_DATA = Path("/kms"), Path("/openbao/file")
# Ten years: nobody renews the token, and the certificate lives no longer either.
_LIFE: Final = "87600h"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is deployed.

    Args:
        bucket: of ours.
        prefix: before every key of ours in it.
        broker: credentials of the broker's bucket; None: the broker keeps no log in S3.
        kms: what wraps the root of all keys.
        kms_host: name by which the key service reaches OpenBao.
    """

    bucket: str
    prefix: str = ""
    broker: KeyPair | None = None
    kms: Kms = "openbao"
    kms_host: str = "kms"


def make_secrets(folder: Path, plan: Plan) -> None:
    """Draw all credentials and keys that are not there yet."""
    for name in WORKERS:
        # Where a worker's run files are mounted: its home itself may be read-only.
        (folder / name / "run").mkdir(parents=True, exist_ok=True)
    _make_s3(folder, plan)
    if plan.kms == "openbao":
        _make_openbao(folder, plan.kms_host)


async def make_buckets(folder: Path, settings: Settings, *, broker: bool = False) -> None:
    """Make the buckets, and prove that the object store gives what everything is built on.

    Args:
        folder: as `make_secrets`.
        settings: where the object store is.
        broker: also the bucket of a broker that keeps its log there.

    Raises:
        StartFailed: it does not answer.
        Fatal: it lacks something, e.g. conditional writes.
    """
    owner = _settings(folder / "operator", settings)
    for bucket in (owner.s3_bucket, BROKER_BUCKET) if broker else (owner.s3_bucket,):
        store = open_store(owner.model_copy(update={"s3_bucket": bucket}))
        try:
            # The first write makes the bucket; the first writes fail until a volume has grown.
            await persist(store.check, f"the bucket {bucket}")
        finally:
            await store.aclose()


async def make_realm(folder: Path, settings: Settings, client_kafka: str) -> None:
    """Make the realm, enrol the workers, and say to everybody who the key service is.

    Args:
        folder: as `make_secrets`.
        settings: where object store and KMS are, and what a client may do in clear.
        client_kafka: bootstrap servers as clients outside reach them.

    Raises:
        StartFailed: object store or KMS do not answer.
        Fatal: they cannot be used.
    """
    service = _settings(folder / "keys-1", settings)
    if service.vault_cacert is not None:
        # Said as the key service sees it.
        here = folder / "keys-1" / service.vault_cacert.relative_to(HOME)
        service = service.model_copy(update={"vault_cacert": here})
    store = open_store(service)
    kms = open_kms(service.kms_spec, service, create=True)
    try:

        async def enrol(home: str, role: Role) -> RealmInfo:
            own = service.model_copy(update={"home": folder / home})
            return await init_realm(own, store=store, kms=kms, workers={role: 1})

        # With an identity of its own, the command line can verify what is stored.
        info = await persist(lambda: enrol("operator", "query"), "the realm")
        for role in _ENROLLED:
            await enrol(f"{role}-1", role)
    finally:
        await kms.aclose()
        await store.aclose()
    pinned = {"SEALSTREAM_KEY_SERVICE_FINGERPRINT": info.fingerprint}
    for name in WORKERS:
        merge_env(folder / name / "stack.env", pinned)
    known = {**pinned, "SEALSTREAM_TOKEN": info.token}
    merge_env(folder / "operator" / "stack.env", known)
    outside = {
        "SEALSTREAM_KAFKA_BOOTSTRAP": client_kafka,
        "SEALSTREAM_ALLOW_PLAIN_CREDENTIALS": str(settings.allow_plain_credentials).lower(),
        "SEALSTREAM_ALLOW_PLAIN_RESULTS": str(settings.allow_plain_results).lower(),
    }
    merge_env(folder / "operator" / "client.env", {**known, **outside})


def _settings(home: Path, shared: Settings) -> Settings:
    """Return the settings of one part: those of all, and what its own folder says."""
    given = {name: getattr(shared, name) for name in shared.model_fields_set}
    return load_settings(environ={}, **{**given, "home": home})


# --- the object store ----------------------------------------------------------------------------


def _make_s3(folder: Path, plan: Plan) -> None:
    pairs = {name.removesuffix("-1"): _key_pair(folder / name) for name in WORKERS}
    identities = [
        _identity("admin", _key_pair(folder / "operator"), {"actions": ["Admin"]}),
        *(_identity(role, pair, {"policyNames": [role]}) for role, pair in pairs.items()),
    ]
    policies = {role: role_policy(role, plan.bucket, plan.prefix) for role in pairs}
    if plan.broker is not None:
        identities.append(_identity("broker", plan.broker, {"policyNames": ["broker"]}))
        policies["broker"] = bucket_policy(BROKER_BUCKET)
    write_json(
        folder / "s3" / "identities.json",
        {
            "identities": identities,
            "policies": [
                {"name": name, "content": orjson.dumps(policy).decode()}
                for name, policy in policies.items()
            ],
        },
    )
    options = {
        "dir": _S3_DATA,
        # Nobody outside the container reaches anything but S3: the rest asks for no password.
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.ip.bind": "0.0.0.0",  # noqa: S104 - of the container
        "filer": "true",
        "s3": "true",
        "s3.port": S3_PORT,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.iam": "false",
        "s3.config": _S3_FILES / "identities.json",
        "master.telemetry": "false",
        # A restart takes an election.
        "master.electionTimeout": "1s",
        "master.heartbeatInterval": "200ms",
        "master.volumeSizeLimitMB": 1024,
        # Volumes grow as needed; the default of 8 is less than two buckets take.
        "volume.max": 200,
        "volume.preStopSeconds": 0,
    }
    text = "".join(f"{name}={value}\n" for name, value in options.items())
    write_private(folder / "s3" / "weed.options", text.encode())


def _key_pair(home: Path) -> KeyPair:
    """Return the storage credentials of a home folder; draw them if there are none."""
    path = home / "stack.env"
    known = parse_env_file(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "AWS_ACCESS_KEY_ID" not in known or "AWS_SECRET_ACCESS_KEY" not in known:
        pair = KeyPair(secrets.token_hex(10), secrets.token_urlsafe(30))
        merge_env(path, pair.env())
        return pair
    return KeyPair(known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"])


def _identity(name: str, pair: KeyPair, rights: Mapping[str, Any]) -> dict[str, Any]:
    credentials = [{"accessKey": pair.access, "secretKey": pair.secret}]
    return {"name": name, "credentials": credentials, **rights}


# --- the key-management service ------------------------------------------------------------------


def _make_openbao(home: Path, host: str) -> None:
    """Write what OpenBao starts from: it unseals itself, and makes key and token on first start."""
    folder, service = home / "kms", home / "keys-1"
    if not (folder / "unseal.key").exists():
        certificate = make_server_certificate([host, "localhost", "127.0.0.1"])
        write_private(folder / "tls.crt", certificate.certificate)
        write_private(folder / "tls.key", certificate.key)
        write_private(service / "kms-ca.pem", certificate.authority)
        token = secrets.token_urlsafe(32)
        write_private(folder / "token", token.encode())
        merge_env(
            service / "stack.env",
            {
                "SEALSTREAM_KMS": KMS_SPEC,
                "VAULT_ADDR": f"https://{host}:{KMS_PORT}",
                "VAULT_CACERT": str(HOME / "kms-ca.pem"),
                "VAULT_TOKEN": token,
            },
        )
        # Last: it says that all of it is there.
        write_private(folder / "unseal.key", os.urandom(32))
    write_json(folder / "openbao.json", _openbao_config(host))


def _openbao_config(host: str) -> dict[str, Any]:
    token = {"eval_source": "file", "eval_type": "string", "path": str(_KMS_FILES / "token")}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("transit", f"sys/mounts/{MOUNT}", {"type": "transit"}),
        ("key", f"{MOUNT}/keys/{KEY}", {"type": "aes256-gcm96", "derived": True}),
        ("policy", f"sys/policies/acl/{POLICY_NAME}", {"policy": POLICY}),
        (
            "token",
            "auth/token/create",
            {
                "id": token,
                "policies": [POLICY_NAME],
                # The token that makes it is revoked, and all its children with it.
                "no_parent": True,
                "no_default_policy": True,
                "ttl": _LIFE,
            },
        ),
    ]
    return {
        "storage": {"raft": {"path": str(_KMS_DATA), "node_id": "1"}},
        "listener": {
            "tcp": {
                "address": f"0.0.0.0:{KMS_PORT}",
                "cluster_address": "127.0.0.1:8201",
                "tls_cert_file": str(_KMS_FILES / "tls.crt"),
                "tls_key_file": str(_KMS_FILES / "tls.key"),
            }
        },
        "api_addr": f"https://{host}:{KMS_PORT}",
        "cluster_addr": "https://127.0.0.1:8201",
        "max_lease_ttl": _LIFE,
        "ui": False,
        "seal": {
            "static": {
                "current_key_id": "1",
                "current_key": f"file://{_KMS_FILES / 'unseal.key'}",
            }
        },
        "initialize": [
            {
                "sealstream": {
                    "request": [
                        {name: {"operation": "update", "path": path, "data": data}}
                        for name, path, data in requests
                    ]
                }
            }
        ],
    }
