"""Floors of the realm's records, kept in key-directory: outside of the bucket, signed."""

from __future__ import annotations

from workers.keys.publish import Publisher
from workers.leases.directory import FLOOR_PREFIX, KeyDirectory


class DirectoryFloors:
    """What `workers.identity.pages.Floors` asks for."""

    def __init__(self, directory: KeyDirectory, publisher: Publisher) -> None:
        self._directory = directory
        self._publisher = publisher

    def version(self, name: str) -> int:
        """Return the highest version that was published under a name, 0 if none."""
        return self._directory.version(FLOOR_PREFIX + name)

    async def publish(self, name: str, version: int) -> None:
        """Publish a version and wait until it is durable. Raises Retry."""
        await self._publisher.floor(name, version)
