"""aiokafka's exceptions, and its log, in our terms.

Texts of aiokafka's exceptions may quote records, so only the names of their classes are passed on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import errors as kafka

from schemas.errors import ErrorCode
from workers.errors import Fatal, Reject, SealstreamError
from workers.kafka.errors import PartitionLost, unavailable

_LOST = (
    # The group has moved on, or this member was thrown out ...
    kafka.CommitFailedError,
    kafka.IllegalGenerationError,
    kafka.UnknownMemberIdError,
    kafka.RebalanceInProgressError,
    # ... or the client has already forgotten the partition.
    kafka.IllegalStateError,
)
_TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
_HOPELESS = (
    # aiokafka steps over the record before it raises this: going on would lose it.
    kafka.RecordTooLargeError,
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.SaslAuthenticationFailed,
    kafka.UnsupportedVersionError,
)


def translate(error: BaseException) -> Exception:
    """Return what an exception of aiokafka means."""
    name = type(error).__name__
    if isinstance(error, (SealstreamError, PartitionLost)):
        return error
    if isinstance(error, _LOST):
        return PartitionLost(name)
    if isinstance(error, _TOO_LARGE):
        return Reject(ErrorCode.TOO_LARGE, "the record is larger than the broker accepts")
    if isinstance(error, _HOPELESS):
        return Fatal(ErrorCode.FORBIDDEN, f"Kafka refuses this client ({name}): check its ACLs")
    if isinstance(error, kafka.KafkaConnectionError):
        # Also what remains of a refused password, or a certificate that does not verify.
        return unavailable("no connection: it is away, or address, TLS or password are wrong")
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return unavailable("no answer before the deadline")
    return unavailable(name)


@contextmanager
def translated() -> Iterator[None]:
    """Raise what exceptions of aiokafka mean instead of them."""
    try:
        yield
    except (kafka.KafkaError, TimeoutError, OSError) as error:
        raise translate(error) from None


def keep_records_out_of_logs() -> None:
    """Stop aiokafka from logging keys and values, which it does at level DEBUG.

    aiokafka/producer/producer.py: `log.debug("Sending (key=%s value=%s) to %s", ...)`
    """
    logger = logging.getLogger("aiokafka")
    if logger.getEffectiveLevel() < logging.INFO:
        logger.setLevel(logging.INFO)
