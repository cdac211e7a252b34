from __future__ import annotations

import pytest

from schemas.errors import InvalidMessage
from schemas.ids import check_doc_id, check_index_name, check_name, check_uuid


@pytest.mark.parametrize("name", ["a", "0", "acme/docs", "a" * 128, "a.b_c-d/e"])
def test_index_names(name: str) -> None:
    assert check_index_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "/a", "a b", "a\n", "a" * 129, "ä", "a#0"])
def test_bad_index_names(name: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        check_index_name(name)
    assert caught.value.field == "index"


@pytest.mark.parametrize("doc_id", ["a", "a" * 512, "ä" * 256, "\U0001f600" * 128, "a/b\n"])
def test_doc_ids(doc_id: str) -> None:
    assert check_doc_id(doc_id) == doc_id


@pytest.mark.parametrize("doc_id", ["", "a" * 513, "ä" * 257, "\U0001f600" * 129, "\ud800"])
def test_bad_doc_ids(doc_id: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        check_doc_id(doc_id)
    assert caught.value.field == "id"


def test_uuids() -> None:
    good = "018f6b1e-7c3a-7e51-9d2b-3f6f2f0c8a11"
    assert check_uuid(good, "request_id") == good
    for bad in ("", good[:-1], good + "\n", good.replace("-", ""), "{" + good + "}"):
        with pytest.raises(InvalidMessage) as caught:
            check_uuid(bad, "request_id")
        assert caught.value.field == "request_id"


def test_names() -> None:
    assert check_name("a.b", "text") == "a.b"
    for bad in ("", "$gt", "a" * 129):
        with pytest.raises(InvalidMessage):
            check_name(bad, "text")
