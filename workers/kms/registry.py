"""Open a KMS by its spec: `local:FILE` or `vault:MOUNT/KEY`.

Vault's address, token, namespace and CA come from the settings; what the settings do not have comes
from the variables that its own tools use: `VAULT_TOKEN_FILE`, `VAULT_CLIENT_CERT`,
`VAULT_CLIENT_KEY`, `VAULT_SKIP_VERIFY`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from schemas.errors import ErrorCode
from workers.errors import Fatal
from workers.kms.base import Kms
from workers.kms.local import LocalKms
from workers.settings import Settings


def open_kms(
    spec: str,
    settings: Settings,
    *,
    create: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Kms:
    """Open the KMS that `spec` names; nothing is asked of it yet.

    Args:
        spec: `local:FILE` or `vault:MOUNT/KEY`.
        settings: where to find Vault and its token.
        create: make the key file of `local:` if it does not exist.
        environ: the environment (default: the process's).

    Raises:
        Fatal: An unknown or incomplete spec, a key file or settings that cannot work, or a client
            library that is not installed.
        Reject: INVALID_MESSAGE: a malformed key id.
    """
    provider, _, rest = spec.partition(":")
    if provider == "local" and rest:
        return LocalKms(Path(rest), create=create)
    mount, _, key = rest.rpartition("/")
    if provider == "vault" and mount and key:
        return _open_vault(mount, key, settings, os.environ if environ is None else environ)
    raise Fatal(ErrorCode.KEY_UNAVAILABLE, "the KMS must be given as local:FILE or vault:MOUNT/KEY")


def _open_vault(mount: str, key: str, settings: Settings, environ: Mapping[str, str]) -> Kms:
    try:
        from workers.kms.vault import VaultConfig, VaultKms
    except ImportError as exc:
        raise Fatal(
            ErrorCode.KEY_UNAVAILABLE, "Vault needs the extra: pip install 'sealstream[vault]'"
        ) from exc
    if settings.vault_addr is None:
        raise Fatal(ErrorCode.KEY_UNAVAILABLE, "Vault needs an address: set VAULT_ADDR")
    token = settings.vault_token
    config = VaultConfig(
        address=settings.vault_addr,
        token=token.get_secret_value() if token else None,
        token_file=_path(environ, "VAULT_TOKEN_FILE"),
        namespace=settings.vault_namespace,
        ca_file=settings.vault_cacert,
        client_cert=_path(environ, "VAULT_CLIENT_CERT"),
        client_key=_path(environ, "VAULT_CLIENT_KEY"),
        tls_verify=environ.get("VAULT_SKIP_VERIFY", "").lower() not in ("1", "true"),
    )
    return VaultKms(config, mount=mount, default_key=key)


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    value = environ.get(name)
    return Path(value) if value else None
