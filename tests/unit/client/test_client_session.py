"""Credentials, routing keys and what a session says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.auth import Scope
from schemas.codec import decode
from schemas.errors import ErrorCode, InvalidMessage
from schemas.sealed import SealedValue
from schemas.values import decode_base64
from workers.client import session as session_module
from workers.client.connection import plain_json
from workers.client.session import CREDENTIAL_LIFE_S, Secrets, Session
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite, key_id
from workers.crypto.info import Info
from workers.crypto.secret import SecretBytes
from workers.errors import Reject
from workers.leases.credential import open_credential, open_value, verify_message


class Service:
    """The key service's entry in the directory."""

    def __init__(self) -> None:
        self.change()

    def change(self) -> None:
        self.private = HpkePrivateKey.generate(HpkeSuite.X25519)
        public = self.private.public
        self.key_service = SimpleNamespace(hpke_pub=public, hpke_key_id=key_id(public))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(s=1_000_000.0)
    monkeypatch.setattr(session_module, "time", SimpleNamespace(time=lambda: clock.s))
    return clock


def make(
    service: Service, token: str = "token", index_key: bytes | None = None, **options: Any
) -> Session:
    key = None if index_key is None else SecretBytes(index_key)
    directory: Any = service
    return Session(
        Secrets(None if key else token, key), directory, suite=HpkeSuite.X25519, **options
    )


def opened(service: Service, session: Session, index: str) -> Any:
    sealed = session.auth(index).sealed
    assert sealed is not None
    return open_credential([service.private], decode_base64(sealed, "sealed"), index)


def test_a_credential_is_for_one_index_and_renewed_before_it_ends(now):
    service = Service()
    session = make(service, scopes=[Scope.INDEX])
    first = session.auth("a")
    credential = opened(service, session, "a")
    assert (credential.token, credential.index_key, credential.index) == ("token", None, "a")
    assert credential.scopes == [Scope.INDEX]
    assert credential.exp == now.s + CREDENTIAL_LIFE_S
    assert session.auth("b") != first
    now.s += CREDENTIAL_LIFE_S - 121
    assert session.auth("a") is first
    now.s += 2
    renewed = session.auth("a")
    assert renewed is not first
    assert opened(service, session, "a").exp == int(now.s) + CREDENTIAL_LIFE_S
    # The session key stays: what was signed before can still be verified.
    assert opened(service, session, "a").cnf == credential.cnf


def test_a_credential_is_made_anew_for_a_new_key_of_the_key_service(now):
    service = Service()
    session = make(service)
    old = session.auth("a")
    service.change()
    assert session.auth("a") != old
    assert opened(service, session, "a").token == "token"


def test_an_index_key_goes_alone_and_never_in_clear(now):
    service = Service()
    session = make(service, index_key=bytes(range(32)))
    credential = opened(service, session, "a")
    assert credential.token is None
    assert decode_base64(credential.index_key, "k") == bytes(range(32))
    with pytest.raises(Reject) as refused:
        make(service, index_key=bytes(32), protection="plain")
    assert refused.value.code is ErrorCode.UNAUTHENTICATED


def test_without_a_secret_there_is_no_session():
    with pytest.raises(Reject) as refused:
        Secrets()
    assert refused.value.code is ErrorCode.UNAUTHENTICATED
    with pytest.raises(Reject) as refused:
        Secrets(index_key=SecretBytes(bytes(31)))
    assert refused.value.code is ErrorCode.WRONG_KEY
    assert "t0ken" not in repr(Secrets(token="t0ken"))


def test_plain_shows_the_token(now):
    session = make(Service(), protection="plain")
    assert session.auth("a").token == "token"
    assert session.auth("a").sealed is None


def test_messages_are_signed_by_the_session_key(now):
    service = Service()
    session = make(service)
    [signature] = session.sign("t", [(b"k", b"v")])
    cnf = decode_base64(opened(service, session, "a").cnf, "cnf")
    verify_message(cnf, signature, "t", b"k", b"v")
    for changed in (("u", b"k", b"v"), ("t", b"l", b"v"), ("t", b"k", b"w"), ("t", None, b"v")):
        with pytest.raises(Reject):
            verify_message(cnf, signature, *changed)


def test_messages_share_an_encapsulation_for_a_while(now, monkeypatch):
    monkeypatch.setattr(session_module, "SHARED_MESSAGES", 3)
    session = make(Service())
    keys = [HpkePrivateKey.generate(HpkeSuite.X25519) for _ in range(2)]

    def shared(index: str = "a", key: int = 0) -> str:
        value = decode(SealedValue, session.seal_ingest(keys[key].public, index, b"{}"))
        assert open_value(Info.INGEST_VALUE, keys[key], value) == b"{}"
        return value.shared

    first = [shared() for _ in range(3)]
    assert len(set(first)) == 1
    assert shared() not in first
    second = shared()
    assert shared("b") != second
    assert shared() == second
    assert shared(key=1) != second
    third = shared(key=1)
    now.s += session_module.SHARE_S
    assert shared(key=1) != third


def test_only_who_brings_a_key_shows_its_credential_outside(now):
    assert make(Service(), index_key=bytes(range(32))).holds_key
    assert not make(Service()).holds_key


@pytest.mark.parametrize("secret", [{"token": "one"}, {"index_key": bytes(32)}])
def test_routing_keys_are_stable_and_unlinkable(secret):
    service = Service()
    one, same = make(service, **secret), make(service, **secret)
    other = make(service, token="two")
    key = one.routing_key("acme/docs", "canary")
    assert key == same.routing_key("acme/docs", "canary")
    assert key.startswith(b"acme/docs/")
    assert b"canary" not in key
    different = {
        one.routing_key("acme/docs", "canary2"),
        one.routing_key("acme/doc", "scanary"),
        other.routing_key("acme/docs", "canary"),
    }
    assert len({name.rpartition(b"/")[2] for name in different | {key}}) == 4


def test_arrays_and_bytes_get_their_json_form():
    vector = {"f32": "AACAPwAAAAA="}
    array = np.array([1, 0], "f4")
    assert plain_json({"vector": array, "content": b"\x00", "id": "a", "none": None}) == {
        "vector": vector,
        "content": {"base64": "AA=="},
        "id": "a",
    }
    for row in (array.astype("f8"), array.astype("i4"), (1, 0)):
        assert plain_json({"hybrid": {"text": "t", "vector": row}}) == {
            "hybrid": {"text": "t", "vector": vector}
        }
    assert plain_json({"vector": [1, 0]}) == {"vector": [1, 0]}
    for wrong in (array.reshape(1, 2), np.array([np.nan], "f4"), np.array([], "f4")):
        with pytest.raises(InvalidMessage):
            plain_json({"vector": wrong})
