"""Google Cloud KMS: symmetric keys, with the context as additional authenticated data.

A key id is the name of a key in one key ring. What is sent and what is answered carries CRC32C sums
that both sides check: a byte changed on the way, by a proxy that ends TLS say, is never kept as a
wrapped key. Cloud KMS has no re-encryption: `rewrap` decrypts and encrypts, under the primary
version.

The library is bounded by our deadline, its own retries included. Credentials come from a file, or
as the library finds them by itself (environment, metadata server, workload identity).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import google.auth
import google_crc32c
import grpc
import msgspec
from google.api_core import exceptions as api
from google.api_core.retry import AsyncRetry, if_exception_type
from google.auth import exceptions as auth
from google.auth import identity_pool
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceGrpcAsyncIOTransport as Transport,
)
from google.oauth2 import service_account

from workers.crypto.secret import SecretBytes
from workers.errors import SealstreamError
from workers.kms.base import (
    DEADLINE_S,
    KeyInfo,
    Wrapped,
    check_key_id,
    context_bytes,
    malformed_key_id,
)
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

_PUBLIC_ENDPOINT = "cloudkms.googleapis.com"
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,63}")
_RING = re.compile(
    r"(?:projects/)?(?P<project>[a-z0-9.:-]{4,63})/(?:locations/)?(?P<location>[a-z0-9-]{1,63})/"
    r"(?:keyRings/)?(?P<ring>[A-Za-z0-9_-]{1,63})"
)
_MAX_WRAPPED_BYTES = 64 * 1024
# A server that was away is tried again soon, and a connection that silently died is noticed:
# otherwise a back-off of minutes outlives the outage.
_CHANNEL: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
_Use = Literal["wrap", "open", "look"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class GcpConfig:
    """How to reach Cloud KMS.

    Attributes:
        ring: `projects/P/locations/L/keyRings/R`.
        endpoint: HOST or HOST:PORT instead of the public one.
        ca_file: CA certificates (PEM) the endpoint is checked against; None: the library's.
        credentials_file: service account key or workload identity configuration (files and URLs,
            no programs); None: what the library finds by itself.
        timeout_s: seconds one call may take.
    """

    ring: str
    endpoint: str | None = None
    ca_file: Path | None = None
    credentials_file: Path | None = None
    timeout_s: float = DEADLINE_S


def parse_location(rest: str) -> tuple[str, str] | None:
    """Split `PROJECT/LOCATION/RING/KEY`, or a key's resource name, into ring and key id.

    The ring is a resource name. None: it is neither.
    """
    ring, _, key = rest.removesuffix("/").rpartition("/")
    found = _RING.fullmatch(ring.removesuffix("/cryptoKeys"))
    if found is None or not key:
        return None
    project, location, name = found["project"], found["location"], found["ring"]
    return f"projects/{project}/locations/{location}/keyRings/{name}", key


class GcpKms:
    """Wraps keys with Google Cloud KMS."""

    name = "gcp"

    def __init__(self, config: GcpConfig, *, default_key: str) -> None:
        """Check the configuration; connects on first use.

        Raises:
            Fatal: The CA file cannot be read.
            Reject: INVALID_MESSAGE: `default_key` is no key id.
        """
        quiet("google", "grpc", "urllib3")
        self.default_key = _checked_key(default_key)
        self._config = config
        self._roots = _roots(config.ca_file)
        self._open_lock = asyncio.Lock()
        self._client: kms_v1.KeyManagementServiceAsyncClient | None = None

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        """Wrap `plaintext`: see `Kms.wrap`."""
        name = self._key(key_id)
        async with deadline(self._config.timeout_s):
            return await self._encrypt(name, plaintext, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        """Open a wrapped key: see `Kms.unwrap`."""
        name = self._key(key_id)
        async with deadline(self._config.timeout_s):
            return await self._decrypt(name, wrapped, context)

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        """Decrypt, and encrypt under the primary version: see `Kms.rewrap`."""
        name = self._key(key_id)
        async with deadline(self._config.timeout_s):
            with await self._decrypt(name, wrapped, context) as plaintext:
                return await self._encrypt(name, plaintext, context)

    async def describe(self, key_id: str) -> KeyInfo:
        """Read the key's primary version and its oldest enabled one: see `Kms.describe`."""
        name = self._key(key_id)
        async with deadline(self._config.timeout_s):
            key = await self._call(
                "look",
                lambda client, **how: client.get_crypto_key(
                    request=kms_v1.GetCryptoKeyRequest(name=name), **how
                ),
            )
            if key.name != name:
                raise foreign_answer()
            enabled = kms_v1.CryptoKeyVersion.CryptoKeyVersionState.ENABLED
            if not key.primary.name or key.primary.state != enabled:
                raise key_disabled("the KMS key has no enabled primary version")
            oldest = await self._call("look", lambda client, **how: _oldest(client, name, how))
        version = _version(key.primary.name, name)
        return KeyInfo(self.name, key_id, version, str(oldest or version), binds_context=True)

    async def aclose(self) -> None:
        """Close the channel."""
        client, self._client = self._client, None
        if client is not None:
            await client.transport.close()  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"GcpKms({self._config.ring!r})"

    def _key(self, key_id: str) -> str:
        return f"{self._config.ring}/cryptoKeys/{_checked_key(key_id)}"

    async def _encrypt(
        self, name: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        bound = context_bytes(context)
        data = plaintext.copy()
        request = kms_v1.EncryptRequest(
            name=name,
            plaintext=data,
            plaintext_crc32c=_crc32c(data),
            additional_authenticated_data=bound,
            additional_authenticated_data_crc32c=_crc32c(bound),
        )
        answer = await self._call(
            "wrap", lambda client, **how: client.encrypt(request=request, **how)
        )
        if not (
            answer.verified_plaintext_crc32c
            and answer.verified_additional_authenticated_data_crc32c
        ):
            raise _changed_on_the_way()
        _verify(answer.ciphertext, answer.ciphertext_crc32c)
        return Wrapped(answer.ciphertext, _version(answer.name, name))

    async def _decrypt(self, name: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        if not 0 < len(wrapped) <= _MAX_WRAPPED_BYTES:
            raise wrap_damaged()
        bound = context_bytes(context)
        request = kms_v1.DecryptRequest(
            name=name,
            ciphertext=wrapped,
            ciphertext_crc32c=_crc32c(wrapped),
            additional_authenticated_data=bound,
            additional_authenticated_data_crc32c=_crc32c(bound),
        )
        answer = await self._call(
            "open", lambda client, **how: client.decrypt(request=request, **how)
        )
        _verify(answer.plaintext, answer.plaintext_crc32c)
        return SecretBytes(answer.plaintext)

    async def _call(self, use: _Use, ask: Callable[..., Awaitable[_T]]) -> _T:
        timeout_s = self._config.timeout_s
        again = AsyncRetry(
            predicate=if_exception_type(api.ServiceUnavailable),
            initial=0.1,
            maximum=0.5,
            timeout=timeout_s,
        )
        try:
            return await ask(await self._open(), retry=again, timeout=timeout_s)
        except SealstreamError:
            raise
        # Not chained: the exceptions carry the server's words, and some the request.
        except auth.DefaultCredentialsError:
            raise denied("no Google credentials for the KMS: set them up or give a file") from None
        except auth.GoogleAuthError as exc:
            if exc.retryable or isinstance(exc, auth.TransportError):
                raise unreachable(exc) from None
            raise denied("Google refuses the credentials for the KMS") from None
        except api.RetryError:
            raise unavailable("Cloud KMS is not available (UNAVAILABLE)") from None
        except api.GoogleAPICallError as exc:
            raise _refusal(use, exc) from None
        except (grpc.RpcError, OSError, ValueError) as exc:
            raise unreachable(exc) from None

    async def _open(self) -> kms_v1.KeyManagementServiceAsyncClient:
        async with self._open_lock:
            if self._client is None:
                # It reads files and may ask the metadata server, both blocking.
                credentials = await asyncio.to_thread(_credentials, self._config.credentials_file)
                transport = Transport(
                    host=self._config.endpoint or _PUBLIC_ENDPOINT,
                    credentials=credentials,
                    ssl_channel_credentials=self._roots,
                    channel=_channel,
                    always_use_jwt_access=True,
                )
                self._client = kms_v1.KeyManagementServiceAsyncClient(transport=transport)
            return self._client


async def _oldest(
    client: kms_v1.KeyManagementServiceAsyncClient, name: str, how: dict[str, Any]
) -> int | None:
    pages = await client.list_crypto_key_versions(
        request=kms_v1.ListCryptoKeyVersionsRequest(parent=name, filter="state=ENABLED"), **how
    )
    return min([int(_version(one.name, name)) async for one in pages], default=None)


def _credentials(file: Path | None) -> Any:
    scopes = Transport.AUTH_SCOPES
    if file is None:
        return google.auth.default(default_scopes=scopes)[0]
    try:
        info = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        raise denied("the file with the Google credentials cannot be read") from None
    # Each kind by its own loader: a file of another kind may name a program to run.
    loaders: dict[object, Callable[..., Any]] = {
        "service_account": service_account.Credentials.from_service_account_info,
        "external_account": identity_pool.Credentials.from_info,
    }
    loader = loaders.get(info.get("type"))
    if loader is None:
        raise denied("the Google credentials must be a service account's or a workload identity's")
    try:
        return loader(info, default_scopes=scopes)
    except (auth.GoogleAuthError, ValueError, TypeError):
        raise denied("the file with the Google credentials cannot be used") from None


def _channel(*args: Any, **kwargs: Any) -> Any:
    kwargs["options"] = [*(kwargs.get("options") or ()), *_CHANNEL]
    return Transport.create_channel(*args, **kwargs)


def _roots(ca_file: Path | None) -> grpc.ChannelCredentials | None:
    if ca_file is None:
        return None
    try:
        return grpc.ssl_channel_credentials(root_certificates=ca_file.read_bytes())
    except OSError:
        raise misconfigured("the CA file for the KMS cannot be read") from None


def _checked_key(key_id: str) -> str:
    if not _KEY_ID.fullmatch(check_key_id(key_id)):
        raise malformed_key_id("the name of a Cloud KMS key has letters, digits, '_' and '-'")
    return key_id


def _crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


def _verify(data: bytes, crc32c: int | None) -> None:
    if not data:
        raise foreign_answer()
    if crc32c != _crc32c(data):
        raise _changed_on_the_way()


def _version(resource: str, key: str) -> str:
    number = resource.removeprefix(f"{key}/cryptoKeyVersions/")
    if not number.isdecimal():
        raise foreign_answer()
    return number


def _changed_on_the_way() -> SealstreamError:
    return unavailable("a message to or from the KMS was changed on the way (CRC32C)")


def _refusal(use: _Use, error: api.GoogleAPICallError) -> SealstreamError:
    match error:
        case api.NotFound():
            return key_gone("Cloud KMS has no such key, or no such version of it")
        case api.FailedPrecondition():
            return key_disabled("the KMS key, or its version, is disabled or destroyed")
        case api.Unauthenticated() | api.Forbidden() | api.Unauthorized():
            return denied("Cloud KMS refuses us: check the credentials and the key's IAM policy")
        case api.InvalidArgument() if "crc32c" in str(error.message).lower():
            return _changed_on_the_way()
        case api.InvalidArgument() | api.OutOfRange():
            return wrap_damaged() if use == "open" else key_unsuitable()
    code = error.grpc_status_code
    return unavailable(f"Cloud KMS answers {code.name if code is not None else error.code}")
