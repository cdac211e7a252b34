r"""Write the IAM policies of every worker role, the key's policy and the bucket's, as JSON files.

    python policies.py --bucket acme-search --kms-key ARN \
        --key-service-role ARN --admin-role ARN policies/

Needs sealstream installed. Attach `iam-ROLE.json` to the role of each worker, put `key-policy.json`
on the KMS key and `bucket-policy.json` on the bucket. `--opens-only` makes a key service that opens
what exists and makes nothing new.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from workers.local.rights import role_policy

ROLES = ("keys", "ingest", "index", "query")
_KEY_ARN = re.compile(
    r"(?P<account>arn:(?P<partition>aws[a-z-]*):kms:[a-z0-9-]+:(?P<number>\d{12})):key/[a-z0-9-]+"
)
# What the key service binds a wrapped key to: nothing else may be asked of the key.
_PURPOSES = ["realm-root", "kek"]
_CONTEXT_KEYS = ["purpose", "index", "epoch"]
_OPENS = ["kms:Decrypt"]
_MAKES = ["kms:Encrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo"]


def key_use(key_arn: str, *, opens_only: bool = False) -> list[dict[str, Any]]:
    """Return the statements that let the key service use one KMS key, for our contexts alone."""
    return [
        {
            "Sid": "DescribeTheKey",
            "Effect": "Allow",
            "Action": ["kms:DescribeKey"],
            "Resource": [key_arn],
        },
        {
            "Sid": "UseTheKeyForSealstream",
            "Effect": "Allow",
            "Action": _OPENS if opens_only else _OPENS + _MAKES,
            "Resource": [key_arn],
            "Condition": {
                "StringEquals": {"kms:EncryptionContext:purpose": _PURPOSES},
                "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": _CONTEXT_KEYS},
            },
        },
    ]


def iam_policy(
    role: str, bucket: str, prefix: str, key_arns: list[str], *, opens_only: bool = False
) -> dict[str, Any]:
    """Return the policy of a worker's role: the bucket as far as it reaches, and KMS for `keys`."""
    policy = role_policy(role, bucket, prefix)
    if role == "keys":
        for number, arn in enumerate(key_arns):
            for statement in key_use(arn, opens_only=opens_only):
                # Statement ids are unique in a policy.
                sid = f"{statement['Sid']}{number or ''}"
                policy["Statement"].append({**statement, "Sid": sid})
    return policy


def key_policy(key_arn: str, key_service: str, admin: str) -> dict[str, Any]:
    """Return the policy of the KMS key: one role uses it, another manages it, neither does both."""
    found = _KEY_ARN.fullmatch(key_arn)
    if found is None:
        raise ValueError("not the ARN of a KMS key")
    # In a key's policy, "*" is this key.
    use = [{**one, "Resource": "*", "Principal": {"AWS": key_service}} for one in key_use("*")]
    manage = {
        "Sid": "ManageTheKey",
        "Effect": "Allow",
        "Principal": {"AWS": admin},
        "Action": [
            "kms:CancelKeyDeletion",
            "kms:DescribeKey",
            "kms:DisableKey",
            "kms:EnableKey",
            "kms:EnableKeyRotation",
            "kms:GetKeyPolicy",
            "kms:GetKeyRotationStatus",
            "kms:ListResourceTags",
            "kms:PutKeyPolicy",
            "kms:RotateKeyOnDemand",
            "kms:ScheduleKeyDeletion",
            "kms:TagResource",
        ],
        "Resource": "*",
    }
    return {"Version": "2012-10-17", "Statement": [manage, *use]}


def bucket_policy(bucket: str, admin: str) -> dict[str, Any]:
    """Return the bucket's policy: TLS only, and old versions are deleted by the admin alone."""
    arn = f"arn:aws:s3:::{bucket}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "TlsOnly",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [arn, f"{arn}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            },
            {
                "Sid": "OldVersionsGoByTheAdmin",
                "Effect": "Deny",
                "Principal": "*",
                "Action": ["s3:DeleteObjectVersion", "s3:PutLifecycleConfiguration"],
                "Resource": [arn, f"{arn}/*"],
                "Condition": {"ArnNotEquals": {"aws:PrincipalArn": admin}},
            },
        ],
    }


def main() -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write Sealstream's policies for AWS.")
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--prefix", default="", help="as the setting s3_prefix")
    parser.add_argument(
        "--kms-key", required=True, action="append", help="ARN of the realm's key; more: indexes'"
    )
    parser.add_argument("--key-service-role", required=True, help="ARN of the key service's role")
    parser.add_argument("--admin-role", required=True, help="ARN of who manages key and bucket")
    parser.add_argument("--opens-only", action="store_true", help="no new wrapped keys")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    if not all(_KEY_ARN.fullmatch(arn) for arn in given.kms_key):
        parser.error("--kms-key: write the ARN of a key, not of an alias")
    files = {
        f"iam-{role}.json": iam_policy(
            role, given.bucket, given.prefix, given.kms_key, opens_only=given.opens_only
        )
        for role in ROLES
    }
    files["key-policy.json"] = key_policy(
        given.kms_key[0], given.key_service_role, given.admin_role
    )
    files["bucket-policy.json"] = bucket_policy(given.bucket, given.admin_role)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, policy in files.items():
        (given.folder / name).write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")
        sys.stdout.write(f"{given.folder / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
