from __future__ import annotations

import pytest

from workers.crypto.draw import Draw


def test_no_byte_is_handed_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []

    def urandom(n: int) -> bytes:
        drawn.append(bytes(len(drawn) + number % 7 for number in range(n)))
        return drawn[-1]

    monkeypatch.setattr("os.urandom", urandom)
    draw = Draw()
    taken = [draw.take(n) for n in (32, 12, 0, 4000, 400, 4096)]
    assert [len(one) for one in taken] == [32, 12, 0, 4000, 400, 4096]
    # What is left of a block that is too short is thrown away.
    first, second, third = drawn
    assert b"".join(taken[:4]) == first[:4044]
    assert taken[4] == second[:400]
    assert taken[5] == third


def test_two_draws_differ() -> None:
    assert Draw().take(32) != Draw().take(32)


@pytest.mark.parametrize("n", [-1, 4097])
def test_draws_are_bounded(n: int) -> None:
    with pytest.raises(ValueError, match="too many"):
        Draw().take(n)
