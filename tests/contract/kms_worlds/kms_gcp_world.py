"""A small Google Cloud KMS over gRPC and TLS: AES-GCM, CRC32C checked both ways, IAM by a JWT."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google.auth.jwt
import google_crc32c
import grpc
import grpc.aio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.cloud import kms_v1
from kms_tls import Certificates, make_certificates
from kms_world import PATIENCE_S, Fault, World

from workers.kms.gcp import GcpConfig, GcpKms
from workers.local import ports

RING = "projects/acme-1/locations/europe-west1/keyRings/search"
SERVICE = "google.cloud.kms.v1.KeyManagementService"
ACCOUNT = "keys@acme-1.iam.gserviceaccount.com"
_State = kms_v1.CryptoKeyVersion.CryptoKeyVersionState
_Status = grpc.StatusCode


@dataclass
class FakeKey:
    """Versions of one key, from 1; the last one is the primary."""

    versions: list[bytes] = field(default_factory=list)
    state: Any = _State.ENABLED


class GcpWorld(World):
    provider = "gcp"
    one, two = "one", "two"
    faults = frozenset(Fault)
    verifies_tls = True
    has_versions = True
    can_disable = True

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self._certificates = certificates
        self.server: grpc.aio.Server | None = None
        # Of those that no connection takes: it is left and taken again.
        self.port = ports.draw()
        self.keys: dict[str, FakeKey] = {}
        self._fault: Fault | None = None
        self._thawed = asyncio.Event()
        # Changes an answer before it is sent: a message changed on the way.
        self.tamper: Callable[[Any], None] = lambda answer: None
        # Changes a request before it is read.
        self.garble: Callable[[Any], None] = lambda request: None
        self.credentials = folder / "service-account.json"
        self._account = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.secrets = (self._write_credentials(),)

    def _write_credentials(self) -> str:
        pem = self._account.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
        self.credentials.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "client_email": ACCOUNT,
                    "private_key_id": "1",
                    "private_key": pem,
                    "token_uri": "https://127.0.0.1:1/never-asked",
                }
            )
        )
        return pem.splitlines()[3]

    def open(self, *, timeout_s: float = PATIENCE_S, trusted: bool = True) -> GcpKms:
        config = GcpConfig(
            ring=RING,
            endpoint=f"localhost:{self.port}",
            ca_file=self._certificates.ca if trusted else None,
            credentials_file=self.credentials,
            timeout_s=timeout_s,
        )
        return GcpKms(config, default_key=self.one)

    async def listen(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            "Encrypt": self._handler(self._encrypt, kms_v1.EncryptRequest, kms_v1.EncryptResponse),
            "Decrypt": self._handler(self._decrypt, kms_v1.DecryptRequest, kms_v1.DecryptResponse),
            "GetCryptoKey": self._handler(self._get, kms_v1.GetCryptoKeyRequest, kms_v1.CryptoKey),
            "ListCryptoKeyVersions": self._handler(
                self._list,
                kms_v1.ListCryptoKeyVersionsRequest,
                kms_v1.ListCryptoKeyVersionsResponse,
            ),
        }
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        pair = (self._certificates.key.read_bytes(), self._certificates.certificate.read_bytes())
        self.server.add_secure_port(f"127.0.0.1:{self.port}", grpc.ssl_server_credentials([pair]))
        await self.server.start()

    def _handler(
        self, answer: Callable[[Any, Any], Awaitable[Any]], request: Any, response: Any
    ) -> Any:
        async def handle(asked: Any, context: grpc.aio.ServicerContext) -> Any:
            self.garble(asked)
            await self._admit(context)
            if self._fault is Fault.FOREIGN:
                return response()
            made = await answer(asked, context)
            self.tamper(made)
            return made

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=request.deserialize,
            response_serializer=response.serialize,
        )

    async def _admit(self, context: grpc.aio.ServicerContext) -> None:
        if self._fault is Fault.FROZEN:
            await self._thawed.wait()
        codes = {
            Fault.THROTTLED: _Status.RESOURCE_EXHAUSTED,
            Fault.BROKEN: _Status.INTERNAL,
            Fault.DENIED: _Status.PERMISSION_DENIED,
        }
        if self._fault in codes:
            await context.abort(codes[self._fault], "words of the server")
        metadata = dict(context.invocation_metadata() or ())
        public = self._account.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        try:
            claims = google.auth.jwt.decode(token, certs=public)
        except (ValueError, google.auth.exceptions.GoogleAuthError):
            claims = {}
        if claims.get("iss") != ACCOUNT:
            await context.abort(_Status.UNAUTHENTICATED, "words of the server")

    async def _key(self, name: str, context: Any, *, used: bool = True) -> FakeKey:
        ring, _, key_id = name.partition("/cryptoKeys/")
        key = self.keys.get(key_id)
        if ring != RING or key is None:
            await context.abort(_Status.NOT_FOUND, f"CryptoKey {name} not found.")
            raise AssertionError
        if used and key.state is not _State.ENABLED:
            await context.abort(_Status.FAILED_PRECONDITION, f"{name} is not enabled")
        return key

    async def _encrypt(self, asked: kms_v1.EncryptRequest, context: Any) -> kms_v1.EncryptResponse:
        key = await self._key(asked.name, context)
        await _check(context, "plaintext", asked.plaintext, asked.plaintext_crc32c)
        bound = asked.additional_authenticated_data
        await _check(context, "aad", bound, asked.additional_authenticated_data_crc32c)
        number, nonce = len(key.versions), os.urandom(12)
        sealed = AESGCM(key.versions[-1]).encrypt(nonce, asked.plaintext, bound)
        ciphertext = number.to_bytes(2, "big") + nonce + sealed
        return kms_v1.EncryptResponse(
            name=f"{asked.name}/cryptoKeyVersions/{number}",
            ciphertext=ciphertext,
            ciphertext_crc32c=_crc32c(ciphertext),
            verified_plaintext_crc32c=True,
            verified_additional_authenticated_data_crc32c=True,
        )

    async def _decrypt(self, asked: kms_v1.DecryptRequest, context: Any) -> kms_v1.DecryptResponse:
        key = await self._key(asked.name, context)
        data = asked.ciphertext
        await _check(context, "ciphertext", data, asked.ciphertext_crc32c)
        bound = asked.additional_authenticated_data
        await _check(context, "aad", bound, asked.additional_authenticated_data_crc32c)
        number = int.from_bytes(data[:2], "big")
        try:
            if not 0 < number <= len(key.versions):
                raise InvalidTag
            plaintext = AESGCM(key.versions[number - 1]).decrypt(data[2:14], data[14:], bound)
        except (InvalidTag, ValueError):
            await context.abort(_Status.INVALID_ARGUMENT, "Decryption failed")
            raise
        return kms_v1.DecryptResponse(plaintext=plaintext, plaintext_crc32c=_crc32c(plaintext))

    async def _get(self, asked: kms_v1.GetCryptoKeyRequest, context: Any) -> kms_v1.CryptoKey:
        key = await self._key(asked.name, context, used=False)
        return kms_v1.CryptoKey(
            name=asked.name, primary=_described(asked.name, key, len(key.versions))
        )

    async def _list(
        self, asked: kms_v1.ListCryptoKeyVersionsRequest, context: Any
    ) -> kms_v1.ListCryptoKeyVersionsResponse:
        key = await self._key(asked.parent, context, used=False)
        assert asked.filter == "state=ENABLED"
        numbers = range(len(key.versions), 0, -1)
        return kms_v1.ListCryptoKeyVersionsResponse(
            crypto_key_versions=[_described(asked.parent, key, number) for number in numbers]
        )

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[None]:
        if fault is Fault.UNREACHABLE:
            await self.stop()
        self._fault = fault
        self._thawed.clear()
        try:
            yield
        finally:
            self._fault = None
            self._thawed.set()
            if fault is Fault.UNREACHABLE:
                await self.listen()

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.stop(None)

    async def make_key(self) -> str:
        name = f"key-{len(self.keys)}"
        self.keys[name] = FakeKey([AESGCM.generate_key(256)])
        return name

    async def rotate(self, key_id: str) -> None:
        self.keys[key_id].versions.append(AESGCM.generate_key(256))

    async def disable(self, key_id: str) -> None:
        self.keys[key_id].state = _State.DISABLED

    async def enable(self, key_id: str) -> None:
        self.keys[key_id].state = _State.ENABLED

    async def lose(self, key_id: str) -> None:
        del self.keys[key_id]


def _crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


async def _check(context: Any, what: str, data: bytes, crc32c: int | None) -> None:
    if crc32c != _crc32c(data):
        await context.abort(
            _Status.INVALID_ARGUMENT, f"The checksum in field {what}_crc32c did not match the data"
        )


def _described(name: str, key: FakeKey, number: int) -> kms_v1.CryptoKeyVersion:
    return kms_v1.CryptoKeyVersion(name=f"{name}/cryptoKeyVersions/{number}", state=key.state)


@asynccontextmanager
async def start(folder: Path) -> AsyncIterator[GcpWorld]:
    certificates = make_certificates(folder / "gcp")
    world = GcpWorld(folder / "gcp", certificates)
    for name in (world.one, world.two):
        world.keys[name] = FakeKey([AESGCM.generate_key(256)])
    await world.listen()
    try:
        yield world
    finally:
        await world.stop()
