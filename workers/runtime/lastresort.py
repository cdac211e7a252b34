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


def unexpected(error: Exception, record: Record) -> Reject:
    """Log and count what was raised over `record`; return what to refuse it with.

    To be called in `except Exception`, around work on one record.

    Raises:
        Retry: KEY_UNAVAILABLE, a key was wiped meanwhile: the record is not what failed.
        SealstreamError, InvalidMessage, Stopped: `error` itself, which says what to do.
    """
    if isinstance(error, (SealstreamError, InvalidMessage, Stopped)):
        raise error
    if isinstance(error, KeyWiped):
        raise Retry(
            ErrorCode.KEY_UNAVAILABLE, "a key ended during the work: it is repeated"
        ) from error
    metrics.UNEXPECTED.inc(topic=record.topic)
    _log.error(
        "the worker failed on a record",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        exc_info=error,
    )
    return Reject(ErrorCode.UNSUPPORTED, "the worker failed on this record: see its log")
