"""Gauges that are sums over the shards and partitions of the process."""

from __future__ import annotations

from collections.abc import Hashable

from workers.telemetry.metrics import Gauge


class Total:
    """A gauge made of parts, each set by its owner."""

    def __init__(self, gauge: Gauge, **labels: str) -> None:
        self._gauge = gauge
        self._labels = labels
        self._parts: dict[Hashable, int] = {}

    def set(self, owner: Hashable, value: int) -> None:
        """Replace the part of `owner`."""
        self._parts[owner] = value
        self._show()

    def forget(self, owner: Hashable) -> None:
        """Drop the part of `owner`."""
        self._parts.pop(owner, None)
        self._show()

    def _show(self) -> None:
        self._gauge.set(sum(self._parts.values()), **self._labels)
