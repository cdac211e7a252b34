from __future__ import annotations

from typing import Any

import pytest

from schemas.admin import ARGS, AdminAuth, AdminOp, IndexCreate
from schemas.auth import Auth, Credential, Scope
from schemas.errors import InvalidMessage
from schemas.ids import IndexName
from schemas.index import IndexConfig
from schemas.values import encode_base64

KEY = encode_base64(bytes(32))


def test_auth_is_one_of_two() -> None:
    assert Auth(token="t").sealed_bytes() is None
    assert Auth(sealed="QUJD").sealed_bytes() == b"ABC"
    for fields in ({}, {"token": "t", "sealed": "QUJD"}, {"sealed": "!"}):
        with pytest.raises(InvalidMessage):
            Auth(**fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, None),
        ({"token": "t", "index_key": KEY}, None),
        ({"user_id": "u"}, None),
        ({"user_key": KEY}, "user_id"),
        ({"token": "t", "user_id": "u"}, "user_id"),
        ({"index_key": encode_base64(bytes(31))}, "index_key"),
        ({"index_key": encode_base64(bytes(33))}, "index_key"),
        ({"token": "t", "cnf": encode_base64(bytes(31))}, "cnf"),
    ],
)
def test_credentials_that_are_refused(fields: dict[str, Any], field: str | None) -> None:
    with pytest.raises(InvalidMessage) as caught:
        Credential(**({"exp": 1, "cnf": KEY} | fields))
    assert caught.value.field == field


def test_credentials() -> None:
    for fields in ({"token": "t"}, {"index_key": KEY}, {"user_id": "u", "user_key": KEY}):
        made = Credential(exp=1, cnf=KEY, scopes=[Scope.INDEX], **fields)
        assert KEY not in repr(made)


def test_admin_auth() -> None:
    both = AdminAuth(token="t", index_key=KEY)
    assert both.index_key_bytes() == bytes(32)
    assert AdminAuth(token="t").index_key_bytes() is None
    assert KEY not in repr(both)
    for fields in ({}, {"token": "t", "sealed": "QUJD"}, {"user_id": "u"}, {"index_key": "QUJD"}):
        with pytest.raises(InvalidMessage):
            AdminAuth(**fields)


def test_every_op_has_arguments() -> None:
    assert set(ARGS) == set(AdminOp)


def test_index_create_is_index_config() -> None:
    assert IndexCreate(index=IndexName("a")).config() == IndexConfig()
    made = IndexCreate(index=IndexName("a"), dimension=3, metric="dot", fields={"title": 2.0})
    assert made.config() == IndexConfig(dimension=3, metric="dot", fields={"title": 2.0})
