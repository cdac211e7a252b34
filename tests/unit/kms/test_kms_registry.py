"""Specs and settings become the right client; nothing is asked of a server here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from workers.errors import Fatal, Reject
from workers.kms.aws import AwsKms
from workers.kms.azure import AzureKms, _split
from workers.kms.gcp import GcpKms
from workers.kms.local import LocalKms
from workers.kms.pkcs11 import Pkcs11Kms
from workers.kms.registry import open_kms
from workers.kms.vault import VaultKms
from workers.settings import Settings, SettingsError, load_settings

UUID = "12345678-90ab-cdef-1234-567890abcdef"
MRK = "mrk-" + "0a" * 16


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


async def test_a_local_spec_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kms.key"
    with pytest.raises(Fatal, match="does not exist"):
        open_kms(f"local:{path}", settings())
    kms = open_kms(f"local:{path}", settings(), create=True)
    assert isinstance(kms, LocalKms)
    assert (kms.name, kms.default_key) == ("local", "local")
    await kms.aclose()


async def test_a_vault_spec_names_mount_and_key() -> None:
    at = settings(vault_addr="https://vault:8200", vault_token=SecretStr("secret"))
    kms = open_kms("vault:team/transit/realm", at)
    assert isinstance(kms, VaultKms)
    assert (kms.name, kms.default_key) == ("vault", "realm")
    assert repr(kms) == "VaultKms('https://vault:8200/v1/team/transit')"
    await kms.aclose()


@pytest.mark.parametrize(
    "how",
    [
        {"vault_token_file": "/run/token"},
        {"vault_login": "approle", "vault_role": "r", "vault_secret_id": "s"},
        {"vault_login": "approle", "vault_role": "r", "vault_secret_file": "/run/secret"},
        {"vault_login": "jwt", "vault_role": "r", "vault_secret_file": "/run/jwt"},
    ],
)
async def test_the_token_may_come_otherwise(how: dict[str, str]) -> None:
    with pytest.raises(Fatal, match="needs a token"):
        open_kms("vault:transit/realm", settings(vault_addr="https://vault"))
    kms = open_kms("vault:transit/realm", settings(vault_addr="https://vault", **how))
    await kms.aclose()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"SEALSTREAM_VAULT_LOGIN": "approle"}, "vault_role"),
        ({"SEALSTREAM_VAULT_LOGIN": "approle", "SEALSTREAM_VAULT_ROLE": "r"}, "vault_secret"),
        ({"SEALSTREAM_VAULT_LOGIN": "jwt", "SEALSTREAM_VAULT_ROLE": "r"}, "vault_secret_file"),
        ({"SEALSTREAM_VAULT_LOGIN": "kerberos"}, "vault_login"),
        ({"SEALSTREAM_KMS_AWS_ACCESS_KEY_ID": "a"}, "kms_aws_secret_access_key"),
        ({"SEALSTREAM_KMS": "cloud:key"}, "kms"),
    ],
)
def test_settings_that_cannot_work_are_told(
    tmp_path: Path, given: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        load_settings(home=tmp_path, environ=given)


def test_the_variables_of_the_providers_own_tools_count(tmp_path: Path) -> None:
    found = load_settings(
        home=tmp_path,
        environ={
            "VAULT_TOKEN_FILE": "/run/token",
            "VAULT_CLIENT_CERT": "/c",
            "VAULT_CLIENT_KEY": "/k",
            "VAULT_SKIP_VERIFY": "true",
        },
    )
    assert found.vault_token_file == Path("/run/token")
    assert (found.vault_client_cert, found.vault_client_key) == (Path("/c"), Path("/k"))
    assert found.vault_skip_verify


async def test_verification_is_off_only_when_asked() -> None:
    at = {"vault_addr": "http://vault:8200", "vault_token": "secret"}
    with pytest.raises(Fatal, match="use https"):
        open_kms("vault:transit/realm", settings(**at, vault_skip_verify=False))
    kms = open_kms("vault:transit/realm", settings(**at, vault_skip_verify=True))
    await kms.aclose()


@pytest.mark.parametrize(
    ("spec", "kind", "key", "shown"),
    [
        (f"aws:eu-west-1/{UUID}", AwsKms, UUID, "AwsKms('eu-west-1')"),
        (f"aws:us-gov-east-1/{MRK}", AwsKms, MRK, "AwsKms('us-gov-east-1')"),
        (
            f"aws:arn:aws:kms:eu-west-1:111122223333:key/{UUID}",
            AwsKms,
            UUID,
            "AwsKms('eu-west-1')",
        ),
        (
            "gcp:acme-1/europe-west1/search/realm",
            GcpKms,
            "realm",
            "GcpKms('projects/acme-1/locations/europe-west1/keyRings/search')",
        ),
        (
            "gcp:projects/acme-1/locations/global/keyRings/search/cryptoKeys/realm",
            GcpKms,
            "realm",
            "GcpKms('projects/acme-1/locations/global/keyRings/search')",
        ),
        ("azure:Acme-Vault/realm", AzureKms, "realm", "AzureKms('acme-vault.vault.azure.net')"),
        (
            "azure:acme.managedhsm.azure.net/realm",
            AzureKms,
            "realm",
            "AzureKms('acme.managedhsm.azure.net')",
        ),
        ("pkcs11:my token/realm", Pkcs11Kms, "realm", "Pkcs11Kms('my token')"),
    ],
)
async def test_a_spec_names_place_and_key(
    tmp_path: Path, spec: str, kind: type, key: str, shown: str
) -> None:
    module = tmp_path / "module.so"
    module.touch()
    kms = open_kms(spec, settings(kms_pkcs11_module=module, kms_pkcs11_pin="1234"))
    assert isinstance(kms, kind)
    assert kms.default_key == key
    assert repr(kms) == shown
    assert spec.startswith(kms.name)
    await kms.aclose()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "local:FILE, vault:MOUNT/KEY, aws:"),
        ("cloud:key", "local:FILE, vault:MOUNT/KEY, aws:"),
        ("local", "local:FILE"),
        ("local:", "local:FILE"),
        ("vault:", "vault:MOUNT/KEY"),
        ("vault:key", "vault:MOUNT/KEY"),
        ("vault:/key", "vault:MOUNT/KEY"),
        ("vault:transit/", "vault:MOUNT/KEY"),
        ("aws:key", "aws:REGION/KEY"),
        (f"aws:nowhere/{UUID}", "aws:REGION/KEY"),
        ("gcp:ring/key", "gcp:PROJECT"),
        ("gcp:acme-1/europe-west1/search/", "gcp:PROJECT"),
        ("azure:key", "azure:VAULT/KEY"),
        ("azure:acme/", "azure:VAULT/KEY"),
        ("azure:evil.example/x/key", "azure:VAULT/KEY"),
        ("pkcs11:key", "pkcs11:TOKEN/KEY"),
        ("pkcs11:token/key", "kms_pkcs11_module"),
    ],
)
def test_other_specs_are_refused(spec: str, says: str) -> None:
    with pytest.raises(Fatal, match=says):
        open_kms(spec, settings())


@pytest.mark.parametrize(
    "spec",
    [
        "vault:transit/a b",
        "aws:eu-west-1/alias",
        "aws:eu-west-1/alias/name",
        "gcp:acme-1/global/search/a.b",
        "azure:acme/a_b",
        "pkcs11:token/a b",
    ],
)
def test_a_malformed_key_is_refused(tmp_path: Path, spec: str) -> None:
    at = settings(
        vault_addr="https://vault",
        vault_token="secret",
        kms_pkcs11_module=tmp_path,
        kms_pkcs11_pin="1",
    )
    with pytest.raises(Reject):
        open_kms(spec, at)


def test_vault_needs_an_address() -> None:
    with pytest.raises(Fatal, match="VAULT_ADDR"):
        open_kms("vault:transit/realm", settings())


def test_pkcs11_needs_a_module_and_a_pin(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="does not exist"):
        open_kms("pkcs11:token/key", settings(kms_pkcs11_module=tmp_path / "none.so"))
    (tmp_path / "module.so").touch()
    with pytest.raises(Fatal, match="PIN"):
        open_kms("pkcs11:token/key", settings(kms_pkcs11_module=tmp_path / "module.so"))


@pytest.mark.parametrize("provider", ["vault", "aws", "gcp", "azure", "pkcs11"])
def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    monkeypatch.setitem(sys.modules, f"workers.kms.{provider}", None)
    with pytest.raises(Fatal, match=rf"sealstream\[{provider}\]"):
        open_kms(f"{provider}:a/b", settings())


@pytest.mark.parametrize(
    "spec", [f"aws:eu-west-1/{UUID}", "gcp:acme-1/global/search/realm", "azure:acme/realm"]
)
async def test_an_endpoint_is_asked_over_tls_alone(spec: str) -> None:
    with pytest.raises(Fatal, match="https"):
        open_kms(spec, settings(kms_endpoint="http://kms.internal"))
    for endpoint in ("kms.internal", "kms.internal:8443", "https://kms.internal/"):
        kms = open_kms(spec, settings(kms_endpoint=endpoint))
        assert "kms.internal" in repr(kms._config)
        assert "http://" not in repr(kms._config)
        await kms.aclose()


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        ("kms.internal", "kms.internal", "443"),
        ("kms.internal:8443", "kms.internal", "8443"),
        ("[::1]:8443", "::1", "8443"),
        ("[::1]", "::1", "443"),
        ("10.0.0.1", "10.0.0.1", "443"),
    ],
)
def test_an_endpoint_is_taken_apart(endpoint: str, host: str, port: str) -> None:
    assert _split(endpoint) == (host, port)


async def test_bad_files_are_told_at_once(tmp_path: Path) -> None:
    at = settings(kms_ca_file=tmp_path / "none.pem", kms_aws_profile="no-such-profile")
    for spec, says in (
        ("gcp:acme-1/global/search/realm", "CA file"),
        ("azure:acme/realm", "CA file"),
        (f"aws:eu-west-1/{UUID}", "profile"),
    ):
        with pytest.raises(Fatal, match=says):
            open_kms(spec, at)


async def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    (tmp_path / "module.so").touch()
    at = settings(
        kms_aws_access_key_id="id",
        kms_aws_secret_access_key="very-secret",
        kms_aws_session_token="very-secret",
        kms_pkcs11_module=tmp_path / "module.so",
        kms_pkcs11_pin="very-secret",
        vault_addr="https://vault",
        vault_login="approle",
        vault_role="r",
        vault_secret_id="very-secret",
    )
    for spec in (f"aws:eu-west-1/{UUID}", "pkcs11:token/key", "vault:transit/key"):
        kms = open_kms(spec, at)
        config = getattr(kms, "_config", None) or kms._tokens._config
        assert "very-secret" not in f"{kms!r} {config!r} {at!r}"
        await kms.aclose()
