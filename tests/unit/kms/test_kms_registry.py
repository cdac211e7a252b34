from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from workers.errors import Fatal, Reject
from workers.kms.local import LocalKms
from workers.kms.registry import open_kms
from workers.kms.vault import VaultKms
from workers.settings import Settings


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
    kms = open_kms("vault:team/transit/realm", at, environ={})
    assert isinstance(kms, VaultKms)
    assert (kms.name, kms.default_key) == ("vault", "realm")
    assert repr(kms) == "VaultKms('https://vault:8200/v1/team/transit')"
    await kms.aclose()


async def test_the_token_may_come_from_a_file(tmp_path: Path) -> None:
    at = settings(vault_addr="https://vault")
    with pytest.raises(Fatal, match="needs a token"):
        open_kms("vault:transit/realm", at, environ={})
    kms = open_kms("vault:transit/realm", at, environ={"VAULT_TOKEN_FILE": str(tmp_path / "t")})
    await kms.aclose()


async def test_verification_is_off_only_when_asked() -> None:
    at = settings(vault_addr="http://vault:8200", vault_token=SecretStr("secret"))
    for value in ("", "0", "false", "no"):
        with pytest.raises(Fatal, match="use https"):
            open_kms("vault:transit/realm", at, environ={"VAULT_SKIP_VERIFY": value})
    kms = open_kms("vault:transit/realm", at, environ={"VAULT_SKIP_VERIFY": "true"})
    await kms.aclose()


@pytest.mark.parametrize(
    "spec",
    ["", "local", "local:", "vault:", "vault:key", "vault:/key", "vault:transit/", "aws:key"],
)
def test_other_specs_are_refused(spec: str) -> None:
    with pytest.raises(Fatal, match="local:FILE or vault:MOUNT/KEY"):
        open_kms(spec, settings())


def test_vault_needs_an_address() -> None:
    with pytest.raises(Fatal, match="VAULT_ADDR"):
        open_kms("vault:transit/realm", settings(), environ={})


def test_a_malformed_key_is_refused() -> None:
    at = settings(vault_addr="https://vault", vault_token=SecretStr("secret"))
    with pytest.raises(Reject):
        open_kms("vault:transit/a b", at, environ={})
