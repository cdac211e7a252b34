"""A context bound where a KMS only wraps a key: every byte and every part counts."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.crypto.secret import SecretBytes, random_secret
from workers.errors import Damaged
from workers.kms.binding import KeyVersion, join, open_bound, split

KEY = KeyVersion("azure", "realm", "0" * 32)
CONTEXT = {"index": "00" * 16, "purpose": "kek"}


def made(plaintext: SecretBytes, carrier: SecretBytes) -> bytes:
    return join(KEY, carrier, os.urandom(40), plaintext, CONTEXT)


def test_it_opens_with_what_it_was_made_with() -> None:
    plaintext, carrier = random_secret(), random_secret()
    wrapped = os.urandom(256)
    parts = split(join(KEY, carrier, wrapped, plaintext, CONTEXT))
    assert (parts.version, parts.carrier) == (KEY.version, wrapped)
    assert open_bound(KEY, carrier, parts.sealed, CONTEXT) == plaintext


@pytest.mark.parametrize(
    "key",
    [
        KEY._replace(provider="pkcs11"),
        KEY._replace(key_id="other"),
        KEY._replace(version="1" * 32),
        KeyVersion("azurerealm", "", KEY.version),
    ],
)
def test_another_key_or_version_does_not_open(key: KeyVersion) -> None:
    carrier = random_secret()
    sealed = split(made(random_secret(), carrier)).sealed
    with pytest.raises(Damaged):
        open_bound(key, carrier, sealed, CONTEXT)


def test_another_carrier_or_context_does_not_open() -> None:
    carrier = random_secret()
    sealed = split(made(random_secret(), carrier)).sealed
    for other in (random_secret(), random_secret(16), random_secret(64), random_secret(1)):
        with pytest.raises(Damaged):
            open_bound(KEY, other, sealed, CONTEXT)
    with pytest.raises(Damaged):
        open_bound(KEY, carrier, sealed, {**CONTEXT, "purpose": "tag"})


def test_no_byte_of_the_sealed_part_may_change() -> None:
    carrier = random_secret()
    sealed = split(made(random_secret(), carrier)).sealed
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(Damaged):
            open_bound(KEY, carrier, bytes(changed), CONTEXT)


@given(st.binary(max_size=300), st.binary(max_size=8))
def test_bytes_that_are_no_wrapped_key_are_damaged(data: bytes, head: bytes) -> None:
    for blob in (data, b"SKB1" + data, b"SKB1" + head + data):
        try:
            parts = split(blob)
        except Damaged:
            continue
        # Whatever could be taken apart was made of these parts alone.
        version = parts.version.encode()
        size = len(parts.carrier).to_bytes(2, "big")
        rest = version + size + parts.carrier + parts.sealed
        assert blob == b"SKB1" + bytes((len(version),)) + rest
        with pytest.raises(Damaged):
            open_bound(KEY, SecretBytes(bytes(32)), parts.sealed, CONTEXT)


def test_a_wrapped_key_of_unbounded_size_is_not_read() -> None:
    with pytest.raises(Damaged):
        split(made(random_secret(), random_secret()) + bytes(70_000))
