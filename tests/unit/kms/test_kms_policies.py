"""The policies in deploy/: they allow what each role does, and nothing else."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers.keys import realm
from workers.keys.envelope import kms_context

DEPLOY = Path(__file__).parents[3] / "deploy"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/12345678-90ab-cdef-1234-567890abcdef"
OTHER = KEY[:-1] + "0"
KEYS_ROLE, ADMIN = ("arn:aws:iam::111122223333:role/" + name for name in ("keys", "admin"))
# What the key service binds wrapped keys to.
CONTEXTS = (realm._KMS_CONTEXT, kms_context(bytes(16), 3))
USES = ("kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo")


def policies(folder: Path, *options: str) -> dict[str, Any]:
    subprocess.run(
        [
            sys.executable,
            str(DEPLOY / "aws" / "policies.py"),
            "--bucket=acme",
            "--prefix=prod",
            f"--kms-key={KEY}",
            f"--key-service-role={KEYS_ROLE}",
            f"--admin-role={ADMIN}",
            *options,
            str(folder),
        ],
        check=True,
        cwd=DEPLOY.parent,
        capture_output=True,
    )
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return policies(tmp_path_factory.mktemp("policies"))


def _holds(condition: dict[str, Any], context: dict[str, str]) -> bool:
    values: dict[str, list[str]] = {f"kms:EncryptionContext:{k}": [v] for k, v in context.items()}
    values["kms:EncryptionContextKeys"] = list(context)
    for operator, wanted in condition.items():
        for name, allowed in wanted.items():
            found = values.get(name, [])
            match operator:
                case "StringEquals":
                    good = bool(found) and all(value in allowed for value in found)
                case "ForAllValues:StringEquals":
                    good = all(value in allowed for value in found)
                case _:
                    raise AssertionError(operator)
            if not good:
                return False
    return True


def allows(
    policy: dict[str, Any],
    action: str,
    resource: str,
    context: dict[str, str] | None = None,
    principal: str | None = None,
) -> bool:
    """Evaluate a policy's Allow statements, as far as ours use the language."""
    return any(
        statement["Effect"] == "Allow"
        and action in statement["Action"]
        and any(fnmatch.fnmatchcase(resource, one) for one in _list(statement["Resource"]))
        and _holds(statement.get("Condition", {}), context or {})
        and (principal is None or statement["Principal"]["AWS"] == principal)
        for statement in policy["Statement"]
    )


def _list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def test_the_key_service_may_use_its_key_for_its_contexts(made: dict[str, Any]) -> None:
    keys = made["iam-keys"]
    assert allows(keys, "kms:DescribeKey", KEY)
    for context in CONTEXTS:
        for use in USES:
            assert allows(keys, use, KEY, context), (use, context)
            assert allows(made["key-policy"], use, KEY, context, KEYS_ROLE)


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"index": "00" * 16},
        {"purpose": "backup"},
        {"purpose": "kek", "tenant": "other"},
    ],
)
def test_the_key_service_may_not_use_its_key_otherwise(
    made: dict[str, Any], context: dict[str, str]
) -> None:
    for use in USES:
        assert not allows(made["iam-keys"], use, KEY, context)
        assert not allows(made["key-policy"], use, KEY, context, KEYS_ROLE)


def test_nobody_else_may_use_the_key(made: dict[str, Any]) -> None:
    for use in USES:
        assert not allows(made["iam-keys"], use, OTHER, dict(CONTEXTS[0]))
        assert not allows(made["key-policy"], use, KEY, dict(CONTEXTS[0]), ADMIN)
        for role in ("ingest", "index", "query"):
            assert not allows(made[f"iam-{role}"], use, KEY, dict(CONTEXTS[0]))
    for action in ("kms:ScheduleKeyDeletion", "kms:DisableKey", "kms:PutKeyPolicy"):
        assert not allows(made["key-policy"], action, KEY, principal=KEYS_ROLE)
        assert allows(made["key-policy"], action, KEY, principal=ADMIN)
    statements = [s for policy in made.values() for s in policy["Statement"]]
    assert not any(
        "*" in action and s["Effect"] == "Allow"
        for s in statements
        for action in _list(s["Action"])
    )


def test_a_key_service_that_only_opens(tmp_path: Path) -> None:
    keys = policies(tmp_path, "--opens-only", f"--kms-key={OTHER}")["iam-keys"]
    for key in (KEY, OTHER):
        assert [allows(keys, use, key, dict(CONTEXTS[1])) for use in USES] == [
            False,
            True,
            False,
            False,
        ]
    ids = [s["Sid"] for s in keys["Statement"] if "Sid" in s]
    assert len(set(ids)) == len(ids) == 4


def test_each_role_reaches_its_part_of_the_bucket(made: dict[str, Any]) -> None:
    at = "arn:aws:s3:::acme/prod/"
    uid = "00" * 16
    assert allows(made["iam-keys"], "s3:PutObject", f"{at}realm/root")
    assert not allows(made["iam-query"], "s3:GetObject", f"{at}realm/root")
    assert not allows(made["iam-query"], "s3:PutObject", f"{at}{uid}/shards/0/head")
    assert allows(made["iam-query"], "s3:GetObject", f"{at}{uid}/shards/0/head")
    assert not allows(made["iam-ingest"], "s3:GetObject", f"{at}{uid}/packs/{uid}")
    assert not allows(made["iam-index"], "s3:GetObject", f"{at}{uid}/keys/tag")
    assert not any(
        allows(made[f"iam-{role}"], "s3:GetObject", f"arn:aws:s3:::acme/test/{uid}/shards/0/head")
        for role in ("keys", "ingest", "index", "query")
    )


def test_the_bucket_asks_for_tls_and_keeps_old_versions(made: dict[str, Any]) -> None:
    tls, versions = made["bucket-policy"]["Statement"]
    assert tls["Effect"] == versions["Effect"] == "Deny"
    assert tls["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert versions["Condition"] == {"ArnNotEquals": {"aws:PrincipalArn": ADMIN}}


def test_an_alias_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        policies(tmp_path, "--kms-key=arn:aws:kms:eu-west-1:111122223333:alias/realm")
    assert b"not of an alias" in refused.value.stderr


def test_the_roles_of_google_and_azure_hold_what_the_clients_ask_for() -> None:
    def google(name: str) -> set[str]:
        text = (DEPLOY / "gcp" / f"{name}.yaml").read_text()
        return set(re.findall(r"^  - (\S+)$", text, re.MULTILINE))

    both, opening = google("key-service-role"), google("key-service-decrypt-only-role")
    assert both - opening == {"cloudkms.cryptoKeyVersions.useToEncrypt"}
    assert opening < both
    role = json.loads((DEPLOY / "azure" / "key-service-decrypt-only-role.json").read_text())
    assert not any("wrap/action" in one.replace("unwrap", "") for one in role["DataActions"])
    assert not role["Actions"]
