"""Azure Key Vault and Managed HSM: RSA keys (RSA-OAEP-256) and AES keys of a Managed HSM (A256KW).

Key Vault wraps keys but authenticates no context: `binding` does that, under a carrier key that
Key Vault wraps. A key id is the name of a key in one vault; the version that wrapped stands in the
wrapped key. There is no re-encryption in the vault: `rewrap` opens and wraps under the current
version.

All operations are done by the vault, over the SDK's pipeline (`KeyClient.send_request`), never by
the SDK's `CryptographyClient`: that one wraps on its own where it has the key's public half, and
then sees no disabled key (azure-sdk-for-python issue 45342); and for an AES key of an HSM, whose
bytes it does not get, it draws a random key of its own and wraps under that.

The library is bounded by our deadline, its own retries included. Credentials are what
`DefaultAzureCredential` finds: environment, workload identity, managed identity, command line.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.core.pipeline.transport import AioHttpTransport
from azure.core.rest import HttpRequest
from azure.identity.aio import DefaultAzureCredential
from azure.keyvault.keys.aio import KeyClient

from workers.crypto.secret import SecretBytes, random_secret
from workers.errors import SealstreamError
from workers.kms.base import DEADLINE_S, KeyInfo, Wrapped, check_key_id, malformed_key_id
from workers.kms.binding import KeyVersion, join, open_bound, split
from workers.kms.deadline import deadline
from workers.kms.errors import (
    denied,
    foreign_answer,
    key_disabled,
    key_gone,
    key_unsuitable,
    misconfigured,
    unavailable,
    unreachable,
    wrap_damaged,
)
from workers.kms.quiet import quiet

_KEY_ID = re.compile(r"[A-Za-z0-9-]{1,127}")
_VERSION = re.compile(r"[0-9a-f]{32}")
_HOST = re.compile(r"[a-z0-9][a-z0-9-]{0,62}(\.[a-z0-9][a-z0-9-]{0,62})+")
_VAULT = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]")
_ALGORITHMS = {"RSA": "RSA-OAEP-256", "RSA-HSM": "RSA-OAEP-256", "oct-HSM": "A256KW"}
# AES-KW makes 40 bytes of 32; an RSA key gives as many bytes as its modulus has, 256 or more.
_AES_WRAPPED_BYTES = 40
_MAX_ANSWER_BYTES = 64 * 1024

_Use = Literal["wrap", "open", "look"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AzureConfig:
    """How to reach a vault.

    Attributes:
        host: host name of the vault or HSM, such as `NAME.vault.azure.net`.
        endpoint: HOST or HOST:PORT to connect to instead, for a private link without its own DNS;
            TLS still asks for `host`.
        ca_file: CA certificates (PEM) the vault is checked against; None: the system's.
        timeout_s: seconds one call may take.
    """

    host: str
    endpoint: str | None = None
    ca_file: Path | None = None
    timeout_s: float = DEADLINE_S


class _Attributes(msgspec.Struct):
    enabled: bool = True
    not_before_s: int | None = msgspec.field(default=None, name="nbf")
    expires_s: int | None = msgspec.field(default=None, name="exp")


class _Key(msgspec.Struct):
    kid: str
    kty: str


class _KeyAnswer(msgspec.Struct):
    key: _Key
    attributes: _Attributes


class _ValueAnswer(msgspec.Struct):
    kid: str
    value: str


class _Inner(msgspec.Struct):
    code: str = ""


class _Error(msgspec.Struct):
    code: str = ""
    innererror: _Inner | None = None
    inner_error: _Inner | None = msgspec.field(default=None, name="innerError")


class _ErrorAnswer(msgspec.Struct):
    error: _Error


def parse_location(rest: str) -> tuple[str, str] | None:
    """Split `VAULT/KEY` into host and key id; a VAULT without dots is in the public cloud."""
    vault, _, key = rest.rpartition("/")
    host = f"{vault.lower()}.vault.azure.net" if _VAULT.fullmatch(vault) else vault.lower()
    return (host, key) if _HOST.fullmatch(host) and key else None


class AzureKms:
    """Wraps keys with Azure Key Vault or Managed HSM."""

    name = "azure"

    def __init__(
        self,
        config: AzureConfig,
        *,
        default_key: str,
        credential: AsyncTokenCredential | None = None,
    ) -> None:
        """Check the configuration; connects on first use.

        Args:
            config: which vault.
            default_key: the key that the realm uses.
            credential: who we are (default: `DefaultAzureCredential`); not closed.

        Raises:
            Fatal: The CA file cannot be loaded.
            Reject: INVALID_MESSAGE: `default_key` is no name of a key.
        """
        quiet("azure", "msal", "urllib3")
        self.default_key = _checked_key(default_key)
        self._config = config
        self._ssl = _tls(config.ca_file)
        self._given = credential
        self._own: DefaultAzureCredential | None = None
        self._open_lock = asyncio.Lock()
        self._client: KeyClient | None = None

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        """Wrap `plaintext`: see `Kms.wrap`."""
        _checked_key(key_id)
        async with deadline(self._config.timeout_s):
            return await self._wrap(key_id, plaintext, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        """Open a wrapped key: see `Kms.unwrap`."""
        _checked_key(key_id)
        async with deadline(self._config.timeout_s):
            return await self._unwrap(key_id, wrapped, context)

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        """Open, and wrap under the current version: see `Kms.rewrap`."""
        _checked_key(key_id)
        async with deadline(self._config.timeout_s):
            with await self._unwrap(key_id, wrapped, context) as plaintext:
                return await self._wrap(key_id, plaintext, context)

    async def describe(self, key_id: str) -> KeyInfo:
        """Read the key's current version: see `Kms.describe`.

        The lowest version that opens is not known without the right to list: it is given as the
        current one.
        """
        _checked_key(key_id)
        async with deadline(self._config.timeout_s):
            version, algorithm = await self._current(key_id)
        return KeyInfo(self.name, key_id, version, version, binds_context=bool(algorithm))

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        own, self._own = self._own, None
        if client is not None:
            await client.close()
        if own is not None:
            await own.close()

    def __repr__(self) -> str:
        return f"AzureKms({self._config.host!r})"

    async def _wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        version, algorithm = await self._current(key_id)
        if algorithm is None:
            raise key_unsuitable("the KMS key must be RSA, RSA-HSM or oct-HSM")
        with random_secret() as carrier:
            made = await self._operate("wrap", key_id, version, algorithm, carrier.copy())
            key = KeyVersion(self.name, key_id, version)
            return Wrapped(join(key, carrier, made, plaintext, context), version)

    async def _unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        parts = split(wrapped)
        if not _VERSION.fullmatch(parts.version):
            raise wrap_damaged()
        aes = len(parts.carrier) == _AES_WRAPPED_BYTES
        algorithm = _ALGORITHMS["oct-HSM" if aes else "RSA"]
        opened = await self._operate("open", key_id, parts.version, algorithm, parts.carrier)
        with SecretBytes(opened) as carrier:
            key = KeyVersion(self.name, key_id, parts.version)
            return open_bound(key, carrier, parts.sealed, context)

    async def _current(self, key_id: str) -> tuple[str, str | None]:
        """Return the version of a key that wraps now, and with what; None: it cannot wrap."""
        answer = _parse(await self._send("look", HttpRequest("GET", f"/keys/{key_id}")), _KeyAnswer)
        now_s = time.time()
        attributes = answer.attributes
        if not attributes.enabled:
            raise key_disabled()
        if now_s < (attributes.not_before_s or 0) or now_s >= (attributes.expires_s or now_s + 1):
            raise key_disabled("the KMS key has expired, or is not valid yet")
        return _version(answer.key.kid, key_id), _ALGORITHMS.get(answer.key.kty)

    async def _operate(
        self, use: Literal["wrap", "open"], key_id: str, version: str, algorithm: str, value: bytes
    ) -> bytes:
        verb = "wrapkey" if use == "wrap" else "unwrapkey"
        text = base64.urlsafe_b64encode(value).rstrip(b"=").decode()
        request = HttpRequest(
            "POST", f"/keys/{key_id}/{version}/{verb}", json={"alg": algorithm, "value": text}
        )
        answer = _parse(await self._send(use, request), _ValueAnswer)
        if _version(answer.kid, key_id) != version:
            raise foreign_answer()
        try:
            padded = answer.value + "=" * (-len(answer.value) % 4)
            return base64.b64decode(padded, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise foreign_answer() from None

    async def _send(self, use: _Use, request: HttpRequest) -> bytes:
        try:
            client = await self._open()
            response = await client.send_request(request)
            status, answer = response.status_code, bytes(response.content)
        except SealstreamError:
            raise
        # Not chained: the exceptions carry the request, and its token.
        except ClientAuthenticationError:
            raise denied("Azure refuses us, or has no credentials for us") from None
        except (AzureError, aiohttp.ClientError, OSError, ValueError) as exc:
            raise unreachable(exc) from None
        if status != 200:
            raise _refusal(use, status, answer)
        return answer

    async def _open(self) -> KeyClient:
        async with self._open_lock:
            if self._client is None:
                credential = self._given
                if credential is None:
                    credential = self._own = DefaultAzureCredential()
                timeout_s = self._config.timeout_s
                port = _split(self._config.endpoint)[1] if self._config.endpoint else "443"
                self._client = KeyClient(
                    f"https://{self._config.host}" + (f":{port}" if port != "443" else ""),
                    credential,
                    transport=AioHttpTransport(session=self._session(), session_owner=True),
                    connection_timeout=timeout_s,
                    read_timeout=timeout_s,
                    retry_total=2,
                    retry_backoff_factor=0.1,
                    retry_backoff_max=0.5,
                    timeout=timeout_s,
                    redirect_max=0,
                )
            return self._client

    def _session(self) -> aiohttp.ClientSession:
        endpoint = self._config.endpoint
        resolver = _Fixed(_split(endpoint)[0]) if endpoint else None
        return aiohttp.ClientSession(
            # Calls are rare (keys are cached): a connection each, so none is ever stale.
            connector=aiohttp.TCPConnector(ssl=self._ssl, resolver=resolver, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )


class _Fixed(AbstractResolver):
    """Resolves every name to the addresses of one host."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._inner = DefaultResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = await self._inner.resolve(self._host, port, family)
        # TLS asks for the name that was looked up.
        return [ResolveResult({**one, "hostname": host}) for one in found]

    async def close(self) -> None:
        await self._inner.close()


def _split(endpoint: str) -> tuple[str, str]:
    """Return host and port of HOST or HOST:PORT; an IPv6 address stands in brackets."""
    host, _, port = endpoint.rpartition(":")
    return (host.strip("[]"), port) if host and port.isdecimal() else (endpoint.strip("[]"), "443")


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError:
        raise misconfigured("the CA file for the KMS cannot be loaded") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _checked_key(key_id: str) -> str:
    if not _KEY_ID.fullmatch(check_key_id(key_id)):
        raise malformed_key_id("the name of a Key Vault key has letters, digits and '-'")
    return key_id


def _version(kid: str, key_id: str) -> str:
    rest, _, version = kid.rpartition("/")
    if not rest.endswith(f"/keys/{key_id}") or not _VERSION.fullmatch(version):
        raise foreign_answer()
    return version


def _parse(answer: bytes, kind: type[_T]) -> _T:
    if len(answer) > _MAX_ANSWER_BYTES:
        raise foreign_answer()
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise foreign_answer() from None


def _refusal(use: _Use, status: int, answer: bytes) -> SealstreamError:
    try:
        error = _parse(answer, _ErrorAnswer).error
    except SealstreamError:
        error = _Error()
    inner = (error.innererror or error.inner_error or _Inner()).code
    if status == 404 and error.code == "KeyNotFound":
        return key_gone("the vault has no such key, or no such version of it")
    if status == 409 or inner.startswith("Key") or b"disabled key" in answer:
        return key_disabled()
    if status in (401, 403):
        return denied(f"Key Vault refuses us ({status}): check role, access policy and firewall")
    if status == 400:
        return wrap_damaged() if use == "open" else key_unsuitable()
    return unavailable(f"Key Vault answers {status}")
