"""When the garbage of a shard is swept, and what of it may go."""

from __future__ import annotations

import random
import time
from typing import Final

from workers.chain.reader import ShardReader
from workers.chain.sweep import GRACE_MS
from workers.index.garbage import SharedGarbage
from workers.index.opening import OpenShard
from workers.index.place import Place
from workers.index.services import Services
from workers.leases.heads import head_verifier
from workers.leases.lease import Lease
from workers.telemetry import metrics

SWEEP_S: Final = 3600.0
"""Seconds between two sweeps of a shard's garbage."""
ENDED_LEASES: Final = 2.0
"""Lives of a lease after which the garbage of a key generation that has ended is deleted."""


class Sweeping:
    """The sweeps of one shard: every hour, and when key generations change."""

    def __init__(self, place: Place, services: Services) -> None:
        """Prepare; the first turn comes within the first hour."""
        self._place = place
        self._services = services
        self._garbage = SharedGarbage(services.store, place.uid)
        self._at = time.monotonic() + SWEEP_S * random.random()  # noqa: S311 - spreads the load
        # The oldest and the present key generation of the lease.
        self._generations = (0, 0)
        # Of a generation that ended: seconds until its garbage is deleted; sweeps for it that are
        # still to come.
        self._ended_grace_s = 0.0
        self._ended_sweeps = 0

    def take_turn(self, now_s: float) -> bool:
        """Return whether a sweep is due; if so, the next one is in an hour."""
        if now_s < self._at:
            return False
        self._at = now_s + SWEEP_S
        return True

    def note_generations(self, lease: Lease) -> None:
        """Sweep when the key generations change: nothing is left under a key that nobody has."""
        before, self._generations = (
            self._generations,
            (min(lease.generations, default=0), lease.generation),
        )
        if not any(before) or self._generations == before:
            return
        # A new one: what is noted about garbage moves to it.
        self._at = time.monotonic()
        if self._generations[0] > before[0]:
            # Leases that could still read it end within one life.
            self._ended_grace_s = ENDED_LEASES * (lease.expires_s - lease.issued_s)
            self._ended_sweeps = 2

    async def sweep(self, shard: OpenShard) -> None:
        """Delete what no head has named for a day, and what no shard refers to any more.

        After a key generation has ended its garbage goes sooner: marked by one sweep, deleted by
        the next.

        Raises:
            Fenced, Damaged, Retry.
        """
        ended = self._ended_sweeps > 0
        grace_ms = int(self._ended_grace_s * 1000) if ended else GRACE_MS
        async with shard.vectors.epochs_in_use:
            swept = await shard.writer.sweep(grace_ms, centroids=shard.vectors.named)
        # It may have published the head once more.
        shard.look()
        metrics.SWEPT.inc(swept.deleted)
        if ended:
            self._ended_sweeps -= 1
            if self._ended_sweeps:
                self._at = time.monotonic() + self._ended_grace_s
        if self._place.shard == 0:
            metrics.SWEPT.inc(await self._garbage.sweep(self._readers(shard)))

    def _readers(self, shard: OpenShard) -> list[ShardReader]:
        """Make a reader of every shard of the index."""
        services, place, keys = self._services, self._place, shard.keys
        verifier = head_verifier(services.directory, place.index)
        readers = []
        for number in range(keys.lease().config.shards):
            reader = ShardReader(services.store, None, place.uid, number, keys.segment, verifier)
            reader.expect(services.announced.version(place.index, place.uid, number))
            readers.append(reader)
        return readers
