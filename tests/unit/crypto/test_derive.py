from __future__ import annotations

import pytest

from workers.crypto import derive
from workers.crypto.derive import Prf, Purpose, TokenKind
from workers.crypto.errors import InvalidKey
from workers.crypto.lp import lp
from workers.crypto.secret import SecretBytes

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
UID, UID2 = b"i" * 16, b"j" * 16


def test_subkeys_differ_by_key_purpose_and_index() -> None:
    made = [
        derive.subkey(key, purpose, uid).copy()
        for key in (KEY, OTHER)
        for purpose in derive.SUBKEYS
        for uid in (UID, UID2)
    ]
    assert len(set(made)) == len(made) == 20
    assert {len(key) for key in made} == {32}


@pytest.mark.parametrize("purpose", [Purpose.TAG, Purpose.INGEST])
def test_keys_of_their_own_are_no_subkeys(purpose: Purpose) -> None:
    with pytest.raises(ValueError, match="key of its own"):
        derive.subkey(KEY, purpose, UID)


def test_tokens_differ_by_kind_field_and_value() -> None:
    made = [
        derive.chain_token(key, kind, field, value)
        for key in (KEY, OTHER)
        for kind in TokenKind
        for field in ("", "body")
        for value in ("", "seal", b"seal")
    ]
    assert len(set(made)) == len(made)
    assert {len(token) for token in made} == {32}


def test_field_and_value_do_not_run_into_each_other() -> None:
    one = derive.chain_token(KEY, TokenKind.META, "ab", "c")
    assert one != derive.chain_token(KEY, TokenKind.META, "a", "bc")


def test_ids_of_objects_and_groups_live_in_domains_of_their_own() -> None:
    assert derive.object_id(KEY, "x") != derive.group_token(KEY, "x")
    assert len(derive.object_id(KEY, "x")) == len(derive.group_token(KEY, "x")) == 16


def test_shards_are_used_evenly() -> None:
    ids = [derive.object_id(KEY, f"doc-{n}") for n in range(4000)]
    shards = [derive.shard_of(object_id, 4) for object_id in ids]
    assert set(shards) == {0, 1, 2, 3}
    assert all(850 < shards.count(shard) < 1150 for shard in range(4))
    assert {derive.shard_of(object_id, 1) for object_id in ids} == {0}


def test_labels_of_two_segments_cannot_be_linked() -> None:
    secret = derive.node_secret(KEY, bytes(32))
    made = [
        derive.node_label_and_key(secret, uid, kind, part)
        for uid in (UID, UID2)
        for kind in (1, 2)
        for part in (0, 1)
    ]
    assert len({label for label, _ in made}) == len({key for _, key in made}) == 8
    assert {(len(label), len(key)) for label, key in made} == {(16, 32)}


def test_block_keys_differ_from_each_other_and_from_node_secrets() -> None:
    made = {derive.block_key(KEY, UID, kind, number) for kind in (1, 2) for number in (0, 1)}
    assert len(made | {derive.node_secret(KEY, UID)}) == 5


def test_centroids_of_two_trainings_differ() -> None:
    made = {derive.centroid_token(KEY, epoch, cluster) for epoch in (0, 1) for cluster in (0, 1)}
    assert len(made) == 4


def test_the_keyed_prf_is_the_plain_one() -> None:
    keyed = Prf(SecretBytes(KEY))
    for value in ("", "a", "a" * 1000):
        assert keyed.digest(lp("node", value)) == derive.prf(KEY, "node", value)


def test_node_messages_are_lp() -> None:
    assert derive.node_message(KEY) == lp("node", KEY)
    with pytest.raises(ValueError, match="32 bytes"):
        derive.node_message(b"short")


@pytest.mark.parametrize("size", [0, 16, 33, 64])
def test_keys_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(InvalidKey):
        derive.prf(bytes(size), "x")
    with pytest.raises(InvalidKey):
        derive.subkey(bytes(size), Purpose.OBJECT, UID)
