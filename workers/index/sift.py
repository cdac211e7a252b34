"""Find the operations over which a micro-batch cannot be built.

One document that makes the worker fail, in a way that nobody foresaw, would end the process, be
delivered again, and end it again. So the batch is rehearsed in parts: the longest beginning that
can be built is sought by halves, the operation after it is left out, and so on to the end. What is
kept has been rehearsed as a whole; a failure that comes without any operation, too, is nobody's
fault here and ends the process as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from schemas.index import IndexConfig
from schemas.update import UpdateOp
from workers.index.build import check_batch
from workers.index.receive import Received
from workers.runtime.lastresort import foreseen

Rehearse = Callable[[Sequence[Received]], Awaitable[None]]
"""Builds a micro-batch of these and throws it away; raises whatever they make fail."""


@dataclass(frozen=True, slots=True, repr=False)
class LeftOut:
    """An operation that cannot be built, and why.

    `op` is its number in the record; -1: the record has none.
    """

    source: Received
    op: int
    failure: Exception

    @property
    def operation(self) -> UpdateOp | None:
        """The operation itself."""
        checked = self.source.checked
        return None if self.op < 0 or checked is None else checked.batch.ops[self.op]


@dataclass(frozen=True, slots=True, repr=False)
class Sifted:
    """What can be built together, and what was left out of it."""

    kept: list[Received]
    left_out: list[LeftOut]


async def sift(batches: Sequence[Received], rehearse: Rehearse, config: IndexConfig) -> Sifted:
    """Leave out the operations over which building fails.

    Args:
        batches: of one shard, checked, in their order.
        rehearse: tries to build some.
        config: of the index.

    Raises:
        Exception: what building raises without any operation.
        SealstreamError, KeyWiped: storage or keys are not there; nothing is known then.
    """
    await rehearse([])
    parts = [(number, op) for number, one in enumerate(batches) for op in _operations(one)]
    good: list[_Part] = []
    left_out = []
    while parts:
        failure = await _attempt(batches, [*good, *parts], rehearse, config)
        if failure is None:
            break
        built, failing = 0, len(parts)
        while failing - built > 1:
            middle = (built + failing) // 2
            found = await _attempt(batches, [*good, *parts[:middle]], rehearse, config)
            if found is None:
                built = middle
            else:
                failing, failure = middle, found
        number, op = parts[built]
        left_out.append(LeftOut(batches[number], op, failure))
        good += parts[:built]
        parts = parts[failing:]
    return Sifted(_with(batches, [*good, *parts], config), left_out)


# Number of a batch, and of one of its operations; -1 stands for a batch that has none.
_Part = tuple[int, int]


def _operations(one: Received) -> Sequence[int]:
    checked = one.checked
    return range(len(checked.ops)) if checked is not None and checked.ops else [-1]


async def _attempt(
    batches: Sequence[Received], parts: Sequence[_Part], rehearse: Rehearse, config: IndexConfig
) -> Exception | None:
    """Return what building these parts raises, unless that is about storage or keys."""
    try:
        await rehearse(await asyncio.to_thread(_with, batches, parts, config))
    except Exception as error:
        if foreseen(error):
            raise
        return error
    return None


def _with(
    batches: Sequence[Received], parts: Sequence[_Part], config: IndexConfig
) -> list[Received]:
    """Return the batches with these of their operations."""
    wanted: dict[int, list[int]] = {}
    for number, op in parts:
        wanted.setdefault(number, []).append(op)
    return [_reduced(batches[number], ops, config) for number, ops in wanted.items()]


def _reduced(one: Received, ops: list[int], config: IndexConfig) -> Received:
    checked = one.checked
    if checked is None or len(ops) == len(_operations(one)):
        return one
    batch = msgspec.structs.replace(checked.batch, ops=[checked.batch.ops[op] for op in ops])
    return replace(one, checked=check_batch(batch, config), numbers=tuple(ops))
