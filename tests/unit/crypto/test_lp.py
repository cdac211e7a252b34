from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.crypto.derive import Purpose, TokenKind
from workers.crypto.lp import lp, lp_text, unlp

PARTS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text(max_size=20),
        st.integers(min_value=-(2**63), max_value=2**63 - 1),
    ),
    max_size=6,
)


@given(PARTS)
def test_every_list_comes_back(parts: list[bytes | str | int]) -> None:
    assert unlp(lp(*parts), count=len(parts)) == parts


@given(PARTS, PARTS)
def test_no_two_lists_share_an_encoding(
    one: list[bytes | str | int], other: list[bytes | str | int]
) -> None:
    same = [(type(p), p) for p in one] == [(type(p), p) for p in other]
    assert (lp(*one) == lp(*other)) == same


@given(PARTS, PARTS)
def test_lists_concatenate(one: list[bytes | str | int], other: list[bytes | str | int]) -> None:
    assert lp(*one) + lp(*other) == lp(*one, *other)


def test_boundaries_between_parts_count() -> None:
    assert len({lp("ab", "c"), lp("a", "bc"), lp("abc"), lp("abc", ""), lp(b"abc"), lp()}) == 6


def test_enums_count_as_their_values() -> None:
    assert lp(TokenKind.TERM) == lp(2)
    assert lp(Purpose.OBJECT) == lp("object")


def test_every_bytes_like_is_the_same() -> None:
    assert lp(bytearray(b"ab")) == lp(memoryview(b"ab")) == lp(b"ab")


@pytest.mark.parametrize("part", [True, None, 1.5, ["a"]])
def test_other_types_are_refused(part: object) -> None:
    with pytest.raises(TypeError):
        lp(part)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [2**63, -(2**63) - 1, "\ud800"])
def test_values_that_cannot_be_encoded_are_refused(part: str | int) -> None:
    with pytest.raises(ValueError):
        lp(part)


@pytest.mark.parametrize(
    "data",
    [
        b"b",
        b"b\0\0\0\x02a",
        b"x\0\0\0\x01a",
        b"i\0\0\0\x01a",
        b"s\0\0\0\x01\xff",
        b"b\xff\xff\xff\xff",
        lp("a") + b"\0",
    ],
)
def test_what_lp_cannot_have_made_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unlp(data)


def test_the_number_of_parts_is_checked() -> None:
    for count in (0, 1, 3):
        with pytest.raises(ValueError, match="parts"):
            unlp(lp("a", "b"), count=count)


@given(st.text())
def test_one_text_is_encoded_as_in_a_list(text: str) -> None:
    try:
        expected = lp(text)
    except ValueError:
        return
    assert lp_text(text) == expected
