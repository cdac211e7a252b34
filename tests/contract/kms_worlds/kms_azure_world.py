"""A small Azure Key Vault over TLS: challenge, bearer token, versions, RSA-OAEP-256 and A256KW."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from azure.core.credentials import AccessToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_wrap,
)
from kms_tls import Certificates, TlsServer, make_certificates
from kms_world import PATIENCE_S, Fault, World

from workers.kms.azure import AzureConfig, AzureKms

HOST = "unit.vault.azure.net"
TOKEN = "azure-bearer-token-of-the-tests"
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_FAR_S = 4_000_000_000


class StaticCredential:
    """A credential that has its token already."""

    def __init__(self) -> None:
        self.scopes: set[str] = set()

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes |= set(scopes)
        return AccessToken(TOKEN, _FAR_S)

    async def close(self) -> None:
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


@dataclass
class FakeKey:
    """Versions of one key by their id, in order; the last one is the current one."""

    versions: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=lambda: {"enabled": True})
    kty: str = "RSA"


class AzureWorld(World):
    provider = "azure"
    one, two = "one", "two"
    secrets = (TOKEN,)
    faults = frozenset(Fault)
    verifies_tls = True
    has_versions = True
    can_disable = True

    def __init__(self, kty: str, certificates: Certificates) -> None:
        app = web.Application()
        app.router.add_get("/keys/{name}", self._get)
        app.router.add_post("/keys/{name}/{version}/{verb}", self._operate)
        app.middlewares.append(self._admit)
        self._certificates = certificates
        self.server = TlsServer(app, certificates)
        self.kty = kty
        self.keys: dict[str, FakeKey] = {}
        self.served: list[str] = []
        self.credential = StaticCredential()
        self.token = TOKEN
        self._fault: Fault | None = None
        self._thawed = asyncio.Event()

    def open(self, *, timeout_s: float = PATIENCE_S, trusted: bool = True) -> AzureKms:
        return self.open_as(self.credential, timeout_s=timeout_s, trusted=trusted)

    def open_as(
        self, credential: Any, *, timeout_s: float = PATIENCE_S, trusted: bool = True
    ) -> AzureKms:
        config = AzureConfig(
            host=HOST,
            endpoint=f"127.0.0.1:{self.server.port}",
            ca_file=self._certificates.ca if trusted else None,
            timeout_s=timeout_s,
        )
        return AzureKms(config, default_key=self.one, credential=credential)

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.host == f"{HOST}:{self.server.port}"
        assert request.query["api-version"]
        if self._fault is Fault.FROZEN:
            await self._thawed.wait()
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            # A request without a token has no body: nothing is told to who only asks for one.
            assert "Authorization" in request.headers or not await request.read()
            # The library sends its token only where vault and resource are of one domain and port.
            challenge = (
                'Bearer authorization="https://login.microsoftonline.com/tenant",'
                f' resource="https://vault.azure.net:{self.server.port}"'
            )
            answer = _error(401, "Unauthorized")
            answer.headers["WWW-Authenticate"] = challenge
            return answer
        match self._fault:
            case Fault.THROTTLED:
                return _error(429, "Throttled")
            case Fault.BROKEN:
                return _error(500, "InternalServerError")
            case Fault.DENIED:
                return _error(403, "Forbidden", "AccessDenied")
            case Fault.FOREIGN:
                return web.json_response({"hello": "world"})
        self.served.append(f"{request.method} {request.path}")
        return await handler(request)

    async def _get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        key = self.keys.get(name)
        if key is None:
            return _error(404, "KeyNotFound")
        if not key.attributes["enabled"]:
            return _error(403, "Forbidden", "KeyDisabled")
        body: dict[str, Any] = {"kid": self._kid(name, list(key.versions)[-1]), "kty": key.kty}
        return web.json_response({"key": body, "attributes": key.attributes})

    async def _operate(self, request: web.Request) -> web.Response:
        name, version, verb = (request.match_info[part] for part in ("name", "version", "verb"))
        key = self.keys.get(name)
        if key is None or version not in key.versions:
            return _error(404, "KeyNotFound")
        if not key.attributes["enabled"]:
            return _error(403, "Forbidden", "KeyDisabled")
        body = await request.json()
        if body["alg"] != ("A256KW" if key.kty == "oct-HSM" else "RSA-OAEP-256"):
            return _error(400, "BadParameter")
        value = base64.urlsafe_b64decode(body["value"] + "==")
        try:
            made = _apply(key.versions[version], verb, value)
        except (ValueError, InvalidUnwrap):
            return _error(400, "BadParameter")
        text = base64.urlsafe_b64encode(made).rstrip(b"=").decode()
        return web.json_response({"kid": self._kid(name, version), "value": text})

    def _kid(self, name: str, version: str) -> str:
        return f"https://{HOST}/keys/{name}/{version}"

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[None]:
        if fault is Fault.UNREACHABLE:
            await self.server.stop_listening()
        self._fault = fault
        self._thawed.clear()
        try:
            yield
        finally:
            self._fault = None
            self._thawed.set()
            if fault is Fault.UNREACHABLE:
                await self.server.start()

    async def make_key(self) -> str:
        name = f"key-{len(self.keys)}"
        await self._add(name)
        return name

    async def _add(self, name: str) -> None:
        self.keys[name] = FakeKey(kty=self.kty)
        await self.rotate(name)

    async def rotate(self, key_id: str) -> None:
        if self.keys[key_id].kty == "oct-HSM":
            made: Any = os.urandom(32)
        else:
            made = await asyncio.to_thread(rsa.generate_private_key, 65537, 2048)
        self.keys[key_id].versions[secrets.token_hex(16)] = made

    async def disable(self, key_id: str) -> None:
        self.keys[key_id].attributes["enabled"] = False

    async def enable(self, key_id: str) -> None:
        self.keys[key_id].attributes["enabled"] = True

    async def lose(self, key_id: str) -> None:
        del self.keys[key_id]


def _apply(key: Any, verb: str, value: bytes) -> bytes:
    if isinstance(key, bytes):
        return aes_key_wrap(key, value) if verb == "wrapkey" else aes_key_unwrap(key, value)
    if verb == "wrapkey":
        return bytes(key.public_key().encrypt(value, _OAEP))
    return bytes(key.decrypt(value, _OAEP))


def _error(status: int, code: str, inner: str = "") -> web.Response:
    error: dict[str, Any] = {"code": code, "message": "words of the server"}
    if inner:
        error["innererror"] = {"code": inner}
    return web.json_response({"error": error}, status=status)


@asynccontextmanager
async def start(folder: Path, kty: str) -> AsyncIterator[AzureWorld]:
    world = AzureWorld(kty, make_certificates(folder / f"azure-{kty}", HOST))
    for name in (world.one, world.two):
        await world._add(name)
    await world.server.start()
    try:
        yield world
    finally:
        await world.server.close()
