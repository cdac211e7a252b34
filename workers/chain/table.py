"""Reading the document table of one segment: only the blocks that hold the asked rows."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np

# `np.unique` imports it when it is first called: 20 ms that a first query need not wait for.
import numpy.ma
from numpy.typing import NDArray

from workers.chain.columns import (
    ID_DTYPE,
    RECORDS,
    Record,
    decode_group_sets,
    decode_lengths,
    decode_packs,
    decode_values,
    id_bucket,
    value_at,
)
from workers.chain.kinds import BlockKind
from workers.chain.rows import GroupSet, ids_array, split_ids
from workers.chain.segment_file import ReadStats, SegmentFile, gather_all

T = TypeVar("T")
RowNumbers = NDArray[np.int64]


class Table:
    """The document table of a segment, read through its blocks. `rows=None` means all rows."""

    __slots__ = ("_file", "_stats")

    def __init__(self, file: SegmentFile, stats: ReadStats) -> None:
        self._file = file
        self._stats = stats

    async def records(self, kind: BlockKind, rows: RowNumbers | None) -> Record:
        """Return the records of one of the kinds in `columns.RECORDS`."""
        dtype = RECORDS[kind]
        return await self._gather(kind, rows, lambda block: np.frombuffer(block, dtype))

    async def ids(self, rows: RowNumbers | None) -> list[str]:
        """Return document ids."""
        return [value.decode() for value in await self._values(BlockKind.IDS, rows)]

    async def metadata(self, rows: RowNumbers | None) -> list[bytes]:
        """Return metadata."""
        return await self._values(BlockKind.META, rows)

    async def objects(self, rows: RowNumbers) -> list[tuple[bytes, bytes]]:
        """Return (object pointer, pack)."""
        reads: list[Coroutine[Any, Any, Any]] = [
            self._values(BlockKind.OBJECT, rows),
            self.records(BlockKind.ROWS, rows),
            self.packs(),
        ]
        pointers, records, packs = await gather_all(reads)
        numbers = records["pack"].tolist()
        return [
            (pointer, packs[number] if number >= 0 else b"")
            for pointer, number in zip(pointers, numbers, strict=True)
        ]

    async def groups(self, rows: RowNumbers) -> list[GroupSet]:
        """Return access lists."""
        numbers = (await self.records(BlockKind.ROWS, rows))["group_set"].tolist()
        sets: list[GroupSet] = []
        if any(number >= 0 for number in numbers):
            sets = await self.group_sets()
        return [sets[number] if number >= 0 else () for number in numbers]

    async def group_sets(self) -> list[GroupSet]:
        """Return the distinct access lists of the segment."""
        run, _ = await self._file.run_of(BlockKind.GROUPS, self._stats)
        if not run:
            return []
        [block] = await self._file.blocks(BlockKind.GROUPS, [0], self._stats)
        return decode_group_sets(block)

    async def packs(self) -> list[bytes]:
        """Return the distinct packs of the segment."""
        run, _ = await self._file.run_of(BlockKind.PACKS, self._stats)
        if not run:
            return []
        [block] = await self._file.blocks(BlockKind.PACKS, [0], self._stats)
        return decode_packs(block)

    async def vocabulary(self) -> list[bytes]:
        """Return the vocabulary blocks."""
        _, count = await self._file.run_of(BlockKind.VOCABULARY, self._stats)
        if not count:
            return []
        return await self._file.blocks(BlockKind.VOCABULARY, range(count), self._stats)

    async def lengths(self, rows: RowNumbers | None) -> dict[str, NDArray[np.uint32]]:
        """Return token counts per field."""
        fields = (await self._file.directory(self._stats)).fields
        if not fields:
            return {}
        table = await self._gather(
            BlockKind.LENGTHS,
            rows,
            lambda block: np.stack(list(decode_lengths(block, fields).values()), axis=1),
        )
        return {name: table[:, i] for i, name in enumerate(fields)}

    async def vectors(
        self, rows: RowNumbers | None
    ) -> tuple[RowNumbers, NDArray[np.float16] | NDArray[np.float32]]:
        """Return the asked rows that have a vector, and the vectors."""
        directory = await self._file.directory(self._stats)
        dtype = np.dtype("<f2") if directory.half else np.dtype("<f4")
        wanted = np.arange(self._file.ref.rows) if rows is None else rows
        if BlockKind.VECTORS not in directory.columns:
            return np.zeros(0, np.int64), np.zeros((0, directory.dimension), dtype)
        if BlockKind.VECTOR_ROWS in directory.columns:
            [block] = await self._file.blocks(BlockKind.VECTOR_ROWS, [0], self._stats)
            having = np.frombuffer(block, "<u4").astype(np.int64)
            places = np.searchsorted(having, wanted)
            places[places == len(having)] = 0
            present = having[places] == wanted
            wanted, places = wanted[present], places[present]
        else:
            places = wanted
        vectors = await self._gather(
            BlockKind.VECTORS,
            places,
            lambda block: np.frombuffer(block, dtype).reshape(-1, directory.dimension),
        )
        return wanted, vectors.reshape(-1, directory.dimension)

    async def find(self, object_ids: Sequence[bytes]) -> list[tuple[int, int, int]]:
        """Return (position in `object_ids`, row, kind) of every row with one of these ids."""
        if not object_ids:
            return []
        bits, _ = await self._file.run_of(BlockKind.IDTABLE, self._stats)
        numbers = sorted({id_bucket(one, bits) for one in object_ids})
        blocks = await self._file.blocks(BlockKind.IDTABLE, numbers, self._stats)
        # Blocks go by the ids' first bits and are sorted inside: together one sorted table.
        table = np.concatenate([np.frombuffer(block, ID_DTYPE) for block in blocks])
        high, low = split_ids(table["object_id"])
        wanted_high, wanted_low = split_ids(ids_array(object_ids))
        first = np.searchsorted(high, wanted_high)
        counts = np.searchsorted(high, wanted_high, "right") - first
        who = np.repeat(np.arange(len(counts)), counts)
        at = np.arange(len(who)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        same = low[at] == wanted_low[who]
        who, rows = who[same], table[at[same]]
        return list(zip(who.tolist(), rows["row"].tolist(), rows["kind"].tolist(), strict=True))

    async def _values(self, kind: BlockKind, rows: RowNumbers | None) -> list[bytes]:
        run, count = await self._file.run_of(kind, self._stats)
        if rows is None:
            blocks = await self._file.blocks(kind, range(count), self._stats)
            return [value for block in blocks for value in decode_values(block)]
        numbers = np.unique(rows // run).tolist()
        blocks = await self._file.blocks(kind, numbers, self._stats)
        by_number = dict(zip(numbers, blocks, strict=True))
        return [value_at(by_number[row // run], row % run) for row in rows.tolist()]

    async def _gather(
        self,
        kind: BlockKind,
        rows: RowNumbers | None,
        decode: Callable[[bytes], NDArray[Any]],
    ) -> NDArray[Any]:
        """Return the rows of a fixed-width column, in the order asked."""
        run, count = await self._file.run_of(kind, self._stats)
        if rows is None:
            blocks = await self._file.blocks(kind, range(count), self._stats)
            return np.concatenate([decode(block) for block in blocks])
        if not len(rows):
            # The dtype and shape come from a real block; every column that exists has one.
            return decode((await self._file.blocks(kind, [0], self._stats))[0])[:0]
        numbers, place = np.unique(rows // run, return_inverse=True)
        blocks = await self._file.blocks(kind, numbers.tolist(), self._stats)
        parts = [decode(block) for block in blocks]
        starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        return np.concatenate(parts)[starts[place] + rows % run]
