"""What only AWS KMS can answer: its codes, its context on the wire, its library's retries."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, NoCredentialsError

sys.path.insert(0, str(Path(__file__).parent / "kms_worlds"))

import kms_aws_world
from kms_aws_world import AwsWorld
from kms_world import PATIENCE_S

from workers.crypto.secret import SecretBytes, random_secret
from workers.errors import Damaged, Reject, SealstreamError
from workers.kms import aws
from workers.kms.aws import AwsConfig, AwsKms
from workers.kms.errors import KmsDenied, KmsKeyDisabled, KmsKeyGone, KmsUnavailable

CONTEXT = {"index": "00" * 16, "purpose": "kek"}


@pytest.fixture(scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AwsWorld]:
    async with kms_aws_world.start(tmp_path_factory.mktemp("aws")) as running:
        yield running


@pytest.fixture
async def kms(world: AwsWorld) -> AsyncIterator[AwsKms]:
    opened = world.open()
    yield opened
    await opened.aclose()


async def test_what_is_sent(world: AwsWorld, kms: AwsKms) -> None:
    key = SecretBytes(b"k" * 32)
    world.served.clear()
    wrapped = await kms.wrap(world.one, key, CONTEXT)
    await kms.unwrap(world.one, wrapped.data, CONTEXT)
    await kms.rewrap(world.one, wrapped.data, CONTEXT)
    blob = base64.b64encode(wrapped.data).decode()
    assert world.served == [
        (
            "Encrypt",
            {
                "KeyId": world.one,
                "Plaintext": base64.b64encode(key.copy()).decode(),
                "EncryptionContext": CONTEXT,
            },
        ),
        (
            "Decrypt",
            {"KeyId": world.one, "CiphertextBlob": blob, "EncryptionContext": CONTEXT},
        ),
        # Inside AWS: the key is not shown.
        (
            "ReEncrypt",
            {
                "SourceKeyId": world.one,
                "DestinationKeyId": world.one,
                "CiphertextBlob": blob,
                "SourceEncryptionContext": CONTEXT,
                "DestinationEncryptionContext": CONTEXT,
            },
        ),
    ]


async def test_keys_of_another_account_are_named_in_full(world: AwsWorld) -> None:
    prefix = f"arn:aws:kms:{kms_aws_world.REGION}:123456789012:key/"
    assert aws.parse_location(f"{prefix}{world.one}") == (
        kms_aws_world.REGION,
        prefix,
        world.one,
    )
    opened = world.open()
    config = AwsConfig(
        region=kms_aws_world.REGION,
        arn_prefix=prefix,
        endpoint=opened._config.endpoint,
        ca_file=opened._config.ca_file,
        access_key_id=kms_aws_world.ACCESS_KEY,
        secret_access_key=kms_aws_world.SECRET_KEY,
        timeout_s=PATIENCE_S,
    )
    kms = AwsKms(config, default_key=world.one)
    world.served.clear()
    wrapped = await kms.wrap(world.one, random_secret(), CONTEXT)
    await kms.unwrap(world.one, wrapped.data, CONTEXT)
    assert {body["KeyId"] for _, body in world.served} == {f"{prefix}{world.one}"}
    await kms.aclose()


async def test_a_key_that_awaits_its_deletion_is_disabled_not_gone(
    world: AwsWorld, kms: AwsKms
) -> None:
    key_id, key = await world.make_key(), random_secret()
    wrapped = await kms.wrap(key_id, key, CONTEXT)
    await world.schedule_deletion(key_id)
    for ask in (
        kms.wrap(key_id, key, CONTEXT),
        kms.unwrap(key_id, wrapped.data, CONTEXT),
        kms.rewrap(key_id, wrapped.data, CONTEXT),
        kms.describe(key_id),
    ):
        with pytest.raises(KmsKeyDisabled):
            await ask


@pytest.mark.parametrize(
    ("status", "code", "on_wrap", "on_open"),
    [
        (400, "AccessDeniedException", KmsDenied, KmsDenied),
        (400, "UnrecognizedClientException", KmsDenied, KmsDenied),
        (400, "ExpiredTokenException", KmsDenied, KmsDenied),
        (400, "InvalidSignatureException", KmsDenied, KmsDenied),
        (403, "SomethingNew", KmsDenied, KmsDenied),
        (400, "DisabledException", KmsKeyDisabled, KmsKeyDisabled),
        (400, "KMSInvalidStateException", KmsKeyDisabled, KmsKeyDisabled),
        (400, "NotFoundException", KmsKeyGone, KmsKeyGone),
        (400, "InvalidCiphertextException", Damaged, Damaged),
        (400, "IncorrectKeyException", Damaged, Damaged),
        (400, "ValidationException", Reject, Damaged),
        (400, "InvalidKeyUsageException", Reject, Reject),
        (400, "ThrottlingException", KmsUnavailable, KmsUnavailable),
        (400, "LimitExceededException", KmsUnavailable, KmsUnavailable),
        (400, "KeyUnavailableException", KmsUnavailable, KmsUnavailable),
        (400, "DependencyTimeoutException", KmsUnavailable, KmsUnavailable),
        (500, "KMSInternalException", KmsUnavailable, KmsUnavailable),
        (503, "ServiceUnavailable", KmsUnavailable, KmsUnavailable),
        (400, "<script>words of a proxy", KmsUnavailable, KmsUnavailable),
        (502, "", KmsUnavailable, KmsUnavailable),
    ],
)
def test_codes_become_typed_errors(
    status: int, code: str, on_wrap: type[SealstreamError], on_open: type[SealstreamError]
) -> None:
    answer = {
        "Error": {"Code": code, "Message": "words of the server"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = ClientError(answer, "Encrypt")  # type: ignore[arg-type]
    for use, kind in (("wrap", on_wrap), ("open", on_open)):
        made = aws._refusal(use, error)  # type: ignore[arg-type]
        assert type(made) is kind
        assert "words" not in str(made)


async def test_the_librarys_retries_end_with_the_deadline(world: AwsWorld) -> None:
    kms = world.open(timeout_s=0.3)
    async with world.fault(kms_aws_world.Fault.THROTTLED), asyncio.timeout(PATIENCE_S):
        with pytest.raises(KmsUnavailable):
            await kms.describe(world.one)
    await kms.aclose()


async def test_without_credentials_it_is_denied(
    world: AwsWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert NoCredentialsError in aws._LACKING
    config = AwsConfig(region=kms_aws_world.REGION, endpoint="https://127.0.0.1:1")
    kms = AwsKms(config, default_key=world.one)
    with pytest.raises(KmsDenied, match="no AWS credentials"):
        await kms.describe(world.one)
    await kms.aclose()


async def test_credentials_come_from_where_aws_tools_look(
    world: AwsWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "[keys]\n"
        f"aws_access_key_id = {kms_aws_world.ACCESS_KEY}\n"
        f"aws_secret_access_key = {kms_aws_world.SECRET_KEY}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    known = world.open()._config
    config = AwsConfig(
        region=kms_aws_world.REGION,
        endpoint=known.endpoint,
        ca_file=known.ca_file,
        profile="keys",
        timeout_s=PATIENCE_S,
    )
    kms = AwsKms(config, default_key=world.one)
    assert (await kms.describe(world.one)).key_id == world.one
    await kms.aclose()
