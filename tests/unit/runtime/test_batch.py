from __future__ import annotations

import asyncio

import pytest

from workers.kafka.broker import Record
from workers.runtime.batch import Buffer
from workers.runtime.policy import BatchPolicy


@pytest.mark.parametrize(
    ("worked_s", "linger_s"), [(0.0, 0.1), (0.05, 0.1), (0.4, 0.4), (7.0, 1.0)]
)
def test_who_is_busy_gathers_as_long_as_it_worked(worked_s: float, linger_s: float) -> None:
    assert BatchPolicy(linger_s=0.1, most_linger_s=1.0).linger(worked_s) == linger_s
    assert BatchPolicy(linger_s=0.1).linger(worked_s) == 0.1


async def test_records_that_come_while_it_gathers_join_the_batch() -> None:
    buffer = Buffer(BatchPolicy(max_records=3, linger_s=0.0, most_linger_s=60.0), asyncio.Event())
    records = [Record("t", 0, n, 0, None, b"x") for n in range(4)]
    buffer.add(records[:1])
    assert await buffer.take(None) == records[:1]
    buffer.worked(60.0)
    buffer.add(records[:1])
    taking = asyncio.create_task(buffer.take(None))
    await asyncio.sleep(0)
    buffer.add(records[1:])
    # Complete: it waits no longer.
    assert await taking == records[:3]
