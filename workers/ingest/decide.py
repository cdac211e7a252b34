"""Who is asking: open sealed values, decide about credentials, verify signatures, check scopes.

One bad record never refuses another one: a credential that the key service refuses is refused for
all records that show it; a signature that does not verify only for its own record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from schemas.auth import Auth
from schemas.errors import ErrorCode
from schemas.ingest import IngestRequest
from workers.crypto.hpke import HpkePrivateKey
from workers.crypto.info import Info
from workers.errors import Reject
from workers.ingest.authorize import check_scopes, needed_scopes
from workers.ingest.batches import Authorised
from workers.ingest.incoming import (
    Incoming,
    Refused,
    SealedIncoming,
    open_sealed,
    read_opened,
)
from workers.leases.credential import Proof, verify_message
from workers.leases.holder import LeaseHolder
from workers.leases.lease import Decision, Lease
from workers.runtime.crunch import crunch
from workers.runtime.lastresort import unexpected

_MAX_ASKING = 32


class Decider:
    """The lease holder as the ingest worker uses it. One per process."""

    def __init__(self, holder: LeaseHolder) -> None:
        self._holder = holder
        self._asking = asyncio.Semaphore(_MAX_ASKING)

    async def open(
        self, index: str, items: Sequence[Incoming | SealedIncoming]
    ) -> tuple[list[Incoming], list[Refused]]:
        """Open the sealed values among `items`; keep the order.

        Raises:
            Retry: KEY_UNAVAILABLE.
        """
        opened: dict[int, Incoming | Refused] = {}
        held: list[tuple[int, SealedIncoming, HpkePrivateKey]] = []
        for number, item in enumerate(items):
            if isinstance(item, Incoming):
                opened[number] = item
                continue
            found = await self._open(item)
            if isinstance(found, HpkePrivateKey):
                held.append((number, item, found))
            else:
                opened[number] = found
        if held:
            # All at once, off the loop: a decapsulation each.
            done = await crunch(lambda: [open_sealed(item, key) for _, item, key in held])
            opened.update(zip((number for number, _, _ in held), done, strict=True))
        ordered = [opened[number] for number in range(len(items))]
        return (
            [one for one in ordered if isinstance(one, Incoming)],
            [one for one in ordered if isinstance(one, Refused)],
        )

    async def _open(self, item: SealedIncoming) -> HpkePrivateKey | Incoming | Refused:
        """Return the key that opens a sealed value, or what comes of it where that is not here."""
        try:
            proof = Proof.of(item.record)
            lease = await self._holder.lease(item.index, auth=item.auth, proof=proof)
            wanted = item.value.key_id_bytes()
            if lease.has_intake_key(wanted):
                return lease.intake_key(wanted)
            plain = await self._holder.open_value(
                Info.INGEST_VALUE, item.value, auth=item.auth, proof=proof
            )
        except Reject as error:
            return Refused(item.record, error.info(), None, sealed=True)
        return read_opened(item, plain)

    async def authorise(
        self, index: str, items: Sequence[Incoming]
    ) -> tuple[list[Authorised], list[Refused]]:
        """Decide about every request; return those that may go on, in order, and the others.

        Raises:
            Retry: KEY_UNAVAILABLE.
        """
        groups: dict[Auth, list[Incoming]] = {}
        for item in items:
            groups.setdefault(item.request.auth, []).append(item)
        done = await asyncio.gather(
            *(self._decide(index, group) for group in groups.values()), return_exceptions=True
        )
        authorised: list[Authorised] = []
        refused: list[Refused] = []
        for one in done:
            if isinstance(one, BaseException):
                raise one
            authorised += one[0]
            refused += one[1]
        authorised.sort(key=lambda item: item.incoming.record.offset)
        return authorised, refused

    async def lease(self, index: str, items: Sequence[Authorised]) -> Lease:
        """Return the index's keys, on behalf of any of the callers.

        Raises:
            Reject: none of them can have it.
            Retry: KEY_UNAVAILABLE.
        """
        refusal: Reject | None = None
        shown = {item.incoming.request.auth: item.incoming.record for item in items}
        for auth, record in shown.items():
            try:
                return await self._holder.lease(index, auth=auth, proof=Proof.of(record))
            except Reject as error:
                refusal = refusal or error
        raise refusal or Reject(ErrorCode.UNAUTHENTICATED, "nobody asks for this index")

    async def _decide(
        self, index: str, items: list[Incoming]
    ) -> tuple[list[Authorised], list[Refused]]:
        """Decide about the records of one credential."""
        refused: list[Refused] = []
        for number, item in enumerate(items):
            try:
                async with self._asking:
                    decision = await self._ask(index, item)
            except Reject as error:
                if error.code is ErrorCode.UNAUTHENTICATED and item.request.auth.sealed:
                    # Perhaps only this record's signature: ask on with the next one.
                    refused.append(_refuse(item, error))
                    continue
                return [], refused + [_refuse(other, error) for other in items[number:]]
            accepted, more = await crunch(_check, decision, item, items[number + 1 :])
            await self._report(index, more)
            return accepted, refused + more
        return [], refused

    async def _report(self, index: str, refused: list[Refused]) -> None:
        """Let the audit have what was refused here, each set of scopes once."""
        found = {
            needed_scopes(one.request): one
            for one in refused
            if one.request is not None and one.error.code is ErrorCode.FORBIDDEN
        }
        for scopes, one in found.items():
            if one.request is not None:
                proof = Proof.of(one.record)
                await self._holder.report(index, one.request.auth, scopes, proof=proof)

    async def _ask(self, index: str, item: Incoming) -> Decision:
        request, record = item.request, item.record
        return await self._holder.decide(
            index,
            request.auth,
            signature=item.signature,
            signed=(record.topic, record.key, record.value or b""),
            message_id=request.message_id,
            issued_ms=request.issued_ms,
        )


def _check(
    decision: Decision, first: Incoming, others: list[Incoming]
) -> tuple[list[Authorised], list[Refused]]:
    """Check signatures (that of `first` was checked with the decision) and scopes."""
    accepted: list[Authorised] = []
    refused: list[Refused] = []
    for item in (first, *others):
        try:
            if item is not first and decision.cnf is not None:
                record = item.record
                verify_message(
                    decision.cnf, item.signature, record.topic, record.key, record.value or b""
                )
            check_scopes(item.request, decision)
        except Reject as error:
            refused.append(_refuse(item, error))
        except Exception as failure:
            refused.append(_refuse(item, unexpected(failure, item.record)))
        else:
            accepted.append(Authorised(item, decision))
    return accepted, refused


def _refuse(item: Incoming, error: Reject) -> Refused:
    request: IngestRequest = item.request
    return Refused(item.record, error.info(), request, item.sealed)
