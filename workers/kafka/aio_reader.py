"""Reading whole partitions without a group on aiokafka.

The positions are fixed before `start` returns: aiokafka seeks lazily, so a reply that is produced
between `assign` and the first fetch would be missed without awaiting `position()`.
"Caught up" does not trust end offsets, which may be too low (`aio_ends.py`): a worker would begin
with old keys or revocations. But they do name a record of the last batch, and the fetch that
brought that record told the high watermark, which is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka

from workers.errors import Fatal
from workers.kafka.aio_ends import seek_to_ends
from workers.kafka.aio_errors import translate, translated
from workers.kafka.aio_group import Patience, check_alive, fetch_options, to_record
from workers.kafka.broker import TP, Record
from workers.kafka.config import KafkaConfig
from workers.kafka.errors import unavailable

_log = structlog.get_logger(__name__)

_MAX_RECORDS = 1000
_ERROR_PAUSE_S = 0.2
_PROBE_S = 0.02


class AioTopicReader:
    """A `TopicReader` on aiokafka.

    Args:
        config: connection and limits.
        connection: keyword arguments of every aiokafka client.
        topics: whole topics (with the partitions they have at the start) or single partitions.
        partitions_of: returns the number of partitions of a topic.
        start: where to begin.
        low_latency: wait 20 ms, not 500, for more data in a fetch.
    """

    def __init__(
        self,
        config: KafkaConfig,
        connection: dict[str, Any],
        topics: Sequence[str | TP],
        partitions_of: Callable[[str], Awaitable[int]],
        *,
        start: Literal["beginning", "end"],
        low_latency: bool,
    ) -> None:
        self._deadline_s = config.request_timeout_s
        self._topics = topics
        self._partitions_of = partitions_of
        self._begin = start
        self._partitions: list[TopicPartition] = []
        # Somebody waits in `next`: what was returned before is worked in.
        self._idle = False
        self._consumer = AIOKafkaConsumer(
            **connection,
            **fetch_options(config, bulk=not low_latency),
            group_id=None,
            request_timeout_ms=int(config.request_timeout_s * 1000),
        )
        self._patience = Patience(self._consumer, bulk=not low_latency)

    async def start(self) -> None:
        """Connect and fix the positions."""
        self._partitions = partitions = await self._resolve()
        try:
            with translated():
                async with asyncio.timeout(self._deadline_s):
                    await self._consumer.start()
                    self._consumer.assign(partitions)
                    if self._begin == "beginning":
                        await self._consumer.seek_to_beginning(*partitions)
                        for partition in partitions:
                            await self._consumer.position(partition)
                    else:
                        await seek_to_ends(self._consumer, partitions, self._patience)
        except BaseException:
            await self.stop()
            raise

    async def _resolve(self) -> list[TopicPartition]:
        partitions: list[TopicPartition] = []
        for topic in self._topics:
            if isinstance(topic, TP):
                partitions.append(TopicPartition(*topic))
                continue
            count = await self._partitions_of(topic)
            if not count:
                raise unavailable(
                    f"the topic {topic} does not exist (run `sealstream topics apply`), or an ACL"
                    " hides it"
                )
            partitions += [TopicPartition(topic, number) for number in range(count)]
        return partitions

    async def next(self, timeout_s: float) -> list[Record]:
        """Return the next records, [] after `timeout_s`."""
        check_alive(self._consumer)
        self._idle = True
        try:
            found = await self._consumer.getmany(
                timeout_ms=int(timeout_s * 1000), max_records=_MAX_RECORDS
            )
        except kafka.ConsumerStoppedError:
            return []
        except kafka.KafkaError as error:
            meaning = translate(error)
            if isinstance(meaning, Fatal):
                raise meaning from None
            _log.warning("fetch_failed", error=type(error).__name__)
            await asyncio.sleep(min(timeout_s, _ERROR_PAUSE_S))
            return []
        finally:
            self._idle = False
        self._patience.note(self._partitions, found=bool(found))
        return [to_record(raw) for batch in found.values() for raw in batch]

    def pause(self) -> None:
        """Stop fetching; what was fetched and not returned yet is fetched again."""
        self._consumer.pause(*self._partitions)

    def resume(self) -> None:
        """Fetch again."""
        self._consumer.resume(*self._partitions)

    async def caught_up(self) -> None:
        """Wait until the caller of `next` has worked in all that exists now. Raises Retry."""
        with translated():
            listed = await self._consumer.end_offsets(self._partitions)
        ends: dict[TopicPartition, int] = {}
        # Polled: aiokafka tells nobody when a position or a high watermark changes.
        while not await self._reached(listed, ends):  # noqa: ASYNC110
            await asyncio.sleep(_PROBE_S)

    async def _reached(
        self, listed: dict[TopicPartition, int], ends: dict[TopicPartition, int]
    ) -> bool:
        """Tell whether every partition is at its end; note in `ends` what is known of these."""
        for partition in self._partitions:
            position = await self._consumer.position(partition)
            if partition not in ends:
                mark = self._consumer.highwater(partition)
                if mark is None or position < listed[partition]:
                    return False
                ends[partition] = mark
            if position < ends[partition]:
                return False
        return self._idle

    async def stop(self) -> None:
        """Close."""
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._consumer.stop()
        except TimeoutError:
            _log.warning("topic_reader_not_closed_in_time")
