"""The records of one shard that are not applied yet, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import takewhile
from typing import Final

from workers.kafka.broker import Record

MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Bytes of index-update that become one segment at most: bounds the memory of a micro-batch."""


class Waiting:
    """A queue of records that can be put aside, all but its first.

    Attributes:
        bytes: of the records in it.
        behind: offset of the first record that was put aside: it and what follows must be read
            again, and nothing is taken in any more.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.behind: int | None = None
        self._records: deque[Record] = deque()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """Return the records, the first one first."""
        return iter(self._records)

    @property
    def first(self) -> Record:
        """The next record to be applied; there must be one."""
        return self._records[0]

    @property
    def lowest(self) -> int | None:
        """The lowest offset that waits or was put aside; None if there is none."""
        return self._records[0].offset if self._records else self.behind

    @property
    def must_be_read_again(self) -> bool:
        """Whether all that was not put aside is done."""
        return self.behind is not None and not self._records

    def add(self, record: Record) -> None:
        """Queue a record, unless those before it were put aside."""
        if self.behind is None:
            self._records.append(record)
            self.bytes += record.size

    def until(self, offset: int) -> list[Record]:
        """Return the records up to an offset; they stay."""
        return list(takewhile(lambda one: one.offset <= offset, self._records))

    def next_batch(self) -> list[Record]:
        """Return the records of the next micro-batch; they stay."""
        records: list[Record] = []
        size = 0
        for record in self._records:
            size += record.size
            if records and size > MAX_BATCH_BYTES:
                break
            records.append(record)
        return records

    def drop(self, count: int) -> None:
        """Forget the first `count` records."""
        for _ in range(count):
            self.bytes -= self._records.popleft().size

    def put_aside(self) -> None:
        """Forget all but the first record, which will show when it can go on."""
        if len(self._records) > 1:
            self.behind = self._records[1].offset
            while len(self._records) > 1:
                self.bytes -= self._records.pop().size
