from __future__ import annotations

import pytest

from workers.crypto.derive import block_key, node_label_and_key, node_secret
from workers.crypto.errors import InvalidKey, OpenFailed
from workers.crypto.nodes import (
    INTO_BYTES,
    NodeSealer,
    block_aad,
    node_aad,
    open_block,
    open_node,
    seal_block,
    seal_node,
)
from workers.crypto.secret import SecretBytes

SEGMENT_KEY, TOKEN = bytes(range(32)), bytes(range(100, 132))
UID, SEGMENT = b"i" * 16, b"s" * 16
SIZES = [0, 1, 100, INTO_BYTES - 17, INTO_BYTES - 16, INTO_BYTES, INTO_BYTES + 1, 300_000]


@pytest.mark.parametrize("size", SIZES)
def test_a_node_opens_as_sealed(size: int) -> None:
    payload = bytes(size)
    sealed = seal_node(SEGMENT_KEY, payload, b"aad")
    assert len(sealed) == size + 16
    assert type(sealed) is bytes
    assert open_node(SEGMENT_KEY, memoryview(sealed), b"aad") == payload


@pytest.mark.parametrize("size", [0, 100, INTO_BYTES + 100])
def test_a_changed_node_does_not_open(size: int) -> None:
    sealed = seal_node(SEGMENT_KEY, bytes(size), b"aad")
    flipped = bytes([sealed[0] ^ 1]) + sealed[1:]
    for key, blob, aad in (
        (bytes(32), sealed, b"aad"),
        (SEGMENT_KEY, sealed, b"AAD"),
        (SEGMENT_KEY, sealed, b""),
        (SEGMENT_KEY, flipped, b"aad"),
        (SEGMENT_KEY, sealed[:-1], b"aad"),
        (SEGMENT_KEY, sealed + b"\0", b"aad"),
        (SEGMENT_KEY, sealed[:15], b"aad"),
        (SEGMENT_KEY, b"", b"aad"),
    ):
        with pytest.raises(OpenFailed):
            open_node(key, blob, aad)


def test_the_sealer_gives_what_the_functions_give() -> None:
    sealer = NodeSealer(SecretBytes(SEGMENT_KEY), UID, 3, SEGMENT)
    label, key = node_label_and_key(node_secret(SEGMENT_KEY, TOKEN), SEGMENT, 2, 5)
    assert sealer.label_and_key(TOKEN, 2, 5) == (label, key)
    sealed = seal_node(key, b"payload", node_aad(UID, 3, SEGMENT, label, 7))
    assert sealer.seal(TOKEN, 2, 5, 7, b"payload") == (label, sealed)
    assert sealer.open(TOKEN, 2, 5, 7, sealed) == b"payload"


def test_a_node_opens_only_in_its_place() -> None:
    _, sealed = NodeSealer(SEGMENT_KEY, UID, 3, SEGMENT).seal(TOKEN, 2, 0, 7, b"payload")
    elsewhere = [
        (NodeSealer(bytes(32), UID, 3, SEGMENT), (TOKEN, 2, 0, 7)),
        (NodeSealer(SEGMENT_KEY, b"j" * 16, 3, SEGMENT), (TOKEN, 2, 0, 7)),
        (NodeSealer(SEGMENT_KEY, UID, 4, SEGMENT), (TOKEN, 2, 0, 7)),
        (NodeSealer(SEGMENT_KEY, UID, 3, b"t" * 16), (TOKEN, 2, 0, 7)),
        (NodeSealer(SEGMENT_KEY, UID, 3, SEGMENT), (bytes(32), 2, 0, 7)),
        (NodeSealer(SEGMENT_KEY, UID, 3, SEGMENT), (TOKEN, 3, 0, 7)),
        (NodeSealer(SEGMENT_KEY, UID, 3, SEGMENT), (TOKEN, 2, 1, 7)),
        (NodeSealer(SEGMENT_KEY, UID, 3, SEGMENT), (TOKEN, 2, 0, 8)),
    ]
    for sealer, place in elsewhere:
        with pytest.raises(OpenFailed):
            sealer.open(*place, sealed)


def test_a_block_opens_only_under_its_number() -> None:
    key = block_key(SEGMENT_KEY, SEGMENT, 1, 9)
    sealed = seal_block(key, b"directory", block_aad(UID, 3, SEGMENT, 1, 9))
    assert open_block(key, sealed, block_aad(UID, 3, SEGMENT, 1, 9)) == b"directory"
    with pytest.raises(OpenFailed):
        open_block(key, sealed, block_aad(UID, 3, SEGMENT, 1, 10))
    with pytest.raises(OpenFailed):
        open_block(block_key(SEGMENT_KEY, SEGMENT, 1, 10), sealed, block_aad(UID, 3, SEGMENT, 1, 9))


def test_keys_of_another_length_are_refused() -> None:
    with pytest.raises(InvalidKey):
        seal_node(bytes(16), b"", b"")
    with pytest.raises(InvalidKey):
        open_node(bytes(16), bytes(16), b"")
