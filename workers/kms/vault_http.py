"""HTTP to Vault or OpenBao: TLS, deadlines, no redirects; answers are given back unread.

A call has a connection of its own, no proxy and no cookie. The copies that the HTTP stack makes of
a request and an answer cannot be wiped.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog

from workers.kms.base import DEADLINE_S
from workers.kms.deadline import deadline
from workers.kms.errors import (
    KmsDenied,
    KmsUnavailable,
    denied,
    foreign_answer,
    misconfigured,
    unavailable,
    unreachable,
)

_MAX_ANSWER_BYTES = 256 * 1024
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class VaultLogin:
    """How to log in for a token.

    Attributes:
        method: `approle`, or `jwt` (also Kubernetes, whose login is the same).
        role: AppRole's role id, or the name of the role for a JWT.
        mount: where the auth method is mounted.
        secret: AppRole's secret id; `secret_file` outranks it.
        secret_file: file with the secret id or the JWT, read at every login.
    """

    method: Literal["approle", "jwt"]
    role: str
    mount: str
    secret: str | None = field(default=None, repr=False)
    secret_file: Path | None = None


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """How to reach Vault or OpenBao.

    Attributes:
        address: URL; `https`, or `http` to this machine.
        token: the token itself; renewed while it can be.
        token_file: file with the token, read for every call: an agent renews it. Outranks `token`.
        login: instead of both.
        namespace: namespace, where the server has them.
        ca_file: CA certificates (PEM) the server is checked against; None: the system's.
        client_cert: client certificate (PEM) for mutual TLS.
        client_key: its private key (PEM).
        tls_verify: False accepts any certificate and `http` to any host: for tests only.
        timeout_s: seconds one call may take.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    login: VaultLogin | None = None
    namespace: str | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    tls_verify: bool = True
    timeout_s: float = DEADLINE_S


class Answer(NamedTuple):
    """What the server said; the body may hold a key: whoever reads it wipes it."""

    status: int
    body: bytearray


class VaultHttp:
    """Asks a server; opened on first use."""

    def __init__(self, config: VaultConfig) -> None:
        """Check address and TLS files.

        Raises:
            Fatal: A bad address, or TLS files that cannot be loaded.
        """
        self._config = config
        self._ssl = _tls(config)
        self._root = f"{config.address.rstrip('/')}/v1"
        self._session: aiohttp.ClientSession | None = None
        if not config.tls_verify:
            log.warning("Vault's certificate is not verified: for tests only")

    @property
    def root(self) -> str:
        """The URL that paths are appended to."""
        return self._root

    async def ask(
        self, method: str, path: str, *, token: str | None, body: bytes | bytearray | None = None
    ) -> Answer:
        """Send one request and return the answer, whatever its status.

        Raises:
            KmsUnavailable: The server is not reached, too slow, or says too much.
        """
        headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if token is not None:
            headers["X-Vault-Token"] = token
        if self._config.namespace:
            headers["X-Vault-Namespace"] = self._config.namespace
        answer = bytearray()
        try:
            async with (
                deadline(self._config.timeout_s),
                self._opened().request(
                    method,
                    f"{self._root}/{path}",
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                ) as response,
            ):
                async for part in response.content.iter_any():
                    answer += part
                    if len(answer) > _MAX_ANSWER_BYTES:
                        raise foreign_answer()
                return Answer(response.status, answer)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            # Not chained: the client's exceptions can carry the request with its token.
            raise unreachable(exc) from None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Calls are rare (keys are cached): a connection each, so none is ever stale.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


def parse(answer: bytearray, kind: type[_T]) -> _T:
    """Read the body of an answer.

    Raises:
        KmsUnavailable: It is not of this shape.
    """
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise foreign_answer() from None


def refusal(status: int) -> KmsUnavailable | KmsDenied:
    """Say what a status means that no caller has a use for."""
    if status in (401, 403):
        return denied(f"the KMS refuses us ({status}): renew the token or check its policy")
    if status == 404:
        return unavailable("the KMS has no transit engine at this mount (404)")
    if status == 503:
        return unavailable("the KMS is sealed or in maintenance (503): unseal it")
    return unavailable(f"the KMS answers {status}")


def _tls(config: VaultConfig) -> ssl.SSLContext | bool:
    url = urlsplit(config.address)
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
        raise misconfigured("the address of Vault must be https://HOST[:PORT]")
    if url.scheme == "http":
        if config.tls_verify and url.hostname not in _LOOPBACK:
            raise misconfigured("plain http to Vault on another machine: use https")
        return True
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.client_cert is not None:
            context.load_cert_chain(config.client_cert, config.client_key)
    except OSError as exc:
        raise misconfigured("the TLS files for Vault cannot be loaded") from exc
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
