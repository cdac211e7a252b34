"""Open the object store that the settings name."""

from __future__ import annotations

from pydantic import SecretStr

from workers.settings import Settings
from workers.storage.config import StoreConfig
from workers.storage.file import FileStore
from workers.storage.s3 import S3Store
from workers.storage.store import Store


def store_config(settings: Settings, *, read_only: bool = False) -> StoreConfig:
    """Return the settings of the object store."""
    secret, session = settings.s3_secret_access_key, settings.s3_session_token
    return StoreConfig(
        bucket=settings.s3_bucket,
        prefix=settings.s3_prefix,
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=_plain(secret),
        session_token=_plain(session),
        profile=settings.s3_profile,
        virtual_hosted=settings.s3_virtual_hosted,
        read_only=read_only,
        request_timeout_s=settings.s3_timeout_s / 2,
        operation_timeout_s=settings.s3_timeout_s,
    )


def open_store(settings: Settings, *, read_only: bool = False) -> Store:
    """Return the configured store; no request is made before the first operation.

    Args:
        settings: connection, credentials and limits.
        read_only: refuse writes in this process, whatever the credentials allow.
    """
    if settings.store_folder is not None:
        return FileStore(settings.store_folder, settings.s3_prefix, read_only=read_only)
    return S3Store(store_config(settings, read_only=read_only))


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
