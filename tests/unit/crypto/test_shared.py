from __future__ import annotations

import pytest

from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.shared import SharedSeal, open_shared

KEY = HpkePrivateKey.generate(HpkeSuite.X25519)
OTHER = HpkePrivateKey.generate(HpkeSuite.X25519)


@pytest.mark.parametrize("suite", list(HpkeSuite))
def test_every_message_opens_by_itself(suite: HpkeSuite) -> None:
    private = HpkePrivateKey.generate(suite)
    seal = SharedSeal(private.public, b"about")
    sealed = [seal.seal(b"message %d" % n, b"context %d" % n) for n in range(3)]
    for n in (2, 0, 1):
        opened = open_shared(private, b"about", seal.shared, sealed[n], b"context %d" % n)
        assert opened == b"message %d" % n


def test_it_opens_as_it_was_sealed_alone() -> None:
    seal = SharedSeal(KEY.public, b"about")
    sealed = seal.seal(b"message", b"context")
    good = (KEY, b"about", seal.shared, sealed, b"context")
    assert open_shared(*good) == b"message"
    changed = bytes([sealed[-1] ^ 1])
    for place, value in (
        (0, OTHER),
        (1, b"other"),
        (2, SharedSeal(KEY.public, b"about").shared),
        (2, seal.shared[:-1]),
        (3, sealed[:-1] + changed),
        (3, SharedSeal(KEY.public, b"about").seal(b"message", b"context")),
        (4, b"other"),
    ):
        with pytest.raises(OpenFailed):
            open_shared(*good[:place], value, *good[place + 1 :])  # type: ignore[arg-type]


def test_a_key_of_another_length_is_refused() -> None:
    sealed = SharedSeal(KEY.public, b"about").seal(b"x", b"")
    with pytest.raises(OpenFailed):
        open_shared(KEY, b"about", KEY.public.seal(b"about", b"short"), sealed, b"")


def test_an_encapsulation_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    private = HpkePrivateKey.generate(HpkeSuite.X25519)
    opened: list[bytes] = []
    real = HpkePrivateKey.open

    def note(self: HpkePrivateKey, info: bytes, ciphertext: bytes) -> bytes:
        opened.append(ciphertext)
        return real(self, info, ciphertext)

    monkeypatch.setattr(HpkePrivateKey, "open", note)
    first = SharedSeal(private.public, b"about")
    for n in range(5):
        assert open_shared(private, b"about", first.shared, first.seal(b"%d" % n, b""), b"")
    assert opened == [first.shared]
    # So many others came meanwhile that it is forgotten.
    for _ in range(256):
        other = SharedSeal(private.public, b"about")
        open_shared(private, b"about", other.shared, other.seal(b"x", b""), b"")
    open_shared(private, b"about", first.shared, first.seal(b"x", b""), b"")
    assert opened[-1] == first.shared
    assert len(opened) == 258
