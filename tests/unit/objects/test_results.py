from __future__ import annotations

import msgspec
import pytest

from schemas.codec import decode
from schemas.errors import ErrorCode
from schemas.ingest import IngestOp, IngestResult
from schemas.position import Source
from schemas.sealed import SealedValue
from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite, key_id
from workers.crypto.info import Info, info
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.kafka.broker import Record
from workers.kafka.memory import MemoryBroker
from workers.leases.certificate import WorkerIdentity, issue_certificate
from workers.leases.revocation import Revocations
from workers.leases.signed import verify_record
from workers.objects.results import (
    Answer,
    Outgoing,
    ResultTopic,
    decode_reply_key,
    encode_results,
    open_result,
)

ISSUER = SigningKey.generate()
SIGNER = SigningKey.generate()
WORKER = WorkerIdentity(
    issue_certificate(
        ISSUER, worker_id="w", role="ingest", indexes=["*"], sign_pub=SIGNER.public.raw
    ),
    SIGNER,
)
HPKE = HpkePrivateKey.generate(HpkeSuite.X25519)
RESULT = IngestResult(index="i", id="secret", op=IngestOp.UPSERT, status="accepted")


def record(out: Outgoing) -> Record:
    return Record("ingest-result", 0, 0, 0, out.key, out.value, out.headers)


def test_a_clear_result_is_signed() -> None:
    [out] = encode_results([Answer(RESULT, b"i/secret", b"")], WORKER)
    assert decode(IngestResult, out.value) == RESULT
    verify_record(
        record(out), ISSUER.public, ("ingest",), Info.INGEST_RESULT, revocations=Revocations()
    )
    changed = Outgoing(b"i/other", out.value, out.headers)
    with pytest.raises(Reject):
        verify_record(
            record(changed),
            ISSUER.public,
            ("ingest",),
            Info.INGEST_RESULT,
            revocations=Revocations(),
        )


@pytest.mark.parametrize("suite", list(HpkeSuite))
def test_a_sealed_result_opens_for_the_producer_alone(suite: HpkeSuite) -> None:
    reply = HpkePrivateKey.generate(suite)
    [out] = encode_results([Answer(RESULT, b"i/0", reply.public.encode())], WORKER)
    verify_record(
        record(out), ISSUER.public, ("ingest",), Info.INGEST_RESULT, revocations=Revocations()
    )
    value = decode(SealedValue, out.value)
    assert value.index is None
    assert value.key_id_bytes() == key_id(reply.public)
    assert decode(IngestResult, open_result(reply, value, "i", "secret")) == RESULT
    assert b"secret" not in out.value
    for index, doc_id in (("i", "other"), ("j", "secret")):
        with pytest.raises(OpenFailed):
            open_result(reply, value, index, doc_id)


def test_results_to_one_producer_share_their_encapsulation() -> None:
    mine, other = (HpkePrivateKey.generate(HpkeSuite.X25519) for _ in range(2))
    keys = [mine, mine, other, mine]
    answers = [Answer(RESULT, b"i/%d" % n, key.public.encode()) for n, key in enumerate(keys)]
    values = [decode(SealedValue, out.value) for out in encode_results(answers, WORKER)]
    assert len({value.shared for value in values}) == 2
    assert len({value.sealed for value in values}) == 4
    for key, value in zip(keys, values, strict=True):
        assert decode(IngestResult, open_result(key, value, "i", "secret")) == RESULT
    with pytest.raises(OpenFailed):
        open_result(other, values[0], "i", "secret")


def test_a_result_that_is_sealed_directly_opens_too() -> None:
    sealed = HPKE.public.seal(info(Info.INGEST_RESULT, "i", "secret"), b"result")
    value = SealedValue.of(sealed, key_id=key_id(HPKE.public), suite=HPKE.suite)
    assert open_result(HPKE, value, "i", "secret") == b"result"


# The second is a point of low order: sealing to it would fail, and end the worker.
@pytest.mark.parametrize("reply_key", [b"\x09nonsense", b"\x01" + bytes(32)])
def test_a_reply_key_that_is_none_is_refused(reply_key: bytes) -> None:
    with pytest.raises(Reject) as refusal:
        decode_reply_key(reply_key)
    assert (refusal.value.code, refusal.value.field) == (
        ErrorCode.INVALID_MESSAGE,
        "reply.public_key",
    )
    answers = [Answer(RESULT, b"i/0", reply_key), Answer(RESULT, b"i/1", b"")]
    assert [out.key for out in encode_results(answers, WORKER)] == [b"i/1"]


def test_results_are_signed_together_and_verify_alone() -> None:
    answers = [Answer(RESULT, b"i/%d" % n, b"") for n in range(40)]
    for out in encode_results(answers, WORKER):
        verify_record(
            record(out), ISSUER.public, ("ingest",), Info.INGEST_RESULT, revocations=Revocations()
        )


@pytest.mark.parametrize(("partitions", "expected"), [(4, [3, 1, 3]), (2, [1, 1, 1])])
async def test_results_stand_where_their_records_stood(
    partitions: int, expected: list[int]
) -> None:
    broker = MemoryBroker({"results": partitions})
    topic = ResultTopic(await broker.producer(), "results", partitions)
    answers = [
        Answer(
            msgspec.structs.replace(RESULT, source=Source(topic="t", partition=p, offset=n)),
            b"i/%d" % n,
            b"",
        )
        for n, p in enumerate((3, 1, 7))
    ]
    await topic.send(encode_results(answers, WORKER))
    found = {record.key: record.partition for record in broker.records("results")}
    assert [found[answer.key] for answer in answers] == expected


async def test_without_a_known_place_the_key_chooses() -> None:
    broker = MemoryBroker({"results": 3})
    [known] = encode_results(
        [
            Answer(
                msgspec.structs.replace(RESULT, source=Source(topic="t", partition=2, offset=0)),
                b"i/a",
                b"",
            )
        ],
        WORKER,
    )
    [unknown] = encode_results([Answer(RESULT, b"i/a", b"")], WORKER)
    producer = await broker.producer()
    await ResultTopic(producer, "results", 0).send([known])
    await ResultTopic(producer, "results", 3).send([unknown])
    assert {record.partition for record in broker.records("results")} == {
        broker.choose("results", b"i/a")
    }
