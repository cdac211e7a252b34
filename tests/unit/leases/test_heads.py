"""Heads are written by certified index workers of their index, and signed by them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.leases.certificate import issue_certificate
from workers.leases.heads import head_verifier
from workers.leases.revocation import Revocations

ISSUER, WRITER = SigningKey.generate(), SigningKey.generate()
PARTS = (b"uid", 0, b"sealed")
NOW_S = 1_700_000_000


def certificate(role="index", indexes=("acme/*",), issuer=ISSUER):
    return issue_certificate(
        issuer,
        worker_id="w",
        role=role,
        indexes=indexes,
        sign_pub=WRITER.public.raw,
        now_s=NOW_S,
    ).encoded


@pytest.fixture
def verify():
    directory = SimpleNamespace(
        key_service=SimpleNamespace(sign_pub=ISSUER.public), revocations=Revocations()
    )
    return head_verifier(directory, "acme/docs")


def test_a_head_of_an_index_worker_is_good_as_long_as_its_certificate_was(verify):
    signature = WRITER.sign(Info.HEAD, *PARTS)
    verify(certificate(), signature, PARTS, NOW_S * 1000)
    with pytest.raises(Reject, match="EXPIRED"):
        verify(certificate(), signature, PARTS, (NOW_S + 8 * 86_400) * 1000)


@pytest.mark.parametrize(
    "forged",
    [
        {"role": "query"},
        {"role": "ingest"},
        {"indexes": ("other/*",)},
    ],
)
def test_a_head_of_anybody_else_is_refused(verify, forged):
    with pytest.raises(BadSignature):
        verify(certificate(**forged), WRITER.sign(Info.HEAD, *PARTS), PARTS, NOW_S * 1000)


def test_a_head_that_is_not_signed_so_is_refused(verify):
    good = WRITER.sign(Info.HEAD, *PARTS)
    for signature, parts in (
        (bytes(64), PARTS),
        (SigningKey.generate().sign(Info.HEAD, *PARTS), PARTS),
        (WRITER.sign(Info.INDEX_EVENT, *PARTS), PARTS),
        (good, (b"uid", 1, b"sealed")),
        (good, (b"other", 0, b"sealed")),
        (good, (b"uid", 0, b"sealed ")),
    ):
        with pytest.raises(BadSignature):
            verify(certificate(), signature, parts, NOW_S * 1000)
    with pytest.raises(Reject, match="UNAUTHENTICATED"):
        verify(certificate(issuer=SigningKey.generate()), good, PARTS, NOW_S * 1000)
