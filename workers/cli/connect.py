"""Open a client for one command, with the key of an index where its callers keep it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Group, Parameter

from workers.cli.common import USAGE, Common, complain, fail
from workers.cli.show import cell

if TYPE_CHECKING:
    from workers.client import Client
    from workers.settings import Settings

INDEX_KEY_BYTES: Final = 32

_KEYS = Group("Keys", sort_key=80)

IndexKey = Annotated[
    Path | None,
    Parameter(
        name="--index-key",
        group=_KEYS,
        help="File with the index's own key, exactly 32 raw bytes: for an index whose callers keep"
        " its key.",
    ),
]


def check_index(name: str) -> None:
    """Refuse what is no name of an index, before anybody is connected to. Raises Exit."""
    from schemas.errors import InvalidMessage
    from schemas.ids import check_index_name

    try:
        check_index_name(name)
    except InvalidMessage as error:
        fail(f'"{cell(name)}": {error.message}', USAGE)


def check_arguments(op: str, arguments: dict[str, Any]) -> None:
    """Refuse arguments of an `admin-request` that no key service takes, before one is asked.

    Args:
        op: e.g. `index.create`.
        arguments: those of the contract.

    Raises:
        Exit: the contract does not allow them.
    """
    from schemas.admin import ARGS, AdminOp
    from schemas.codec import convert
    from schemas.errors import InvalidMessage

    try:
        convert(ARGS[AdminOp(op)], arguments)
    except InvalidMessage as error:
        fail(f"{error.field or op}: {error.message}", USAGE)


@asynccontextmanager
async def connected(
    common: Common,
    index_key: Path | None = None,
    *,
    index: str | None = None,
    anonymous: bool = False,
) -> AsyncIterator[Client]:
    """Yield an open client; what breaks the contract is refused like any other request.

    Args:
        common: says which settings.
        index_key: file with the key of the index.
        index: name of the index that the command is about.
        anonymous: without a credential, to log in.

    Raises:
        Exit: the key file cannot be used, or the name is none.
        SettingsError, Reject, Retry, Fatal: as `Client` and its methods.
    """
    from schemas.errors import InvalidMessage
    from workers.errors import Reject

    if index is not None:
        check_index(index)
    key = None if index_key is None else read_index_key(index_key)
    settings = common.settings()
    quiet_logs()
    try:
        async with open_client(settings, key, anonymous=anonymous) as client:
            yield client
    except InvalidMessage as error:
        raise Reject(error.code, error.message, field=error.field) from error


def open_client(settings: Settings, index_key: bytes | None, *, anonymous: bool) -> Client:
    """Return a client that is not connected yet.

    Raises:
        Exit: see `check_pinned`.
        Reject: UNAUTHENTICATED, no credential.
    """
    from workers.client import Client

    check_pinned(settings)
    return Client(settings, index_key=index_key, anonymous=anonymous)


def check_pinned(settings: Settings) -> None:
    """See that it is said which key service to trust, first of all by the local stack's file.

    Raises:
        Exit: it is not.
    """
    if settings.key_service_fingerprint is not None:
        return
    if settings.stack_env.exists():
        fail(f"{settings.stack_env} names no key service: `sealstream up` writes it", USAGE)
    fail(
        f"there is no local stack in {settings.home.absolute()}: start one (`sealstream up`), name"
        " its folder (--home), or set key_service_fingerprint, kafka_bootstrap and token",
        USAGE,
    )


def read_index_key(path: Path) -> bytes:
    """Return the 32 bytes in `path`.

    Raises:
        Exit: there are not exactly 32 raw bytes in it, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            key = file.read(INDEX_KEY_BYTES + 64)
            open_to_others = bool(path.stat().st_mode & 0o077)
    except OSError as error:
        fail(f"--index-key {path}: {error.strerror or type(error).__name__}", USAGE)
    if len(key) != INDEX_KEY_BYTES:
        fail(f"--index-key {path}: {_wrong_length(key)}", USAGE)
    if open_to_others:
        complain(f"careful: others may read {path}: chmod 600 {path}")
    return key


def _wrong_length(key: bytes) -> str:
    """Say what is wrong, guessing from the length how the key was written; never quotes it."""
    rule = f"an index key is exactly {INDEX_KEY_BYTES} raw bytes"
    text = key.rstrip(b"\r\n")
    if len(text) == INDEX_KEY_BYTES:
        return f"{rule}; a line end follows them here: write it without one"
    if len(text) == 64 and all(byte in b"0123456789abcdefABCDEF" for byte in text):
        return f"{rule}; this looks like hex: decode it (xxd -r -p)"
    if len(text) in (43, 44):
        return f"{rule}; this looks like base64: decode it (base64 -d)"
    count = "more" if len(key) > INDEX_KEY_BYTES + 32 else str(len(key))
    return f"{rule}, this file has {count}; make one: head -c {INDEX_KEY_BYTES} /dev/urandom"


def quiet_logs() -> None:
    """Keep the libraries' logs out of the output: warnings go to standard error as plain lines."""
    import logging

    import structlog

    structlog.configure(
        processors=[structlog.processors.add_log_level, _line],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # What clients of servers that are away complain about; the command itself tells it.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _line(_logger: Any, _method: str, event: Any) -> str:
    facts = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
    return f"sealstream: {event.get('event', '')} {facts}".rstrip()
