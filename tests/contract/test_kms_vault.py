"""Vault's client against a real OpenBao: versions, policies, logins, and a server that restarts."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from structlog.testing import capture_logs

sys.path.insert(0, str(Path(__file__).parent / "kms_worlds"))

import kms_bao_world
from kms_bao_world import MOUNT, BaoWorld, policy
from kms_world import PATIENCE_S

from schemas.errors import ErrorCode
from workers.crypto.secret import SecretBytes, random_secret
from workers.errors import Reject, Retry
from workers.kms import vault_token
from workers.kms.errors import KmsDenied, KmsKeyGone, KmsUnavailable
from workers.kms.vault import VaultConfig, VaultKms, VaultLogin
from workers.local import openbao
from workers.local.ports import choose
from workers.local.probe import until
from workers.local.process import Child
from workers.local.servers import Server

CONTEXT = {"index": "00" * 16, "purpose": "kek"}
# Half a second of an hour: tokens that outlive a machine that stands still are renewed soon.
SOON = 0.5 / 3600


@pytest.fixture(scope="session")
async def bao(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BaoWorld]:
    async with kms_bao_world.start(tmp_path_factory.mktemp("vault")) as running:
        for method in ("approle", "jwt"):
            await running.api("POST", f"sys/auth/{method}", type=method)
        await running.api("PUT", "sys/policies/acl/one", policy=policy("key-service", key="one"))
        yield running


@pytest.fixture
async def vault(bao: BaoWorld) -> AsyncIterator[VaultKms]:
    async with opened(bao.config) as kms:
        yield kms


@asynccontextmanager
async def opened(config: VaultConfig, *, mount: str = MOUNT) -> AsyncIterator[VaultKms]:
    kms = VaultKms(config, mount=mount, default_key="one")
    try:
        yield kms
    finally:
        await kms.aclose()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():
            await asyncio.sleep(0.05)


async def refuses(kms: VaultKms, error: type[Retry | Reject]) -> str:
    """Ask for a wrapping, which must fail; return the message, which must be free of secrets."""
    with pytest.raises(error) as refused:
        await kms.wrap("one", SecretBytes(b"k" * 32), CONTEXT)
    message = str(refused.value)
    for secret in ("contract-root", "wrong-token", "kkkk", "a2tr", "permission", "errors"):
        assert secret not in message
    return message


# The transit engine.


async def test_rotation_rewraps_and_retires_versions(bao: BaoWorld, vault: VaultKms) -> None:
    name, key = await bao.make_key(), random_secret()
    old = await vault.wrap(name, key, CONTEXT)
    await bao.rotate(name)
    new = await vault.rewrap(name, old.data, CONTEXT)
    assert (old.version, new.version) == ("v1", "v2")
    await bao.api("POST", f"transit/keys/{name}/config", min_decryption_version=2)
    described = await vault.describe(name)
    assert (described.version, described.min_version) == ("v2", "v2")
    for use in (vault.unwrap, vault.rewrap):
        with pytest.raises(KmsKeyGone):
            await use(name, old.data, CONTEXT)
    assert await vault.unwrap(name, new.data, CONTEXT) == key


async def test_wrapping_never_creates_a_key(vault: VaultKms) -> None:
    for _ in range(2):
        with pytest.raises(KmsKeyGone):
            await vault.wrap("typo", random_secret(), CONTEXT)
    with pytest.raises(KmsKeyGone):
        await vault.describe("typo")


async def test_a_key_that_ignores_the_context_is_refused(bao: BaoWorld, vault: VaultKms) -> None:
    await bao.api("POST", "transit/keys/plain")
    assert not (await vault.describe("plain")).binds_context
    with pytest.raises(Reject, match="derived=true") as refused:
        await vault.wrap("plain", random_secret(), CONTEXT)
    assert refused.value.code is ErrorCode.UNSUPPORTED


async def test_a_missing_mount_is_unavailable(bao: BaoWorld) -> None:
    async with opened(bao.config, mount="elsewhere") as kms:
        with pytest.raises(KmsUnavailable, match="mount"):
            await kms.unwrap("one", b"vault:v1:AAAA", CONTEXT)


async def test_verification_is_off_only_when_asked(bao: BaoWorld) -> None:
    async with opened(replace(bao.config, ca_file=None)) as kms:
        assert "TLS" in await refuses(kms, KmsUnavailable)
    async with opened(replace(bao.config, ca_file=None, tls_verify=False)) as kms:
        assert (await kms.describe("one")).binds_context


# Policies.


async def test_the_key_services_policy_suffices_and_allows_no_more(bao: BaoWorld) -> None:
    await bao.api("POST", "auth/token/create", id="limited", policies=["one"])
    async with opened(replace(bao.config, token="limited")) as kms:
        key = random_secret()
        wrapped = await kms.wrap("one", key, CONTEXT)
        again = await kms.rewrap("one", wrapped.data, CONTEXT)
        assert await kms.unwrap("one", again.data, CONTEXT) == key
        for ask in (
            kms.wrap("two", key, CONTEXT),
            kms.unwrap("two", wrapped.data, CONTEXT),
            kms.rewrap("two", wrapped.data, CONTEXT),
            kms.describe("two"),
        ):
            with pytest.raises(KmsDenied):
                await ask


async def test_the_decrypt_only_policy_opens_and_makes_nothing(
    bao: BaoWorld, vault: VaultKms
) -> None:
    rules = policy("key-service-decrypt-only", key="one")
    await bao.api("PUT", "sys/policies/acl/decrypt-only", policy=rules)
    await bao.api("POST", "auth/token/create", id="opener", policies=["decrypt-only"])
    key = random_secret()
    wrapped = await vault.wrap("one", key, CONTEXT)
    async with opened(replace(bao.config, token="opener")) as kms:
        assert await kms.unwrap("one", wrapped.data, CONTEXT) == key
        assert (await kms.describe("one")).binds_context
        assert "403" in await refuses(kms, KmsDenied)
        with pytest.raises(KmsDenied):
            await kms.rewrap("one", wrapped.data, CONTEXT)


# Tokens and logins.


async def test_a_refused_token_is_retried_not_dead_lettered(bao: BaoWorld) -> None:
    async with opened(replace(bao.config, token="wrong-token")) as kms:
        assert "403" in await refuses(kms, KmsDenied)


async def test_a_renewed_token_file_is_used(bao: BaoWorld, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("wrong-token")
    async with opened(replace(bao.config, token=None, token_file=file)) as kms:
        with pytest.raises(KmsDenied):
            await kms.describe("one")
        file.write_text(f"{kms_bao_world.ROOT}\n")
        assert (await kms.describe("one")).key_id == "one"
        file.unlink()
        with pytest.raises(KmsDenied, match="cannot be read"):
            await kms.describe("one")


async def lookup(bao: BaoWorld, token: str) -> dict[str, Any]:
    return dict((await bao.api("POST", "auth/token/lookup", token=token))["data"])


def held(kms: VaultKms) -> str:
    token = kms._tokens._token
    assert token is not None
    return token


async def outlives(bao: BaoWorld, token: str) -> bool:
    """Whether a token of an hour was renewed, more than once, and ends later than it was to."""
    data = await lookup(bao, token)
    renewed_s, made_s = int(data.get("last_renewal_time") or 0), int(data["creation_time"])
    ends_s = datetime.fromisoformat(data["expire_time"]).timestamp()
    return renewed_s >= made_s + 2 and ends_s > made_s + 3600 + 1


async def test_a_given_token_is_renewed_until_it_cannot_be(
    bao: BaoWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_token, "_RENEW_AFTER", SOON)
    await bao.api("POST", "auth/token/create", id="periodic", policies=["one"], period="1h")
    async with opened(replace(bao.config, token="periodic")) as kms:
        await kms.describe("one")
        await eventually(lambda: outlives(bao, "periodic"))
        assert (await kms.describe("one")).key_id == "one"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"policies": ["one"], "ttl": "1h", "renewable": False}, "ends soon for good"),
        # The limit on all tokens is lowered meanwhile: renewed, it lives for ten minutes.
        ({"policies": ["one"], "ttl": "1h"}, "ends soon for good"),
        ({"policies": ["none"], "no_default_policy": True, "ttl": "1h"}, "cannot be renewed"),
    ],
)
async def test_a_token_that_will_end_is_a_warning(
    bao: BaoWorld, how: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_token, "_RENEW_AFTER", SOON)
    made = await bao.api("POST", "auth/token/create", **how)
    token = made["auth"]["client_token"]
    await bao.api("POST", "sys/auth/token/tune", max_lease_ttl="10m")
    try:
        with capture_logs() as logs:
            async with opened(replace(bao.config, token=token)) as kms:
                with_answer = asyncio.gather(kms.describe("one"), return_exceptions=True)
                await with_answer
                keeper = kms._tokens._keeper
                assert keeper is not None
                await asyncio.wait_for(keeper, PATIENCE_S)
    finally:
        # As the system has it.
        await bao.api("POST", "sys/auth/token/tune", max_lease_ttl="0")
    assert any(says in line["event"] for line in logs)
    assert token not in str(logs)


async def approle(bao: BaoWorld, name: str, **settings: Any) -> tuple[VaultLogin, str]:
    """Make a role; return how to log in with it, and the path of its settings."""
    path = f"auth/approle/role/{name}"
    await bao.api("POST", path, token_policies=["one"], **settings)
    role_id = (await bao.api("GET", f"{path}/role-id"))["data"]["role_id"]
    secret = (await bao.api("POST", f"{path}/secret-id"))["data"]["secret_id"]
    return VaultLogin(method="approle", role=role_id, mount="approle", secret=secret), path


def logging_in(bao: BaoWorld, login: VaultLogin) -> VaultConfig:
    return replace(bao.config, token=None, login=login)


async def test_an_approle_logs_in_once_and_again_when_its_token_was_revoked(bao: BaoWorld) -> None:
    login, _ = await approle(bao, "revoked")
    async with opened(logging_in(bao, login)) as kms:
        key = random_secret()
        wrapped = await kms.wrap("one", key, CONTEXT)
        first = held(kms)
        assert await kms.unwrap("one", wrapped.data, CONTEXT) == key
        assert held(kms) == first
        await bao.api("POST", "auth/token/revoke", token=first)

        async def opens() -> bool:
            try:
                return await kms.unwrap("one", wrapped.data, CONTEXT) == key
            except KmsDenied:
                # A token as fresh as this is not suspected to have ended.
                return False

        await eventually(opens)
        assert held(kms) != first
        assert login.secret is not None
        assert login.secret not in f"{kms!r} {login!r} {kms._tokens._config!r}"


async def test_a_policy_that_refuses_does_not_make_it_log_in_for_ever(
    bao: BaoWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The token stays young.
    monkeypatch.setattr(vault_token, "_SETTLE_S", PATIENCE_S)
    login, _ = await approle(bao, "refused")
    async with opened(logging_in(bao, login)) as kms:
        await kms.describe("one")
        first = held(kms)
        for _ in range(5):
            with pytest.raises(KmsDenied):
                await kms.describe("two")
        assert held(kms) == first


async def test_an_approle_logs_in_again_when_its_token_has_ended(bao: BaoWorld) -> None:
    login, _ = await approle(bao, "short", token_ttl="2s", token_max_ttl="2s")
    async with opened(logging_in(bao, login)) as kms:
        await kms.describe("one")
        first = held(kms)

        async def ended() -> bool:
            return time.monotonic() >= kms._tokens._ends_s

        await eventually(ended)
        assert (await kms.describe("one")).key_id == "one"
        assert held(kms) != first


async def test_a_secret_id_for_one_use_lasts_by_renewal(
    bao: BaoWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_token, "_RENEW_AFTER", SOON)
    # As deploy/vault/README.md has it.
    login, _ = await approle(
        bao, "once", secret_id_num_uses=1, token_period="1h", token_no_default_policy=True
    )
    async with opened(logging_in(bao, login)) as kms:
        await kms.describe("one")
        first = held(kms)
        await eventually(lambda: outlives(bao, first))
        assert (await kms.describe("one")).key_id == "one"
        assert held(kms) == first


async def test_a_secret_id_may_be_in_a_file_that_is_replaced(bao: BaoWorld, tmp_path: Path) -> None:
    login, path = await approle(bao, "filed")
    file = tmp_path / "secret-id"
    file.write_text("00000000-0000-0000-0000-000000000000")
    async with opened(logging_in(bao, replace(login, secret=None, secret_file=file))) as kms:
        with pytest.raises(KmsDenied, match="login") as refused:
            await kms.describe("one")
        assert login.role not in str(refused.value)
        file.write_text((await bao.api("POST", f"{path}/secret-id"))["data"]["secret_id"] + "\n")
        assert (await kms.describe("one")).key_id == "one"
    async with opened(
        logging_in(bao, replace(login, secret=None, secret_file=tmp_path / "none"))
    ) as kms:
        with pytest.raises(KmsDenied, match="cannot be read"):
            await kms.describe("one")


def signed_jwt(key: rsa.RSAPrivateKey, **claims: Any) -> str:
    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = encoded(b'{"alg":"RS256","typ":"JWT"}')
    signed = f"{head}.{encoded(json.dumps(claims).encode())}"
    signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{encoded(signature)}"


async def test_a_jwt_logs_in(bao: BaoWorld, tmp_path: Path) -> None:
    issuer = await asyncio.to_thread(rsa.generate_private_key, 65537, 2048)
    public = issuer.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    await bao.api("POST", "auth/jwt/config", jwt_validation_pubkeys=[public.decode()])
    await bao.api(
        "POST",
        "auth/jwt/role/keys",
        role_type="jwt",
        bound_audiences=["vault"],
        user_claim="sub",
        token_policies=["one"],
    )
    now_s = int(time.time())
    file = tmp_path / "jwt"
    file.write_text(signed_jwt(issuer, sub="keys", aud="other", exp=now_s + 600, iat=now_s))
    login = VaultLogin(method="jwt", role="keys", mount="jwt", secret_file=file)
    async with opened(logging_in(bao, login)) as kms:
        with pytest.raises(KmsDenied, match="login"):
            await kms.describe("one")
        file.write_text(signed_jwt(issuer, sub="keys", aud="vault", exp=now_s + 600, iat=now_s))
        key = random_secret()
        wrapped = await kms.wrap("one", key, CONTEXT)
        assert await kms.unwrap("one", wrapped.data, CONTEXT) == key


async def test_a_login_that_is_not_mounted_is_told(bao: BaoWorld, tmp_path: Path) -> None:
    login = VaultLogin(method="approle", role="r", mount="nowhere", secret="s")
    async with opened(logging_in(bao, login)) as kms:
        with pytest.raises(KmsDenied, match="mount"):
            await kms.describe("one")


# A server that is stopped and started, as the local stack starts it.


async def running(server: Server) -> Child:
    child = Child(server.command)
    async with asyncio.timeout(PATIENCE_S):
        await until(server.ready)
    return child


async def ended(child: Child, number: signal.Signals) -> None:
    child.signal(number)
    await asyncio.wait_for(child.wait(), PATIENCE_S)


async def test_a_restarted_server_is_used_again_by_the_same_client(tmp_path: Path) -> None:
    ports = choose(openbao.PORTS, {})
    server = openbao.bao_server(tmp_path, ports)
    child = await running(server)
    try:
        variables = await openbao.key_service_env(tmp_path, ports)
        config = VaultConfig(
            address=variables["VAULT_ADDR"], token=variables["VAULT_TOKEN"], timeout_s=PATIENCE_S
        )
        kms = VaultKms(config, mount=openbao.MOUNT, default_key=openbao.KEY)
        key = random_secret()
        wrapped = await kms.wrap(openbao.KEY, key, CONTEXT)
        for number in (signal.SIGTERM, signal.SIGKILL):
            await ended(child, number)
            with pytest.raises(KmsUnavailable, match="cannot be reached"):
                await kms.unwrap(openbao.KEY, wrapped.data, CONTEXT)
            child = await running(server)
            assert await kms.unwrap(openbao.KEY, wrapped.data, CONTEXT) == key
            assert (await kms.rewrap(openbao.KEY, wrapped.data, CONTEXT)).version == "v1"
        await kms.aclose()
    finally:
        await ended(child, signal.SIGKILL)
