"""Which results and events a client believes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo
from schemas.event import Applied, IndexEvent
from schemas.ids import IndexName
from schemas.query import QueryResult, Reply
from schemas.topics import INDEX_EVENT, QUERY_RESULT
from schemas.values import encode_base64
from workers.client.connection import Connection, new_id
from workers.client.ingest import Ingestor
from workers.client.query import Querier, _Asked
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.index.emit import ShardPosition, encode_event
from workers.kafka.broker import Record
from workers.kafka.memory import MemoryBroker
from workers.leases.certificate import Role, WorkerIdentity, issue_certificate
from workers.leases.revocation import Revocations
from workers.query.results import encode_result

ISSUER = SigningKey.generate()
REPLY = HpkePrivateKey.generate(HpkeSuite.X25519)


def worker(role: Role, *indexes: str) -> WorkerIdentity:
    signer = SigningKey.generate()
    certificate = issue_certificate(
        ISSUER, worker_id="w", role=role, indexes=indexes, sign_pub=signer.public.raw
    )
    return WorkerIdentity(certificate, signer)


def connection() -> Connection:
    anything: Any = SimpleNamespace(
        topic_prefix="",
        key_service=SimpleNamespace(sign_pub=ISSUER.public),
        revocations=Revocations(),
        reply_key=REPLY,
    )
    return Connection(anything, MemoryBroker({}), anything, anything, anything)


OK: dict[str, Any] = {"status": "ok"}
REFUSED: dict[str, Any] = {
    "status": "error",
    "error": ErrorInfo(code=ErrorCode.INVALID_MESSAGE, message="the sealed value does not open"),
}


@pytest.mark.parametrize(
    ("indexes", "sealed", "said", "believed"),
    [
        ("acme/*", True, OK, True),
        ("other/*", True, OK, False),
        ("acme/*", False, OK, False),
        ("acme/*", False, REFUSED, True),
        ("other/*", False, REFUSED, False),
    ],
)
async def test_an_answer_is_sealed_and_from_a_worker_for_the_index(
    indexes: str, sealed: bool, said: dict[str, Any], believed: bool
) -> None:
    querier = Querier(connection())
    request_id = new_id()
    answer: asyncio.Future[QueryResult] = asyncio.get_running_loop().create_future()
    querier._waiting[request_id.encode()] = _Asked("acme/docs", answer)
    reply = Reply(public_key=encode_base64(REPLY.public.encode()) if sealed else None)
    out = encode_result(
        QueryResult(request_id=request_id, **said),
        reply,
        worker("query", indexes),
        max_bytes=100_000,
    )
    record = Record(QUERY_RESULT, 0, 0, 0, out.key, out.value, out.headers)
    if believed:
        querier._on_result(record)
    else:
        with pytest.raises(Reject):
            querier._on_result(record)
    assert answer.done() is believed


async def test_an_event_of_an_earlier_index_of_the_name_makes_nothing_searchable() -> None:
    ingestor = Ingestor(connection())

    async def event(partition: int, offset: int, indexes: str = "*") -> None:
        position = ShardPosition(
            index="a",
            uid=bytes(16),
            shard=0,
            partition=partition,
            version=1,
            applied=offset,
            documents=0,
            segments=0,
            head_sha256=bytes(32),
        )
        out = encode_event(position, worker("index", indexes))
        await ingestor._on_event(Record(INDEX_EVENT, 0, 0, 0, out.key, out.value, out.headers))

    await event(partition=3, offset=1000)
    await event(partition=1, offset=7)
    assert ingestor._applied == {("a", 0, 3): 1000, ("a", 0, 1): 7}
    with pytest.raises(Reject):
        await event(partition=1, offset=9, indexes="b")
    nothing = IndexEvent(
        index=IndexName("a"),
        shard=0,
        version=1,
        applied=Applied(partition=1, offset=99),
        documents=0,
        segments=0,
        head_sha256="0" * 64,
    )
    with pytest.raises(Reject):
        await ingestor._on_event(Record(INDEX_EVENT, 0, 0, 0, b"a/0", encode(nothing), ()))
    assert ingestor._applied["a", 0, 1] == 7
