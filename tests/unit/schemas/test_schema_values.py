from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidMessage
from schemas.values import Binary, Vector, decode_base64, encode_base64, vector_array


@given(st.binary(max_size=200))
def test_base64_round_trips(data: bytes) -> None:
    assert encode_base64(data) == base64.b64encode(data).decode()
    assert decode_base64(encode_base64(data)) == data
    assert Binary.of(data).decode() == data


@pytest.mark.parametrize("text", ["QUI", "QUI=\n", "Q UI", "-_==", "Q===", "QQ==QQ==", "é"])
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_base64(text, "sealed")
    assert caught.value.field == "sealed"
    assert caught.value.__context__ is None


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)
)
def test_both_forms_give_the_same_vector(numbers: list[float]) -> None:
    listed = Vector.from_json(numbers)
    packed = Vector.from_json(listed.to_json())
    made = Vector.of(numbers)
    assert listed == packed == made
    assert hash(listed) == hash(packed) == hash(made)
    assert vector_array(listed).dtype == np.float32
    assert len(listed) == len(numbers)


def test_equal_zeros_hash_alike() -> None:
    assert hash(Vector.of([0.0])) == hash(Vector.of([-0.0]))
    assert Vector.of([0.0]) == Vector.of([-0.0])


def test_vectors_are_read_only() -> None:
    mine = np.ones(3, dtype=np.float32)
    for vector in (Vector(mine), Vector.of(mine), Vector.from_json([1, 2, 3])):
        assert not vector.array.flags.writeable
    mine[0] = 2.0


def test_integers_are_numbers() -> None:
    assert Vector.from_json([1, 2**70]).array.tolist() == [1.0, float(np.float32(2**70))]


def test_a_vector_shows_no_numbers() -> None:
    assert repr(Vector.of([0.25, 0.5])) == "Vector(2)"


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 2), dtype=np.float32),
        np.ones(2, dtype=np.float64),
        np.array([], dtype=np.float32),
        np.array([np.nan], dtype=np.float32),
        np.array([np.inf], dtype=np.float32),
        np.ones(65_537, dtype=np.float32),
    ],
)
def test_what_is_no_vector(array: np.ndarray) -> None:
    with pytest.raises(InvalidMessage):
        Vector(array)


def test_conversion_refuses_what_overflows() -> None:
    with pytest.raises(InvalidMessage):
        Vector.of([1e39])
    with pytest.raises(InvalidMessage):
        Vector.from_json([1e39])
