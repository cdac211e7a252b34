from __future__ import annotations

import msgspec
import numpy as np
import pytest
from chain_kit import INDEX, SIGNER, Clock, Op, batch, keys, make_writer, verify

from schemas.errors import ErrorCode
from workers.chain.bitmap import decode_dead, encode_dead, open_deletes
from workers.chain.faults import Leased
from workers.chain.head import (
    Deletes,
    Head,
    HeadSigner,
    OpenedHead,
    ShardStats,
    check_successor,
    empty_head,
    open_head,
    seal_head,
)
from workers.chain.kinds import RowKind
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey
from workers.errors import Damaged, Fenced, Reject, Retry
from workers.storage import layout
from workers.storage.memory import MemoryStore


def head(**changes) -> Head:
    return msgspec.structs.replace(
        empty_head(INDEX, 3, 1), version=5, nonce=b"n" * 16, applied=9, **changes
    )


def test_a_head_comes_back_as_it_was() -> None:
    sealed = seal_head(head(), keys, SIGNER)
    assert open_head(sealed, INDEX, 3, keys, verify).head == head()


def test_nothing_of_it_can_be_read() -> None:
    sealed = seal_head(head(versions={"analyzer": "english-secret"}), keys, SIGNER)
    assert b"english-secret" not in sealed


def test_a_key_that_was_wiped_meanwhile_is_no_damage() -> None:
    sealed = seal_head(head(), keys, SIGNER)

    def ended(generation: int) -> SecretBytes:
        key = keys(generation)
        key.wipe()
        return key

    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        open_head(sealed, INDEX, 3, ended, verify)
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"):
        seal_head(head(), ended, SIGNER)


def test_what_was_computed_while_the_key_was_wiped_is_thrown_away() -> None:
    key = keys(1)
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"), Leased(key):
        key.wipe()
    with pytest.raises(Retry, match="KEY_UNAVAILABLE"), Leased(key):
        raise Damaged(ErrorCode.DAMAGED, "zeros open nothing")


def test_any_flipped_bit_is_damage() -> None:
    sealed = seal_head(head(), keys, SIGNER)
    for at in range(len(sealed)):
        data = bytearray(sealed)
        data[at] ^= 0x10
        # A changed generation asks for a key that there is not: also no head.
        with pytest.raises((Damaged, AssertionError, ValueError)):
            open_head(bytes(data), INDEX, 3, keys, verify)


def test_a_certificate_that_is_refused_is_damage() -> None:
    def refuse(*_: object) -> None:
        raise Reject(ErrorCode.UNAUTHENTICATED, "not from this key service")

    with pytest.raises(Damaged):
        open_head(seal_head(head(), keys, SIGNER), INDEX, 3, keys, refuse)


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x93\xc4\x00\xc4\x00\xc4\x00", bytes(200)])
def test_what_is_no_head_is_damage(data: bytes) -> None:
    with pytest.raises(Damaged):
        open_head(data, INDEX, 3, keys, verify)


@pytest.mark.parametrize(("uid", "shard"), [(b"x" * 16, 3), (INDEX, 4)])
def test_the_head_of_another_shard_is_damage(uid: bytes, shard: int) -> None:
    with pytest.raises(Damaged):
        open_head(seal_head(head(), keys, SIGNER), uid, shard, keys, verify)


def test_a_head_that_a_query_worker_made_is_damage() -> None:
    """It holds the segment key, but its signature is not that of an index worker."""
    forger = HeadSigner("query-1", SigningKey.generate(), SIGNER.certificate)
    with pytest.raises(Damaged, match="not signed"):
        open_head(seal_head(head(), keys, forger), INDEX, 3, keys, verify)


def test_a_head_that_contradicts_itself_is_damage() -> None:
    wrong = head(deletes=[Deletes()])
    with pytest.raises(Damaged, match="contradicts"):
        open_head(seal_head(wrong, keys, SIGNER), INDEX, 3, keys, verify)


def opened(version: int, applied: int, sha: bytes, prev: bytes) -> OpenedHead:
    one = msgspec.structs.replace(
        empty_head(INDEX, 3, 1), version=version, applied=applied, prev_sha256=prev
    )
    return OpenedHead(one, sha, "")


@pytest.mark.parametrize(
    ("later", "ok"),
    [
        (opened(6, 9, b"b", b"a"), True),
        (opened(9, 30, b"c", b"?"), True),
        (opened(5, 9, b"a", b"?"), True),
        (opened(5, 9, b"b", b"?"), False),
        (opened(4, 9, b"b", b"?"), False),
        (opened(6, 9, b"b", b"x"), False),
        (opened(7, 8, b"b", b"x"), False),
    ],
)
def test_one_history(later: OpenedHead, ok: bool) -> None:
    earlier = opened(5, 9, b"a", b"?")
    if ok:
        check_successor(earlier, later)
    else:
        with pytest.raises(Damaged):
            check_successor(earlier, later)


@pytest.mark.parametrize("dead", [[], [0], [3, 99], list(range(100))])
def test_bitmaps_come_back(dead: list[int]) -> None:
    block = encode_dead(np.array(dead, np.uint32), 100)
    assert decode_dead(block, 100).tolist() == dead
    assert len(block) <= 14


@pytest.mark.parametrize("block", [b"", b"x", b"r\0\0", b"b" + bytes(12), b"r" + b"\xff" * 4])
def test_a_bitmap_of_another_segment_is_damage(block: bytes) -> None:
    with pytest.raises(Damaged):
        decode_dead(block, 100)


async def test_a_head_counts_its_dead_rows() -> None:
    ref = seal_head  # any value: not looked at before the count
    del ref
    store = MemoryStore()
    writer = make_writer(store, Clock())
    await writer.load()
    await writer.apply(batch(0, [Op(RowKind.DOC, "a", ("x",), 0, 1)]))
    ref = writer.head.segments[0]
    with pytest.raises(Damaged, match="count"):
        open_deletes(Deletes(count=1), ref, None, None)


async def test_heads_chain_by_hash_and_count_up() -> None:
    store = MemoryStore()
    writer = make_writer(store, Clock())
    assert await writer.load() == -1
    assert store.keys() == []
    seen = []
    for i in range(3):
        await writer.apply(batch(i, [Op(RowKind.DOC, "a", ("x",), 0, i)]))
        seen.append((writer.head.version, writer.head.prev_sha256, writer.head_sha256))
    assert [version for version, _, _ in seen] == [1, 2, 3]
    assert [prev for _, prev, _ in seen[1:]] == [sha for _, _, sha in seen[:-1]]
    assert seen[0][1] == bytes(32)


async def test_a_writer_must_load_first() -> None:
    with pytest.raises(Fenced):
        await make_writer(MemoryStore(), Clock()).apply(batch(0, []))


async def test_a_rolled_back_head_is_damage_for_who_was_told() -> None:
    store = MemoryStore()
    writer = make_writer(store, Clock())
    await writer.load()
    await writer.apply(batch(0, []))
    old = (await store.get(layout.head(INDEX, 0))).data
    await writer.apply(batch(1, []))
    await store.put(layout.head(INDEX, 0), old)
    assert await make_writer(store, Clock()).load() == 0
    with pytest.raises(Damaged):
        await make_writer(store, Clock()).load(min_version=2)


def test_stats_start_at_nothing() -> None:
    assert empty_head(INDEX, 0, 1).stats == ShardStats(0, 0, 0, {})
