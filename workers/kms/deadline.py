"""The deadline of a call: whatever a client library does inside, its own retries included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workers.kms.errors import unavailable


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Cancel the block after `seconds`.

    Raises:
        KmsUnavailable: The time is over, the block's own or that of a client library inside it.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        # Not chained: a client library's exception can carry the request.
        raise unavailable(f"the KMS did not answer within {seconds:g} s") from None
