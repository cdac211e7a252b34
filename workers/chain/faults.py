"""The errors that this package raises, made in one place, and the use of keys that may end."""

from __future__ import annotations

from types import TracebackType

from schemas.errors import ErrorCode
from workers.crypto.secret import SecretBytes
from workers.errors import Damaged, Fenced, Retry


def damaged(message: str) -> Damaged:
    """Make the error for stored data that is not what was written."""
    return Damaged(ErrorCode.DAMAGED, message)


def fenced(message: str) -> Fenced:
    """Make the error for a shard that another writer has published."""
    return Fenced(ErrorCode.CONFLICT, message)


class Leased:
    """Guard the use of a leased key: `with Leased(key):` raises Retry if it was wiped meanwhile.

    A lease may end, and its keys be wiped, at any moment of a long merge or read, even while a
    thread reads the key: what was computed then came from zeros. It is neither damage nor a result:
    the work is repeated with a fresh lease.
    """

    __slots__ = ("_key",)

    def __init__(self, key: SecretBytes) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._key.wiped and (value is None or isinstance(value, Exception)):
            raise Retry(
                ErrorCode.KEY_UNAVAILABLE, "the lease ended during the work: it is repeated"
            ) from value
