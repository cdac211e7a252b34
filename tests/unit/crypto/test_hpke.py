from __future__ import annotations

import pickle

import pytest

from workers.crypto.errors import InvalidKey, OpenFailed
from workers.crypto.hpke import (
    DEFAULT_SUITE,
    HpkePrivateKey,
    HpkePublicKey,
    HpkeSuite,
    key_id,
    open_with,
    seal_to,
)
from workers.crypto.info import Info, info
from workers.crypto.secret import random_secret

SEED = bytes(range(32))
INFO = info(Info.PACK, b"i" * 16, 1)
SUITES = list(HpkeSuite)


@pytest.mark.parametrize("suite", SUITES)
def test_a_message_opens_as_sealed(suite: HpkeSuite) -> None:
    private = HpkePrivateKey.generate(suite)
    public = HpkePublicKey.decode(private.public.encode())
    assert public == private.public
    for plaintext in (b"", b"x", bytes(100_000)):
        sealed = seal_to(public, INFO, plaintext)
        assert len(sealed) - len(plaintext) == {1: 48, 2: 1136}[suite]
        assert open_with(private, INFO, sealed) == plaintext


@pytest.mark.parametrize("suite", SUITES)
def test_nothing_else_opens(suite: HpkeSuite) -> None:
    private = HpkePrivateKey.generate(suite)
    sealed = seal_to(private.public, INFO, b"plaintext")
    with pytest.raises(OpenFailed):
        open_with(HpkePrivateKey.generate(suite), INFO, sealed)
    with pytest.raises(OpenFailed):
        open_with(private, info(Info.PACK, b"i" * 16, 2), sealed)
    with pytest.raises(OpenFailed):
        open_with(private, info(Info.UPDATE, b"i" * 16, 1), sealed)
    for blob in (b"", sealed[:20], sealed[:-1], sealed + b"\0", bytes(len(sealed))):
        with pytest.raises(OpenFailed):
            open_with(private, INFO, blob)
    for at in (0, 40, len(sealed) // 2, len(sealed) - 1):
        flipped = bytearray(sealed)
        flipped[at] ^= 1
        with pytest.raises(OpenFailed):
            open_with(private, INFO, bytes(flipped))


def test_suites_do_not_open_each_other() -> None:
    one, two = (HpkePrivateKey.from_seed(suite, SEED) for suite in SUITES)
    with pytest.raises(OpenFailed):
        open_with(two, INFO, seal_to(one.public, INFO, b"x"))
    with pytest.raises(OpenFailed):
        open_with(one, INFO, seal_to(two.public, INFO, b"x"))


@pytest.mark.parametrize("suite", SUITES)
def test_a_seed_always_gives_the_same_pair(suite: HpkeSuite) -> None:
    one = HpkePrivateKey.from_seed(suite, SEED, "a")
    assert one.public == HpkePrivateKey.from_seed(suite, SEED, "a").public
    others = {
        HpkePrivateKey.from_seed(suite, SEED, "b"),
        HpkePrivateKey.from_seed(suite, bytes(32)),
    }
    assert one.public not in {other.public for other in others}


def test_the_default_is_the_hybrid() -> None:
    assert DEFAULT_SUITE is HpkeSuite.MLKEM768_X25519
    assert HpkePrivateKey.generate().suite is DEFAULT_SUITE


def test_a_suite_below_the_floor_is_refused() -> None:
    encoded = HpkePrivateKey.generate(HpkeSuite.X25519).public.encode()
    assert HpkePublicKey.decode(encoded).suite is HpkeSuite.X25519
    with pytest.raises(InvalidKey, match="floor"):
        HpkePublicKey.decode(encoded, floor=HpkeSuite.MLKEM768_X25519)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x00" + bytes(32),
        b"\x03" + bytes(32),
        b"\x01" + bytes(31),
        b"\x01" + bytes(33),
        b"\x02" + bytes(32),
        b"\x02" + bytes(1215),
        b"\x02" + b"\xff" * 1216,
    ],
)
def test_what_is_no_public_key_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidKey):
        HpkePublicKey.decode(data)


@pytest.mark.parametrize("low", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_a_point_of_low_order_is_no_public_key(low: bytes) -> None:
    hybrid = HpkePrivateKey.generate(HpkeSuite.MLKEM768_X25519).public.encode()[1:-32] + low
    for suite, raw in ((HpkeSuite.X25519, low), (HpkeSuite.MLKEM768_X25519, hybrid)):
        with pytest.raises(InvalidKey):
            HpkePublicKey.decode(bytes([suite]) + raw)


@pytest.mark.parametrize("suite", SUITES)
def test_a_private_key_of_another_length_is_refused(suite: HpkeSuite) -> None:
    for size in (0, 31, 33, 64, 95, 97):
        with pytest.raises(InvalidKey):
            HpkePrivateKey(suite, bytes(size))
    with pytest.raises(InvalidKey):
        HpkePrivateKey.from_seed(suite, bytes(16))


def test_a_secret_can_be_sealed_without_a_copy() -> None:
    private, secret = HpkePrivateKey.generate(), random_secret()
    assert open_with(private, INFO, seal_to(private.public, INFO, secret)) == secret.copy()


def test_keys_name_themselves_and_do_not_leave() -> None:
    private = HpkePrivateKey.generate()
    assert len(key_id(private.public)) == 16
    assert key_id(private.public).hex() in repr(private.public)
    assert hash(private.public) == hash(HpkePublicKey.decode(private.public.encode()))
    with pytest.raises(TypeError):
        pickle.dumps(private)
