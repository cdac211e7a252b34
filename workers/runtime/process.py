"""What every worker process of a role stands on: connections, identity, leases, health.

    run(settings, stop)    opens broker and store, then
    serve(...)             stand(...)  ->  the role's pump  ->  drive(pump, ...)

Order of closing is the reverse of opening: the pump drains first, keys are wiped before the
connections close.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from schemas.errors import ErrorCode
from schemas.prepare import prepare_types
from workers.errors import Fatal
from workers.kafka.broker import Broker, Producer
from workers.kafka.open import open_broker
from workers.leases.certificate import Role, WorkerIdentity
from workers.leases.directory import KeyDirectory
from workers.leases.holder import LeaseHolder
from workers.runtime.deadletter import DeadLetters
from workers.runtime.health import Health
from workers.runtime.pump import Pump
from workers.settings import Settings
from workers.storage.open import open_store
from workers.storage.store import Role as StoreRole
from workers.storage.store import Store
from workers.telemetry.endpoint import MetricsEndpoint

log = structlog.get_logger("runtime.process")


@asynccontextmanager
async def connections(
    settings: Settings, role: StoreRole, *, read_only: bool = False
) -> AsyncIterator[tuple[Broker, Store]]:
    """Open what a worker process reaches outside: metrics endpoint, broker, store.

    Raises:
        Fatal: the store does not have what the role builds on.
        Retry: the store does not answer.
    """
    async with AsyncExitStack() as stack:
        if settings.metrics_port is not None:
            endpoint = MetricsEndpoint(settings.metrics_host, settings.metrics_port)
            await stack.enter_async_context(endpoint)
            # Port 0 took any: this is where it is said which.
            log.info("metrics are served", host=settings.metrics_host, port=endpoint.port)
        broker = open_broker(settings, client_id=settings.worker_id or f"sealstream-{role}")
        stack.push_async_callback(broker.aclose)
        store = open_store(settings, read_only=read_only)
        stack.push_async_callback(store.aclose)
        # Before anything is read or written: a server without conditional writes loses data.
        await store.check(role)
        yield broker, store


@dataclass(frozen=True, slots=True)
class Stand:
    """The parts that workers of all roles have."""

    identity: WorkerIdentity
    health: Health
    directory: KeyDirectory
    holder: LeaseHolder
    producer: Producer
    dead_letters: DeadLetters


@asynccontextmanager
async def stand(settings: Settings, role: Role, broker: Broker) -> AsyncIterator[Stand]:
    """Load the identity, read the key directory, listen for grants.

    Raises:
        Fatal: the identity is missing, or that of another role.
        Retry: the broker is unavailable.
    """
    prepare_types()
    identity = WorkerIdentity.load(settings.identity_dir())
    if identity.role != role:
        raise Fatal(ErrorCode.FORBIDDEN, f"this identity is not that of a worker of role {role}")
    health = Health(identity.worker_id, settings.run_dir / f"{identity.worker_id}.json")
    health.set("role", role)
    async with AsyncExitStack() as stack:
        directory = KeyDirectory(broker, settings)
        stack.push_async_callback(directory.stop)
        await directory.start()
        holder = LeaseHolder(broker, identity, directory, settings)
        stack.push_async_callback(holder.stop)
        await holder.start()
        producer = await broker.producer()
        stack.push_async_callback(producer.stop)
        letters = DeadLetters(producer, _dead_letter_key(identity))
        yield Stand(identity, health, directory, holder, producer, letters)


async def drive(
    pump: Pump, health: Health, stop: asyncio.Event, *beside: Coroutine[Any, Any, None]
) -> None:
    """Run the pump until `stop`, with the health file and what else goes on beside it.

    Raises:
        Whatever the pump, or one of `beside`, raises: a worker whose helper died must not go on.
    """
    tasks = [
        asyncio.create_task(health.run(stop), name="health"),
        asyncio.create_task(_ready(pump, health), name="ready"),
        *(asyncio.create_task(one) for one in beside),
    ]
    pumping = asyncio.create_task(pump.run(stop), name="pump")
    try:
        waiting = {pumping, *tasks}
        while not pumping.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in (pumping, *tasks):
            task.cancel()
        await asyncio.gather(pumping, *tasks, return_exceptions=True)


async def _ready(pump: Pump, health: Health) -> None:
    """Say that the worker works, once the group gave it its partitions (perhaps none)."""
    await pump.wait_assigned()
    health.set("ready", True)
    log.info("ready")


def _dead_letter_key(identity: WorkerIdentity) -> bytes:
    """Return the key of this worker's dead-letter digests: stable, and known to nobody else."""
    with identity.signing_key.seed() as seed:
        return hmac.digest(seed.view(), b"sealstream/1 dead-letter", hashlib.sha256)
