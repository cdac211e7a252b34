from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.text.varint import MalformedPayloadError
from workers.text.vocabulary import (
    PAD_BYTES,
    Vocabulary,
    build_vocabulary,
    read_vocabulary,
)

words = st.sets(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), max_size=40)


@given(words)
def test_lists_round_trip_sorted(found):
    data = build_vocabulary(found)
    assert read_vocabulary(data) == sorted(found)
    assert len(data) % PAD_BYTES == 0


def test_published_bytes():
    """The format is stored: these bytes must not change."""
    data = build_vocabulary(["run", "running", "\u00e9t\u00e9", "run"])
    assert data.rstrip(b"\0").hex() == "0103000372756e03046e696e670005c3a974c3a9"
    assert len(data) == PAD_BYTES
    assert build_vocabulary([]) == b""
    assert build_vocabulary([""]) == b""
    assert read_vocabulary(b"") == []


@pytest.mark.parametrize(
    "bad", [b"\x02\x01\x00\x01a", b"\x01\x02\x00\x01a", b"\x01\x01\x05\x01a", b"\x01"]
)
def test_malformed_lists_are_refused(bad):
    with pytest.raises(MalformedPayloadError):
        read_vocabulary(bad)


def test_completions():
    vocabulary = Vocabulary()
    vocabulary.add(["running", "run", "ruin", "zebra"])
    vocabulary.add(["runner"])
    assert vocabulary.complete("run") == ["run", "runner", "running"]
    assert vocabulary.complete("ru", limit=2) == ["ruin", "run"]
    assert vocabulary.complete("nothing") == []
    assert len(vocabulary) == 5
