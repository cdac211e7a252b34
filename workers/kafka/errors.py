"""What a broker can answer besides success.

PartitionLost           the partition belongs to another member now
workers.errors.Retry    the broker cannot answer now
workers.errors.Reject   the record can never be accepted (TOO_LARGE)
workers.errors.Fatal    the client is beyond repair; the process must exit
"""

from __future__ import annotations

from schemas.errors import ErrorCode
from workers.errors import Retry


class PartitionLost(Exception):  # noqa: N818
    """Raised by `commit` and `seek` when the partition is no longer assigned to this reader.

    Whatever was computed for it must be dropped; its new owner begins at the last commit.
    """


def unavailable(why: str) -> Retry:
    """Make the error for a broker that cannot answer now. `why` must not quote contents."""
    return Retry(ErrorCode.STORAGE_UNAVAILABLE, f"the broker is not available: {why}")
