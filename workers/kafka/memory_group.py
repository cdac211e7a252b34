"""Consumer groups of the memory broker: eager, one member after the other, in joining order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from workers.kafka.broker import TP, OnAssigned, OnRevoked, Record
from workers.kafka.errors import PartitionLost, unavailable
from workers.kafka.memory_logs import MemoryLogs


class MemoryGroup:
    """Members in the order in which they joined, and the committed offsets."""

    def __init__(self, broker: MemoryLogs, name: str) -> None:
        self.name = name
        self.committed: dict[TP, int] = {}
        self._broker = broker
        self._members: list[MemoryGroupReader] = []
        self._zombies: list[MemoryGroupReader] = []
        self._lock = asyncio.Lock()

    async def join(self, member: MemoryGroupReader) -> None:
        """Add a member; everybody drains first."""
        async with self._lock:
            await self._revoke()
            self._members.append(member)
            self._assign()

    async def leave(self, member: MemoryGroupReader) -> None:
        """Remove a member that has drained."""
        async with self._lock:
            member.positions.clear()
            if member in self._zombies:
                self._zombies.remove(member)
            if member in self._members:
                self._members.remove(member)
                await self._revoke()
                self._assign()

    async def rebalance(self) -> None:
        """Revoke and assign everything."""
        async with self._lock:
            await self._revoke()
            self._assign()

    def expel(self, index: int) -> None:
        """Give a member's partitions to the others without telling it."""
        zombie = self._members.pop(index)
        zombie.expelled = True
        self._zombies.append(zombie)
        self._assign(only_free=True)

    async def rejoin(self) -> None:
        """Let expelled members drain and join again."""
        async with self._lock:
            await self._revoke()
            zombies, self._zombies = self._zombies, []
            for zombie in zombies:
                await zombie.revoke(sorted(zombie.positions))
                zombie.positions.clear()
                zombie.expelled = False
                self._members.append(zombie)
            self._assign()

    async def _revoke(self) -> None:
        for member in list(self._members):
            partitions = sorted(member.positions)
            if partitions:
                await member.revoke(partitions)
            member.positions.clear()

    def _assign(self, *, only_free: bool = False) -> None:
        if not self._members:
            return
        owned = {tp for member in self._members for tp in member.positions}
        topics = sorted({topic for member in self._members for topic in member.topics})
        partitions = [tp for tp in self._broker.resolve(topics) if tp not in owned or not only_free]
        shares: dict[int, list[TP]] = defaultdict(list)
        for number, tp in enumerate(partitions):
            shares[number % len(self._members)].append(tp)
        for number, member in enumerate(self._members):
            if shares[number] or not only_free:
                member.assign(shares[number])
        self._broker.wake()


class MemoryGroupReader:
    """A `GroupReader` of a `MemoryBroker`. `positions` holds what is assigned."""

    def __init__(
        self,
        broker: MemoryLogs,
        group: MemoryGroup,
        topics: Sequence[str],
        *,
        rebalance_timeout_s: float,
    ) -> None:
        self.rebalance_timeout_s = rebalance_timeout_s
        self.topics = list(topics)
        self.positions: dict[TP, int | None] = {}
        self.expelled = False
        self._broker = broker
        self._group = group
        self._on_assigned: OnAssigned | None = None
        self._on_revoked: OnRevoked | None = None

    async def start(self, on_assigned: OnAssigned, on_revoked: OnRevoked) -> None:
        """Join the group."""
        self._broker.resolve(self.topics)
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        await self._group.join(self)

    def assign(self, partitions: Sequence[TP]) -> None:
        """Take partitions over; they are silent until `seek`."""
        self.positions.update(dict.fromkeys(partitions))
        if self._on_assigned is not None:
            self._on_assigned(partitions)

    async def revoke(self, partitions: Sequence[TP]) -> None:
        """Let the owner drain."""
        if self._on_revoked is not None:
            await self._on_revoked(partitions)

    async def fetch(
        self, ready: Collection[TP], max_records: int, timeout_s: float
    ) -> dict[TP, list[Record]]:
        """Return records of the `ready` partitions only."""
        until_s = asyncio.get_running_loop().time() + timeout_s
        await asyncio.sleep(0)
        if self._broker.fault(f"fetch {self._group.name}") is not None:
            return {}
        while True:
            found: dict[TP, list[Record]] = {}
            for tp in sorted(ready):
                position = self.positions.get(tp)
                if position is not None and max_records > 0:
                    batch = self._broker.logs[tp].read(position, max_records)
                    if batch:
                        found[tp] = batch
                        self.positions[tp] = batch[-1].offset + 1
                        max_records -= len(batch)
            if found or not await self._broker.wait(until_s):
                return found

    async def seek(self, tp: TP, offset: int) -> None:
        """Read `tp` from `offset` on, and begin to deliver it."""
        if tp not in self.positions:
            raise PartitionLost("not assigned")
        self.positions[tp] = offset
        self._broker.wake()

    async def committed(self, tp: TP) -> int | None:
        """Return the group's committed offset, or None."""
        await asyncio.sleep(0)
        return self._group.committed.get(tp)

    async def commit(self, offsets: Mapping[TP, int]) -> None:
        """Commit the next offsets to read."""
        if not offsets:
            raise ValueError("commit needs offsets")
        await asyncio.sleep(0)
        if self.expelled or any(tp not in self.positions for tp in offsets):
            raise PartitionLost("not assigned")
        if self._broker.fault(f"commit {self._group.name}") is not None:
            raise unavailable("injected")
        self._group.committed.update(offsets)

    async def beginning(self, tp: TP) -> int:
        """Return the offset of the oldest record kept."""
        return self._broker.logs[tp].begin

    async def end(self, tp: TP) -> int:
        """Return the offset after the newest record."""
        return self._broker.logs[tp].end

    async def position(self, tp: TP) -> int | None:
        """Return the offset that the next fetch begins at, or None if it is not assigned."""
        return self.positions.get(tp)

    async def stop(self) -> None:
        """Leave the group."""
        self._on_assigned = self._on_revoked = None
        await self._group.leave(self)
