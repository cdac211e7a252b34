"""AWS KMS by moto's server, behind a proxy over TLS that does what moto does not.

moto keeps keys and does the encryption, with the context. It enforces neither key states nor
credentials, and it says AccessDenied where AWS says InvalidCiphertext or IncorrectKey: the proxy
puts that right, as AWS documents it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from kms_tls import Certificates, TlsServer, make_certificates
from kms_world import PATIENCE_S, Fault, World

from workers.kms.aws import AwsConfig, AwsKms

REGION = "eu-west-1"
ACCESS_KEY, SECRET_KEY = "AKIATESTTESTTESTTEST", "aws-secret-access-key-of-the-tests"
_SCOPE = f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/{REGION}/kms/aws4_request"
_UUID_BYTES = 36


class AwsWorld(World):
    provider = "aws"
    secrets = (SECRET_KEY,)
    faults = frozenset(Fault)
    verifies_tls = True
    can_disable = True

    def __init__(self, moto: str, certificates: Certificates) -> None:
        app = web.Application()
        app.router.add_post("/", self._answer)
        self._moto = moto
        self._certificates = certificates
        self.server = TlsServer(app, certificates)
        self._fault: Fault | None = None
        self._thawed = asyncio.Event()
        self.states: dict[str, str] = {}
        # (operation, body) of every request that reached moto.
        self.served: list[tuple[str, dict[str, Any]]] = []

    def open(self, *, timeout_s: float = PATIENCE_S, trusted: bool = True) -> AwsKms:
        config = AwsConfig(
            region=REGION,
            endpoint=f"https://127.0.0.1:{self.server.port}",
            ca_file=self._certificates.ca if trusted else None,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            timeout_s=timeout_s,
        )
        return AwsKms(config, default_key=self.one)

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
        made = await self._ask_moto("CreateKey", {})
        return str(made[1]["KeyMetadata"]["KeyId"])

    async def disable(self, key_id: str) -> None:
        self.states[key_id] = "DisabledException"

    async def schedule_deletion(self, key_id: str) -> None:
        self.states[key_id] = "KMSInvalidStateException"

    async def enable(self, key_id: str) -> None:
        del self.states[key_id]

    async def lose(self, key_id: str) -> None:
        self.states[key_id] = "NotFoundException"

    async def _answer(self, request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].removeprefix("TrentService.")
        body = await request.json()
        if self._fault is Fault.FROZEN:
            await self._thawed.wait()
        refused = self._refusal(request, operation, body)
        if refused is not None:
            status, code = refused
            return _json(status, {"__type": code, "message": "words of the server"})
        if self._fault is Fault.FOREIGN:
            return _json(200, {"hello": "world"})
        self.served.append((operation, body))
        status, answer = await self._ask_moto(operation, body)
        return _json(status, answer)

    def _refusal(
        self, request: web.Request, operation: str, body: dict[str, Any]
    ) -> tuple[int, str] | None:
        if not request.headers.get("Authorization", "").startswith(_SCOPE.split("/")[0]):
            return 400, "UnrecognizedClientException"
        match self._fault:
            case Fault.THROTTLED:
                return 400, "ThrottlingException"
            case Fault.BROKEN:
                return 500, "KMSInternalException"
            case Fault.DENIED:
                return 400, "AccessDeniedException"
        key = str(body.get("KeyId") or body.get("SourceKeyId")).rpartition("/")[2]
        if key in self.states:
            code = self.states[key]
            if operation == "DescribeKey" and code != "NotFoundException":
                return None
            return 400, code
        if "CiphertextBlob" in body:
            wrapped_by = base64.b64decode(body["CiphertextBlob"])[:_UUID_BYTES]
            if wrapped_by != key.encode():
                known = wrapped_by in (self.one.encode(), self.two.encode())
                return 400, "IncorrectKeyException" if known else "InvalidCiphertextException"
        return None

    async def _ask_moto(self, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {
            "X-Amz-Target": f"TrentService.{operation}",
            "Authorization": f"{_SCOPE}, SignedHeaders=host, Signature=0",
            "Content-Type": "application/x-amz-json-1.1",
        }
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(self._moto, data=json.dumps(body)) as response,
        ):
            answer = await response.json(content_type=None)
        if operation == "DescribeKey" and body["KeyId"].rpartition("/")[2] in self.states:
            answer["KeyMetadata"]["Enabled"] = False
        return response.status, answer


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(
        status=status, text=json.dumps(body), content_type="application/x-amz-json-1.1"
    )


@asynccontextmanager
async def start(folder: Path) -> AsyncIterator[AwsWorld]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    world = AwsWorld(f"http://{host}:{port}", make_certificates(folder / "aws"))
    try:
        await world.server.start()
        world.one, world.two = await world.make_key(), await world.make_key()
        yield world
    finally:
        await world.server.close()
        moto.stop()
