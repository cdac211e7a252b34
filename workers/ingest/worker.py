"""The ingest worker process: the pump on plaintext-ingest, and what it stands on."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from contextlib import AsyncExitStack
from typing import Final

import structlog

from schemas.errors import ErrorCode
from schemas.index import MAX_RECORD_BYTES
from schemas.topics import PLAINTEXT_INGEST, with_prefix
from workers.errors import Fatal
from workers.ingest.decide import Decider
from workers.ingest.handler import IngestHandler
from workers.ingest.prepare import Limits
from workers.ingest.publish import Publisher
from workers.kafka.broker import TP, Broker
from workers.kafka.open import open_broker
from workers.leases.certificate import WorkerIdentity
from workers.leases.directory import KeyDirectory
from workers.leases.holder import LeaseHolder
from workers.runtime.deadletter import DeadLetters
from workers.runtime.health import Health
from workers.runtime.policy import BatchPolicy, DrainPolicy
from workers.runtime.pump import Pump
from workers.runtime.wait import event_within
from workers.settings import Settings
from workers.storage.open import open_store
from workers.storage.store import Store
from workers.telemetry.endpoint import MetricsEndpoint

log = structlog.get_logger("ingest.worker")

GROUP: Final = "sealstream-ingest"
_MAX_BYTES: Final = 8 * 1024 * 1024
_FORGET_S: Final = 10.0


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`; then drain and leave.

    Raises:
        Fatal: the settings or the identity cannot work.
    """
    async with AsyncExitStack() as stack:
        if settings.metrics_port is not None:
            endpoint = MetricsEndpoint(settings.metrics_host, settings.metrics_port)
            await stack.enter_async_context(endpoint)
        broker = open_broker(settings, client_id=settings.worker_id or GROUP)
        stack.push_async_callback(broker.aclose)
        store = open_store(settings)
        stack.push_async_callback(store.aclose)
        await serve(settings, stop, broker=broker, store=store)


async def serve(settings: Settings, stop: asyncio.Event, *, broker: Broker, store: Store) -> None:
    """Run on a broker and a store that somebody else opened (tests, the single-process stack)."""
    identity = WorkerIdentity.load(settings.identity_dir())
    if identity.role != "ingest":
        raise Fatal(ErrorCode.FORBIDDEN, "this identity is not that of an ingest worker")
    health = Health(identity.worker_id, settings.run_dir / f"{identity.worker_id}.json")
    async with AsyncExitStack() as stack:
        directory = KeyDirectory(broker, settings)
        stack.push_async_callback(directory.stop)
        await directory.start()
        holder = LeaseHolder(broker, identity, directory, settings)
        stack.push_async_callback(holder.stop)
        await holder.start()
        producer = await broker.producer()
        stack.push_async_callback(producer.stop)
        publisher = Publisher(
            store=store,
            producer=producer,
            dead_letters=DeadLetters(producer, dead_letter_key(identity)),
            directory=directory,
            identity=identity,
            topic_prefix=settings.topic_prefix,
            limits=Limits(
                content_bytes=settings.max_content_bytes,
                record_bytes=min(settings.max_record_bytes, MAX_RECORD_BYTES),
            ),
        )
        decider = Decider(holder)

        def handler(_tp: TP) -> IngestHandler:
            return IngestHandler(
                decider, publisher, max_blocked_records=settings.max_blocked_records
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
            health=health,
            drain=DrainPolicy(finish_s=settings.drain_s),
            bulk=False,
        )
        health.set("role", "ingest")
        beside = [
            asyncio.create_task(health.run(stop), name="health"),
            asyncio.create_task(_ready(pump, health), name="ready"),
            asyncio.create_task(_forget(publisher, stop), name="forget"),
        ]
        try:
            await pump.run(stop)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)


async def _ready(pump: Pump, health: Health) -> None:
    """Say that the worker works, once the group gave it its partitions (perhaps none)."""
    await pump.wait_assigned()
    health.set("ready", True)
    log.info("ready")


async def _forget(publisher: Publisher, stop: asyncio.Event) -> None:
    while not await event_within(stop, _FORGET_S):
        publisher.forget_ended()


def dead_letter_key(identity: WorkerIdentity) -> bytes:
    """Return the key of this worker's dead-letter digests: stable, and known to nobody else."""
    with identity.signing_key.seed() as seed:
        return hmac.digest(seed.view(), b"sealstream/1 dead-letter", hashlib.sha256)
