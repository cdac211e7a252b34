"""From a record of query-request to a request whose caller is known.

Order of the checks: form, reply, caller, scopes. What fails is answered with an error result
wherever request id and reply can be read, so that the caller does not wait for its deadline.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from schemas.auth import Auth, Scope
from schemas.codec import convert, decode, parse
from schemas.errors import ErrorCode, InvalidMessage
from schemas.ids import check_uuid
from schemas.index import DEFAULT_TIMEOUT_MS
from schemas.query import SEALED_INCLUDES, Include, QueryRequest, Reply, requires_sealed_reply
from schemas.sealed import SealedValue
from schemas.topics import CONTENT_SEALED, HEADER_CONTENT_TYPE, HEADER_REPLY, HEADER_SIGNATURE
from workers.crypto.info import Info
from workers.errors import Reject, Retry
from workers.kafka.broker import Record
from workers.leases.credential import Proof, outer_auth
from workers.leases.holder import LeaseHolder
from workers.leases.lease import Decision
from workers.objects.results import decode_reply_key

_SCOPES: Final = {
    Include.CONTENT: Scope.DECRYPT,
    Include.ASSOCIATED_DATA: Scope.DECRYPT,
    Include.GROUPS: Scope.GET_ACCESS_GROUPS,
}

# How long the caller waits stands inside of a sealed request: the default counts until it is open.
_OPEN_S: Final = DEFAULT_TIMEOUT_MS / 1000


@dataclass(frozen=True, slots=True)
class Address:
    """Whom to answer, as far as it could be read."""

    request_id: str
    reply: Reply


@dataclass(slots=True)
class Incoming:
    """A request on its way through the checks.

    Attributes:
        record: where it came from.
        sealed: it was sealed to the index's query key.
        address: whom to answer; None until it was read.
        request: the request; None until its form was found right.
    """

    record: Record
    sealed: bool = False
    address: Address | None = None
    request: QueryRequest | None = None


async def read(incoming: Incoming, holder: LeaseHolder) -> QueryRequest:
    """Open and decode a record, noting in `incoming` what is known of it.

    Raises:
        InvalidMessage: it breaks the contract.
        Reject, Retry: it is sealed and cannot be opened.
    """
    record = incoming.record
    value = record.value
    incoming.sealed = record.header(HEADER_CONTENT_TYPE) == CONTENT_SEALED.encode()
    index = None
    if incoming.sealed:
        incoming.address = _outer_address(record)
        wrapped = decode(SealedValue, value)
        index = wrapped.index
        value = await _opened(holder, wrapped, outer_auth(record), Proof.of(record))
    parsed = parse(value)
    incoming.address = _address(parsed)
    request = convert(QueryRequest, parsed)
    incoming.address = Address(request.request_id, request.reply)
    if index is not None and request.index != index:
        raise InvalidMessage("is not the index that the value was sealed for", "index")
    if reply_key := request.reply.key_bytes():
        decode_reply_key(reply_key)
    incoming.request = request
    return request


async def _opened(
    holder: LeaseHolder, wrapped: SealedValue, auth: Auth | None, proof: Proof | None
) -> bytes:
    try:
        async with asyncio.timeout(_OPEN_S):
            return await holder.open_value(Info.QUERY_VALUE, wrapped, auth=auth, proof=proof)
    except TimeoutError:
        raise Retry(
            ErrorCode.KEY_UNAVAILABLE, "the key service did not answer in time: try again"
        ) from None


async def authorise(
    incoming: Incoming, request: QueryRequest, holder: LeaseHolder, *, allow_plain_results: bool
) -> Decision:
    """Find out who asks, and refuse what they may not ask.

    Raises:
        Reject: UNAUTHENTICATED, FORBIDDEN, UNKNOWN_INDEX, WRONG_KEY, EXPIRED, INVALID_MESSAGE.
        Retry: KEY_UNAVAILABLE.
    """
    if requires_sealed_reply(request) and not allow_plain_results:
        names = ", ".join(sorted(SEALED_INCLUDES.intersection(request.include)))
        raise Reject(
            ErrorCode.INVALID_MESSAGE,
            f"{names} are only sent sealed: give reply.public_key",
            field="reply.public_key",
        )
    record = incoming.record
    decision = await holder.decide(
        request.index,
        request.auth,
        signature=record.header(HEADER_SIGNATURE),
        signed=(record.topic, record.key, record.value or b""),
        message_id=request.message_id,
        issued_ms=request.issued_ms,
    )
    needed = (Scope.INDEX, *(_SCOPES[i] for i in request.include if i in _SCOPES))
    try:
        decision.require(*needed)
    except Reject:
        await holder.report(request.index, request.auth, needed, proof=Proof.of(record))
        raise
    return decision


def _outer_address(record: Record) -> Address | None:
    """Read whom to tell that a sealed request cannot be opened: in clear, to query-result only."""
    raw = record.header(HEADER_REPLY)
    if raw is None:
        return None
    request_id, _, partition = raw.decode("ascii", "replace").partition("/")
    try:
        check_uuid(request_id, HEADER_REPLY)
        return Address(request_id, convert(Reply, {"partition": int(partition)}))
    except ValueError as error:
        raise InvalidMessage("must be <request id>/<partition>", HEADER_REPLY) from error


def _address(parsed: dict[str, Any]) -> Address | None:
    """Read whom to answer from a message that may be wrong elsewhere."""
    request_id, reply = parsed.get("request_id"), parsed.get("reply", {})
    if not isinstance(request_id, str) or not isinstance(reply, dict):
        return None
    try:
        check_uuid(request_id, "request_id")
        return Address(request_id, convert(Reply, reply))
    except InvalidMessage:
        return None
