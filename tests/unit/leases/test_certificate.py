"""Worker certificates and identity folders: what is issued, and what is refused."""

from __future__ import annotations

import pytest

from schemas.errors import ErrorCode
from workers.crypto.sign import SigningKey
from workers.errors import Fatal, Reject
from workers.leases.certificate import (
    MAX_LIFE_S,
    WorkerIdentity,
    issue_certificate,
    save_identity,
    verify_certificate,
)

ISSUER = SigningKey.generate()
NOW = 1_000_000.0


def issue(key, **changes):
    terms = {
        "worker_id": "ingest-1",
        "role": "ingest",
        "indexes": ["acme/*"],
        "sign_pub": key.public.raw,
        "now_s": NOW,
        **changes,
    }
    return issue_certificate(ISSUER, **terms)


def test_a_certificate_says_who_for_what_and_until_when():
    key = SigningKey.generate()
    made = issue(key)
    read = verify_certificate(made.encoded, ISSUER.public, now_s=NOW)
    assert read == made
    assert read.verify_key == key.public
    assert read.covers("acme/docs")
    assert read.covers("acme/a/b")
    assert not read.covers("other")


@pytest.mark.parametrize(
    ("now_s", "code"),
    [(NOW + MAX_LIFE_S, ErrorCode.EXPIRED), (NOW - 61, ErrorCode.UNAUTHENTICATED)],
)
def test_a_certificate_is_good_for_its_time(now_s, code):
    encoded = issue(SigningKey.generate()).encoded
    with pytest.raises(Reject) as refused:
        verify_certificate(encoded, ISSUER.public, now_s=now_s)
    assert refused.value.code is code


def test_what_the_issuer_did_not_sign_is_refused():
    encoded = issue(SigningKey.generate()).encoded
    changed = [encoded[:at] + bytes([encoded[at] ^ 1]) + encoded[at + 1 :] for at in (0, 63, 64)]
    for bad in (*changed, encoded[:-1], encoded[:10], b""):
        with pytest.raises(Reject, match="UNAUTHENTICATED"):
            verify_certificate(bad, ISSUER.public, now_s=NOW)
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        verify_certificate(encoded, SigningKey.generate().public, now_s=NOW)


@pytest.mark.parametrize(
    "changes",
    [{"life_s": MAX_LIFE_S + 1}, {"role": "keys"}, {"indexes": []}, {"worker_id": "a/b"}],
)
def test_terms_that_are_not_issued(changes):
    with pytest.raises(ValueError):
        issue(SigningKey.generate(), **changes)


def test_an_identity_folder_is_private_and_whole(tmp_path):
    key, other = SigningKey.generate(), SigningKey.generate()
    folder = tmp_path / "ingest-1"
    with pytest.raises(Fatal, match="no identity of a worker"):
        WorkerIdentity.load(folder)
    save_identity(folder, key.seed().copy(), issue(key))
    loaded = WorkerIdentity.load(folder)
    assert (loaded.worker_id, loaded.role) == ("ingest-1", "ingest")
    assert loaded.signing_key.public == key.public
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    save_identity(folder, key.seed().copy(), issue(other))
    with pytest.raises(Fatal, match="not for this key"):
        WorkerIdentity.load(folder)
    (folder / "sign.key").chmod(0o640)
    with pytest.raises(Fatal, match="chmod"):
        WorkerIdentity.load(folder)
