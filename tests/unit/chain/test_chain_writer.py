from __future__ import annotations

import asyncio

import numpy as np
import pytest
from chain_kit import (
    CODECS,
    GROUP,
    INDEX,
    SIGNER,
    Clock,
    Op,
    batch,
    make_reader,
    make_writer,
    oid,
    search,
    verify,
)

from schemas.errors import ErrorCode
from workers.chain import bitmap, segment
from workers.chain.codec import Node
from workers.chain.kinds import NodeKind, RowKind
from workers.chain.ops import OpStatus, PendingBatch, group_postings
from workers.chain.resolve import MAX_FIELDS
from workers.chain.writer import ShardWriter
from workers.errors import Damaged, Fenced, Retry
from workers.storage import layout
from workers.storage.errors import AccessDenied
from workers.storage.memory import MemoryStore

DOC, TOMBSTONE, PAIRS, REMOVALS = RowKind
OTHER = b"o" * 16


class Shard:
    """A writer with its store and clock, and batches numbered for it."""

    def __init__(self, **options) -> None:
        self.store, self.clock, self.offset = MemoryStore(), Clock(), -1
        self.writer = make_writer(self.store, self.clock, **options)

    async def __call__(self, *ops: Op):
        if self.offset < 0:
            await self.writer.load()
        self.offset += 1
        published = await self.writer.apply(batch(self.offset, ops))
        return [
            (one.status, one.version, one.error.code if one.error else None)
            for one in published.outcomes
        ]


APPLIED, IGNORED, REJECTED = OpStatus


def applied(version: int = 0):
    return (APPLIED, version, None)


def rejected(code: ErrorCode):
    return (REJECTED, 0, code)


async def test_versions_count_upserts_and_deletes() -> None:
    shard = Shard()
    assert await shard(Op(DOC, "a", (), 0, 1)) == [applied(1)]
    assert await shard(Op(DOC, "a", (), 0, 2), Op(DOC, "b", (), 0, 3)) == [applied(2), applied(1)]
    assert await shard(Op(TOMBSTONE, "a", (), 0, 4)) == [applied(3)]
    assert await shard(Op(DOC, "a", (), 0, 5), Op(DOC, "a", (), 0, 6)) == [applied(4), applied(5)]
    assert shard.writer.head.stats.docs == 2


async def test_if_version_is_a_compare_and_set() -> None:
    shard = Shard()

    def doc(offset: int, version: int) -> Op:
        return Op(DOC, "a", (), 0, offset, {"if_version": version})

    conflict = rejected(ErrorCode.CONFLICT)
    assert await shard(doc(1, 1)) == [conflict]
    assert await shard(doc(2, 0)) == [applied(1)]
    assert await shard(doc(3, 0), doc(4, 1), doc(5, 1)) == [conflict, applied(2), conflict]
    assert await shard(Op(TOMBSTONE, "a", (), 0, 6, {"if_version": 2})) == [applied(3)]
    assert await shard(doc(7, 3)) == [conflict]
    assert await shard(doc(8, 0)) == [applied(4)]


@pytest.mark.parametrize("kind", list(RowKind))
async def test_changing_a_document_needs_one_of_its_groups(kind: RowKind) -> None:
    shard = Shard()
    stranger = {"caller_groups": (OTHER,), "groups": (OTHER,) if kind == DOC else ()}
    await shard(Op(DOC, "a", ("x",), 0, 1))
    assert await shard(Op(kind, "a", ("x",), 0, 2, stranger)) == [rejected(ErrorCode.FORBIDDEN)]
    by_scope = stranger | {"overwrite_by_scope": True}
    [(status, _, _)] = await shard(Op(kind, "a", ("x",), 0, 3, by_scope))
    assert status == APPLIED


async def test_a_shard_has_only_so_many_text_fields() -> None:
    def doc(name: str, offset: int, *fields: int) -> Op:
        return Op(DOC, name, (), 0, offset, {"lengths": {f"f{one}": 1 for one in fields}})

    shard = Shard()
    crowded = rejected(ErrorCode.TOO_LARGE)
    assert await shard(doc("a", 1, *range(MAX_FIELDS + 1))) == [crowded]
    assert await shard(doc("a", 2, *range(MAX_FIELDS)), doc("b", 3, MAX_FIELDS)) == [
        applied(1),
        crowded,
    ]
    assert await shard(doc("b", 4, 0, MAX_FIELDS), doc("b", 5, 0, 1)) == [crowded, applied(1)]


async def test_nobody_is_asked_for_groups_where_there_is_no_document() -> None:
    shard = Shard()
    alone = {"caller_groups": ()}
    assert await shard(Op(PAIRS, "a", ("x",), 0, 1, alone)) == [applied()]
    assert await shard(Op(TOMBSTONE, "a", (), 0, 2, alone)) == [applied(1)]


async def test_a_document_without_groups_belongs_to_nobody() -> None:
    shard = Shard()
    await shard(Op(DOC, "a", (), 0, 1, {"groups": ()}))
    assert await shard(Op(DOC, "a", (), 0, 2)) == [rejected(ErrorCode.FORBIDDEN)]


async def test_an_old_signed_message_played_again_is_a_conflict() -> None:
    shard = Shard()

    def signed(kind: RowKind, source: int, offset: int, ms: int) -> Op:
        return Op(kind, "a", (), source, offset, {"issued_ms": ms})

    await shard(signed(DOC, 0, 1, 1_000_000))
    # Same topic partition, new offset; and through another partition.
    conflict = rejected(ErrorCode.CONFLICT)
    assert await shard(signed(TOMBSTONE, 0, 2, 939_999)) == [conflict]
    assert await shard(signed(PAIRS, 1, 1, 939_999)) == [conflict]
    assert await shard(signed(DOC, 0, 3, 940_000)) == [applied(2)]
    assert await shard(Op(DOC, "a", (), 0, 4)) == [applied(3)]


async def test_a_late_upsert_leaves_the_later_pairs_of_its_source() -> None:
    shard = Shard()
    await shard(Op(PAIRS, "a", ("x",), 0, 8), Op(PAIRS, "a", ("y",), 1, 8))
    assert await shard(Op(DOC, "a", ("z",), 0, 5)) == [applied(1)]
    reader = make_reader(shard.store)
    assert [await search(reader, word) for word in "xyz"] == [["a"], [], ["a"]]
    # And a removal that was made after the upsert still counts, though it came first.
    await shard(Op(REMOVALS, "b", ("x",), 0, 9))
    await shard(Op(DOC, "b", ("x",), 0, 7))
    assert await search(reader, "x") == ["a"]


async def test_each_source_speaks_with_its_highest_offset() -> None:
    """Pairwise comparison would go in a circle here: 0@8 beats 0@5 beats 1@1 beats 0@8."""
    shard = Shard()
    for op in (
        Op(REMOVALS, "a", ("x",), 0, 8),
        Op(PAIRS, "a", ("x",), 1, 1),
        Op(REMOVALS, "a", ("x",), 0, 5),
    ):
        await shard(op)
    reader = make_reader(shard.store)
    assert await search(reader, "x") == ["a"]
    await shard.writer.compact(everything=True)
    assert await search(reader, "x") == ["a"]


async def test_errors_quote_nothing() -> None:
    shard = Shard()
    await shard.writer.load()
    await shard(Op(DOC, "secret-id", (), 0, 1))
    published = await shard.writer.apply(
        batch(1, [Op(DOC, "secret-id", (), 0, 2, {"caller_groups": ()})])
    )
    assert "secret-id" not in published.outcomes[0].error.message


async def test_a_batch_at_or_below_applied_changes_nothing() -> None:
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    version = shard.writer.head.version
    again = await shard.writer.apply(batch(0, [Op(DOC, "b", ("x",), 0, 2)]))
    assert [one.status for one in again.outcomes] == [IGNORED]
    assert (again.version, again.applied, again.documents) == (version, 0, 1)


async def test_applied_advances_when_nothing_was_accepted() -> None:
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    published = await shard.writer.apply(batch(7, [Op(DOC, "a", ("x",), 0, 1)]))
    assert (published.applied, published.segments) == (7, 1)
    assert await make_writer(shard.store, shard.clock).load() == 7


async def test_the_node_builder_gets_no_row_for_what_was_left_out() -> None:
    seen = []
    ops = [
        Op(DOC, "a", ("x",), 0, 1),
        Op(DOC, "a", ("y",), 0, 2),
        Op(DOC, "b", ("x",), 0, 3),
        Op(DOC, "b", ("x",), 0, 3),
        Op(DOC, "c", ("x",), 0, 4, {"if_version": 5}),
    ]

    def build(accepted):
        seen.append((accepted.row_of_op.tolist(), accepted.rows.ids))
        return iter(())

    writer = make_writer(MemoryStore(), Clock())
    await writer.load()
    await writer.apply(PendingBatch(0, [op.pending() for op in ops], build))
    # The first upsert of "a" stays as a floor only: a row without postings or payload.
    assert seen == [([-1, 1, 2, -1, -1], ["", "a", "b"])]
    assert writer.head.stats.docs == 2
    assert writer.head.stats.rows == 3


async def test_payload_reaches_the_reader() -> None:
    shard = Shard()
    vector = np.arange(4, dtype=np.float16)
    await shard(
        Op(PAIRS, "p", ("x",), 0, 1),
        Op(
            DOC,
            "a",
            ("x",),
            0,
            2,
            {
                "metadata": b"meta",
                "object": b"pointer",
                "pack": b"pack",
                "vector": vector,
                "lengths": {"body": 7},
                "groups": (OTHER, GROUP, OTHER),
            },
        ),
    )
    snapshot = await make_reader(shard.store).refresh()
    [place] = await snapshot.find_ids([oid("a")])
    assert place == (0, 1)
    row = np.array([1])
    assert await snapshot.metadata(0, row) == [b"meta"]
    assert await snapshot.objects(0, row) == [(b"pointer", b"pack")]
    assert await snapshot.groups(0, row) == [(GROUP, OTHER)]
    assert (await snapshot.lengths(0, row))["body"].tolist() == [7]
    having, vectors = await snapshot.vectors(0)
    assert having.tolist() == [1]
    np.testing.assert_array_equal(vectors, [vector])
    assert (await snapshot.documents(0)).tolist() == [False, True]
    assert snapshot.shard_stats.fields["body"].total_length == 7


async def test_a_small_batch_costs_one_put_a_large_one_two(monkeypatch) -> None:
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    assert shard.store.stats.puts == 1
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    await shard(Op(DOC, "b", ("x",), 0, 2))
    assert shard.store.stats.puts == 3


async def test_many_dead_rows_move_into_an_object(monkeypatch) -> None:
    monkeypatch.setattr(bitmap, "RECENT_ROWS", 2)
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    shard = Shard()
    await shard(*(Op(DOC, f"d{i}", ("x",), 0, i) for i in range(9)))
    for i in range(6):
        await shard(Op(TOMBSTONE, f"d{i}", (), 0, 10 + i))
    first = shard.writer.head.deletes[0]
    assert first.base
    assert first.count == 6
    assert await search(make_reader(shard.store), "x") == ["d6", "d7", "d8"]
    # The other writer reads them too.
    writer = make_writer(shard.store, shard.clock)
    await writer.load()
    published = await writer.apply(batch(99, [Op(DOC, "d0", ("x",), 0, 5)]))
    assert published.outcomes[0].status == IGNORED


async def test_a_swapped_bitmap_is_damage(monkeypatch) -> None:
    monkeypatch.setattr(bitmap, "RECENT_ROWS", 0)
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    shard = Shard()
    await shard(*(Op(DOC, f"d{i}", ("x",), 0, i) for i in range(9)))
    await shard(Op(TOMBSTONE, "d0", (), 0, 10))
    old = shard.writer.head.deletes[0].base
    await shard(Op(TOMBSTONE, "d1", (), 0, 11))
    new = shard.writer.head.deletes[0].base
    stored = await shard.store.get(layout.deletes(INDEX, 0, old))
    await shard.store.put(layout.deletes(INDEX, 0, new), stored.data)
    with pytest.raises(Damaged):
        await make_reader(shard.store).refresh()
    writer = make_writer(shard.store, shard.clock)
    await writer.load()
    with pytest.raises(Damaged):
        await writer.apply(batch(50, []))


async def test_a_lost_answer_is_success() -> None:
    shard = Shard()
    shard.store.fail_next("create", applied=True)
    assert await shard(Op(DOC, "a", ("x",), 0, 1)) == [applied(1)]
    shard.store.fail_next("replace", applied=True)
    assert await shard(Op(DOC, "b", ("x",), 0, 2)) == [applied(1)]
    assert await search(make_reader(shard.store), "x") == ["a", "b"]


async def test_a_lost_write_is_fenced_and_applied_once_after_loading() -> None:
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    shard.store.fail_next("replace")
    work = batch(1, [Op(DOC, "b", ("x",), 0, 2)])
    with pytest.raises(Fenced):
        await shard.writer.apply(work)
    with pytest.raises(Fenced):
        await shard.writer.apply(work)
    assert await shard.writer.load() == 0
    published = await shard.writer.apply(work)
    assert published.documents == 2


async def test_a_denied_head_is_published_later(monkeypatch) -> None:
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    work = batch(1, [Op(DOC, "b", ("x",), 0, 2)])

    async def deny(key: str, data: bytes, etag: str) -> str:
        raise AccessDenied(key)

    with monkeypatch.context() as patch:
        patch.setattr(shard.store, "replace", deny)
        for _ in range(2):
            with pytest.raises(AccessDenied):
                await shard.writer.apply(work)
    published = await shard.writer.apply(work)
    assert published.documents == 2


async def test_an_unknown_outcome_is_fenced() -> None:
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    shard.store.fail_next("replace", applied=True)
    shard.store.fail_next("get", contains="/head")
    with pytest.raises(Fenced):
        await shard(Op(DOC, "b", ("x",), 0, 2))
    # It had been applied: the caller seeks behind it.
    assert await shard.writer.load() == 1


async def test_a_failed_segment_leaves_everything_as_it_was(monkeypatch) -> None:
    monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    shard.store.fail_next("put")
    work = batch(1, [Op(DOC, "a", ("x",), 0, 2)])
    with pytest.raises(Retry):
        await shard.writer.apply(work)
    published = await shard.writer.apply(work)
    assert [one.version for one in published.outcomes] == [2]
    assert await search(make_reader(shard.store), "x") == ["a"]


async def test_of_two_writers_that_race_one_wins() -> None:
    store, clock = MemoryStore(), Clock()
    writers = [make_writer(store, clock) for _ in range(4)]
    for writer in writers:
        await writer.load()
    works = [batch(0, [Op(DOC, f"d{i}", ("x",), 0, 1)]) for i in range(4)]
    done = await asyncio.gather(
        *(w.apply(b) for w, b in zip(writers, works, strict=True)), return_exceptions=True
    )
    assert sum(not isinstance(one, Exception) for one in done) == 1
    assert all(isinstance(one, Fenced) for one in done if isinstance(one, Exception))
    assert len(await search(make_reader(store), "x")) == 1


async def test_a_missing_key_is_a_retry_and_nothing_is_written() -> None:
    def no_lease(generation: int):
        raise Retry(ErrorCode.KEY_UNAVAILABLE, "no lease")

    store = MemoryStore()
    writer = ShardWriter(store, INDEX, 0, no_lease, SIGNER, verify, CODECS)
    await writer.load()
    for _ in range(2):
        with pytest.raises(Retry):
            await writer.apply(batch(0, [Op(DOC, "a", (), 0, 1)]))
    assert store.keys() == []


async def test_a_builder_that_fails_leaves_the_writer_usable() -> None:
    def broken(accepted):
        raise ArithmeticError

    writer = make_writer(MemoryStore(), Clock())
    await writer.load()
    op = Op(DOC, "a", (), 0, 1)
    with pytest.raises(ArithmeticError):
        await writer.apply(PendingBatch(0, [op.pending()], broken))
    assert (await writer.apply(batch(0, [op]))).documents == 1


class Slow(MemoryStore):
    """Takes its time for a head, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.hold: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def replace(self, key: str, data: bytes, etag: str) -> str:
        if self.hold is not None:
            self.reached.set()
            await self.hold.wait()
        return await super().replace(key, data, etag)


async def test_a_batch_may_begin_while_a_merge_publishes() -> None:
    store = Slow()
    writer = make_writer(store, Clock())
    await writer.load()
    await writer.apply(batch(0, [Op(DOC, "a", ("x",), 0, 1)]))
    store.hold = asyncio.Event()
    merging = asyncio.create_task(writer.publish_state(vector=b"epoch 1"))
    await store.reached.wait()
    # It is not fenced by its own merge: what was published last is the head until the next one is.
    assert writer.head.version == 1
    applying = asyncio.create_task(writer.apply(batch(1, [Op(DOC, "b", ("x",), 0, 2)])))
    store.hold.set()
    assert await merging == 2
    assert (await applying).version == 3
    assert (writer.head.applied, writer.head.vector) == (1, b"epoch 1")


async def test_who_was_cancelled_while_publishing_must_load_again() -> None:
    store = Slow()
    writer = make_writer(store, Clock())
    await writer.load()
    await writer.apply(batch(0, [Op(DOC, "a", ("x",), 0, 1)]))
    store.hold = asyncio.Event()
    publishing = asyncio.create_task(writer.publish_state())
    await store.reached.wait()
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    with pytest.raises(Fenced):
        _ = writer.head
    await writer.load()
    assert writer.head.version == 1


async def test_state_is_published_beside_the_data() -> None:
    shard = Shard()
    await shard(Op(DOC, "a", ("x",), 0, 1))
    await shard.writer.publish_state(vector=b"epoch 1", versions={"analyzer": "english/1"})
    await shard(Op(DOC, "b", ("x",), 0, 2))
    snapshot = await make_reader(shard.store).refresh()
    assert snapshot.vector == b"epoch 1"
    assert shard.writer.head.versions == {"analyzer": "english/1"}
    assert snapshot.version == 3


def test_postings_are_grouped_by_token_without_left_out_rows() -> None:
    token = np.array([5, 0, 5, 2, 0, 5])
    op = np.array([0, 0, 1, 2, 3, 3])
    groups = group_postings(token, op, np.array([1, -1, 0, 2]))
    found = {
        int(t): groups.rows[s:e].tolist()
        for t, s, e in zip(groups.tokens, groups.starts, groups.ends, strict=True)
    }
    assert found == {0: [1, 2], 2: [0], 5: [1, 2]}
    np.testing.assert_array_equal(token[groups.order], [0, 0, 2, 5, 5])
    empty = group_postings(token, op, np.full(4, -1))
    assert len(empty.tokens) == len(empty.ends) == 0


async def test_nodes_of_any_kind_are_stored() -> None:
    def build(accepted):
        yield Node(NodeKind.GROUP, bytes(32), b"g")
        yield Node(NodeKind.META, bytes(32), b"m")

    store = MemoryStore()
    writer = make_writer(store, Clock())
    await writer.load()
    await writer.apply(PendingBatch(0, [Op(DOC, "a", (), 0, 1).pending()], build))
    snapshot = await make_reader(store).refresh()
    asked = [(NodeKind.GROUP, bytes(32)), (NodeKind.META, bytes(32)), (NodeKind.TERM, bytes(32))]
    found = await snapshot.lookup(asked)
    assert [found[one] for one in asked] == [[(0, b"g")], [(0, b"m")], []]
