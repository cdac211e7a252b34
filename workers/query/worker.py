"""The query worker process: the pump on query-request, index-event hints, and what it stands on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from schemas.codec import decode
from schemas.errors import InvalidMessage
from schemas.event import IndexEvent
from schemas.topics import INDEX_EVENT, QUERY_REQUEST, with_prefix
from workers.crypto.info import Info
from workers.errors import SealstreamError
from workers.kafka.broker import Broker, Record, TopicReader
from workers.leases.directory import KeyDirectory
from workers.leases.signed import verify_record
from workers.query.handler import QueryHandler
from workers.query.indexes import OpenIndexes
from workers.runtime.each import EachPump
from workers.runtime.lastresort import unexpected
from workers.runtime.policy import DrainPolicy
from workers.runtime.process import connections, drive, stand
from workers.runtime.wait import Stopped, event_within, unless
from workers.settings import Settings
from workers.storage.store import Store

log = structlog.get_logger("query.worker")

GROUP: Final = "sealstream-query"
_POLL_S: Final = 1.0
_SWEEP_S: Final = 5.0


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`; then answer what was begun and leave.

    Raises:
        Fatal: the settings or the identity cannot work.
    """
    async with connections(settings, "query", read_only=True) as (broker, store):
        await serve(settings, stop, broker=broker, store=store)


async def serve(settings: Settings, stop: asyncio.Event, *, broker: Broker, store: Store) -> None:
    """Run on a broker and a store that somebody else opened."""
    async with stand(settings, "query", broker) as parts:
        indexes = OpenIndexes(store, parts.directory, cache_bytes=settings.cache_bytes)
        handler = QueryHandler(parts, store, indexes, settings)
        pump = EachPump(
            broker,
            settings.topic_prefix + GROUP,
            [with_prefix(settings.topic_prefix, QUERY_REQUEST)],
            handler.handle,
            # Half of them may wait for a position, which is no work.
            max_concurrency=2 * settings.query_concurrency,
            health=parts.health,
            drain=DrainPolicy(finish_s=settings.drain_s),
        )
        events = broker.topic_reader(
            # Hints only: whoever waits for a position looks at the head besides.
            [with_prefix(settings.topic_prefix, INDEX_EVENT)],
            start="beginning",
            low_latency=False,
        )
        await events.start()
        following = asyncio.create_task(
            _follow(events, parts.directory, indexes), name="index-events"
        )
        try:
            with suppress(Stopped):
                # What was announced before: a head that is older is refused from the first query.
                await unless(stop, _caught_up(events, following))
                await drive(pump, parts.health, stop, _end_of(following), _sweep(indexes, stop))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await events.stop()


async def _caught_up(events: TopicReader, following: asyncio.Task[None]) -> None:
    """Wait until `following` has worked in all events that exist now. Raises what it raises."""
    reached = asyncio.ensure_future(events.caught_up())
    try:
        await asyncio.wait((reached, following), return_when=asyncio.FIRST_COMPLETED)
        (following if following.done() else reached).result()
    finally:
        reached.cancel()
        await asyncio.gather(reached, return_exceptions=True)


async def _end_of(task: asyncio.Task[None]) -> None:
    await task


async def _follow(reader: TopicReader, directory: KeyDirectory, indexes: OpenIndexes) -> None:
    """Take index-events as hints that a shard has moved; what does not verify is ignored."""
    while True:
        records = await reader.next(_POLL_S)
        # The newest first: what they say covers the others, which need no verification then.
        for record in reversed(records):
            if record.value is None:
                continue
            try:
                await _take(record, directory, indexes)
            except (SealstreamError, InvalidMessage) as error:
                log.warning("event refused", code=error.code.value)
            except Exception as failure:
                # A hint that nobody can read must not end the worker: at every start it is there.
                unexpected(failure, record)


async def _take(record: Record, directory: KeyDirectory, indexes: OpenIndexes) -> None:
    event = decode(IndexEvent, record.value)
    if event.uid is None:
        return
    uid = bytes.fromhex(event.uid)
    if event.version <= indexes.announced(event.index, uid, event.shard):
        return
    certificate = verify_record(
        record, directory.key_service.sign_pub, ("index",), Info.INDEX_EVENT
    )
    if certificate.covers(event.index):
        await indexes.announce(event.index, uid, event.shard, event.version)


async def _sweep(indexes: OpenIndexes, stop: asyncio.Event) -> None:
    """Close indexes whose lease ended, until `stop`."""
    while not await event_within(stop, _SWEEP_S):
        indexes.sweep()
