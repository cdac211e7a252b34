"""What each part of a deployment gets, and that it gets nothing else."""

from __future__ import annotations

import json
import ssl
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from pydantic import SecretStr

from workers.leases.certificate import WorkerIdentity
from workers.local import provision
from workers.local.access import KeyPair
from workers.local.provision import WORKERS, Plan, make_buckets, make_realm, make_secrets
from workers.local.rights import role_policy
from workers.settings import Settings, load_settings, parse_env_file
from workers.storage import layout
from workers.storage.memory import MemoryStore

BROKER = KeyPair("broker", "secret-of-the-broker")
UID, OTHER = bytes(16), bytes(range(16))


def env(folder: Path, name: str, file: str = "stack.env") -> dict[str, str]:
    return parse_env_file((folder / name / file).read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_secrets_are_drawn_once(tmp_path: Path) -> None:
    make_secrets(tmp_path, Plan("bucket", broker=BROKER))
    before = contents(tmp_path)
    make_secrets(tmp_path, Plan("bucket", broker=BROKER))
    assert contents(tmp_path) == before
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*") if path.is_file())


def test_every_part_has_its_own_credentials(tmp_path: Path) -> None:
    make_secrets(tmp_path, Plan("bucket", broker=BROKER))
    given = {name: env(tmp_path, name)["AWS_SECRET_ACCESS_KEY"] for name in (*WORKERS, "operator")}
    assert len(set(given.values())) == 5
    files = contents(tmp_path)
    for name, secret in given.items():
        holders = {path.split("/")[0] for path, data in files.items() if secret.encode() in data}
        assert holders == {name, "s3"}


def test_only_the_key_service_can_use_the_kms(tmp_path: Path) -> None:
    make_secrets(tmp_path, Plan("bucket"))
    token = env(tmp_path, "keys-1")["VAULT_TOKEN"].encode()
    holders = {path for path, data in contents(tmp_path).items() if token in data}
    assert holders == {"kms/token", "keys-1/stack.env"}
    # It reads this as settings of its own.
    settings = load_settings(environ={}, home=tmp_path / "keys-1")
    assert settings.kms == "vault:transit/sealstream"
    assert settings.vault_cacert == provision.HOME / "kms-ca.pem"


def test_the_kms_shows_a_certificate_that_the_key_service_trusts(tmp_path: Path) -> None:
    make_secrets(tmp_path, Plan("bucket", kms_host="bao.example"))
    certificate = x509.load_pem_x509_certificate((tmp_path / "kms" / "tls.crt").read_bytes())
    authority = (tmp_path / "keys-1" / "kms-ca.pem").read_bytes()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "bao.example" in names.get_values_for_type(x509.DNSName)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "kms" / "tls.crt", tmp_path / "kms" / "tls.key")


def test_a_key_file_needs_no_kms(tmp_path: Path) -> None:
    make_secrets(tmp_path, Plan("bucket", kms="local"))
    assert not (tmp_path / "kms").exists()
    assert load_settings(environ={}, home=tmp_path / "keys-1").kms_spec.startswith("local:")


# --- rights --------------------------------------------------------------------------------------

KEYS = {
    "catalog": layout.catalog(bytes(32)),
    "realm": layout.realm("root"),
    "envelope": layout.envelope(UID),
    "dek": layout.dek(UID, 1),
    "pack": layout.pack(UID, OTHER),
    "body": layout.body(UID, OTHER),
    "head": layout.head(UID, 0),
    "segment": layout.segment(UID, 0, OTHER),
}
MAY = {
    "keys": {
        "s3:GetObject": {"catalog", "realm", "envelope", "dek", "head", "segment", "body"},
        "s3:PutObject": {"catalog", "realm", "envelope", "dek", "body"},
        "s3:DeleteObject": set(KEYS),
    },
    "ingest": {"s3:PutObject": {"pack", "body"}},
    "index": {
        "s3:GetObject": {"head", "segment", "body"},
        "s3:PutObject": {"head", "segment", "body"},
        "s3:DeleteObject": {"head", "segment", "pack", "body"},
    },
    "query": {"s3:GetObject": {"head", "segment", "pack"}},
}


@pytest.mark.parametrize("prefix", ["", "a/b"])
@pytest.mark.parametrize("role", MAY)
def test_rights_end_where_the_role_ends(role: str, prefix: str) -> None:
    below = f"arn:aws:s3:::bucket/{prefix + '/' if prefix else ''}"
    allowed: dict[str, set[str]] = {}
    for statement in role_policy(role, "bucket", prefix)["Statement"]:
        [action] = statement["Action"]
        assert statement["Effect"] == "Allow"
        for pattern in statement["Resource"]:
            for name, key in KEYS.items():
                if fnmatchcase(below + key, pattern):
                    allowed.setdefault(action, set()).add(name)
    assert allowed == MAY[role]


@pytest.mark.parametrize("role", MAY)
def test_a_role_may_what_its_check_does(role: str) -> None:
    needed = {
        "keys": ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
        "index": ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
        "ingest": ("s3:PutObject",),
        "query": ("s3:GetObject",),
    }[role]
    place = f"arn:aws:s3:::bucket/{layout.check(role)}x"
    policy = role_policy(role, "bucket")
    for action in needed:
        patterns = [p for s in policy["Statement"] if action in s["Action"] for p in s["Resource"]]
        assert any(fnmatchcase(place, pattern) for pattern in patterns), action


def test_the_object_store_is_told_all_of_it(tmp_path: Path) -> None:
    make_secrets(tmp_path, Plan("bucket", "pre", broker=BROKER))
    told = json.loads((tmp_path / "s3" / "identities.json").read_text())
    rights = {one["name"]: one.get("policyNames", one.get("actions")) for one in told["identities"]}
    assert rights.pop("admin") == ["Admin"]
    assert rights == {role: [role] for role in ("keys", "ingest", "index", "query", "broker")}
    policies = {one["name"]: json.loads(one["content"]) for one in told["policies"]}
    assert policies["query"] == role_policy("query", "bucket", "pre")
    assert "bucket/" not in json.dumps(policies["broker"])


# --- buckets and realm ---------------------------------------------------------------------------


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """One bucket in memory, whoever opens it."""
    store = MemoryStore()
    opened: list[Settings] = []

    def open_store(settings: Settings, **_: Any) -> MemoryStore:
        opened.append(settings)
        return store

    monkeypatch.setattr(provision, "open_store", open_store)
    store.opened = opened  # type: ignore[attr-defined]
    return store


async def test_buckets_are_checked_by_their_owner(tmp_path: Path, shared: Any) -> None:
    make_secrets(tmp_path, Plan("bucket", broker=BROKER))
    given = load_settings(
        environ={"SEALSTREAM_S3_BUCKET": "bucket", "SEALSTREAM_S3_ENDPOINT": "http://s3:8333"}
    )
    await make_buckets(tmp_path, given, broker=True)
    assert [one.s3_bucket for one in shared.opened] == ["bucket", "sealstream-kafka"]
    assert {one.s3_endpoint for one in shared.opened} == {"http://s3:8333"}
    owner = env(tmp_path, "operator")["AWS_ACCESS_KEY_ID"]
    assert {one.s3_access_key_id for one in shared.opened} == {owner}


async def test_workers_get_identities_and_who_to_trust(tmp_path: Path, shared: Any) -> None:
    make_secrets(tmp_path, Plan("bucket", kms="local"))
    for _ in range(2):
        await make_realm(
            tmp_path, load_settings(environ={"SEALSTREAM_ALLOW_PLAIN_RESULTS": "true"}), "here:1"
        )
    client = env(tmp_path, "operator", "client.env")
    assert client["SEALSTREAM_KAFKA_BOOTSTRAP"] == "here:1"
    assert client["SEALSTREAM_ALLOW_PLAIN_RESULTS"] == "true"
    assert client["SEALSTREAM_ALLOW_PLAIN_CREDENTIALS"] == "false"
    fingerprint = client["SEALSTREAM_KEY_SERVICE_FINGERPRINT"]
    for name in WORKERS:
        settings = load_settings(environ={}, home=tmp_path / name)
        assert settings.key_service_fingerprint == fingerprint
        assert settings.token is None
        enrolled = sorted(path.name for path in (tmp_path / name).glob("workers/*"))
        assert enrolled == ([] if name == "keys-1" else [name])
        if enrolled:
            identity = WorkerIdentity.load(tmp_path / name / "workers" / name)
            assert (identity.worker_id, f"{identity.role}-1") == (name, name)
    assert load_settings(environ={}, home=tmp_path / "operator").token == SecretStr(
        client["SEALSTREAM_TOKEN"]
    )
