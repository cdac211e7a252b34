"""Places in Kafka: where a record came from, and how far something was applied."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from schemas.ids import Count

Partition = Annotated[int, Meta(ge=0, le=2**31 - 1)]
ShardNumber = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Position(Struct, frozen=True, kw_only=True):
    """Where in `index-update` the operation of one shard was written."""

    shard: ShardNumber
    partition: Partition
    offset: Count


class MinPosition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A query waits until `shard` has applied the index-update at `offset`."""

    shard: ShardNumber
    offset: Count


class Source(Struct, frozen=True, kw_only=True):
    """The record that a message answers or is about."""

    topic: str
    partition: Partition
    offset: Count


class Order(Struct, frozen=True, array_like=True):
    """Place of an operation in its stream of plaintext-ingest.

    From the same (stream, partition) the higher offset wins; between different ones the order
    of arrival does. `stream` changes when the topic is made anew, so offsets of the old topic
    are never compared with those of the new one.
    """

    stream: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    partition: Partition
    offset: Count
