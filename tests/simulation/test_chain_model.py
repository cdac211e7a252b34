"""The secure index against a model of a few lines: whatever happens, readers see the same.

Random operations with duplicates and late deliveries from several sources, crashes around every
write, a second writer that takes over while the first one still runs, compaction before, after and
beside updates. The model knows no segments: it is a list of rows per id.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "chain"))

from chain_kit import (
    Clock,
    Op,
    batch,
    make_reader,
    make_writer,
    oid,
    search_in,
)

from workers.chain import bitmap, segment, segment_file
from workers.chain.kinds import RowKind
from workers.chain.ops import OpStatus
from workers.chain.state import count_live
from workers.errors import Fenced, Retry
from workers.storage.cache import BlockCache
from workers.storage.memory import MemoryStore

NAMES = ("a", "b", "c", "d")
WORDS = ("x", "y", "z")
FINAL = (RowKind.DOC, RowKind.TOMBSTONE)


@dataclass
class ModelRow:
    op: Op
    seq: int
    live: bool = True


@dataclass
class Model:
    rows: dict[str, list[ModelRow]] = field(default_factory=dict)
    seq: int = 0

    def apply(self, op: Op) -> OpStatus:
        rows = self.rows.setdefault(op.name, [])
        mine = [r for r in rows if r.op.source == op.source]
        if any(r.op.kind in FINAL and r.op.offset >= op.offset for r in mine):
            return OpStatus.IGNORED
        if op.kind in FINAL:
            for row in rows:
                kept = (
                    row.op.kind not in FINAL
                    and row.op.source == op.source
                    and row.op.offset > op.offset
                )
                row.live = row.live and kept
        elif any(r.op.kind not in FINAL and r.op.offset == op.offset for r in mine):
            return OpStatus.IGNORED
        rows.append(ModelRow(op, self.seq))
        self.seq += 1
        return OpStatus.APPLIED

    def search(self, word: str) -> list[str]:
        hits = []
        for name, rows in self.rows.items():
            speakers: dict[int, ModelRow] = {}
            for row in rows:
                if row.live and word in row.op.words:
                    other = speakers.get(row.op.source)
                    if other is None or other.op.offset < row.op.offset:
                        speakers[row.op.source] = row
            if speakers:
                winner = max(speakers.values(), key=lambda r: r.seq)
                if winner.op.kind != RowKind.REMOVALS:
                    hits.append((winner.seq, name))
        return [name for _, name in sorted(hits)]

    def documents(self) -> set[str]:
        return {
            name
            for name, rows in self.rows.items()
            if any(r.live and r.op.kind == RowKind.DOC for r in rows)
        }

    def lengths(self) -> tuple[int, int]:
        live = [
            len(r.op.words)
            for rows in self.rows.values()
            for r in rows
            if r.live and r.op.kind == RowKind.DOC and r.op.words
        ]
        return len(live), sum(live)


fresh = st.tuples(
    st.sampled_from([RowKind.DOC, RowKind.DOC, RowKind.TOMBSTONE, RowKind.PAIRS, RowKind.REMOVALS]),
    st.sampled_from(NAMES),
    st.sets(st.sampled_from(WORDS), max_size=3),
    st.integers(0, 2),
    # How far behind its source's newest offset it comes; odd, so it was not delivered before.
    st.sampled_from([0, 0, 0, 0, 1, 3, 5]),
)
late = st.integers(0, 1000)
contents = st.lists(st.one_of(fresh, fresh, late), max_size=6)
trouble = st.sampled_from(
    ["none"] * 6
    + ["head lost", "head answer lost", "segment lost", "both", "takeover", "beside", "restart"]
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("batch"), contents, trouble),
        st.tuples(st.just("batch"), contents, trouble),
        st.tuples(st.just("compact"), st.booleans(), st.just("")),
        st.tuples(st.just("remember"), st.just(""), st.just("")),
    ),
    max_size=16,
)


class Run:
    """One random history: a store, one or two writers, a reader, and the model."""

    def __init__(self, *, cached: bool, retention_ms: int, padding: str) -> None:
        self.store = MemoryStore()
        self.clock = Clock()
        self.retention_ms = retention_ms
        self.padding = padding
        self.writer = self.new_writer()
        self.reader = make_reader(self.store, BlockCache(1 << 20) if cached else None)
        self.model = Model()
        self.history: list[Op] = []
        self.offsets = [10, 10, 10]
        self.offset = -1
        self.remembered: list = []

    def new_writer(self):
        return make_writer(
            self.store, self.clock, retention_ms=self.retention_ms, padding=self.padding
        )

    def ops(self, contents: list, *, redeliver: bool) -> list[Op]:
        ops = []
        for one in contents:
            if isinstance(one, int):
                if self.history and redeliver:
                    ops.append(self.history[one % len(self.history)])
                continue
            kind, name, words, source, behind = one
            if not (redeliver and behind):
                self.offsets[source] += 2
                behind = 0
            words = () if kind == RowKind.TOMBSTONE else tuple(sorted(words))
            options = {"lengths": {"body": len(words)}} if kind == RowKind.DOC else {}
            op = Op(kind, name, words, source, self.offsets[source] - behind, options)
            self.history.append(op)
            ops.append(op)
        return ops

    async def apply(self, ops: list[Op], trouble: str) -> None:
        self.offset += 3
        self.clock.ms += 10
        work = batch(self.offset, ops, created_ms=self.clock.ms)
        verb = "replace" if self.writer.head.version else "create"
        if trouble in ("head lost", "both"):
            self.store.fail_next(verb, contains="/head")
        if trouble == "head answer lost":
            self.store.fail_next(verb, contains="/head", applied=True)
        if trouble in ("segment lost", "both"):
            self.store.fail_next("put", contains="/segments/")
        if trouble == "takeover":
            await self.take_over(ops, work)
            return
        if trouble == "restart":
            self.writer = self.new_writer()
            await self.writer.load()
        if trouble == "beside":
            published, _ = await asyncio.gather(self.writer.apply(work), self.writer.compact())
        else:
            published = await self.insist(work)
        # A fault that found nothing to hit must not hit something later.
        self.store._shared.faults.clear()
        self.check_outcomes(ops, published)

    async def insist(self, work):
        """Do what the index worker does: repeat after Retry, load and seek after Fenced."""
        for _ in range(4):
            try:
                return await self.writer.apply(work)
            except Retry:
                continue
            except Fenced:
                applied = await self.writer.load()
                assert applied < work.offset
        raise AssertionError("the batch was never applied")

    async def take_over(self, ops: list[Op], work) -> None:
        """A second writer applies the batch; the first one, a zombie now, tries the same."""
        zombie, self.writer = self.writer, self.new_writer()
        await self.writer.load()
        published = await self.writer.apply(work)
        with pytest.raises(Fenced):
            await zombie.apply(work)
        with pytest.raises(Fenced):
            await zombie.compact(everything=True)
        self.check_outcomes(ops, published)

    def check_outcomes(self, ops: list[Op], published) -> None:
        expected = [self.model.apply(op) for op in ops]
        assert [one.status for one in published.outcomes] == expected
        assert published.applied == self.offset

    async def compact(self, everything: bool) -> None:
        for _ in range(2):
            try:
                await self.writer.compact(everything=everything)
                break
            except Retry:
                continue

    async def answers(self, snapshot) -> tuple:
        words = [await search_in(snapshot, word) for word in WORDS]
        found = await snapshot.find_ids([oid(name) for name in NAMES])
        documents = set()
        for name, place in zip(NAMES, found, strict=True):
            if place is not None:
                [id_] = await snapshot.ids(place[0], np.array([place[1]]))
                assert id_ == name
                documents.add(name)
        body = snapshot.shard_stats.fields.get("body")
        return (
            words,
            documents,
            snapshot.shard_stats.docs,
            (body.docs, body.total_length) if body else (0, 0),
        )

    async def check(self) -> None:
        snapshot = await self.reader.refresh()
        documents = self.model.documents()
        assert await self.answers(snapshot) == (
            [self.model.search(word) for word in WORDS],
            documents,
            len(documents),
            self.model.lengths(),
        )
        assert snapshot.segments <= 8
        masks = [await snapshot.documents(i) for i in range(snapshot.segments)]
        assert sum(int(mask.sum()) for mask in masks) == len(documents)

    async def finish(self) -> None:
        await self.check()
        for snapshot, answers in self.remembered:
            assert await self.answers(snapshot) == answers
        await self.writer.compact(everything=True)
        await self.check()
        last = self.new_writer()
        await last.load()
        await last.apply(batch(self.offset + 1, []))
        assert last.head.stats == count_live(last._core.known_tables)


async def play(history: list, run: Run, *, redeliver: bool) -> None:
    await run.writer.load()
    for verb, what, trouble in history:
        if verb == "batch":
            await run.apply(run.ops(what, redeliver=redeliver), trouble)
        elif verb == "compact":
            await run.compact(what)
        else:
            snapshot = await run.reader.refresh()
            run.remembered.append((snapshot, await run.answers(snapshot)))
        await run.check()
    await run.finish()


@pytest.mark.parametrize(("objects", "padding"), [(False, "off"), (True, "off"), (True, "strict")])
def test_readers_see_what_the_model_says(objects: bool, padding: str, monkeypatch) -> None:
    """All rows are younger than the retention, so late duplicates may come at any time."""
    if objects:
        monkeypatch.setattr(segment, "INLINE_SEGMENT_BYTES", 0)
        monkeypatch.setattr(segment_file, "WHOLE_BYTES", 0)
        monkeypatch.setattr(bitmap, "RECENT_ROWS", 1)

    @settings(max_examples=30, deadline=None, database=None)
    @given(steps, st.booleans())
    def test(history: list, cached: bool) -> None:
        run = Run(cached=cached, retention_ms=10**12, padding=padding)
        asyncio.run(play(history, run, redeliver=True))

    test()


@settings(max_examples=40, deadline=None, database=None)
@given(steps)
def test_what_compaction_forgets_after_the_retention_is_not_missed(history: list) -> None:
    """Nothing comes late, so everything that only guards against that may go at once."""
    run = Run(cached=False, retention_ms=0, padding="off")
    asyncio.run(play(history, run, redeliver=False))
