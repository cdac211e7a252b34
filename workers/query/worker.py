"""The query worker process: the pump on query-request, hints of heads, and what it stands on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from schemas.topics import QUERY_REQUEST, with_prefix
from workers.kafka.broker import Broker
from workers.query.handler import QueryHandler
from workers.query.indexes import OpenIndexes
from workers.runtime.announced import following
from workers.runtime.each import EachPump
from workers.runtime.policy import DrainPolicy
from workers.runtime.process import connections, drive, stand
from workers.runtime.wait import Stopped, event_within, unless
from workers.settings import Settings
from workers.storage.store import Store

GROUP: Final = "sealstream-query"
_SWEEP_S: Final = 5.0


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`; then answer what was begun and leave.

    Raises:
        Fatal: the settings, the identity or the store cannot work.
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
        async with following(
            broker, parts.directory, settings.topic_prefix, indexes.announce
        ) as announced:
            with suppress(Stopped):
                # What was announced before: a head that is older is refused from the first query.
                await unless(stop, announced.caught_up())
                await drive(
                    pump,
                    parts.health,
                    stop,
                    parts.holder.end(),
                    announced.end(),
                    _sweep(indexes, stop),
                )


async def _sweep(indexes: OpenIndexes, stop: asyncio.Event) -> None:
    """Close indexes whose lease ended, until `stop`."""
    while not await event_within(stop, _SWEEP_S):
        indexes.sweep()
