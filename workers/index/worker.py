"""The index worker process: the pump on index-update, and what it stands on."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from contextlib import AsyncExitStack
from typing import Final

import structlog

from schemas.errors import ErrorCode
from schemas.topics import INDEX_UPDATE, with_prefix
from workers.errors import Fatal
from workers.index.emit import Emitter
from workers.index.handler import IndexHandler
from workers.index.shard import Services
from workers.index.totals import Total
from workers.kafka.broker import TP, Broker
from workers.kafka.open import open_broker
from workers.leases.certificate import WorkerIdentity
from workers.leases.directory import KeyDirectory
from workers.leases.holder import LeaseHolder
from workers.runtime.deadletter import DeadLetters
from workers.runtime.health import Health
from workers.runtime.policy import BatchPolicy, DrainPolicy, RetryPolicy
from workers.runtime.pump import Pump
from workers.settings import Settings
from workers.storage.open import open_store
from workers.storage.store import Store
from workers.telemetry import metrics
from workers.telemetry.endpoint import MetricsEndpoint

log = structlog.get_logger("index.worker")

GROUP: Final = "sealstream-index"
# One record is a whole micro-batch of an ingest worker: up to some hundred documents.
_MAX_RECORDS: Final = 64
_MAX_BYTES: Final = 16 * 1024 * 1024


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`; then drain and leave.

    Raises:
        Fatal: the settings, the identity or the store cannot work.
    """
    async with AsyncExitStack() as stack:
        if settings.metrics_port is not None:
            endpoint = MetricsEndpoint(settings.metrics_host, settings.metrics_port)
            await stack.enter_async_context(endpoint)
        broker = open_broker(settings, client_id=settings.worker_id or GROUP)
        stack.push_async_callback(broker.aclose)
        store = open_store(settings)
        stack.push_async_callback(store.aclose)
        await store.check()
        await serve(settings, stop, broker=broker, store=store)


async def serve(settings: Settings, stop: asyncio.Event, *, broker: Broker, store: Store) -> None:
    """Run on a broker and a store that somebody else opened (tests, the single-process stack)."""
    identity = WorkerIdentity.load(settings.identity_dir())
    if identity.role != "index":
        raise Fatal(ErrorCode.FORBIDDEN, "this identity is not that of an index worker")
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
        services = Services(
            holder=holder,
            directory=directory,
            store=store,
            identity=identity,
            emitter=Emitter(producer, identity, settings.topic_prefix),
            dead_letters=DeadLetters(producer, dead_letter_key(identity)),
            retry=RetryPolicy(),
            blocked=Total(metrics.BLOCKED_RECORDS, topic=INDEX_UPDATE),
            segments=Total(metrics.LIVE_SEGMENTS),
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
                max_buffered_bytes=4 * _MAX_BYTES,
            ),
            health=health,
            drain=DrainPolicy(finish_s=settings.drain_s),
            bulk=False,
        )
        health.set("role", "index")
        beside = [
            asyncio.create_task(health.run(stop), name="health"),
            asyncio.create_task(_ready(pump, health), name="ready"),
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


def dead_letter_key(identity: WorkerIdentity) -> bytes:
    """Return the key of this worker's dead-letter digests: stable, and known to nobody else."""
    with identity.signing_key.seed() as seed:
        return hmac.digest(seed.view(), b"sealstream/1 dead-letter", hashlib.sha256)
