"""Where a partition really ends.

ListOffsets cannot be trusted everywhere: Tansu 0.6 answers with the offset of the *first* record of
the last batch plus one (`test_end_offsets_of_batches`), and may be stale after it was killed. The
high watermark that comes with every fetch is right on Tansu as on Kafka, so that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition

from workers.kafka.aio_group import Patience

_POLL_MS = 50


async def seek_to_ends(
    consumer: AIOKafkaConsumer,
    partitions: Sequence[TopicPartition],
    patience: Patience,
) -> dict[TopicPartition, int]:
    """Move assigned partitions to their ends and return these.

    The caller sets a deadline. Records that come while this runs may be skipped or delivered.

    Args:
        consumer: without other callers; its partitions are assigned by hand.
        partitions: all that are assigned.
        patience: of that consumer.
    """
    if not partitions:
        return {}
    listed = await consumer.end_offsets(partitions)
    for partition in partitions:
        consumer.seek(partition, listed[partition])
    ends: dict[TopicPartition, int] = {}
    while True:
        for partition in partitions:
            mark = consumer.highwater(partition)
            if partition not in ends and mark is not None:
                ends[partition] = mark
        if len(ends) == len(partitions):
            reached = [await consumer.position(p) >= end for p, end in ends.items()]
            if all(reached):
                return ends
        found = await consumer.getmany(timeout_ms=_POLL_MS)
        patience.note(partitions, found=bool(found))
