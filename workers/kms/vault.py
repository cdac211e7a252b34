"""HashiCorp Vault and OpenBao: the transit engine.

Keys must be made with `derived=true` (`bao write -f transit/keys/NAME derived=true`): transit then
derives the wrapping key from the context, which is how a wrapped key is bound to its index. With
`associated_data` instead, the server-side `rewrap` fails; and a key that is not derived ignores the
context silently, so `wrap` refuses it. `wrap` also refuses a key that does not exist, which transit
would create by itself. The policy of the token:

    path "transit/keys/NAME"    { capabilities = ["read"] }
    path "transit/encrypt/NAME" { capabilities = ["update"] }
    path "transit/decrypt/NAME" { capabilities = ["update"] }
    path "transit/rewrap/NAME"  { capabilities = ["update"] }

A token in a file is read anew for every call, so an agent can renew it. Transit takes keys as
base64 text in JSON: the copies that the HTTP stack makes of a request and an answer cannot be
wiped.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog

from schemas.errors import ErrorCode
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged, Fatal, Reject
from workers.kms.base import DEADLINE_S, KeyInfo, Wrapped, check_key_id, context_bytes
from workers.kms.errors import (
    KmsDenied,
    KmsKeyGone,
    KmsUnavailable,
    denied,
    key_gone,
    unavailable,
)

_MAX_ANSWER_BYTES = 256 * 1024
_MOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,127}")
_WRAPPED = re.compile(rb"[a-z0-9]+:(v[1-9][0-9]{0,8}):[A-Za-z0-9+/=]+")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# Transit says 400 for all of these; only its text tells them apart.
_GONE = (b"key not found", b"(too old)", b"soft-deleted", b"soft deleted")

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """How to reach Vault or OpenBao.

    Attributes:
        address: URL; `https`, or `http` to this machine.
        token: the token itself; `token_file` outranks it.
        token_file: file with the token, read for every call.
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
    namespace: str | None = None
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    tls_verify: bool = True
    timeout_s: float = DEADLINE_S


class _Key(msgspec.Struct):
    latest_version: int
    min_decryption_version: int
    derived: bool
    soft_deleted: bool = False


class _Ciphertext(msgspec.Struct):
    ciphertext: str


class _Plaintext(msgspec.Struct):
    # As `bytes` the base64 is decoded by the parser: no `str` of the key is made.
    plaintext: bytes


class _KeyAnswer(msgspec.Struct):
    data: _Key


class _CiphertextAnswer(msgspec.Struct):
    data: _Ciphertext


class _PlaintextAnswer(msgspec.Struct):
    data: _Plaintext


class VaultKms:
    """Wraps keys with the transit engine of Vault or OpenBao."""

    name = "vault"

    def __init__(self, config: VaultConfig, *, mount: str, default_key: str) -> None:
        """Check the configuration; connects on first use.

        Args:
            config: address, token, TLS.
            mount: where the transit engine is mounted.
            default_key: the key that the realm uses.

        Raises:
            Fatal: No token, a bad address or mount, or TLS files that cannot be loaded.
            Reject: INVALID_MESSAGE: `default_key` is malformed.
        """
        if not _MOUNT.fullmatch(mount) or ".." in mount:
            raise _misconfigured("the mount of the transit engine is malformed")
        if not config.token and not config.token_file:
            raise _misconfigured("Vault needs a token: set VAULT_TOKEN or VAULT_TOKEN_FILE")
        self.default_key = check_key_id(default_key)
        self._config = config
        self._ssl = _tls(config)
        self._root = f"{config.address.rstrip('/')}/v1/{mount.strip('/')}"
        self._session: aiohttp.ClientSession | None = None
        self._bound: set[str] = set()
        if not config.tls_verify:
            log.warning("Vault's certificate is not verified: for tests only")

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        """Wrap `plaintext`: see `Kms.wrap`."""
        if key_id not in self._bound:
            if not (await self.describe(key_id)).binds_context:
                raise Reject(
                    ErrorCode.UNSUPPORTED,
                    "this transit key does not bind a context: make one with derived=true",
                    field="kms.key_id",
                )
            self._bound.add(key_id)
        body = _body(context, b"plaintext", base64.b64encode(plaintext.view()))
        try:
            status, answer = await self._call("POST", "encrypt", key_id, body)
        finally:
            body[:] = bytes(len(body))
        if status == 400:
            self._bound.discard(key_id)
            raise _gone(answer) or Reject(
                ErrorCode.UNSUPPORTED, "the KMS cannot wrap with this key", field="kms.key_id"
            )
        return _wrapped(answer)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        """Open a wrapped key: see `Kms.unwrap`."""
        body = _body(context, b"ciphertext", _checked(wrapped))
        status, answer = await self._call("POST", "decrypt", key_id, body)
        if status == 400:
            raise _gone(answer) or _damaged()
        try:
            return SecretBytes(_parse(answer, _PlaintextAnswer).data.plaintext)
        finally:
            answer[:] = bytes(len(answer))

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        """Rewrap inside the server: see `Kms.rewrap`."""
        body = _body(context, b"ciphertext", _checked(wrapped))
        status, answer = await self._call("POST", "rewrap", key_id, body)
        if status == 400:
            raise _gone(answer) or _damaged()
        return _wrapped(answer)

    async def describe(self, key_id: str) -> KeyInfo:
        """Read the key's versions: see `Kms.describe`."""
        status, answer = await self._call("GET", "keys", key_id)
        if status == 404:
            raise key_gone("the KMS has no such key (or no transit engine at this mount)")
        if status == 400:
            raise unavailable("the KMS does not describe this key")
        key = _parse(answer, _KeyAnswer).data
        if key.soft_deleted:
            raise key_gone("the KMS key was deleted")
        return KeyInfo(
            self.name,
            key_id,
            f"v{key.latest_version}",
            f"v{key.min_decryption_version}",
            binds_context=key.derived,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def __repr__(self) -> str:
        return f"VaultKms({self._root!r})"

    async def _call(
        self, method: str, verb: str, key_id: str, body: bytearray | None = None
    ) -> tuple[int, bytearray]:
        """Return status (200, 400, or 404 of a GET) and body; everything else is raised."""
        url = f"{self._root}/{verb}/{check_key_id(key_id)}"
        headers = {
            "X-Vault-Token": self._token(),
            "X-Vault-Request": "true",
            "Content-Type": "application/json",
        }
        if self._config.namespace:
            headers["X-Vault-Namespace"] = self._config.namespace
        try:
            async with self._open_session().request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
                answer = bytearray()
                async for part in response.content.iter_any():
                    answer += part
                    if len(answer) > _MAX_ANSWER_BYTES:
                        raise unavailable("the KMS gave an answer that is not transit's")
        except TimeoutError:
            raise unavailable(
                f"the KMS did not answer within {self._config.timeout_s:g} s"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            # Not chained: the client's exceptions can carry the request with its token.
            raise unavailable(
                f"the KMS cannot be reached ({type(exc).__name__}): check its address and TLS"
            ) from None
        if status in (200, 400) or (status == 404 and method == "GET"):
            return status, answer
        raise _refusal(status)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Calls are rare (keys are cached): a connection each, so none is ever stale.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl, force_close=True),
                timeout=aiohttp.ClientTimeout(total=self._config.timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    def _token(self) -> str:
        token = self._config.token or ""
        if self._config.token_file is not None:
            try:
                token = self._config.token_file.read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError):
                raise denied("the file with the KMS token cannot be read") from None
        token = token.strip()
        if not token.isascii() or not token.isprintable() or not token:
            raise denied("the KMS token is empty or malformed")
        return token


def _tls(config: VaultConfig) -> ssl.SSLContext | bool:
    url = urlsplit(config.address)
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
        raise _misconfigured("the address of Vault must be https://HOST[:PORT]")
    if url.scheme == "http":
        if config.tls_verify and url.hostname not in _LOOPBACK:
            raise _misconfigured("plain http to Vault on another machine: use https")
        return True
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.client_cert is not None:
            context.load_cert_chain(config.client_cert, config.client_key)
    except OSError as exc:
        raise _misconfigured("the TLS files for Vault cannot be loaded") from exc
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _misconfigured(message: str) -> Fatal:
    return Fatal(ErrorCode.KEY_UNAVAILABLE, message)


def _body(context: Mapping[str, str], name: bytes, value: bytes) -> bytearray:
    bound = base64.b64encode(context_bytes(context))
    return bytearray(b'{"%b":"%b","context":"%b"}' % (name, value, bound))


def _checked(wrapped: bytes) -> bytes:
    if not _WRAPPED.fullmatch(wrapped):
        raise _damaged()
    return wrapped


def _wrapped(answer: bytearray) -> Wrapped:
    data = _parse(answer, _CiphertextAnswer).data.ciphertext.encode()
    found = _WRAPPED.fullmatch(data)
    if found is None:
        raise unavailable("the KMS gave an answer that is not transit's")
    return Wrapped(data, found[1].decode())


def _parse(answer: bytearray, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise unavailable("the KMS gave an answer that is not transit's") from None


def _gone(answer: bytearray) -> KmsKeyGone | None:
    if any(text in answer for text in _GONE):
        return key_gone("the KMS key, or the version that wrapped this, is gone")
    return None


def _damaged() -> Damaged:
    return Damaged(
        ErrorCode.DAMAGED,
        "a wrapped key does not open: changed, or wrapped for another key or context",
    )


def _refusal(status: int) -> KmsUnavailable | KmsDenied:
    if status in (401, 403):
        return denied(f"the KMS refuses us ({status}): renew the token or check its policy")
    if status == 404:
        return unavailable("the KMS has no transit engine at this mount (404)")
    if status == 503:
        return unavailable("the KMS is sealed or in maintenance (503): unseal it")
    return unavailable(f"the KMS answers {status}")
