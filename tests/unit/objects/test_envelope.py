from __future__ import annotations

import msgspec
import pytest

from schemas.errors import ErrorCode
from schemas.position import Order, Source
from schemas.update import OpKind, UpdateBatch, UpdateEnvelope, UpdateOp, decode_envelope
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.leases.certificate import WorkerIdentity, issue_certificate
from workers.leases.revocation import Revocation, Revocations, sign_revocation
from workers.objects.envelope import Route, open_update, seal_update, verify_update

ISSUER = SigningKey.generate()
KEY = HpkePrivateKey.generate(HpkeSuite.MLKEM768_X25519)
ROUTE = Route(b"u" * 16, 4, 2)
# Too long to come up by chance in what is sealed.
DOC_ID = "the-document"


def worker(role: str = "ingest", *indexes: str) -> WorkerIdentity:
    key = SigningKey.generate()
    certificate = issue_certificate(
        ISSUER,
        worker_id="w-1",
        role=role,  # type: ignore[arg-type]
        indexes=indexes or ["acme/*"],
        sign_pub=key.public.raw,
        now_s=1000,
    )
    return WorkerIdentity(certificate, key)


def batch(size: int = 10) -> UpdateBatch:
    op = UpdateOp(
        kind=OpKind.UPSERT,
        order=Order(1, 0, 5),
        id=DOC_ID,
        object_id=b"o" * 16,
        op_id=0,
        metadata=b"m" * size,
        source=Source(topic="t", partition=0, offset=5),
    )
    return UpdateBatch(tokens=[b"t" * 32], token_kinds=b"\1", ops=[op], created_ms=1)


def sealed(who: WorkerIdentity | None = None) -> UpdateEnvelope:
    update = seal_update(batch(), ROUTE, KEY.public, who or worker(), max_record_bytes=900_000)
    return decode_envelope(update.value)


def check(envelope: UpdateEnvelope, index: str = "acme/docs", written_s: float = 1001) -> None:
    verify_update(
        envelope,
        index=index,
        issuer=ISSUER.public,
        written_s=written_s,
        revocations=Revocations(),
    )


def test_what_was_sealed_verifies_and_opens() -> None:
    envelope = sealed()
    check(envelope)
    assert open_update(envelope, KEY, envelope.body or b"") == batch()


def test_a_large_batch_goes_into_an_object() -> None:
    update = seal_update(batch(200_000), ROUTE, KEY.public, worker(), max_record_bytes=100_000)
    envelope = decode_envelope(update.value)
    assert len(update.value) < 10_000
    assert envelope.body is None
    assert envelope.body_object == update.body_key
    assert open_update(envelope, KEY, update.body) == batch(200_000)
    with pytest.raises(Reject):
        open_update(envelope, KEY, update.body[:-1])


@pytest.mark.parametrize(
    "change",
    [
        {"index_uid": b"v" * 16},
        {"shard": 5},
        {"generation": 3},
        {"worker": "w-2"},
        {"wrapped_key": b"x"},
        {"body_sha256": bytes(32)},
        {"signature": bytes(64)},
        {"certificate": b""},
        {"worker": "key-service", "certificate": b""},
    ],
)
def test_a_changed_field_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Reject) as refusal:
        check(msgspec.structs.replace(sealed(), **change))
    assert refusal.value.code is ErrorCode.UNAUTHENTICATED


@pytest.mark.parametrize("change", [{"shard": 5}, {"generation": 3}, {"index_uid": b"v" * 16}])
def test_a_batch_does_not_open_elsewhere(change: dict[str, object]) -> None:
    envelope = msgspec.structs.replace(sealed(), **change)
    with pytest.raises(Reject):
        open_update(envelope, KEY, envelope.body or b"")


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (worker("query"), ErrorCode.FORBIDDEN),
        (worker("index"), ErrorCode.FORBIDDEN),
        (worker("ingest", "other/*"), ErrorCode.FORBIDDEN),
    ],
)
def test_only_ingest_workers_of_the_index_may_write(who: WorkerIdentity, code: ErrorCode) -> None:
    with pytest.raises(Reject) as refusal:
        check(sealed(who))
    assert refusal.value.code is code


def test_the_certificate_counts_at_the_time_of_writing() -> None:
    late = 1000 + 8 * 86_400
    with pytest.raises(Reject) as refusal:
        check(sealed(), written_s=late)
    assert refusal.value.code is ErrorCode.EXPIRED


def test_an_update_says_nothing_in_clear() -> None:
    update = seal_update(batch(), ROUTE, KEY.public, worker(), max_record_bytes=900_000)
    assert DOC_ID.encode() not in update.value
    assert b"m" * 10 not in update.value


def test_an_update_of_a_worker_that_was_revoked_before_is_refused() -> None:
    revocations = Revocations()
    when_ms = 1_100_000
    revocation = Revocation(principal="w-1", kind="worker", policy_epoch=1, revoked_ms=when_ms)
    value = sign_revocation(revocation, ISSUER)
    revocations.take(revocation.key, value, ISSUER.public)
    envelope = sealed()
    terms = {"index": "acme/docs", "issuer": ISSUER.public, "revocations": revocations}
    verify_update(envelope, written_s=when_ms / 1000 - 1, **terms)
    with pytest.raises(Reject, match="revoked"):
        verify_update(envelope, written_s=when_ms / 1000, **terms)
