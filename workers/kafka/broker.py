"""Kafka as the workers see it.

Two ways of reading, never mixed: a *group* for the work topics (each partition has one owner, who
commits), and *topics without a group* for what every worker needs (directory, events, replies).

Ordering rule of a group reader: `on_revoked` has returned before another member can own the
partition (unless it is too slow: `rebalance_timeout_s`); `on_assigned` returns at once, and a newly
assigned partition delivers nothing before its first `seek`. Offsets are committed explicitly; the
committed offset is the next one to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from schemas.topics import TopicSpec

Headers = tuple[tuple[str, bytes], ...]


class TP(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read. `timestamp_ms`: milliseconds since 1970, -1 if the broker has none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def tp(self) -> TP:
        """The partition it was read from."""
        return TP(self.topic, self.partition)

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers

    def header(self, name: str) -> bytes | None:
        """Return the last header called `name`, or None."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


class Delivered(NamedTuple):
    """Where the broker put a record."""

    partition: int
    offset: int


OnAssigned = Callable[[Collection[TP]], None]
OnRevoked = Callable[[Collection[TP]], Awaitable[None]]


class Producer(Protocol):
    """Appends records. Acknowledged = on all in-sync replicas.

    Never infer from an acknowledged record that an earlier one arrived: await every future.
    """

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> asyncio.Future[Delivered]:
        """Queue a record and return the future of its acknowledgement.

        Waits while the queue is full. Send many, then gather the futures: one at a time is 20
        times slower. Without `partition`, equal keys go to the same partition.

        Raises:
            Retry: the record could not be queued; the future raises it if it was not acknowledged
                (it may still have been appended).
            Reject: TOO_LARGE, above the configured `max_record_bytes`.
        """
        ...

    async def send_and_wait(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Delivered:
        """Append one record and wait for its acknowledgement. Raises as `send`."""
        ...

    async def flush(self) -> None:
        """Wait until nothing is queued. Says nothing about success: that is in the futures."""
        ...

    async def stop(self) -> None:
        """Flush, within a deadline, and close."""
        ...


class GroupReader(Protocol):
    """One member of a consumer group."""

    rebalance_timeout_s: float

    async def start(self, on_assigned: OnAssigned, on_revoked: OnRevoked) -> None:
        """Join the group.

        Args:
            on_assigned: called with the new partitions, synchronously; must not block.
            on_revoked: awaited with the partitions that are about to go; drain within half of
                `rebalance_timeout_s`. Commits still work in it. Not called by `stop`.
        """
        ...

    async def fetch(
        self, ready: Collection[TP], max_records: int, timeout_s: float
    ) -> dict[TP, list[Record]]:
        """Return records of the `ready` partitions only; an empty `ready` returns none.

        Returns at most `max_records` in all, in offset order per partition, and {} after
        `timeout_s`, which may take much longer while the group rebalances. Not re-entrant.

        Raises:
            Fatal: the client or a callback died.
        """
        ...

    async def seek(self, tp: TP, offset: int) -> None:
        """Read `tp` from `offset` on, and begin to deliver it.

        Raises:
            PartitionLost: it is not assigned.
        """
        ...

    async def committed(self, tp: TP) -> int | None:
        """Return the group's committed offset, or None. Raises Retry."""
        ...

    async def commit(self, offsets: Mapping[TP, int]) -> None:
        """Commit the next offsets to read.

        Raises:
            PartitionLost: another member may own a partition; nothing was committed.
            Retry: the broker did not answer.
        """
        ...

    async def beginning(self, tp: TP) -> int:
        """Return the offset of the oldest record kept. Raises Retry."""
        ...

    async def end(self, tp: TP) -> int:
        """Return the offset after the newest record (may lag behind on Tansu). Raises Retry."""
        ...

    async def position(self, tp: TP) -> int | None:
        """Return the offset that the next fetch begins at, or None if it is not assigned."""
        ...

    async def stop(self) -> None:
        """Leave the group. Drain and commit before: `on_revoked` is not called."""
        ...


class TopicReader(Protocol):
    """Reads whole partitions without a group."""

    async def start(self) -> None:
        """Connect and fix the positions: a record produced after this returns will be read."""
        ...

    async def next(self, timeout_s: float) -> list[Record]:
        """Return the next records, [] after `timeout_s`. One caller at a time.

        Raises:
            Fatal: the client died.
        """
        ...

    def pause(self) -> None:
        """Stop asking the broker for more; nothing is missed. For who expects nothing now.

        A waiting reader asks dozens of times a second: of brokers that answer at once, and of those
        that hold an answer back until the wait is over.
        """
        ...

    def resume(self) -> None:
        """Go on, from where it paused."""
        ...

    async def caught_up(self) -> None:
        """Wait until the caller of `next` has seen, and come back for more after, all that exists.

        What exists is asked at each call. Needs somebody else to call `next` meanwhile.

        Raises:
            Retry: the broker cannot be asked.
        """
        ...

    async def stop(self) -> None:
        """Close."""
        ...


class Broker(Protocol):
    """Makes readers and producers. Owns what it made: `aclose` stops the rest."""

    async def producer(self, *, linger_ms: int = 2) -> Producer:
        """Return a started producer. `linger_ms`: how long a batch waits for more records."""
        ...

    def group_reader(
        self, group: str, topics: Sequence[str], *, bulk: bool, wait_ms: int | None = None
    ) -> GroupReader:
        """Return a member of `group`, not started.

        Args:
            group: its name.
            topics: what it reads.
            bulk: prefer large fetches to latency.
            wait_ms: milliseconds that the broker may hold a fetch back while there is nothing. For
                who gathers records for some time anyway: it asks less often. None leaves it to
                `bulk`.
        """
        ...

    def topic_reader(
        self,
        topics: Sequence[str | TP],
        *,
        start: Literal["beginning", "end"],
        low_latency: bool = True,
    ) -> TopicReader:
        """Return a reader, not started, of whole topics or of single partitions."""
        ...

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions, 0 if the topic does not exist. Raises Retry."""
        ...

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create the missing topics; return their names. Never changes an existing topic."""
        ...

    async def lag(self, group: str, topics: Sequence[str]) -> dict[TP, int]:
        """Return, per partition, how many records the group has not committed. Raises Retry."""
        ...

    async def read(self, tp: TP, offset: int) -> Record | None:
        """Return the one record at `offset`, or None if it is not kept. Raises Retry."""
        ...

    async def aclose(self) -> None:
        """Stop everything that was made and is still open."""
        ...
