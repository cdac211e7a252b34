"""The last resort: records on which a worker fails in a way that nobody foresaw.

Without it such a record would end the process, be delivered again, and end it again, for ever. So
it is refused like any other that cannot succeed: logged by class and place, counted, dead-lettered
once, and its sender told where it is known. The metric calls for a look: it is a fault of ours.
"""

from __future__ import annotations

import structlog

from schemas.errors import ErrorCode, InvalidMessage
from workers.crypto.errors import KeyWiped
from workers.errors import Reject, Retry, SealstreamError
from workers.kafka.broker import Record
from workers.runtime.wait import Stopped
from workers.telemetry import metrics

_log = structlog.get_logger("runtime.lastresort")


def foreseen(error: Exception) -> bool:
    """Tell whether an error says what to do, or that the process is in no state to go on."""
    return isinstance(error, (SealstreamError, InvalidMessage, Stopped, KeyWiped, MemoryError))


def unexpected(error: Exception, record: Record) -> Reject:
    """Log and count what was raised over `record`; return what to refuse it with.

    To be called in `except Exception`, around work on one record.

    Raises:
        Retry: KEY_UNAVAILABLE, a key was wiped meanwhile: the record is not what failed.
        SealstreamError, InvalidMessage, Stopped, MemoryError: `error` itself, see `foreseen`.
    """
    reveal(error, record.topic, partition=record.partition, offset=record.offset)
    return Reject(ErrorCode.UNSUPPORTED, "the worker failed on this record: see its log")


def reveal(error: Exception, topic: str, **facts: object) -> None:
    """Log and count an error that nobody foresaw, with where it came up. Raises as `unexpected`."""
    if isinstance(error, KeyWiped):
        raise Retry(
            ErrorCode.KEY_UNAVAILABLE, "a key ended during the work: it is repeated"
        ) from error
    if foreseen(error):
        raise error
    metrics.UNEXPECTED.inc(topic=topic)
    _log.error("the worker failed on a record", topic=topic, exc_info=error, **facts)
