"""Create the topics a deployment needs, and tell which ones differ from what we would create."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from schemas.topics import ALL_TOPICS, INDEX_UPDATE, TopicSpec, with_prefix
from workers.errors import Retry
from workers.kafka.broker import Broker
from workers.kafka.open import open_broker
from workers.local.errors import StartFailed
from workers.settings import Settings

DEADLINE_S = 180.0
_RETRY_S = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What is so for one topic after `apply_topics`."""

    name: str
    created: bool
    partitions: int
    wanted: int


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """Return every topic under the names of this deployment."""
    prefix = settings.topic_prefix
    return [replace(spec, name=with_prefix(prefix, spec.name)) for spec in ALL_TOPICS]


async def apply_topics(settings: Settings, deadline_s: float = DEADLINE_S) -> list[str]:
    """Create the topics that are missing; return their names. Existing ones are not touched.

    Raises:
        StartFailed: the broker did not answer in `deadline_s` seconds.
        SealstreamError: the broker refuses.
    """
    broker = open_broker(settings, client_id="sealstream-topics")
    try:
        return await _apply(broker, settings, deadline_s)
    finally:
        await broker.aclose()


async def report_topics(settings: Settings, deadline_s: float = DEADLINE_S) -> list[TopicReport]:
    """Do as `apply_topics` and return what every topic is like now.

    Raises:
        StartFailed, SealstreamError: as `apply_topics`.
    """
    broker = open_broker(settings, client_id="sealstream-topics")
    try:
        created = set(await _apply(broker, settings, deadline_s))
        return [
            TopicReport(
                name=spec.name,
                created=spec.name in created,
                partitions=await broker.partitions(spec.name),
                wanted=spec.partitions,
            )
            for spec in topic_specs(settings)
        ]
    finally:
        await broker.aclose()


async def await_broker(settings: Settings, deadline_s: float = DEADLINE_S) -> None:
    """Wait until the broker answers.

    Raises:
        StartFailed: it did not in `deadline_s` seconds.
        SealstreamError: it refuses.
    """
    broker = open_broker(settings, client_id="sealstream-topics")
    what = f"Kafka at {settings.kafka_bootstrap}"
    try:
        await persist(lambda: broker.partitions(INDEX_UPDATE), what, deadline_s)
    finally:
        await broker.aclose()


async def _apply(broker: Broker, settings: Settings, deadline_s: float) -> list[str]:
    specs = topic_specs(settings)
    return await persist(lambda: broker.ensure_topics(specs), "the topics", deadline_s)


async def persist(
    work: Callable[[], Coroutine[Any, Any, T]], what: str, deadline_s: float = DEADLINE_S
) -> T:
    """Repeat what fails for the moment, for `deadline_s` seconds.

    Raises:
        StartFailed: it still failed then.
    """
    end = time.monotonic() + deadline_s
    while True:
        try:
            return await work()
        except Retry as error:
            if time.monotonic() > end:
                raise StartFailed(f"{what}: {error}") from error
        await asyncio.sleep(_RETRY_S)
