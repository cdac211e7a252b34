"""What a worker tells the runtime: how to batch, how to retry, when to wait, what to do.

Ordering rule of a `PartitionHandler`, one call after the other, never two at once:
`start` -> (`process`)* -> [`drain`] -> `stop`, and again from `start` after a fence or a failed
start. Whatever happened, `stop` is called after `start`, and before the next one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from workers.kafka.broker import TP, Record


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """When a batch is complete, and how much of a partition is held in memory.

    Args:
        max_records: records of a batch.
        max_bytes: bytes of a batch; a single larger record makes a batch of its own.
        linger_s: seconds that the first record of a batch waits for more.
        max_buffered_bytes: bytes held ready for all partitions together. Every partition may hold
            one batch, so no partition can starve another; a fetch may add 1 MiB to each.
        most_linger_s: for work that costs less per record the larger a batch is. A batch then
            waits as long as the work on the last one took, from `linger_s` to this: who is idle is
            quick, who is busy gathers.
    """

    max_records: int = 500
    max_bytes: int = 4 * 1024 * 1024
    linger_s: float = 0.05
    max_buffered_bytes: int = 64 * 1024 * 1024
    most_linger_s: float = 0.0

    def linger(self, worked_s: float) -> float:
        """Return how long a batch waits for more records, after work of `worked_s` seconds."""
        return max(self.linger_s, min(self.most_linger_s, worked_s))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait before the n-th repetition: exponential, bounded, with full jitter.

    Args:
        first_s: upper bound of the first pause.
        max_s: upper bound of every pause.
        pending_s: pause before a handler with pending work is called with an empty batch.
    """

    first_s: float = 0.1
    max_s: float = 15.0
    pending_s: float = 0.5

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Return the pause after failure number `attempt`, from 1: a tenth to all of its bound."""
        bound = min(self.max_s, self.first_s * 2.0 ** min(attempt - 1, 30))
        return bound * (0.1 + 0.9 * rng.random())


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """How long a stop may take, in seconds.

    Args:
        finish_s: for the batches in progress to end by themselves; then they are cancelled.
        close_s: for `PartitionHandler.stop` and for leaving the group, each.
    """

    finish_s: float = 20.0
    close_s: float = 5.0


@dataclass(frozen=True, slots=True)
class WatchdogPolicy:
    """When a partition that delivers nothing, although it has records, ends the process.

    aiokafka's fetch task can die silently and return nothing for ever (its issue 983).

    Args:
        silent_s: seconds without a record while the partition was ready and behind its end.
    """

    silent_s: float = 60.0


class Gate(Protocol):
    """Something every batch waits for, such as a key directory or a lease."""

    async def wait(self, tp: TP) -> None:
        """Return when work on `tp` may go on. It may be cancelled."""
        ...


class PartitionHandler(Protocol):
    """The work on one partition, from its assignment to its revocation."""

    async def start(self) -> int | None:
        """Load state; return the offset to begin at.

        None begins at the committed offset, or at the beginning. Raises as `process`.
        """
        ...

    async def process(self, batch: Sequence[Record]) -> int:
        """Do the work of `batch` durably; return the next offset to commit.

        The result may be lower than the end of the batch while part of it is pending inside the
        handler; the records are not delivered again before a restart. A handler with pending work
        is also called with an empty batch, every `RetryPolicy.pending_s`, to go on with it.
        The call is cancelled when the partition is lost or a stop takes too long.

        Raises:
            Retry: the same batch is given again after a pause; it must be safe to repeat.
            Fenced: the handler is stopped, started again and reads from what `start` returns.
            PartitionLost: the handler is stopped.
            Anything else ends the worker: refused records are the handler's own work.
        """
        ...

    async def stop(self) -> None:
        """Drop state. No `process` runs; nothing can be committed any more.

        It may come without a `start`, when the worker stops before the gate opened.
        """
        ...


@runtime_checkable
class DrainingHandler(PartitionHandler, Protocol):
    """A handler with work in the background that should end before the partition goes."""

    async def drain(self) -> int:
        """End what was begun, wait for nothing that is unavailable; return as `process`.

        Called once, after the last `process`; cancelled when the drain takes too long.
        """
        ...
