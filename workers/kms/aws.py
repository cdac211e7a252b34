"""AWS KMS: symmetric keys, with the context as encryption context.

The context is authenticated by AWS KMS and stands in CloudTrail, and key policies can ask for it
(`kms:EncryptionContext:purpose`). A key id here is the id of a key (a UUID, or `mrk-` and 32 hex
digits) in one region and account, never an alias: an alias can be pointed at another key, under
which nothing wrapped before would open. Automatic rotation keeps the id. AWS does not say which
key material wrapped, so the version is always `current`; `rewrap` (ReEncrypt) moves to the newest.

The library is bounded by our deadline, its own retries included.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)

from workers.crypto.secret import SecretBytes
from workers.errors import SealstreamError
from workers.kms.base import DEADLINE_S, KeyInfo, Wrapped, check_key_id, malformed_key_id
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

VERSION = "current"

_KEY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32}")
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d")
_ARN = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:key/")
_MAX_WRAPPED_BYTES = 6144

_DAMAGED = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_DISABLED = frozenset({"DisabledException", "KMSInvalidStateException"})
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_LACKING = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
)

Use = Literal["wrap", "open", "look"]


@dataclass(frozen=True, slots=True)
class AwsConfig:
    """How to reach AWS KMS.

    Attributes:
        region: of the keys.
        arn_prefix: `arn:aws:kms:REGION:ACCOUNT:key/` for keys of another account; "": our own.
        endpoint: URL instead of the region's public one: a VPC endpoint, say.
        ca_file: CA certificates (PEM) the endpoint is checked against; None: the library's.
        profile: profile in the AWS configuration files.
        access_key_id: with `secret_access_key`: instead of what the library finds by itself
            (environment, profile, web identity, the machine's role).
        secret_access_key: belongs to `access_key_id`.
        session_token: of temporary credentials.
        timeout_s: seconds one call may take.
    """

    region: str
    arn_prefix: str = ""
    endpoint: str | None = None
    ca_file: Path | None = None
    profile: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    timeout_s: float = DEADLINE_S


def parse_location(rest: str) -> tuple[str, str, str] | None:
    """Split `REGION/KEY` or the ARN of a key into region, ARN prefix and key id; None: neither."""
    found = _ARN.match(rest)
    if found is not None:
        return found[1], found[0], rest[found.end() :]
    region, _, key = rest.partition("/")
    return (region, "", key) if _REGION.fullmatch(region) and key else None


class AwsKms:
    """Wraps keys with AWS KMS."""

    name = "aws"

    def __init__(self, config: AwsConfig, *, default_key: str) -> None:
        """Check the configuration; connects on first use.

        Raises:
            Fatal: The profile does not exist.
            Reject: INVALID_MESSAGE: `default_key` is no key id.
        """
        quiet("aioboto3", "aiobotocore", "boto3", "botocore", "urllib3")
        self.default_key = _checked_key(default_key)
        self._config = config
        self._core = AioSession()
        try:
            self._session = aioboto3.Session(
                aws_access_key_id=config.access_key_id,
                aws_secret_access_key=config.secret_access_key,
                aws_session_token=config.session_token,
                profile_name=config.profile,
                region_name=config.region,
                botocore_session=self._core,
            )
        except ProfileNotFound:
            raise misconfigured("the AWS profile for the KMS does not exist") from None
        self._open_lock = asyncio.Lock()
        self._opened = AsyncExitStack()
        self._client: Any = None

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        """Wrap `plaintext`: see `Kms.wrap`."""
        answer = await self._call(
            "wrap",
            "encrypt",
            KeyId=self._arn(key_id),
            Plaintext=plaintext.copy(),
            EncryptionContext=dict(context),
        )
        return _wrapped(answer, key_id)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        """Open a wrapped key: see `Kms.unwrap`."""
        answer = await self._call(
            "open",
            "decrypt",
            KeyId=self._arn(key_id),
            CiphertextBlob=_checked(wrapped),
            EncryptionContext=dict(context),
        )
        plaintext = answer.get("Plaintext")
        if not isinstance(plaintext, bytes) or not plaintext:
            raise foreign_answer()
        _check_answering_key(answer, key_id)
        return SecretBytes(plaintext)

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        """Re-encrypt inside AWS KMS: see `Kms.rewrap`."""
        arn = self._arn(key_id)
        answer = await self._call(
            "open",
            "re_encrypt",
            SourceKeyId=arn,
            DestinationKeyId=arn,
            CiphertextBlob=_checked(wrapped),
            SourceEncryptionContext=dict(context),
            DestinationEncryptionContext=dict(context),
        )
        return _wrapped(answer, key_id)

    async def describe(self, key_id: str) -> KeyInfo:
        """Read the key's state: see `Kms.describe`."""
        answer = await self._call("look", "describe_key", KeyId=self._arn(key_id))
        key = answer.get("KeyMetadata", {})
        if not isinstance(key, dict) or key.get("KeyId") != key_id:
            raise foreign_answer()
        if not key.get("Enabled"):
            raise key_disabled()
        binds = key.get("KeySpec", "SYMMETRIC_DEFAULT") == "SYMMETRIC_DEFAULT"
        return KeyInfo(self.name, key_id, VERSION, VERSION, binds_context=binds)

    async def aclose(self) -> None:
        """Close the connections."""
        self._client = None
        await self._opened.aclose()

    def __repr__(self) -> str:
        return f"AwsKms({self._config.region!r})"

    def _arn(self, key_id: str) -> str:
        return self._config.arn_prefix + _checked_key(key_id)

    async def _call(self, use: Use, operation: str, **parameters: Any) -> dict[str, Any]:
        await self._load()
        try:
            async with deadline(self._config.timeout_s):
                client = await self._open()
                answer = await getattr(client, operation)(**parameters)
        except SealstreamError:
            raise
        except ClientError as exc:
            # Not chained, as below: the exception carries the answer, and the request's headers.
            raise _refusal(use, exc) from None
        except _LACKING:
            raise denied("no AWS credentials for the KMS: set a role, a profile or keys") from None
        except (BotoCoreError, aiohttp.ClientError, OSError, ValueError) as exc:
            raise unreachable(exc) from None
        if not isinstance(answer, dict):
            raise foreign_answer()
        return answer

    async def _load(self) -> None:
        """Have the library read its descriptions of AWS, once: off the loop and the clock."""
        async with self._open_lock:
            if self._client is None:
                await asyncio.to_thread(_read_models, self._core)

    async def _open(self) -> Any:
        async with self._open_lock:
            if self._client is None:
                timeout_s = self._config.timeout_s
                self._client = await self._opened.enter_async_context(
                    self._session.client(
                        "kms",
                        endpoint_url=self._config.endpoint,
                        verify=str(self._config.ca_file) if self._config.ca_file else None,
                        config=AioConfig(
                            connect_timeout=timeout_s,
                            read_timeout=timeout_s,
                            retries={"mode": "standard", "total_max_attempts": 3},
                            parameter_validation=False,
                            # Calls are rare (keys are cached): a connection each, so none is
                            # ever stale.
                            connector_args={"force_close": True, "keepalive_timeout": None},
                        ),
                    )
                )
            return self._client


def _read_models(core: Any) -> None:
    loader = core.get_component("data_loader")
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("kms", name)
    for name in ("endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data(name)


def _checked_key(key_id: str) -> str:
    if not _KEY_ID.fullmatch(check_key_id(key_id)):
        raise malformed_key_id("the id of an AWS KMS key is a UUID or mrk-...; aliases can move")
    return key_id


def _checked(wrapped: bytes) -> bytes:
    if not 0 < len(wrapped) <= _MAX_WRAPPED_BYTES:
        raise wrap_damaged()
    return wrapped


def _wrapped(answer: dict[str, Any], key_id: str) -> Wrapped:
    data = answer.get("CiphertextBlob")
    if not isinstance(data, bytes) or not data:
        raise foreign_answer()
    _check_answering_key(answer, key_id)
    return Wrapped(data, VERSION)


def _check_answering_key(answer: dict[str, Any], key_id: str) -> None:
    if not str(answer.get("KeyId")).endswith(f"key/{key_id}"):
        raise foreign_answer()


def _refusal(use: Use, error: ClientError) -> SealstreamError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in _DAMAGED or (use == "open" and code == "ValidationException"):
        return wrap_damaged()
    if code in _DISABLED:
        return key_disabled()
    if code == "NotFoundException":
        return key_gone("AWS KMS has no such key")
    if code in ("InvalidKeyUsageException", "ValidationException"):
        return key_unsuitable()
    if code in _DENIED or status in (401, 403):
        return denied("AWS KMS refuses us: check the credentials, the IAM and the key policy")
    # Throttled, overloaded or broken; a code that is no plain word is not AWS's.
    return unavailable(f"AWS KMS answers {code if code.isalnum() else status}")
