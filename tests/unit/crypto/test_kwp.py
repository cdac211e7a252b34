from __future__ import annotations

import pytest

from workers.crypto import kwp
from workers.crypto.errors import InvalidKey, OpenFailed
from workers.crypto.secret import random_secret


def test_a_key_comes_back() -> None:
    kek, key = random_secret(), random_secret()
    wrapped = kwp.wrap(kek, key)
    assert len(wrapped) == 40
    assert kwp.unwrap(kek, wrapped) == key


def test_nothing_else_unwraps() -> None:
    kek = random_secret()
    wrapped = kwp.wrap(kek, random_secret())
    flipped = bytes([wrapped[0] ^ 1]) + wrapped[1:]
    for blob in (flipped, wrapped[:-1], wrapped[:-8], wrapped + bytes(8), b"", bytes(40)):
        with pytest.raises(OpenFailed):
            kwp.unwrap(kek, blob)
    with pytest.raises(OpenFailed):
        kwp.unwrap(random_secret(), wrapped)


def test_bad_lengths_are_refused() -> None:
    for kek, key in ((bytes(16), bytes(32)), (bytes(33), bytes(32)), (bytes(32), b"")):
        with pytest.raises(InvalidKey):
            kwp.wrap(kek, key)
