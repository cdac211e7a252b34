"""The pump on the memory broker: whatever happens, nothing is lost and nobody else stops."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from schemas.errors import ErrorCode
from workers.errors import Fatal, Fenced, Retry
from workers.kafka.broker import TP, Record
from workers.kafka.memory import MemoryBroker
from workers.runtime.policy import BatchPolicy, DrainPolicy, RetryPolicy, WatchdogPolicy
from workers.runtime.pump import Pump
from workers.telemetry import metrics

FAST = RetryPolicy(first_s=0.001, max_s=0.01, pending_s=0.005)
PATIENT = DrainPolicy(finish_s=60.0, close_s=60.0)


def unavailable() -> Retry:
    return Retry(ErrorCode.STORAGE_UNAVAILABLE, "injected")


def fenced() -> Fenced:
    return Fenced(ErrorCode.CONFLICT, "injected")


class World:
    """What is durable outside the workers: per partition, the offsets that were applied."""

    def __init__(self, partitions: int = 1, records: int = 0) -> None:
        self.broker = MemoryBroker({"work": partitions}, rebalance_timeout_s=240.0)
        self.applied: dict[TP, list[int]] = defaultdict(list)
        self.batches: list[list[int]] = []
        self.started: list[TP] = []
        self.stopped: list[TP] = []
        self.changed = asyncio.Event()
        self.before: Callable[[TP, Sequence[Record]], object] | None = None
        self.start_at: int | None = None
        self.tps = [TP("work", number) for number in range(partitions)]
        self._initial = records

    def note(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def produce(self, count: int, partition: int = 0, size: int = 1) -> None:
        producer = await self.broker.producer()
        for _ in range(count):
            await producer.send("work", bytes(size), partition=partition)

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not what():
                await asyncio.wait([asyncio.ensure_future(self.changed.wait())], timeout=0.02)

    def committed(self, number: int = 0) -> int | None:
        return self.broker.committed("g", TP("work", number))


class Handler:
    def __init__(self, world: World, tp: TP) -> None:
        self.world, self.tp = world, tp

    async def start(self) -> int | None:
        self.world.started.append(self.tp)
        await asyncio.sleep(0)
        return self.world.start_at

    async def process(self, batch: Sequence[Record]) -> int:
        await asyncio.sleep(0)
        if self.world.before is not None:
            found = self.world.before(self.tp, batch)
            if asyncio.iscoroutine(found):
                await found
        offsets = [record.offset for record in batch]
        self.world.applied[self.tp] += offsets
        self.world.batches.append(offsets)
        self.world.note()
        return batch[-1].offset + 1

    async def stop(self) -> None:
        self.world.stopped.append(self.tp)
        self.world.note()


def make(world: World, factory: Callable[[TP], Handler] | None = None, **options: object) -> Pump:
    settings = {
        "policy": BatchPolicy(max_records=10, linger_s=0.0),
        "retry": FAST,
        "drain": PATIENT,
        "rng": random.Random(1),
    } | options
    return Pump(
        world.broker,
        "g",
        ["work"],
        factory or (lambda tp: Handler(world, tp)),
        **settings,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def running(pump: Pump) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(pump.run(stop))
    try:
        yield task
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await asyncio.gather(task, return_exceptions=True)
    task.result()


async def test_everything_once_in_order() -> None:
    world = World(partitions=3)
    for number in range(3):
        await world.produce(25, number)
    async with running(make(world)):
        await world.until(lambda: all(world.committed(n) == 25 for n in range(3)))
    assert world.applied == {tp: list(range(25)) for tp in world.tps}
    assert sorted(world.started) == sorted(world.stopped) == world.tps


async def test_batches_are_cut_at_records_and_bytes() -> None:
    world = World()
    await world.produce(7, size=100)
    await world.produce(1, size=5000)
    await world.produce(1, size=100)
    policy = BatchPolicy(max_records=5, max_bytes=300, linger_s=0.0)
    async with running(make(world, policy=policy)):
        await world.until(lambda: world.committed() == 9)
    assert all(len(batch) <= 3 for batch in world.batches)
    assert [7] in world.batches  # larger than max_bytes: alone
    assert world.applied[TP("work", 0)] == list(range(9))


async def test_linger_gathers_what_comes_later() -> None:
    world = World()
    await world.produce(1)
    async with running(make(world, policy=BatchPolicy(max_records=3, linger_s=3600.0))):
        await asyncio.sleep(0.02)
        assert world.batches == []
        await world.produce(2)
        await world.until(lambda: world.committed() == 3)
    assert world.batches == [[0, 1, 2]]


async def test_begins_where_the_group_committed() -> None:
    world = World()
    await world.produce(5)
    async with running(make(world)):
        await world.until(lambda: world.committed() == 5)
    await world.produce(3)
    async with running(make(world)):
        await world.until(lambda: world.committed() == 8)
    assert world.applied[TP("work", 0)] == list(range(8))


async def test_begins_where_the_handler_says() -> None:
    world = World()
    world.start_at = 3
    await world.produce(5)
    async with running(make(world)):
        await world.until(lambda: world.committed() == 5)
    assert world.applied[TP("work", 0)] == [3, 4]


async def test_durable_work_of_a_crashed_worker_is_committed() -> None:
    world = World()
    await world.produce(5)
    world.start_at = 5
    async with running(make(world)):
        await world.until(lambda: world.committed() == 5)
    assert world.applied[TP("work", 0)] == []


async def test_retry_repeats_the_same_batch_and_others_go_on() -> None:
    world = World(partitions=2)
    await world.produce(3, 0)
    await world.produce(3, 1)
    seen: list[list[int]] = []

    def trouble(tp: TP, batch: Sequence[Record]) -> None:
        if tp.partition == 0 and world.committed(1) != 3:
            seen.append([record.offset for record in batch])
            raise unavailable()

    world.before = trouble
    async with running(make(world)):
        await world.until(lambda: world.committed(0) == 3)
    assert seen
    assert all(batch == seen[0] for batch in seen)
    assert world.applied == {TP("work", 0): [0, 1, 2], TP("work", 1): [0, 1, 2]}


async def test_stop_does_not_wait_for_a_back_off() -> None:
    world = World()
    await world.produce(3)

    def trouble(_tp: TP, _batch: Sequence[Record]) -> None:
        world.note()
        raise unavailable()

    world.before = trouble
    slow = RetryPolicy(first_s=3600.0, max_s=3600.0)
    before = metrics.RETRIES.value(topic="work", code="STORAGE_UNAVAILABLE")
    async with running(make(world, retry=slow)):
        await world.until(
            lambda: metrics.RETRIES.value(topic="work", code="STORAGE_UNAVAILABLE") > before
        )
    assert world.committed() is None
    assert world.stopped == world.tps


async def test_stop_finishes_the_batch_in_progress_and_commits_it() -> None:
    world = World()
    await world.produce(3)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_tp: TP, _batch: Sequence[Record]) -> None:
        entered.set()
        await go_on.wait()

    world.before = hold
    stop = asyncio.Event()
    task = asyncio.create_task(make(world).run(stop))
    await entered.wait()
    await world.produce(3)
    stop.set()
    await asyncio.sleep(0.01)
    assert not task.done()
    go_on.set()
    await task
    assert world.committed() == 3
    assert world.applied[TP("work", 0)] == [0, 1, 2]


async def test_stop_cuts_off_what_takes_too_long() -> None:
    world = World()
    await world.produce(1)
    entered = asyncio.Event()

    async def for_ever(_tp: TP, _batch: Sequence[Record]) -> None:
        entered.set()
        await asyncio.Event().wait()

    world.before = for_ever
    stop = asyncio.Event()
    task = asyncio.create_task(
        make(world, drain=DrainPolicy(finish_s=0.02, close_s=60.0)).run(stop)
    )
    await entered.wait()
    stop.set()
    await task
    assert world.committed() is None
    assert world.stopped == world.tps


async def test_fenced_starts_the_handler_again_and_seeks() -> None:
    world = World()
    await world.produce(6)
    fences: list[int] = []

    def fence(_tp: TP, batch: Sequence[Record]) -> None:
        if not fences and batch[0].offset >= 2:
            fences.append(batch[0].offset)
            world.start_at = 2
            raise fenced()

    world.before = fence
    async with running(make(world, policy=BatchPolicy(max_records=2, linger_s=0.0))):
        await world.until(lambda: world.committed() == 6)
    assert world.started == world.tps * 2
    assert world.stopped == world.tps * 2
    assert world.applied[TP("work", 0)] == [0, 1, 2, 3, 4, 5]


async def test_start_is_tried_again() -> None:
    world = World()
    await world.produce(2)
    failures = [unavailable(), fenced(), unavailable()]

    class Reluctant(Handler):
        async def start(self) -> int | None:
            if failures:
                raise failures.pop()
            return await super().start()

    async with running(make(world, lambda tp: Reluctant(world, tp))):
        await world.until(lambda: world.committed() == 2)
    assert world.stopped == world.tps * 4


async def test_pending_work_holds_the_commit_and_is_finished_later() -> None:
    world = World()
    await world.produce(4)
    open_again: list[int] = []

    class Holding(Handler):
        """Keeps record 1 back until it has been called three times without new records."""

        idle = 0

        async def process(self, batch: Sequence[Record]) -> int:
            if batch:
                world.applied[self.tp] += [r.offset for r in batch if r.offset != 1]
                return 1
            self.idle += 1
            if self.idle < 3:
                return 1
            world.applied[self.tp].append(1)
            open_again.append(1)
            return 4

    async with running(make(world, lambda tp: Holding(world, tp))):
        await world.until(lambda: world.committed() == 4)
    assert sorted(world.applied[TP("work", 0)]) == [0, 1, 2, 3]
    assert open_again == [1]


async def test_failed_commit_does_not_stop_the_work() -> None:
    world = World()
    world.broker.fail_commits("g", times=3)
    await world.produce(5)
    async with running(make(world)):
        await world.until(lambda: world.committed() == 5)
    assert world.applied[TP("work", 0)] == [0, 1, 2, 3, 4]


async def test_rebalance_drains_and_nothing_is_done_twice() -> None:
    world = World(partitions=4)
    for number in range(4):
        await world.produce(50, number)
    one, two = make(world), make(world)
    async with running(one):
        await world.until(lambda: len(world.batches) > 2)
        async with running(two):
            await world.until(lambda: bool(two.partitions) and len(one.partitions) == 2)
            await world.until(lambda: all(world.committed(n) == 50 for n in range(4)))
        await world.until(lambda: len(one.partitions) == 4)
    assert world.applied == {tp: list(range(50)) for tp in world.tps}


async def test_zombie_stops_its_handler_and_its_commit_is_refused() -> None:
    world = World()
    await world.produce(2)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_tp: TP, _batch: Sequence[Record]) -> None:
        entered.set()
        await go_on.wait()

    world.before = hold
    async with running(make(world)):
        await entered.wait()
        world.broker.expel("g")
        go_on.set()
        await world.until(lambda: bool(world.stopped))
    assert world.committed() is None


async def test_lost_partition_is_taken_up_again_after_a_rejoin() -> None:
    world = World()
    await world.produce(2)
    async with running(make(world)):
        await world.until(lambda: world.committed() == 2)
        world.broker.expel("g")
        await world.produce(1)
        await world.until(lambda: bool(world.stopped))
        await world.broker.rejoin("g")
        await world.until(lambda: world.committed() == 3)
    # The zombie's last batch was not committed: delivered again.
    assert world.applied[TP("work", 0)] == [0, 1, 2, 2]


async def test_unknown_error_ends_the_pump_and_stops_every_handler() -> None:
    world = World(partitions=2)
    await world.produce(1)

    def bug(_tp: TP, _batch: Sequence[Record]) -> None:
        raise KeyError("bug")

    world.before = bug
    with pytest.raises(KeyError):
        async with asyncio.timeout(60):
            await make(world).run(asyncio.Event())
    assert sorted(world.stopped) == world.tps
    assert world.committed() is None


async def test_offset_from_the_future_is_a_bug() -> None:
    world = World()
    await world.produce(1)

    class Wrong(Handler):
        async def process(self, batch: Sequence[Record]) -> int:
            return batch[-1].offset + 2

    with pytest.raises(RuntimeError, match="never given"):
        async with asyncio.timeout(60):
            await make(world, lambda tp: Wrong(world, tp)).run(asyncio.Event())


async def test_gate_holds_every_batch() -> None:
    world = World()
    await world.produce(2)
    is_open = asyncio.Event()

    class Closed:
        async def wait(self, tp: TP) -> None:
            await is_open.wait()

    async with running(make(world, gate=Closed())):
        await asyncio.sleep(0.01)
        assert world.started == []
        is_open.set()
        await world.until(lambda: world.committed() == 2)


async def test_stop_while_the_gate_is_closed() -> None:
    world = World()

    class Closed:
        async def wait(self, tp: TP) -> None:
            await asyncio.Event().wait()

    pump = make(world, gate=Closed())
    async with running(pump):
        await pump.wait_assigned()


async def test_memory_is_bounded_while_a_partition_stands_still() -> None:
    world = World(partitions=2)
    await world.produce(500, 0, size=100)
    await world.produce(500, 1, size=100)

    def trouble(tp: TP, _batch: Sequence[Record]) -> None:
        if tp.partition == 0 and world.committed(1) != 500:
            raise unavailable()

    world.before = trouble
    pump = make(world)
    held: list[int] = []
    async with running(pump):
        async with asyncio.timeout(60):
            while world.committed(1) != 500:
                held += [len(part.buffer) for part, _ in pump._partitions.values()]
                await asyncio.sleep(0)
        await world.until(lambda: world.committed(0) == 500)
    assert max(held, default=0) <= 20
    assert world.applied == {tp: list(range(500)) for tp in world.tps}


async def test_join_is_tried_again_and_can_be_stopped() -> None:
    world = World()
    pump = Pump(world.broker, "g", ["not-made-yet"], lambda tp: Handler(world, tp), retry=FAST)
    stop = asyncio.Event()
    task = asyncio.create_task(pump.run(stop))
    await asyncio.sleep(0.01)
    assert not task.done()
    stop.set()
    async with asyncio.timeout(60):
        await task


async def test_watchdog_ends_a_pump_whose_client_delivers_nothing() -> None:
    """aiokafka's fetch task can die silently: getmany() returns {} for ever."""
    world = World()
    await world.produce(1)
    pump = make(world, watchdog=WatchdogPolicy(silent_s=0.05))
    world.broker.fail_fetches("g", times=10**9)
    with pytest.raises(Fatal, match="delivers nothing"):
        async with asyncio.timeout(60):
            await pump.run(asyncio.Event())


async def test_watchdog_leaves_an_idle_pump_alone() -> None:
    world = World()
    await world.produce(1)
    async with running(make(world)):
        await world.until(lambda: world.committed() == 1)
    # This one has nothing left to read: however slow it is, it is never behind.
    async with running(make(world, watchdog=WatchdogPolicy(silent_s=0.02))) as task:
        await asyncio.sleep(0.1)
        assert not task.done()


async def test_records_deleted_before_they_were_read_are_counted() -> None:
    world = World()
    await world.produce(5)
    async with running(make(world)):
        await world.until(lambda: world.committed() == 5)
    await world.produce(5)
    world.broker.trim(TP("work", 0), 8)
    labels = {"topic": "work", "partition": "0"}
    before = metrics.OFFSET_GAPS.value(**labels)
    async with running(make(world)):
        await world.until(lambda: world.committed() == 10)
    assert metrics.OFFSET_GAPS.value(**labels) - before == 3
    assert world.applied[TP("work", 0)] == [0, 1, 2, 3, 4, 8, 9]


@pytest.mark.parametrize("seed", range(25))
async def test_killed_at_any_moment_nothing_is_lost(seed: int) -> None:
    """Workers are cancelled, expelled and rebalanced at random; a last one finishes the rest."""
    rng = random.Random(seed)
    world = World(partitions=3)
    for number in range(3):
        await world.produce(30, number)

    async def trouble(_tp: TP, _batch: Sequence[Record]) -> None:
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        if rng.random() < 0.2:
            raise unavailable() if rng.random() < 0.7 else fenced()

    world.before = trouble
    policy = BatchPolicy(max_records=4, linger_s=0.0)
    for _ in range(6):
        task = asyncio.create_task(
            make(world, policy=policy, rng=random.Random(seed)).run(asyncio.Event())
        )
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        kind = rng.random()
        if kind < 0.3:
            world.broker.fail_commits("g", times=rng.randrange(1, 4))
        elif kind < 0.5:
            await world.broker.rebalance("g")
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with running(make(world)):
        await world.until(lambda: all(world.committed(n) == 30 for n in range(3)))
    for tp in world.tps:
        assert sorted(set(world.applied[tp])) == list(range(30))
        # At least once, and never a step back without a new start in between.
        assert world.applied[tp][-1] == 29
