from __future__ import annotations

import msgspec
import pytest

from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged
from workers.objects.pack import (
    INLINE_BYTES,
    LARGE_BYTES,
    Content,
    ObjectPointer,
    PackBuilder,
    Place,
    decode_pointer,
    encode_pointer,
    open_content,
    pack_routes,
    packs_by_uid,
    read_sealed,
    split_pack_key,
)
from workers.objects.record import AccessRecord, open_pack_key, open_record
from workers.storage.memory import MemoryStore

UID = b"u" * 16
GROUP = "00000000-0000-4000-8000-00000000000a"
KEY = HpkePrivateKey.generate(HpkeSuite.X25519)


def builder() -> PackBuilder:
    return PackBuilder(index_uid=UID, generation=3, object_public=KEY.public, created_ms=5)


def record_of(pointer: ObjectPointer, packs: list[bytes]) -> AccessRecord:
    wrapped = split_pack_key(packs_by_uid(packs)[pointer.pack])
    key = open_pack_key(
        KEY, wrapped.sealed, index_uid=UID, generation=wrapped.generation, pack_uid=wrapped.uid
    )
    return open_record(
        key,
        pointer.access,
        index_uid=UID,
        generation=pointer.generation,
        object_id=pointer.object_id,
        content_sha256=pointer.sha256,
    )


def secret(record: AccessRecord) -> bytes:
    key = record.object_key
    return key.copy() if isinstance(key, SecretBytes) else bytes(key)


async def test_every_place_opens_again() -> None:
    store = MemoryStore()
    sizes = [None, 0, INLINE_BYTES - 1, INLINE_BYTES, 70_000, LARGE_BYTES + 1]
    pack = builder()
    pointers = [
        pack.add(
            bytes([n]) * 16,
            Content(None if size is None else b"x" * size, "text/plain", b"ad"),
            [GROUP],
            (n % 2, 9),
        )
        for n, size in enumerate(sizes)
    ]
    objects, wrapped = pack.finish()
    assert len(objects) == len(wrapped) == 2  # the shared one, and that of the large content
    for one in objects:
        await store.put(one.key, one.data)
        assert pack_routes(one.data[-64:])[0] == 5
    assert [p.place for p in pointers] == [
        Place.NONE,
        Place.INLINE,
        Place.INLINE,
        Place.PACK,
        Place.PACK,
        Place.PACK,
    ]
    decoded = [decode_pointer(encode_pointer(pointer)) for pointer in pointers]
    assert decoded == pointers
    sealed = await read_sealed(store, UID, decoded)
    for pointer, data, size in zip(decoded, sealed, sizes, strict=True):
        record = record_of(pointer, wrapped)
        assert record.groups == (GROUP,)
        if size is not None:
            assert open_content(pointer, data, record.object_key, index_uid=UID) == b"x" * size
        else:
            assert data == b""


def test_no_two_contents_share_a_key() -> None:
    pack = builder()
    pointers = [pack.add(b"a" * 16, Content(b"x", "", b""), [GROUP], (0, 0)) for _ in range(2)]
    _, wrapped = pack.finish()
    keys = {secret(record_of(pointer, wrapped)) for pointer in pointers}
    assert len(keys) == 2
    assert pointers[0].inline != pointers[1].inline


def test_changed_or_moved_contents_do_not_open() -> None:
    pack = builder()
    pointer = pack.add(b"a" * 16, Content(b"secret", "text/plain", b"ad"), [GROUP], (0, 0))
    _, wrapped = pack.finish()
    key = record_of(pointer, wrapped).object_key
    assert open_content(pointer, pointer.inline, key, index_uid=UID) == b"secret"
    for change in ({"object_id": b"b" * 16}, {"associated_data": b"other"}):
        moved = msgspec.structs.replace(pointer, **change)
        with pytest.raises(Damaged):
            open_content(moved, pointer.inline, key, index_uid=UID)
    with pytest.raises(Damaged):
        open_content(pointer, pointer.inline, key, index_uid=b"v" * 16)
    flipped = pointer.inline[:-1] + bytes([pointer.inline[-1] ^ 1])
    with pytest.raises(Damaged):
        open_content(pointer, flipped, key, index_uid=UID)


async def test_damaged_packs_are_found() -> None:
    store = MemoryStore()
    pack = builder()
    pointer = pack.add(b"a" * 16, Content(b"x" * 9000, "", b""), [GROUP], (0, 0))
    ((written,), _) = pack.finish()
    for data in (b"\0" * len(written.data), written.data[:4000], b""):
        await store.put(written.key, data)
        with pytest.raises(Damaged):
            await read_sealed(store, UID, [pointer])


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xc0", msgspec.msgpack.encode([1] * 13)])
def test_what_is_no_pointer_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        decode_pointer(data)


@pytest.mark.parametrize(
    "tail", [b"", b"SPK1", b"\xff\xff\xff\xffSPK1", b"x" * 40 + b"\0\0\0\0SPK1"]
)
def test_what_is_no_pack_is_damaged(tail: bytes) -> None:
    with pytest.raises(Damaged):
        pack_routes(tail)


def test_a_wrapped_key_that_is_too_short_is_damaged() -> None:
    with pytest.raises(Damaged):
        split_pack_key(b"x" * 20)


def test_a_content_is_not_in_its_repr() -> None:
    assert "secret" not in repr(Content(b"secret", "text/plain", b""))
