"""The ingest worker process: the pump on plaintext-ingest, and what it stands on."""

from __future__ import annotations

import asyncio
from typing import Final

from schemas.index import MAX_RECORD_BYTES
from schemas.topics import INGEST_RESULT, PLAINTEXT_INGEST, with_prefix
from workers.ingest.decide import Decider
from workers.ingest.handler import IngestHandler
from workers.ingest.prepare import Limits
from workers.ingest.publish import Publisher
from workers.kafka.broker import TP, Broker
from workers.runtime.policy import BatchPolicy, DrainPolicy
from workers.runtime.process import connections, drive, stand
from workers.runtime.pump import Pump
from workers.runtime.wait import event_within
from workers.settings import Settings
from workers.storage.store import Store

GROUP: Final = "sealstream-ingest"
_MAX_BYTES: Final = 8 * 1024 * 1024
_FORGET_S: Final = 10.0


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`; then drain and leave.

    Raises:
        Fatal: the settings, the identity or the store cannot work.
    """
    async with connections(settings, "ingest") as (broker, store):
        await serve(settings, stop, broker=broker, store=store)


async def serve(settings: Settings, stop: asyncio.Event, *, broker: Broker, store: Store) -> None:
    """Run on a broker and a store that somebody else opened."""
    async with stand(settings, "ingest", broker) as parts:
        publisher = Publisher(
            store=store,
            producer=parts.producer,
            dead_letters=parts.dead_letters,
            directory=parts.directory,
            identity=parts.identity,
            topic_prefix=settings.topic_prefix,
            limits=Limits(
                content_bytes=settings.max_content_bytes,
                record_bytes=min(settings.max_record_bytes, MAX_RECORD_BYTES),
            ),
            result_partitions=await broker.partitions(
                with_prefix(settings.topic_prefix, INGEST_RESULT)
            ),
        )
        decider = Decider(parts.holder)

        def handler(_tp: TP) -> IngestHandler:
            return IngestHandler(
                decider, publisher, parts.health, max_blocked_records=settings.max_blocked_records
            )

        pump = Pump(
            broker,
            settings.topic_prefix + GROUP,
            [with_prefix(settings.topic_prefix, PLAINTEXT_INGEST)],
            handler,
            policy=BatchPolicy(
                max_records=settings.batch_max_records,
                max_bytes=_MAX_BYTES,
                linger_s=settings.batch_linger_ms / 1000,
            ),
            health=parts.health,
            drain=DrainPolicy(finish_s=settings.drain_s),
            bulk=False,
            wait_ms=settings.batch_linger_ms,
        )
        await drive(pump, parts.health, stop, parts.holder.end(), _forget(publisher, stop))


async def _forget(publisher: Publisher, stop: asyncio.Event) -> None:
    while not await event_within(stop, _FORGET_S):
        publisher.forget_ended()
