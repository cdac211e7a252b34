"""The credentials of a profile in the AWS configuration files, followed while they change.

Needs boto3, which the extra `aws` brings. Keys that are replaced in a file count without a restart:
a mounted secret that `AWS_SHARED_CREDENTIALS_FILE` names, for one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
from botocore.credentials import RefreshableCredentials

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential

REREAD = timedelta(minutes=1)
"""How long credentials are used before the profile is asked again."""


class ProfileCredentials:
    """Gives obstore the credentials of a profile; it is called again whenever `REREAD` has passed.

    Raises what botocore raises if there is no such profile, ValueError if it has no credentials;
    what it raises when obstore calls it becomes a denial, which is waited for.

    Attributes:
        config: the region of the profile, if it names one.
        refresh_threshold: obstore calls for new credentials so long before the end of the old ones.
    """

    refresh_threshold = timedelta(0)

    def __init__(self, profile: str) -> None:
        self._profile = profile
        region, self._credentials = self._read()
        self.config: S3Config = {} if region is None else {"region": region}

    def __call__(self) -> S3Credential:
        """Return the present credentials."""
        # Those of a role or a login botocore renews itself, minutes before they end.
        if not isinstance(self._credentials, RefreshableCredentials):
            _, self._credentials = self._read()
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + REREAD,
        }

    def _read(self) -> tuple[str | None, Any]:
        session = boto3.Session(profile_name=self._profile)
        credentials = session.get_credentials()
        if credentials is None:
            raise ValueError("the profile has no credentials")
        return session.region_name, credentials
