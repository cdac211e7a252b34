"""What only a hardware module can answer: PINs, a module that hangs, versions by id."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType

sys.path.insert(0, str(Path(__file__).parent / "kms_worlds"))

import kms_hsm_world
from kms_hsm_world import PIN, HsmWorld
from kms_world import PATIENCE_S

from schemas.errors import ErrorCode
from workers.crypto.secret import random_secret
from workers.errors import Damaged, Reject
from workers.kms.binding import split
from workers.kms.errors import KmsDenied, KmsKeyGone, KmsUnavailable
from workers.kms.pkcs11 import ModuleThread, Pkcs11Kms

CONTEXT = {"index": "00" * 16, "purpose": "kek"}


@pytest.fixture(scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HsmWorld]:
    async with kms_hsm_world.start(tmp_path_factory.mktemp("hsm")) as running:
        yield running


@pytest.fixture
async def kms(world: HsmWorld) -> AsyncIterator[Pkcs11Kms]:
    opened = world.open()
    yield opened
    await opened.aclose()


async def test_the_module_wraps_by_rfc_5649(world: HsmWorld, kms: Pkcs11Kms) -> None:
    wrapped = await kms.wrap("one", random_secret(), CONTEXT)
    assert len(split(wrapped.data).carrier) == 40
    assert wrapped.version == "0001"


async def test_the_highest_id_wraps_and_each_opens_its_own(world: HsmWorld, kms: Pkcs11Kms) -> None:
    name, key = await world.make_key(), random_secret()
    first = await kms.wrap(name, key, CONTEXT)
    await world.rotate(name)
    second = await kms.wrap(name, key, CONTEXT)
    described = await kms.describe(name)
    assert (described.version, described.min_version) == ("0002", "0001")
    assert (first.version, second.version) == ("0001", "0002")

    def destroy_first() -> None:
        with world.session() as session:
            (oldest,) = session.get_objects({Attribute.LABEL: name, Attribute.ID: b"\x00\x01"})
            oldest.destroy()

    await world.do(destroy_first)
    with pytest.raises(KmsKeyGone):
        await kms.unwrap(name, first.data, CONTEXT)
    assert await kms.unwrap(name, second.data, CONTEXT) == key


async def test_a_key_that_may_not_wrap_is_not_used(world: HsmWorld, kms: Pkcs11Kms) -> None:
    def make() -> None:
        with world.session() as session:
            session.generate_key(
                KeyType.AES,
                256,
                label="only-encrypts",
                id=b"\x01",
                store=True,
                template={Attribute.WRAP: False, Attribute.UNWRAP: False},
            )

    await world.do(make)
    with pytest.raises(KmsKeyGone):
        await kms.wrap("only-encrypts", random_secret(), CONTEXT)


async def test_a_wrong_pin_is_tried_once(world: HsmWorld, tmp_path: Path) -> None:
    """Tokens lock themselves after a few wrong ones: then the right one is refused, too."""
    file = tmp_path / "pin"
    file.write_text("wrong-pin")
    kms = Pkcs11Kms(replace(world.open()._config, pin=None, pin_file=file), default_key="one")
    with pytest.raises(KmsDenied, match="PinIncorrect"):
        await kms.describe("one")
    for _ in range(20):
        with pytest.raises(KmsDenied, match="refused this PIN before") as refused:
            await kms.describe("one")
        assert "wrong-pin" not in str(refused.value)
    file.write_text(f"{PIN}\n")
    assert (await kms.describe("one")).key_id == "one"
    await kms.aclose()
    file.unlink()
    with pytest.raises(KmsDenied, match="cannot be read"):
        await kms.describe("one")
    await kms.aclose()


async def test_a_token_that_is_not_there_is_unavailable(world: HsmWorld) -> None:
    kms = Pkcs11Kms(replace(world.open()._config, token="elsewhere"), default_key="one")
    with pytest.raises(KmsUnavailable, match="NoSuchToken"):
        await kms.describe("one")
    await kms.aclose()


async def test_a_library_that_is_no_module_is_unavailable(world: HsmWorld, tmp_path: Path) -> None:
    fake = tmp_path / "module.so"
    fake.write_bytes(b"not a library")
    kms = Pkcs11Kms(replace(world.open()._config, module=fake), default_key="one")
    with pytest.raises(KmsUnavailable):
        await kms.describe("one")
    await kms.aclose()


# The library's search ends twice: once by the error, and once more when it is dropped.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_session_that_was_closed_is_opened_again(world: HsmWorld, kms: Pkcs11Kms) -> None:
    key = random_secret()
    wrapped = await kms.wrap("one", key, CONTEXT)
    # What another part of the process does to all sessions when it logs out.
    await world.do(kms._session.close)
    assert await kms.unwrap("one", wrapped.data, CONTEXT) == key


async def test_a_session_that_was_logged_out_does_not_take_keys_for_gone(
    world: HsmWorld, kms: Pkcs11Kms
) -> None:
    other, key = world.open(), random_secret()
    # The first one to log in does so for the whole process; the other sees keys by that.
    await other.describe("one")
    wrapped = await kms.wrap("one", key, CONTEXT)
    await other.aclose()
    assert await kms.unwrap("one", wrapped.data, CONTEXT) == key


async def test_two_clients_share_a_token(world: HsmWorld, kms: Pkcs11Kms) -> None:
    other, key = world.open(), random_secret()
    wrapped = await kms.wrap("one", key, CONTEXT)
    assert await other.unwrap("one", wrapped.data, CONTEXT) == key
    await other.aclose()
    # Its end logged the whole process out.
    assert await kms.unwrap("one", wrapped.data, CONTEXT) == key


async def test_a_module_that_hangs_meets_the_deadline_and_recovers(world: HsmWorld) -> None:
    kms, key = world.open(), random_secret()
    wrapped = await kms.wrap("one", key, CONTEXT)
    hasty = Pkcs11Kms(replace(kms._config, timeout_s=0.2), default_key="one")
    thawed = threading.Event()
    hanging = ModuleThread.of(world.module).submit(thawed.wait)
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                with pytest.raises(KmsUnavailable, match=r"0\.2 s"):
                    await hasty.unwrap("one", wrapped.data, CONTEXT)
            # It does not hold up who closes it.
            await hasty.aclose()
    finally:
        thawed.set()
    await asyncio.wrap_future(hanging)
    assert await kms.unwrap("one", wrapped.data, CONTEXT) == key
    await kms.aclose()


async def test_clients_that_come_and_go_together_do_no_harm(
    world: HsmWorld, kms: Pkcs11Kms
) -> None:
    """Two threads in SoftHSM at once crash it."""
    key = random_secret()
    wrapped = await kms.wrap("one", key, CONTEXT)

    async def come_and_go() -> None:
        other = world.open()
        assert await other.unwrap("one", wrapped.data, CONTEXT) == key
        await other.aclose()

    for _ in range(10):
        await asyncio.gather(*(come_and_go() for _ in range(4)))
        assert await kms.unwrap("one", wrapped.data, CONTEXT) == key


@pytest.mark.parametrize("error", [pkcs11.KeyTypeInconsistent, pkcs11.MechanismInvalid])
async def test_a_key_the_module_cannot_use_is_refused(
    world: HsmWorld, kms: Pkcs11Kms, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(key_id: str) -> None:
        raise error

    monkeypatch.setattr(kms, "_versions", refuse)
    with pytest.raises(Reject) as refused:
        await kms.describe("one")
    assert refused.value.code is ErrorCode.UNSUPPORTED


async def test_a_carrier_of_another_length_is_damaged(world: HsmWorld, kms: Pkcs11Kms) -> None:
    data = (await kms.wrap("one", random_secret(), CONTEXT)).data
    at = 5 + data[4]
    forged = data[:at] + (32).to_bytes(2, "big") + data[at + 2 :]
    with pytest.raises(Damaged):
        await kms.unwrap("one", forged, CONTEXT)
