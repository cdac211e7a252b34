"""What only Azure Key Vault can answer: states of keys, credentials, what is done by whom."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from azure.core.exceptions import ClientAuthenticationError

sys.path.insert(0, str(Path(__file__).parent / "kms_worlds"))

import kms_azure_world
from kms_azure_world import HOST, TOKEN, AzureWorld, StaticCredential

from schemas.errors import ErrorCode
from workers.crypto.secret import random_secret
from workers.errors import Damaged, Reject, SealstreamError
from workers.kms import azure
from workers.kms.azure import AzureKms
from workers.kms.errors import KmsDenied, KmsKeyDisabled, KmsKeyGone, KmsUnavailable

CONTEXT = {"index": "00" * 16, "purpose": "kek"}


@pytest.fixture(scope="session", params=["RSA", "oct-HSM"])
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AzureWorld]:
    async with kms_azure_world.start(tmp_path_factory.mktemp("azure"), request.param) as running:
        yield running


@pytest.fixture
async def kms(world: AzureWorld) -> AsyncIterator[AzureKms]:
    opened = world.open()
    yield opened
    await opened.aclose()


async def test_the_vault_does_everything_itself(world: AzureWorld, kms: AzureKms) -> None:
    """Not the library: see `workers.kms.azure`."""
    world.served.clear()
    wrapped = await kms.wrap("one", random_secret(), CONTEXT)
    await kms.unwrap("one", wrapped.data, CONTEXT)
    path = f"/keys/one/{wrapped.version}"
    assert world.served == [
        "GET /keys/one",
        f"POST {path}/wrapkey",
        f"POST {path}/unwrapkey",
    ]
    assert world.credential.scopes == {f"https://vault.azure.net:{world.server.port}/.default"}


async def test_what_is_wrapped_never_reaches_the_vault(
    world: AzureWorld, kms: AzureKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, seen = random_secret(), []

    def spy(held: Any, verb: str, value: bytes) -> bytes:
        seen.append(value)
        seen.append(applied(held, verb, value))
        return seen[-1]

    applied = kms_azure_world._apply
    monkeypatch.setattr(kms_azure_world, "_apply", spy)
    wrapped = await kms.wrap("one", key, CONTEXT)
    assert await kms.unwrap("one", wrapped.data, CONTEXT) == key
    assert len(seen) == 4
    assert key.copy() not in seen


@pytest.mark.parametrize(
    "attributes",
    [
        {"enabled": True, "nbf": 2**40},
        {"enabled": True, "exp": 1},
    ],
)
async def test_a_key_outside_its_time_is_disabled(
    world: AzureWorld, kms: AzureKms, attributes: dict[str, Any]
) -> None:
    name = await world.make_key()
    world.keys[name].attributes = attributes
    for ask in (kms.wrap(name, random_secret(), CONTEXT), kms.describe(name)):
        with pytest.raises(KmsKeyDisabled):
            await ask


async def test_a_key_that_cannot_wrap_is_refused(world: AzureWorld, kms: AzureKms) -> None:
    name = await world.make_key()
    world.keys[name].kty = "EC"
    with pytest.raises(Reject) as refused:
        await kms.wrap(name, random_secret(), CONTEXT)
    assert refused.value.code is ErrorCode.UNSUPPORTED
    assert not (await kms.describe(name)).binds_context


async def test_a_version_that_is_gone_is_not_damage(world: AzureWorld, kms: AzureKms) -> None:
    name = await world.make_key()
    wrapped = await kms.wrap(name, random_secret(), CONTEXT)
    await world.rotate(name)
    del world.keys[name].versions[wrapped.version]
    with pytest.raises(KmsKeyGone):
        await kms.unwrap(name, wrapped.data, CONTEXT)


async def test_a_carrier_put_into_another_wrapping_does_not_open(
    world: AzureWorld, kms: AzureKms
) -> None:
    one, two = [(await kms.wrap("one", random_secret(), CONTEXT)).data for _ in range(2)]
    carrier_end = 5 + one[4] + 2 + int.from_bytes(one[5 + one[4] : 7 + one[4]], "big")
    with pytest.raises(Damaged):
        await kms.unwrap("one", one[:carrier_end] + two[carrier_end:], CONTEXT)


async def test_a_version_in_a_wrapping_cannot_inject_a_path(
    world: AzureWorld, kms: AzureKms
) -> None:
    wrapped = (await kms.wrap("one", random_secret(), CONTEXT)).data
    world.served.clear()
    for version in (b"../../secrets/x/../../../keys/one", b"?x=" + b"0" * 29, b"0" * 31):
        forged = wrapped[:4] + bytes((len(version),)) + version + wrapped[5 + wrapped[4] :]
        with pytest.raises(Damaged):
            await kms.unwrap("one", forged, CONTEXT)
    assert world.served == []


@pytest.mark.parametrize(
    ("status", "code", "inner", "on_wrap", "on_open"),
    [
        (401, "Unauthorized", "", KmsDenied, KmsDenied),
        (403, "Forbidden", "AccessDenied", KmsDenied, KmsDenied),
        (403, "Forbidden", "ForbiddenByRbac", KmsDenied, KmsDenied),
        (403, "Forbidden", "KeyDisabled", KmsKeyDisabled, KmsKeyDisabled),
        (409, "Conflict", "ObjectIsDeletedButRecoverable", KmsKeyDisabled, KmsKeyDisabled),
        (404, "KeyNotFound", "", KmsKeyGone, KmsKeyGone),
        (404, "NotFound", "", KmsUnavailable, KmsUnavailable),
        (400, "BadParameter", "", Reject, Damaged),
        (302, "", "", KmsUnavailable, KmsUnavailable),
        (429, "Throttled", "", KmsUnavailable, KmsUnavailable),
        (500, "InternalServerError", "", KmsUnavailable, KmsUnavailable),
        (503, "", "", KmsUnavailable, KmsUnavailable),
    ],
)
@pytest.mark.parametrize("spelled", ["innererror", "innerError"])
def test_statuses_become_typed_errors(
    status: int,
    code: str,
    inner: str,
    on_wrap: type[SealstreamError],
    on_open: type[SealstreamError],
    spelled: str,
) -> None:
    error: dict[str, Any] = {"code": code, "message": "words of the server"}
    if inner:
        error[spelled] = {"code": inner}
    answer = msgspec.json.encode({"error": error})
    for use, kind in (("wrap", on_wrap), ("open", on_open)):
        for body in (answer, b"<html>words of a proxy"):
            made = azure._refusal(use, status, body)  # type: ignore[arg-type]
            assert "words" not in str(made)
        assert type(azure._refusal(use, status, answer)) is kind  # type: ignore[arg-type]


async def test_a_token_that_is_refused_is_denied(world: AzureWorld, kms: AzureKms) -> None:
    world.token = "another token"
    try:
        with pytest.raises(KmsDenied) as refused:
            await kms.describe("one")
        assert TOKEN not in f"{refused.value!r} {refused.value.__cause__!r}"
    finally:
        world.token = TOKEN
    assert (await kms.describe("one")).key_id == "one"


class NoCredential(StaticCredential):
    async def get_token(self, *scopes: str, **_: Any) -> Any:
        raise ClientAuthenticationError("words of the library")


async def test_no_credential_is_denied(world: AzureWorld) -> None:
    kms = world.open_as(NoCredential())
    with pytest.raises(KmsDenied) as refused:
        await kms.describe("one")
    assert "words" not in str(refused.value)
    await kms.aclose()


async def test_the_token_goes_to_no_other_domain(world: AzureWorld) -> None:
    config = replace(world.open()._config, host="unit.vault.example")
    credential = StaticCredential()
    kms = AzureKms(config, default_key="one", credential=credential)
    with pytest.raises(KmsUnavailable):
        await kms.describe("one")
    assert credential.scopes == set()
    await kms.aclose()


async def test_a_managed_identity_is_found(
    world: AzureWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in App Service: the platform gives the token over HTTP on this machine."""
    asked: list[str] = []

    async def identity(request: web.Request) -> web.Response:
        asked.append(request.query["resource"])
        assert request.headers["X-IDENTITY-HEADER"] == "header"
        expires = str(int(time.time()) + 3600)
        return web.json_response(
            {
                "access_token": TOKEN,
                "expires_on": expires,
                "resource": request.query["resource"],
                "token_type": "Bearer",
            }
        )

    app = web.Application()
    app.router.add_get("/", identity)
    async with AsyncExitStack() as stack:
        server = TestServer(app)
        await server.start_server()
        stack.push_async_callback(server.close)
        for name in [name for name in os.environ if name.startswith("AZURE_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("IDENTITY_ENDPOINT", str(server.make_url("/")))
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        kms = AzureKms(world.open()._config, default_key="one")
        stack.push_async_callback(kms.aclose)
        assert (await kms.describe("one")).key_id == "one"
    assert asked == [f"https://vault.azure.net:{world.server.port}"]
    assert HOST.endswith("vault.azure.net")
