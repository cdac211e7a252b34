from __future__ import annotations

import pytest

from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey
from workers.crypto.together import MAX_LEVELS, is_signature, sign_together, verify

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32))


def messages(count: int) -> list[tuple[bytes, str, int]]:
    return [(b"key", f"value {n}", n) for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 15, 16, 17, 33, 48])
def test_each_message_verifies_by_itself(count: int) -> None:
    made = messages(count)
    signatures = sign_together(KEY, Info.MESSAGE, made)
    assert len(set(signatures)) == count
    for parts, signature in zip(made, signatures, strict=True):
        assert is_signature(signature)
        verify(KEY.public, signature, Info.MESSAGE, *parts)
    # One for each sixteen.
    assert len({signature[:64] for signature in signatures}) == -(-count // 16)


def test_one_message_is_signed_as_ever() -> None:
    [signature] = sign_together(KEY, Info.MESSAGE, messages(1))
    KEY.public.verify(signature, Info.MESSAGE, *messages(1)[0])
    verify(KEY.public, signature, Info.MESSAGE, *messages(1)[0])


def test_a_signature_is_good_for_its_message_alone() -> None:
    made = messages(5)
    signatures = sign_together(KEY, Info.MESSAGE, made)
    for n, signature in enumerate(signatures):
        for m, parts in enumerate(made):
            if n != m:
                with pytest.raises(BadSignature):
                    verify(KEY.public, signature, Info.MESSAGE, *parts)
    for key, domain, parts in (
        (OTHER.public, Info.MESSAGE, made[2]),
        (KEY.public, Info.INGEST_RESULT, made[2]),
        (KEY.public, Info.MESSAGE, made[2][:2]),
        (KEY.public, Info.MESSAGE, (b"key value 2", 2)),
    ):
        with pytest.raises(BadSignature):
            verify(key, signatures[2], domain, *parts)


@pytest.mark.parametrize("at", [0, 63, 64, 65, 96, 97, 160])
def test_a_changed_byte_is_seen(at: int) -> None:
    made = messages(8)
    signature = bytearray(sign_together(KEY, Info.MESSAGE, made)[3])
    verify(KEY.public, bytes(signature), Info.MESSAGE, *made[3])
    signature[at] ^= 1
    with pytest.raises(BadSignature):
        verify(KEY.public, bytes(signature), Info.MESSAGE, *made[3])


def test_hashes_pass_for_no_message() -> None:
    """A node of the tree is no leaf, and the place of no message proves none."""
    made = messages(3)
    first, second, third = sign_together(KEY, Info.MESSAGE, made)
    beside = third[65:97]
    assert beside == bytes(32)
    for parts in ((beside,), (), (b"",), (second[65:97] + first[65:97],)):
        for place in range(4):
            forged = third[:64] + bytes([place]) + third[65:]
            with pytest.raises(BadSignature):
                verify(KEY.public, forged, Info.MESSAGE, *parts)
    # Nor does the signature of a root verify as that of a message with the same parts.
    root = KEY.sign(Info.MESSAGE, "together", bytes(32))
    with pytest.raises(BadSignature):
        verify(KEY.public, root, Info.MESSAGE, b"together", bytes(32))


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        bytes(63),
        bytes(65),
        bytes(96),
        bytes(98),
        bytes(64) + b"\x02" + bytes(32),
        bytes(65 + 32 * (MAX_LEVELS + 1)),
    ],
)
def test_other_forms_are_refused(signature: bytes) -> None:
    assert not is_signature(signature)
    with pytest.raises(BadSignature):
        verify(KEY.public, signature, Info.MESSAGE, b"x")
