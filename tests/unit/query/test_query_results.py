"""Results as records: signed, sealed where a key was given, never larger than a record."""

from __future__ import annotations

from uuid import uuid4

import pytest

from schemas.codec import decode
from schemas.errors import ErrorCode
from schemas.query import Hit, QueryResult, Reply
from schemas.sealed import SealedValue
from schemas.topics import CONTENT_JSON, CONTENT_SEALED, HEADER_CONTENT_TYPE, QUERY_RESULT
from schemas.values import encode_base64
from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info, info
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.kafka.broker import Record
from workers.leases.certificate import WorkerIdentity, issue_certificate
from workers.leases.revocation import Revocations
from workers.leases.signed import verify_record
from workers.objects.results import Outgoing
from workers.query.results import encode_result

ISSUER = SigningKey.generate()
SIGNER = SigningKey.generate()
WORKER = WorkerIdentity(
    issue_certificate(
        ISSUER, worker_id="q", role="query", indexes=["*"], sign_pub=SIGNER.public.raw
    ),
    SIGNER,
)
RESULT = QueryResult(request_id=str(uuid4()), status="ok", hits=[Hit(id="canary")])


def record(out: Outgoing) -> Record:
    return Record(QUERY_RESULT, 0, 0, 0, out.key, out.value, out.headers)


def verify(out: Outgoing) -> None:
    verify_record(
        record(out), ISSUER.public, ("query",), Info.QUERY_RESULT, revocations=Revocations()
    )


@pytest.mark.parametrize("suite", list(HpkeSuite))
def test_a_result_is_sealed_to_its_request(suite):
    private = HpkePrivateKey.generate(suite)
    reply = Reply(public_key=encode_base64(private.public.encode()))
    out = encode_result(RESULT, reply, WORKER, max_bytes=10_000)
    verify(out)
    assert record(out).header(HEADER_CONTENT_TYPE) == CONTENT_SEALED.encode()
    assert b"canary" not in out.value
    sealed = decode(SealedValue, out.value).ciphertext()
    about = info(Info.QUERY_RESULT, RESULT.request_id)
    assert decode(QueryResult, private.open(about, sealed)) == RESULT
    with pytest.raises(OpenFailed):
        private.open(info(Info.QUERY_RESULT, str(uuid4())), sealed)


def test_a_result_in_clear_is_signed_too():
    out = encode_result(RESULT, Reply(), WORKER, max_bytes=10_000)
    verify(out)
    assert record(out).header(HEADER_CONTENT_TYPE) == CONTENT_JSON.encode()
    assert decode(QueryResult, out.value) == RESULT
    for changed in (
        out._replace(value=out.value + b" "),
        out._replace(key=b"other"),
        out._replace(headers=out.headers[:2]),
    ):
        with pytest.raises(Reject):
            verify(changed)


@pytest.mark.parametrize("sealed", [True, False])
def test_what_no_record_holds_becomes_an_error(sealed):
    private = HpkePrivateKey.generate(HpkeSuite.X25519)
    reply = Reply(public_key=encode_base64(private.public.encode()) if sealed else None)
    fits = len(encode_result(RESULT, reply, WORKER, max_bytes=10_000).value)
    assert len(encode_result(RESULT, reply, WORKER, max_bytes=fits).value) == fits
    large = QueryResult(
        request_id=RESULT.request_id, status="ok", hits=[Hit(id="c" * 500) for _ in range(9)]
    )
    out = encode_result(large, reply, WORKER, max_bytes=2000)
    verify(out)
    value = out.value
    if sealed:
        about = info(Info.QUERY_RESULT, RESULT.request_id)
        value = private.open(about, decode(SealedValue, value).ciphertext())
    refused = decode(QueryResult, value)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.TOO_LARGE
    assert not refused.hits


def test_a_reply_key_that_is_none():
    with pytest.raises(Reject) as refused:
        encode_result(RESULT, Reply(public_key="AAAA"), WORKER, max_bytes=10_000)
    assert refused.value.field == "reply.public_key"
