"""Open a KMS by its spec, `PROVIDER:PLACE/KEY`.

    local:FILE                        a key file, for development
    vault:MOUNT/KEY                   Vault or OpenBao, at `vault_addr`
    aws:REGION/KEY                    or aws:arn:aws:kms:REGION:ACCOUNT:key/KEY
    gcp:PROJECT/LOCATION/RING/KEY     or a key's resource name
    azure:VAULT/KEY                   a vault's name, or its host name (Managed HSM, other clouds)
    pkcs11:TOKEN/KEY                  a token's label, in `kms_pkcs11_module`

The place is the deployment's; a key id that an index names is a key in that place, so no message
can point the key service at another server, account or vault. Addresses and credentials come from
the settings, or are found as the provider's own tools find them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from workers.kms.base import Kms
from workers.kms.errors import misconfigured
from workers.kms.local import LocalKms
from workers.settings import Settings

_FORMS = {
    "local": "local:FILE",
    "vault": "vault:MOUNT/KEY",
    "aws": "aws:REGION/KEY",
    "gcp": "gcp:PROJECT/LOCATION/RING/KEY",
    "azure": "azure:VAULT/KEY",
    "pkcs11": "pkcs11:TOKEN/KEY",
}


def open_kms(spec: str, settings: Settings, *, create: bool = False) -> Kms:
    """Open the KMS that `spec` names; nothing is asked of it yet.

    Args:
        spec: see above.
        settings: addresses and credentials.
        create: make the key file of `local:` if it does not exist.

    Raises:
        Fatal: An unknown or incomplete spec, a key file or settings that cannot work, or a client
            library that is not installed.
        Reject: INVALID_MESSAGE: a malformed key id.
    """
    provider, _, rest = spec.partition(":")
    if provider == "local" and rest:
        return LocalKms(Path(rest), create=create)
    opener = _OPENERS.get(provider)
    if opener is None:
        raise misconfigured(f"the KMS must be given as one of: {', '.join(_FORMS.values())}")
    try:
        kms = opener(rest, settings)
    except ImportError as exc:
        raise misconfigured(
            f"the KMS {provider} needs the extra: pip install 'sealstream[{provider}]'"
        ) from exc
    if kms is None:
        raise misconfigured(f"the KMS must be given as {_FORMS[provider]}")
    return kms


def _vault(rest: str, settings: Settings) -> Kms | None:
    from workers.kms.vault import VaultConfig, VaultKms, VaultLogin

    mount, _, key = rest.rpartition("/")
    if not mount or not key:
        return None
    if settings.vault_addr is None:
        raise misconfigured("Vault needs an address: set VAULT_ADDR")
    login = None
    if settings.vault_login != "token":
        login = VaultLogin(
            method=settings.vault_login,
            role=settings.vault_role or "",
            mount=settings.vault_login_mount or settings.vault_login,
            secret=_text(settings.vault_secret_id),
            secret_file=settings.vault_secret_file,
        )
    config = VaultConfig(
        address=settings.vault_addr,
        token=_text(settings.vault_token),
        token_file=settings.vault_token_file,
        login=login,
        namespace=settings.vault_namespace,
        ca_file=settings.vault_cacert,
        client_cert=settings.vault_client_cert,
        client_key=settings.vault_client_key,
        tls_verify=not settings.vault_skip_verify,
    )
    return VaultKms(config, mount=mount, default_key=key)


def _aws(rest: str, settings: Settings) -> Kms | None:
    from workers.kms.aws import AwsConfig, AwsKms, parse_location

    found = parse_location(rest)
    if found is None:
        return None
    region, arn_prefix, key = found
    endpoint = _host(settings.kms_endpoint)
    config = AwsConfig(
        region=region,
        arn_prefix=arn_prefix,
        endpoint=f"https://{endpoint}" if endpoint else None,
        ca_file=settings.kms_ca_file,
        profile=settings.kms_aws_profile,
        access_key_id=settings.kms_aws_access_key_id,
        secret_access_key=_text(settings.kms_aws_secret_access_key),
        session_token=_text(settings.kms_aws_session_token),
    )
    return AwsKms(config, default_key=key)


def _gcp(rest: str, settings: Settings) -> Kms | None:
    from workers.kms.gcp import GcpConfig, GcpKms, parse_location

    found = parse_location(rest)
    if found is None:
        return None
    ring, key = found
    config = GcpConfig(
        ring=ring,
        endpoint=_host(settings.kms_endpoint),
        ca_file=settings.kms_ca_file,
        credentials_file=settings.kms_gcp_credentials_file,
    )
    return GcpKms(config, default_key=key)


def _azure(rest: str, settings: Settings) -> Kms | None:
    from workers.kms.azure import AzureConfig, AzureKms, parse_location

    found = parse_location(rest)
    if found is None:
        return None
    host, key = found
    config = AzureConfig(
        host=host, endpoint=_host(settings.kms_endpoint), ca_file=settings.kms_ca_file
    )
    return AzureKms(config, default_key=key)


def _pkcs11(rest: str, settings: Settings) -> Kms | None:
    from workers.kms.pkcs11 import Pkcs11Config, Pkcs11Kms, parse_location

    found = parse_location(rest)
    if found is None:
        return None
    token, key = found
    if settings.kms_pkcs11_module is None:
        raise misconfigured("PKCS#11 needs the module's library: set kms_pkcs11_module")
    config = Pkcs11Config(
        module=settings.kms_pkcs11_module,
        token=token,
        pin=_text(settings.kms_pkcs11_pin),
        pin_file=settings.kms_pkcs11_pin_file,
    )
    return Pkcs11Kms(config, default_key=key)


_OPENERS: dict[str, Callable[[str, Settings], Kms | None]] = {
    "vault": _vault,
    "aws": _aws,
    "gcp": _gcp,
    "azure": _azure,
    "pkcs11": _pkcs11,
}


def _text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _host(endpoint: str | None) -> str | None:
    """Return HOST or HOST:PORT of the endpoint; it is always asked over TLS."""
    if endpoint is not None and endpoint.startswith("http://"):
        raise misconfigured("plain http to a KMS: give kms_endpoint as https")
    return endpoint.removeprefix("https://").rstrip("/") if endpoint else None
