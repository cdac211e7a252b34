"""The keys of a shard: those of the lease that the worker holds for its index now."""

from __future__ import annotations

from schemas.errors import ErrorCode
from workers.crypto.derive import Purpose
from workers.crypto.secret import SecretBytes
from workers.errors import Retry
from workers.leases.holder import LeaseHolder
from workers.leases.lease import Lease


class LeasedKeys:
    """Keys by generation. Ask anew for each use: those of a lease that ended are wiped."""

    def __init__(self, holder: LeaseHolder, uid: bytes) -> None:
        """Prepare; `uid` is the index."""
        self._holder = holder
        self._uid = uid
        self._lease: Lease | None = None

    async def renew(self) -> Lease:
        """Return the lease that the worker holds now, and go on with it.

        Raises:
            Reject, Retry, Fatal: as `LeaseHolder.lease`.
        """
        # By uid: the name may have been given to another index meanwhile.
        self._lease = await self._holder.lease(None, uid=self._uid)
        return self._lease

    def lease(self) -> Lease:
        """Return the lease of the last `renew`. Raises Retry: there was none."""
        if self._lease is None:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the shard has no lease")
        return self._lease

    def generation(self) -> int:
        """Return the key generation to write with. Raises Retry."""
        return self.lease().generation

    def segment(self, generation: int) -> SecretBytes:
        """Return the key of segments and heads. Raises Retry: the lease does not have it."""
        return self.lease().keys(generation, Purpose.SEGMENT)

    def vector(self, generation: int) -> SecretBytes:
        """Return the key of centroids and their tokens. Raises Retry: as `segment`."""
        return self.lease().keys(generation, Purpose.VECTOR)
