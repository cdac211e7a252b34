"""What each part of a deployment may do in the object store, as policies in AWS's language.

Resources are patterns over object keys (`workers.storage.layout`). The right to list a bucket is
also what makes a server say "no such object" rather than "denied".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# role -> action -> patterns of keys below the prefix. Only `s3:ListBucket` is of the whole bucket.
_RIGHTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "keys": {
        # Shards: documents whose access list is asked for, and how far a new data key is. Bodies:
        # what index workers have sealed anew.
        "s3:GetObject": ("catalog/*", "realm/*", "*/keys/*", "*/shards/*", "*/bodies/*"),
        "s3:PutObject": ("catalog/*", "realm/*", "*/keys/*", "*/bodies/*"),
        # An index that is deleted goes with everything in it.
        "s3:DeleteObject": ("*",),
        "s3:ListBucket": (),
    },
    "ingest": {"s3:PutObject": ("*/packs/*", "*/bodies/*")},
    "index": {
        "s3:GetObject": ("*/shards/*", "*/bodies/*"),
        "s3:PutObject": ("*/shards/*", "*/bodies/*"),
        "s3:DeleteObject": ("*/shards/*", "*/packs/*", "*/bodies/*"),
        "s3:ListBucket": (),
    },
    "query": {"s3:GetObject": ("*/shards/*", "*/packs/*"), "s3:ListBucket": ()},
}


def role_policy(role: str, bucket: str, prefix: str = "") -> dict[str, Any]:
    """Return the policy of a worker's role.

    Args:
        role: keys, ingest, index or query.
        bucket: its name.
        prefix: as the setting `s3_prefix`.
    """
    arn = f"arn:aws:s3:::{bucket}"
    below = f"{arn}/{prefix.strip('/')}/" if prefix.strip("/") else f"{arn}/"
    return _policy(
        (action, [below + pattern for pattern in patterns] or [arn])
        for action, patterns in _RIGHTS[role].items()
    )


def bucket_policy(bucket: str) -> dict[str, Any]:
    """Return the policy of who may do everything in one bucket, and nothing elsewhere."""
    arn = f"arn:aws:s3:::{bucket}"
    return _policy([("s3:*", [arn, f"{arn}/*"])])


def _policy(allowed: Any) -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": [action], "Resource": resources}
            for action, resources in allowed
        ],
    }
