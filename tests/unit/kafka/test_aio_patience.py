from __future__ import annotations

from types import SimpleNamespace

from aiokafka import TopicPartition

from workers.kafka.aio_group import Patience, fetch_wait_ms

ONE, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)


class FakeConsumer:
    """What `Patience` looks at: positions and high watermarks, and the wait of the next fetch."""

    def __init__(self) -> None:
        self.states = {
            partition: SimpleNamespace(has_valid_position=True, position=5, highwater=5)
            for partition in (ONE, OTHER)
        }
        assignment = SimpleNamespace(state_value=self.states.get)
        self._subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
        self._fetcher = SimpleNamespace(_fetch_max_wait_ms=20)

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self.states)

    @property
    def wait_ms(self) -> int:
        return self._fetcher._fetch_max_wait_ms


def test_who_gathers_anyway_asks_less_often() -> None:
    assert fetch_wait_ms(bulk=False) == 20
    assert fetch_wait_ms(bulk=True) == 500
    waits = [fetch_wait_ms(bulk=False, wait_ms=wait_ms) for wait_ms in (0, 20, 50, 500, 3_600_000)]
    assert waits == [20, 20, 50, 500, 500]


def test_a_starving_reader_gives_the_broker_more_time() -> None:
    consumer = FakeConsumer()
    patience = Patience(consumer, bulk=False)  # type: ignore[arg-type]
    consumer.states[ONE].highwater = 9
    waits = []
    for _ in range(9):
        patience.note([ONE], found=False)
        waits.append(consumer.wait_ms)
    assert waits == [40, 80, 160, 320, 640, 1280, 2000, 2000, 2000]
    # What helped is kept until the end is reached.
    patience.note([ONE], found=True)
    assert consumer.wait_ms == 2000
    consumer.states[ONE].position = 9
    patience.note([ONE], found=False)
    assert consumer.wait_ms == 20


def test_only_what_was_asked_for_counts() -> None:
    consumer = FakeConsumer()
    patience = Patience(consumer, bulk=False)  # type: ignore[arg-type]
    consumer.states[OTHER].highwater = 9
    patience.note([ONE, TopicPartition("not mine", 0)], found=False)
    assert consumer.wait_ms == 20
    for unknown in ({"has_valid_position": False}, {"highwater": None}):
        consumer.states[ONE] = SimpleNamespace(
            **{"has_valid_position": True, "position": 0, "highwater": 9, **unknown}
        )
        patience.note([ONE], found=False)
        assert consumer.wait_ms == 20
