"""Sealed credentials: how long they may be."""

from __future__ import annotations

import pytest

from schemas.auth import MAX_CREDENTIAL_CHARS, Credential
from schemas.errors import InvalidMessage
from schemas.values import encode_base64
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.errors import Reject
from workers.kafka.broker import Record
from workers.leases.credential import HEADER_AUTH, open_credential, outer_auth, seal_credential


def _record(header: bytes) -> Record:
    return Record("t", 0, 0, 0, b"k", b"v", ((HEADER_AUTH, header),))


@pytest.mark.parametrize("suite", list(HpkeSuite))
def test_the_longest_token_travels_sealed(suite):
    key = HpkePrivateKey.generate(suite)
    cnf = encode_base64(bytes(32))
    shown = Credential(token="x" * MAX_CREDENTIAL_CHARS, index="acme/docs", exp=0, cnf=cnf)
    auth = outer_auth(_record(seal_credential(key.public, shown).sealed.encode()))
    assert open_credential([key], auth.sealed_bytes(), "acme/docs") == shown
    longer = Credential(token=shown.token + "x", index="acme/docs", exp=0, cnf=cnf)
    sealed = seal_credential(key.public, longer).sealed_bytes()
    with pytest.raises(Reject, match="INVALID_MESSAGE"):
        open_credential([key], sealed, "acme/docs")


def test_headers_that_are_no_credential():
    for header in (b"A" * 50_000, b"\xff\xff", b"no base64"):
        with pytest.raises(InvalidMessage):
            outer_auth(_record(header))
