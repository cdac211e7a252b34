from __future__ import annotations

import pickle

import pytest

from workers.crypto import info as info_module
from workers.crypto.errors import BadSignature, InvalidKey
from workers.crypto.info import Info, info, signed_bytes
from workers.crypto.secret import random_secret
from workers.crypto.sign import SigningKey, VerifyKey, fingerprint


def test_a_signature_verifies_only_as_made() -> None:
    key = SigningKey.generate()
    signature = key.sign(Info.HEAD, b"uid", 3, "sealed")
    key.public.verify(signature, Info.HEAD, b"uid", 3, "sealed")
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    for made, domain, parts in (
        (signature, Info.INDEX_EVENT, (b"uid", 3, "sealed")),
        (signature, Info.HEAD, (b"uid", 4, "sealed")),
        (signature, Info.HEAD, (b"uid", 3)),
        (signature, Info.HEAD, (b"uid", 3, b"sealed")),
        (flipped, Info.HEAD, (b"uid", 3, "sealed")),
        (b"", Info.HEAD, (b"uid", 3, "sealed")),
        (signature + b"\0", Info.HEAD, (b"uid", 3, "sealed")),
    ):
        with pytest.raises(BadSignature):
            key.public.verify(made, domain, *parts)
    with pytest.raises(BadSignature):
        SigningKey.generate().public.verify(signature, Info.HEAD, b"uid", 3, "sealed")


def test_a_seed_gives_the_key_back() -> None:
    key = SigningKey.generate()
    again = SigningKey.from_seed(key.seed())
    assert again.public == key.public
    assert again.sign(Info.HEAD, b"x") == key.sign(Info.HEAD, b"x")
    assert SigningKey.from_seed(random_secret()).public != key.public


def test_keys_compare_print_and_stay() -> None:
    key = SigningKey.generate()
    assert {key.public: 1}[VerifyKey(key.public.raw)] == 1
    assert bytes(key.public) == key.public.raw
    assert fingerprint(key.public).startswith(repr(key.public)[10:26])
    assert key.seed().copy().hex() not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(InvalidKey):
        VerifyKey(bytes(size))
    with pytest.raises(InvalidKey):
        SigningKey.from_seed(bytes(size))


def test_no_two_messages_share_an_info_or_a_domain() -> None:
    made = {make(kind) for kind in Info for make in (info, signed_bytes)}
    assert len(made) == 2 * len(Info)


def test_the_table_has_a_line_for_every_message() -> None:
    assert info_module.__doc__ is not None
    named = {line.split()[0] for line in info_module.__doc__.splitlines() if line[:4] == "    "}
    assert {kind.name for kind in Info} <= named
