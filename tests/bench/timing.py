"""Measure two or more things in turns, so that noise hits all of them alike."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Side = Callable[[], Any] | Callable[[], Awaitable[Any]]


@dataclass(slots=True)
class Samples:
    """Seconds of every round of one side."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median."""
        return percentile(self.seconds, 50)

    @property
    def p99(self) -> float:
        """The 99th percentile."""
        return percentile(self.seconds, 99)

    def rates(self, work: float) -> tuple[float, tuple[float, float]]:
        """Return work per second: the median and (lowest, highest)."""
        return work / self.median, (work / max(self.seconds), work / min(self.seconds))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by linear interpolation.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a percentile needs values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


async def alternate(sides: Mapping[str, Side], rounds: int, *, warm: int = 1) -> dict[str, Samples]:
    """Run all sides one after the other, `rounds` times; return the seconds of each.

    A side that returns a number has measured itself: the number is its seconds. The order turns
    round from one round to the next, so that no side always follows the same other one.

    Args:
        sides: by name.
        rounds: that count.
        warm: that come before and do not count.
    """
    found = {name: Samples() for name in sides}
    for turn in range(warm + rounds):
        order = list(sides.items())
        for name, side in order if turn % 2 else reversed(order):
            seconds = await timed(side)
            if turn >= warm:
                found[name].seconds.append(seconds)
    return found


async def timed(side: Side) -> float:
    """Return the seconds one call takes, or what it says it took."""
    began = time.perf_counter()
    result = side()
    if inspect.isawaitable(result):
        result = await result
    took = time.perf_counter() - began
    return float(result) if isinstance(result, float) else took
