"""The index worker process: the pump on index-update, and what it stands on."""

from __future__ import annotations

import asyncio
from typing import Final

from schemas.topics import INDEX_UPDATE, INGEST_RESULT, with_prefix
from workers.index.emit import Emitter
from workers.index.handler import IndexHandler
from workers.index.notes import Notes
from workers.index.services import Services
from workers.index.totals import Total
from workers.kafka.broker import TP, Broker
from workers.runtime.announced import following
from workers.runtime.policy import BatchPolicy, DrainPolicy, RetryPolicy
from workers.runtime.process import connections, drive, stand
from workers.runtime.pump import Pump
from workers.settings import Settings
from workers.storage.store import Store
from workers.telemetry import metrics

GROUP: Final = "sealstream-index"
# One record is a whole micro-batch of an ingest worker: up to some hundred documents.
_MAX_RECORDS: Final = 64
_MAX_BYTES: Final = 16 * 1024 * 1024
# A word that comes often costs a node in each segment: twice as many documents, a third less work.
_MOST_LINGER_S: Final = 1.0


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`; then drain and leave.

    Raises:
        Fatal: the settings, the identity or the store cannot work.
    """
    async with connections(settings, "index") as (broker, store):
        await serve(settings, stop, broker=broker, store=store)


async def serve(settings: Settings, stop: asyncio.Event, *, broker: Broker, store: Store) -> None:
    """Run on a broker and a store that somebody else opened."""
    async with (
        stand(settings, "index", broker) as parts,
        following(broker, parts.directory, settings.topic_prefix) as announced,
        Notes(parts.holder, RetryPolicy()) as notes,
    ):
        services = Services(
            holder=parts.holder,
            directory=parts.directory,
            store=store,
            identity=parts.identity,
            emitter=Emitter(
                parts.producer,
                parts.identity,
                settings.topic_prefix,
                await broker.partitions(with_prefix(settings.topic_prefix, INGEST_RESULT)),
            ),
            dead_letters=parts.dead_letters,
            retry=RetryPolicy(),
            blocked=Total(metrics.BLOCKED_RECORDS, topic=INDEX_UPDATE),
            segments=Total(metrics.LIVE_SEGMENTS),
            health=parts.health,
            announced=announced,
            notes=notes,
        )

        def handler(tp: TP) -> IndexHandler:
            return IndexHandler(tp, services, max_blocked_records=settings.max_blocked_records)

        pump = Pump(
            broker,
            settings.topic_prefix + GROUP,
            [with_prefix(settings.topic_prefix, INDEX_UPDATE)],
            handler,
            policy=BatchPolicy(
                max_records=_MAX_RECORDS,
                max_bytes=_MAX_BYTES,
                linger_s=settings.index_linger_ms / 1000,
                most_linger_s=_MOST_LINGER_S,
                max_buffered_bytes=4 * _MAX_BYTES,
            ),
            health=parts.health,
            drain=DrainPolicy(finish_s=settings.drain_s),
            # Fetches wait for no fullness: the linger collects, and an idle tenant must not wait.
            bulk=False,
            wait_ms=settings.index_linger_ms,
        )
        await drive(pump, parts.health, stop, parts.holder.end(), announced.end())
