"""Access lists that were changed after their documents were written."""

from __future__ import annotations

import numpy as np
import pytest
from chain_kit import INDEX, Clock, Op, batch, keys, make_reader, make_writer, oid

from schemas.errors import ErrorCode
from workers.chain import access
from workers.chain.access import AccessChange, Listed, decode_access, encode_access
from workers.chain.kinds import RowKind
from workers.chain.ops import OpStatus
from workers.errors import Damaged
from workers.storage import layout
from workers.storage.memory import MemoryStore

DOC, TOMBSTONE = RowKind.DOC, RowKind.TOMBSTONE
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


@pytest.fixture(params=["inline", "object"])
async def shard(request, monkeypatch):
    if request.param == "object":
        monkeypatch.setattr(access, "INLINE_BYTES", 0)
    store = MemoryStore()
    writer = make_writer(store, Clock(), padding="off")
    await writer.load()
    return store, writer


def changed(name: str, *groups: bytes, document: int = 1, version: int = 2) -> AccessChange:
    return AccessChange(oid(name), Listed(document, version, groups))


def doc(name: str, offset: int, *groups: bytes, by: bytes = A) -> Op:
    return Op(DOC, name, (), 0, offset, {"groups": groups, "caller_groups": (by,)})


def gone(name: str, offset: int, by: bytes = A) -> Op:
    return Op(TOMBSTONE, name, (), 0, offset, {"caller_groups": (by,)})


async def write(writer, *ops: Op, access=()):
    return await writer.apply(batch(writer.head.applied + 1, ops, access=access))


async def groups(store, name: str):
    snapshot = await make_reader(store).refresh()
    [place] = await snapshot.find_ids([oid(name)])
    if place is None:
        return None
    segment, row = place
    [found] = await snapshot.groups(segment, np.array([row]))
    [written] = await snapshot.written_groups(segment, np.array([row]))
    listed = await snapshot.changed_groups(segment)
    assert listed.get(row, written) == found
    return found


async def test_a_changed_list_counts_until_the_document_is_overwritten(shard) -> None:
    store, writer = shard
    await write(writer, doc("d", 0, A), doc("e", 1, A))
    await write(writer, access=[changed("d", A, B)])
    assert await groups(store, "d") == (A, B)
    assert await groups(store, "e") == (A,)
    await write(writer, access=[changed("d", B, version=4), changed("d", C, version=3)])
    assert await groups(store, "d") == (B,)
    await write(writer, doc("d", 2, C, by=B))
    assert await groups(store, "d") == (C,)
    assert writer.head.access is None
    # One for the version before is late.
    await write(writer, access=[changed("d", A, version=9)])
    assert await groups(store, "d") == (C,)
    assert writer.head.access is None


async def test_what_is_no_document_has_no_list(shard) -> None:
    store, writer = shard
    await write(writer, doc("d", 0, A), gone("gone", 1))
    await write(writer, access=[changed("gone", B), changed("never", B)])
    assert writer.head.access is None
    await write(writer, access=[changed("d", B)])
    await write(writer, gone("d", 3, B))
    assert await groups(store, "d") is None
    assert writer.head.access is None


async def test_the_changed_list_decides_who_overwrites(shard) -> None:
    _, writer = shard
    await write(writer, doc("d", 0, A))
    await write(writer, access=[changed("d", B)])
    done = await write(
        writer,
        doc("d", 1, A),
        doc("d", 2, A, by=B),
    )
    assert [one.status for one in done.outcomes] == [OpStatus.REJECTED, OpStatus.APPLIED]
    assert done.outcomes[0].error.code is ErrorCode.FORBIDDEN
    # In the batch that brings the list, too.
    done = await write(
        writer,
        doc("d", 3, A),
        access=[changed("d", C, document=2)],
    )
    assert done.outcomes[0].status is OpStatus.REJECTED


async def test_lists_survive_a_restart_and_a_merge(shard) -> None:
    store, writer = shard
    for number in range(4):
        await write(writer, doc(f"d{number}", number, A))
    await write(writer, access=[changed("d0", B), changed("d3", B)])
    again = make_writer(store, Clock(), padding="off")
    await again.load()
    await again.compact(everything=True)
    for number, expected in enumerate(((B,), (A,), (A,), (B,))):
        assert await groups(store, f"d{number}") == expected
    done = await write(again, doc("d0", 9, A))
    assert done.outcomes[0].status is OpStatus.REJECTED


async def test_a_table_that_was_changed_or_lost_is_damage(monkeypatch) -> None:
    monkeypatch.setattr(access, "INLINE_BYTES", 0)
    store = MemoryStore()
    writer = make_writer(store, Clock(), padding="off")
    await writer.load()
    await write(writer, doc("d", 0, A))
    await write(writer, access=[changed("d", B)])
    key = layout.access(INDEX, 0, writer.head.access.uid)
    data = bytearray((await store.get(key)).data)
    data[-1] ^= 1
    await store.put(key, bytes(data))
    with pytest.raises(Damaged):
        await make_reader(store).refresh()
    await store.delete([key])
    with pytest.raises(Damaged):
        await make_reader(store).refresh()


async def test_a_table_that_a_reader_sealed_itself_is_damage(monkeypatch) -> None:
    """Query workers hold the segment key; stolen write credentials must not be enough."""
    monkeypatch.setattr(access, "INLINE_BYTES", 0)
    store = MemoryStore()
    writer = make_writer(store, Clock(), padding="off")
    await writer.load()
    await write(writer, doc("d", 0, A))
    await write(writer, access=[changed("d", A)])
    ref = writer.head.access
    _, forged = access.seal_access(
        {oid("d"): Listed(1, 9, (C,))}, INDEX, 0, ref.uid, keys, ref.generation
    )
    await store.put(layout.access(INDEX, 0, ref.uid), forged)
    with pytest.raises(Damaged):
        await make_reader(store).refresh()


async def test_old_tables_are_swept(monkeypatch) -> None:
    monkeypatch.setattr(access, "INLINE_BYTES", 0)
    store, clock = MemoryStore(), Clock()
    writer = make_writer(store, clock, padding="off")
    await writer.load()
    await write(writer, doc("d", 0, A))
    for version in (2, 3):
        await write(writer, access=[changed("d", B, version=version)])
    tables = lambda: [key for key in list(store.keys()) if "/access/" in key]  # noqa: E731
    assert len(tables()) == 2
    await writer.sweep(0)
    await writer.sweep(0)
    assert tables() == [layout.access(INDEX, 0, writer.head.access.uid)]
    assert await groups(store, "d") == (B,)


def test_the_encoding_does_not_depend_on_the_order() -> None:
    one = {oid("a"): Listed(1, 2, (A,)), oid("b"): Listed(3, 4, (B, C))}
    data = encode_access(dict(reversed(one.items())))
    assert data == encode_access(one)
    assert decode_access(data) == one
    for bad in (b"", b"\xc1", data[:-1]):
        with pytest.raises(Damaged):
            decode_access(bad)
