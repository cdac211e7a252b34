"""The object store as the workers see it: a few verbs over opaque keys.

Keys are relative to the configured prefix; `layout.py` makes them. Objects are written once, except
those written with `replace`. `create` and `replace` are the only points where two writers meet, so
they are atomic on every implementation; see `errors.py` for what to do when they fail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

# Whose rights in the bucket are proved at start (`check.py`).
Role = Literal["all", "keys", "ingest", "index", "query"]


@dataclass(frozen=True, slots=True)
class Stored:
    """An object's contents and the ETag that `replace` and `get_if_changed` take."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One entry of a listing."""

    key: str
    size: int
    modified_ms: int


@dataclass(slots=True)
class StoreStats:
    """Requests and bytes since the store was opened. Reading of differences: `since`.

    A refused conditional write counts as a put: it was paid for.
    """

    gets: int = 0
    puts: int = 0
    deletes: int = 0
    lists: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def copy(self) -> StoreStats:
        """Return the counts of this moment."""
        return StoreStats(**asdict(self))

    def since(self, earlier: StoreStats) -> StoreStats:
        """Return what was added after `earlier` was copied."""
        before = asdict(earlier)
        return StoreStats(**{name: value - before[name] for name, value in asdict(self).items()})


class Store(Protocol):
    """An S3-compatible object store.

    Every method raises `workers.errors.Retry` (STORAGE_UNAVAILABLE) when the store does not answer
    within its deadline and retries, or (`AccessDenied`) refuses the credentials.
    """

    stats: StoreStats

    async def get(self, key: str) -> Stored:
        """Read an object.

        Raises:
            NotFound: the key does not exist.
        """
        ...

    async def get_if_changed(self, key: str, etag: str) -> Stored | None:
        """Read an object unless it still has `etag`; then return None.

        Raises:
            NotFound: the key does not exist.
        """
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `length` bytes from `start`; fewer if the object ends before.

        Raises:
            NotFound: the key does not exist.
            ValueError: `start` < 0, `length` < 0, or `start` beyond the end of the object.
        """
        ...

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several `(start, length)` ranges of one object, near ones in one request.

        Raises:
            NotFound: the key does not exist.
            ValueError: a range that `get_range` would refuse.
        """
        ...

    async def put(self, key: str, data: bytes) -> str:
        """Write an object, whatever stands there; return its ETag. Safe to repeat."""
        ...

    async def create(self, key: str, data: bytes) -> str:
        """Write an object only if the key is free; return its ETag.

        Raises:
            AlreadyExists: an object stands at the key.
            OutcomeUnknown: the store did not answer; it may have been written.
        """
        ...

    async def replace(self, key: str, data: bytes, etag: str) -> str:
        """Write an object only if the present one has `etag`; return the new ETag.

        Raises:
            PreconditionFailed: the object is gone or has another ETag.
            OutcomeUnknown: the store did not answer; it may have been written.
        """
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are no error."""
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List the objects below `prefix` (whole path segments) in no promised order."""
        ...

    async def check(self, role: Role = "all") -> None:
        """Prove at start that the store keeps what the workers build on.

        Args:
            role: whose rights are proved; a store that was opened read-only proves `query`'s.

        Raises:
            Fatal: the store does not, with a text that says what to change.
            Retry: it does not answer, or there is no such bucket.
        """
        ...

    async def aclose(self) -> None:
        """Release connections."""
        ...


def check_ranges(ranges: Sequence[tuple[int, int]]) -> None:
    """Refuse `(start, length)` ranges that no object can have. Raises ValueError."""
    if any(start < 0 or length < 0 for start, length in ranges):
        raise ValueError("a range has a start and a length that are not negative")
