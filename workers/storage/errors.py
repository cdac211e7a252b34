"""What an object store can answer besides success.

    StorageError
    ├── NotFound            the key does not exist
    ├── AlreadyExists       create() met an object (maybe our own, see below)
    ├── PreconditionFailed  replace() met another ETag (maybe our own, see below)
    └── ReadOnly            the store was opened for reading
    workers.errors.Retry    the store cannot answer now: network, 5xx, time-out, throttling
    ├── AccessDenied        the credentials may not do this
    └── OutcomeUnknown      a conditional write may or may not have been applied

A denial is to be tried again, for it is no fault of the message that is being worked on: rights are
proven at start, so what is denied later was expired, rotated or taken away, and comes back.
A conditional write is never repeated by the client library: a 500 may come after the object was
written, and the repetition would then report *our own* success as a conflict. So whoever calls
`create` or `replace` puts a nonce into the object and, on `AlreadyExists`, `PreconditionFailed` or
`OutcomeUnknown`, reads the key: own nonce = success, anything else = lost.
Keys are opaque (hex of uids), so they may stand in messages; contents never do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import ErrorCode
from workers.errors import Retry


class StorageError(Exception):
    """The store refused the operation; repeating it unchanged would not help."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{what}: {key}")
        self.key = key


class NotFound(StorageError):  # noqa: N818
    """Raised when the key does not exist."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "no such object")


class AlreadyExists(StorageError):  # noqa: N818
    """Raised by `create` when an object stands at the key."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "object exists already")


class PreconditionFailed(StorageError):  # noqa: N818
    """Raised by `replace` when the object is gone or has another ETag."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "object was changed by another writer")


class ReadOnly(StorageError):  # noqa: N818
    """Raised, before any I/O, when a store opened with `read_only` is asked to write."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "this store was opened read-only")


class AccessDenied(Retry):
    """Raised when the store does not accept the credentials for this operation."""

    def __init__(self, key: str) -> None:
        super().__init__(
            ErrorCode.STORAGE_UNAVAILABLE,
            f"the object store denied access (check credentials and bucket policy): {key}",
        )
        self.key = key


class OutcomeUnknown(Retry):
    """Raised by `create` and `replace` when the write may or may not have been applied.

    Read the key and compare the nonce before doing anything else. As a `Retry` it is safe to let
    it pass where the whole step is repeated with fresh names (a new segment uid).
    """

    def __init__(self, key: str) -> None:
        super().__init__(
            ErrorCode.STORAGE_UNAVAILABLE, f"the outcome of a conditional write is unknown: {key}"
        )
        self.key = key


def unavailable(why: str) -> Retry:
    """Make the error for a store that cannot answer now. `why` must not quote contents."""
    return Retry(ErrorCode.STORAGE_UNAVAILABLE, f"the object store is not available: {why}")


@contextmanager
def conditional(key: str) -> Iterator[None]:
    """Turn a failure without a clear answer into `OutcomeUnknown`."""
    try:
        yield
    except AccessDenied:
        raise
    except Retry as error:
        raise OutcomeUnknown(key) from error
