from __future__ import annotations

import pytest

from workers.storage import layout

UID, OTHER = bytes(range(16)), bytes(range(16, 32))
HEX = UID.hex()


def test_keys() -> None:
    assert layout.head(UID, 3) == f"{HEX}/shards/3/head"
    assert layout.segment(UID, 0, OTHER) == f"{HEX}/shards/0/segments/{OTHER.hex()}"
    assert layout.deletes(UID, 0, OTHER) == f"{HEX}/shards/0/deletes/{OTHER.hex()}"
    assert layout.centroids(UID, 1, OTHER) == f"{HEX}/shards/1/centroids/{OTHER.hex()}"
    assert layout.pack(UID, OTHER) == f"{HEX}/packs/{OTHER.hex()}"
    assert layout.body(UID, OTHER) == f"{HEX}/bodies/{OTHER.hex()}"
    assert layout.envelope(UID) == f"{HEX}/keys/envelope/0"
    assert layout.envelope(UID, 2) == f"{HEX}/keys/envelope/2"
    assert layout.dek(UID, 7) == f"{HEX}/keys/dek/7"
    assert layout.tag(UID) == f"{HEX}/keys/tag"
    assert layout.ingest_key(UID, 20_000) == f"{HEX}/keys/ingest/20000"
    assert layout.user_key(UID, b"\xab" * 32) == f"{HEX}/keys/users/{'ab' * 32}"
    assert layout.catalog(b"\xcd" * 32) == f"catalog/{'cd' * 32}"
    assert layout.realm("root") == "realm/root"
    assert layout.realm("user", b"\x01") == "realm/user/01"
    assert layout.result(UID) == f"results/{HEX}"


def test_prefixes_contain_their_keys() -> None:
    assert layout.segment(UID, 4, OTHER).startswith(layout.segments_prefix(UID, 4))
    assert layout.head(UID, 4).startswith(layout.shard_prefix(UID, 4))
    assert not layout.head(UID, 44).startswith(layout.shard_prefix(UID, 4))
    assert layout.pack(UID, OTHER).startswith(layout.packs_prefix(UID))
    assert layout.dek(UID, 1).startswith(layout.keys_prefix(UID))
    for key in (layout.tag(UID), layout.pack(UID, OTHER), layout.head(UID, 0)):
        assert key.startswith(layout.index_prefix(UID))
    assert layout.catalog(bytes(32)).startswith(layout.catalog_prefix())


def test_last_uid() -> None:
    assert layout.last_uid(layout.segment(UID, 0, OTHER)) == OTHER
    for bad in (layout.head(UID, 0), layout.dek(UID, 1), "x/" + "ab" * 15):
        with pytest.raises(ValueError):
            layout.last_uid(bad)


def test_refusals() -> None:
    with pytest.raises(ValueError):
        layout.head(b"short", 0)
    with pytest.raises(ValueError):
        layout.head(UID, -1)
    with pytest.raises(ValueError):
        layout.catalog(b"acme")
    with pytest.raises(ValueError):
        layout.realm("../etc")
