"""The canary scan finds what is there, in every form it claims to know."""

from __future__ import annotations

import base64
import os

import numpy as np
import pytest

from workers.local.canary import Scan, random_text, text_canary, vector_canary


@pytest.mark.parametrize("lead", range(7))
@pytest.mark.parametrize("tail", range(4))
def test_finds_a_text_in_base64_at_any_alignment(lead: int, tail: int) -> None:
    text = random_text()
    canary = text_canary("content", text)
    for secret in (text.encode(), bytes.fromhex(text)):
        blob = os.urandom(lead) + secret + os.urandom(tail)
        for encoded in (
            blob,
            base64.b64encode(blob),
            base64.urlsafe_b64encode(blob),
            blob.hex().encode(),
            blob.hex().upper().encode(),
        ):
            scan = Scan()
            scan.look([canary], "here", None, encoded)
            assert scan.found == {"content"}


@pytest.mark.parametrize("width", ["<f4", "<f2"])
@pytest.mark.parametrize("normalised", [False, True])
def test_finds_a_vector_as_it_is_stored(width: str, normalised: bool) -> None:
    vector = np.random.default_rng().normal(size=16).astype(np.float32)
    canary = vector_canary("vector", vector)
    stored = vector / np.linalg.norm(vector) if normalised else vector
    scan = Scan()
    scan.look([canary], "here", b"xyz" + stored.astype(width).tobytes())
    assert scan.found == {"vector"}


def test_finds_a_vector_that_was_stored_narrow_and_is_shown_wide() -> None:
    vector = np.random.default_rng().normal(size=16).astype(np.float32)
    scan = Scan()
    shown = vector.astype("<f2").astype("<f4").tobytes()
    scan.look([vector_canary("vector", vector)], "here", base64.b64encode(shown))
    assert scan.found == {"vector"}


def test_finds_a_vector_in_json() -> None:
    vector = np.random.default_rng().normal(size=16).astype(np.float32)
    scan = Scan()
    scan.look([vector_canary("vector", vector)], "here", str(vector.tolist()).encode())
    assert scan.found == {"vector"}


def test_finds_nothing_in_other_bytes() -> None:
    vector = np.random.default_rng().normal(size=16).astype(np.float32)
    scan = Scan()
    canaries = [text_canary("content", random_text()), vector_canary("vector", vector)]
    scan.look(canaries, "here", os.urandom(1_000_000))
    assert scan.found == set()
    assert scan.size_bytes == 1_000_000
