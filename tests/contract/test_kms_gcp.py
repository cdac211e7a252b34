"""What only Google Cloud KMS can answer: CRC32C both ways, versions, credentials, status codes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions as api

sys.path.insert(0, str(Path(__file__).parent / "kms_worlds"))

import kms_gcp_world
from kms_gcp_world import GcpWorld

from workers.crypto.secret import random_secret
from workers.errors import Damaged, Reject, SealstreamError
from workers.kms import gcp
from workers.kms.base import context_bytes
from workers.kms.errors import KmsDenied, KmsKeyDisabled, KmsKeyGone, KmsUnavailable
from workers.kms.gcp import GcpKms

CONTEXT = {"index": "00" * 16, "purpose": "kek"}


@pytest.fixture(scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GcpWorld]:
    async with kms_gcp_world.start(tmp_path_factory.mktemp("gcp")) as made:
        yield made


@pytest.fixture
def world(running: GcpWorld) -> Iterator[GcpWorld]:
    yield running
    running.tamper = running.garble = lambda message: None


@pytest.fixture
async def kms(world: GcpWorld) -> AsyncIterator[GcpKms]:
    opened = world.open()
    yield opened
    await opened.aclose()


def flip(name: str) -> Callable[[Any], None]:
    """Return what changes one bit of a field of bytes, where a message has it."""

    def change(message: Any) -> None:
        data = bytearray(getattr(message, name, b""))
        if data:
            data[-1] ^= 1
            setattr(message, name, bytes(data))

    return change


def put(name: str, value: object) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        if name in type(message).meta.fields:
            setattr(message, name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        flip("ciphertext"),
        put("ciphertext_crc32c", 0),
        put("verified_plaintext_crc32c", False),
        put("verified_additional_authenticated_data_crc32c", False),
    ],
)
async def test_a_wrapped_key_changed_on_its_way_back_is_not_kept(
    world: GcpWorld, kms: GcpKms, change: Callable[[Any], None]
) -> None:
    world.tamper = change
    with pytest.raises(KmsUnavailable, match="CRC32C"):
        await kms.wrap("one", random_secret(), CONTEXT)


@pytest.mark.parametrize("change", [flip("plaintext"), put("plaintext_crc32c", 0)])
async def test_a_key_changed_on_its_way_back_is_not_used(
    world: GcpWorld, kms: GcpKms, change: Callable[[Any], None]
) -> None:
    wrapped = await kms.wrap("one", random_secret(), CONTEXT)
    world.tamper = change
    for use in (kms.unwrap, kms.rewrap):
        with pytest.raises(KmsUnavailable, match="CRC32C"):
            await use("one", wrapped.data, CONTEXT)


@pytest.mark.parametrize("field", ["plaintext", "ciphertext", "additional_authenticated_data"])
async def test_what_changed_on_its_way_there_is_no_damage(
    world: GcpWorld, kms: GcpKms, field: str
) -> None:
    key = random_secret()
    wrapped = await kms.wrap("one", key, CONTEXT)
    world.garble = flip(field)
    if field != "ciphertext":
        with pytest.raises(KmsUnavailable, match="CRC32C"):
            await kms.wrap("one", key, CONTEXT)
    if field != "plaintext":
        with pytest.raises(KmsUnavailable, match="CRC32C"):
            await kms.unwrap("one", wrapped.data, CONTEXT)


async def test_the_context_is_the_additional_authenticated_data(
    world: GcpWorld, kms: GcpKms
) -> None:
    seen: list[bytes] = []
    world.garble = lambda asked: seen.append(asked.additional_authenticated_data)
    wrapped = await kms.wrap("one", random_secret(), CONTEXT)
    await kms.unwrap("one", wrapped.data, CONTEXT)
    assert seen == [context_bytes(CONTEXT)] * 2


async def test_versions_are_described(world: GcpWorld, kms: GcpKms) -> None:
    name = await world.make_key()
    await world.rotate(name)
    described = await kms.describe(name)
    assert (described.version, described.min_version) == ("2", "1")


@pytest.mark.parametrize(
    ("error", "on_wrap", "on_open"),
    [
        (api.InvalidArgument("Decryption failed"), Reject, Damaged),
        (api.InvalidArgument("ciphertext_crc32c did not match"), KmsUnavailable, KmsUnavailable),
        (api.NotFound("x"), KmsKeyGone, KmsKeyGone),
        (api.FailedPrecondition("x"), KmsKeyDisabled, KmsKeyDisabled),
        (api.PermissionDenied("x"), KmsDenied, KmsDenied),
        (api.Unauthenticated("x"), KmsDenied, KmsDenied),
        (api.ResourceExhausted("x"), KmsUnavailable, KmsUnavailable),
        (api.ServiceUnavailable("x"), KmsUnavailable, KmsUnavailable),
        (api.DeadlineExceeded("x"), KmsUnavailable, KmsUnavailable),
        (api.InternalServerError("x"), KmsUnavailable, KmsUnavailable),
        (api.Unknown("words of the server"), KmsUnavailable, KmsUnavailable),
        (api.Aborted("x"), KmsUnavailable, KmsUnavailable),
    ],
)
def test_codes_become_typed_errors(
    error: api.GoogleAPICallError, on_wrap: type[SealstreamError], on_open: type[SealstreamError]
) -> None:
    for use, kind in (("wrap", on_wrap), ("open", on_open)):
        made = gcp._refusal(use, error)  # type: ignore[arg-type]
        assert type(made) is kind
        assert "words" not in str(made)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("no json", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"type": "authorized_user"}', "must be"),
        # It may name a program to run.
        ('{"type": "external_account_authorized_user"}', "must be"),
        ('{"type": "service_account"}', "cannot be used"),
        ('{"type": "external_account"}', "cannot be used"),
    ],
)
async def test_credentials_that_cannot_be_used_are_denied(
    world: GcpWorld, tmp_path: Path, text: str | None, says: str
) -> None:
    file = tmp_path / "credentials.json"
    if text is not None:
        file.write_text(text)
    config = replace(world.open()._config, credentials_file=file)
    kms = GcpKms(config, default_key="one")
    with pytest.raises(KmsDenied, match=says):
        await kms.describe("one")
    await kms.aclose()


async def test_credentials_come_from_where_googles_tools_look(
    world: GcpWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(world.credentials))
    kms = GcpKms(replace(world.open()._config, credentials_file=None), default_key="one")
    assert (await kms.describe("one")).key_id == "one"
    await kms.aclose()


async def test_no_credentials_at_all_is_denied(
    world: GcpWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    kms = GcpKms(replace(world.open()._config, credentials_file=None), default_key="one")
    with pytest.raises(KmsDenied, match="no Google credentials"):
        await kms.describe("one")
    await kms.aclose()
