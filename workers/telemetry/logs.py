"""Logs: one JSON object a line, never a secret, never plaintext.

Call sites log names, numbers and our own codes. What slips through is caught here:
- a value under a name that sounds like a secret or like content is replaced;
- bytes are replaced by their length, whatever their name;
- of an exception only its class and the places in the code are written, since texts of foreign
  exceptions may quote what they choked on. Our own errors carry no plaintext by rule: they keep
  their text.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog

from workers.errors import SealstreamError

# Whole words inside a snake_case name; `key_id`, `token_count` and the like are harmless.
_SENSITIVE = re.compile(
    r"(^|_)(secret|password|passwd|credentials?|authorization|auth|token|private|seed|kek|dek"
    r"|plaintext|content|text|body|value|metadata|vector|keywords?|query|associated_data)$"
)
_SENSITIVE_KEYS = re.compile(r"(^|_)(key|keys)$")
_HIDDEN = "[hidden]"
_MAX_DEPTH = 4
_FRAMES = 12

EventDict = MutableMapping[str, Any]


def configure(worker: str, level: str = "info", *, stream: TextIO | None = None) -> None:
    """Send structlog and the standard library's logging to `stream` as JSON lines.

    Args:
        worker: id of this worker, in every line.
        level: lowest level written: debug, info, warning or error.
        stream: where to; default standard error.
    """
    out = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_worker(worker),
        exceptions,
        redact,
    ]
    structlog.configure(
        processors=[*shared, _render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _render,
            ],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    # Clients log requests, some with what they carry, below WARNING.
    for chatty in ("aiokafka", "botocore", "boto3", "aiohttp", "asyncio"):
        logging.getLogger(chatty).setLevel(max(number, logging.WARNING))


def redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace what must not be written (a structlog processor)."""
    return {name: _clean(name, value, 0) for name, value in event.items()}


def exceptions(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Write an exception as classes and places, without foreign texts (a structlog processor)."""
    info = event.pop("exc_info", None)
    if not info:
        return event
    if isinstance(info, BaseException):
        error: BaseException | None = info
    elif isinstance(info, tuple):
        error = info[1]
    else:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = describe(error)
        event["stack"] = _places(error.__traceback__)
    return event


def describe(error: BaseException) -> str:
    """Return an error in words that may be logged: its text only if it is one of ours."""
    names = [_name(error)]
    while (error.__cause__ or error.__context__) is not None and len(names) < _MAX_DEPTH:
        following = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if following is None:
            break
        error = following
        names.append(_name(error))
    return " <- ".join(names)


def _name(error: BaseException) -> str:
    if isinstance(error, SealstreamError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}({', '.join(_name(inner) for inner in error.exceptions)})"
    return type(error).__name__


def _places(traceback: TracebackType | None) -> list[str]:
    frames = extract_tb(traceback)[-_FRAMES:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def _clean(name: str, value: Any, depth: int) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"[{len(value)} bytes]"
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if _SENSITIVE.search(name.lower()) or _SENSITIVE_KEYS.search(name.lower()):
        return _HIDDEN
    if isinstance(value, dict):
        if depth >= _MAX_DEPTH:
            return _HIDDEN
        return {str(key): _clean(str(key), inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return (
            [_clean(name, inner, depth + 1) for inner in value] if depth < _MAX_DEPTH else _HIDDEN
        )
    if isinstance(value, BaseException):
        return describe(value)
    return value if isinstance(value, str) else str(value)


def _add_worker(worker: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["worker"] = worker
        return event

    return add


def _render(_logger: Any, _method: str, event: EventDict) -> str:
    return orjson.dumps(event, default=lambda value: f"[{type(value).__name__}]").decode()
