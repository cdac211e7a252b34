"""Which versions of their shards the index workers announced, as far as index-event was read.

An announced version is a floor: a head below it was put back. Query workers refuse to answer from
such a head, index workers to go on from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from schemas.codec import decode
from schemas.errors import InvalidMessage
from schemas.event import IndexEvent
from schemas.topics import INDEX_EVENT, with_prefix
from workers.crypto.info import Info
from workers.errors import SealstreamError
from workers.kafka.broker import Broker, Record, TopicReader
from workers.leases.directory import KeyDirectory
from workers.leases.signed import verify_record
from workers.runtime.lastresort import unexpected

log = structlog.get_logger("runtime.announced")

_POLL_S: Final = 1.0

OnNewer = Callable[[str, bytes, int, int], Awaitable[None]]
"""Called with name and uid of the index, shard and version."""


class Announced:
    """The newest announced version of every shard, followed by a task of its own."""

    def __init__(
        self, reader: TopicReader, directory: KeyDirectory, on_newer: OnNewer | None
    ) -> None:
        """Use `following`, which also starts and stops it."""
        self._reader = reader
        self._directory = directory
        self._on_newer = on_newer
        # The name belongs to it: a certificate entitles to names, and uids can be claimed.
        self._versions: dict[tuple[str, bytes, int], int] = {}
        self._task = asyncio.create_task(self._follow(), name="index-events")

    def version(self, index: str, uid: bytes, shard: int) -> int:
        """Return the newest version that was announced of a shard, 0 if none was."""
        return self._versions.get((index, uid, shard), 0)

    async def caught_up(self) -> None:
        """Wait until all events that exist now are worked in.

        Raises:
            Retry: the broker cannot be asked. Fatal: the reader died.
        """
        reached = asyncio.ensure_future(self._reader.caught_up())
        try:
            await asyncio.wait((reached, self._task), return_when=asyncio.FIRST_COMPLETED)
            (self._task if self._task.done() else reached).result()
        finally:
            reached.cancel()
            await asyncio.gather(reached, return_exceptions=True)

    async def end(self) -> None:
        """Wait until following ends, which it does only by failing. Raises Fatal."""
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Stop to follow."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.stop()

    async def _follow(self) -> None:
        """Work in what comes; what does not verify is ignored."""
        while True:
            records = await self._reader.next(_POLL_S)
            # The newest first: what they say covers the others, which need no verification then.
            for record in reversed(records):
                if record.value is None:
                    continue
                try:
                    await self._take(record)
                except (SealstreamError, InvalidMessage) as error:
                    log.warning("event refused", code=error.code.value)
                except Exception as failure:
                    # What nobody can read must not end the worker: at every start it is there.
                    unexpected(failure, record)

    async def _take(self, record: Record) -> None:
        event = decode(IndexEvent, record.value)
        if event.uid is None:
            return
        place = (event.index, bytes.fromhex(event.uid), event.shard)
        if event.version <= self.version(*place):
            return
        issuer = self._directory.key_service.sign_pub
        certificate = verify_record(
            record,
            issuer,
            ("index",),
            Info.INDEX_EVENT,
            revocations=self._directory.revocations,
        )
        if certificate.covers(event.index):
            self._versions[place] = event.version
            if self._on_newer is not None:
                await self._on_newer(*place, event.version)


@asynccontextmanager
async def following(
    broker: Broker, directory: KeyDirectory, topic_prefix: str, on_newer: OnNewer | None = None
) -> AsyncIterator[Announced]:
    """Follow index-event from its beginning.

    Args:
        broker: to read from.
        directory: of the key service, which certifies who may announce.
        topic_prefix: of the deployment.
        on_newer: awaited for every version that is newer than the one known.
    """
    reader = broker.topic_reader(
        # Nobody waits for a single event: who needs a position looks at the head besides.
        [with_prefix(topic_prefix, INDEX_EVENT)],
        start="beginning",
        low_latency=False,
    )
    await reader.start()
    announced = Announced(reader, directory, on_newer)
    try:
        yield announced
    finally:
        await announced.stop()
