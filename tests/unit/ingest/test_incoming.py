from __future__ import annotations

import json

import msgspec
import pytest

from schemas.codec import decode
from schemas.errors import ErrorCode
from schemas.sealed import SealedValue
from schemas.topics import CONTENT_SEALED, HEADER_CONTENT_TYPE, HEADER_SIGNATURE
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info
from workers.errors import Reject
from workers.ingest.incoming import (
    HEADER_REPLAY,
    Incoming,
    Refused,
    SealedIncoming,
    open_sealed,
    read,
)
from workers.kafka.broker import Headers, Record
from workers.leases.credential import HEADER_AUTH, IngestSealer, open_value, seal_value

KEY = HpkePrivateKey.generate(HpkeSuite.X25519)
SEALED = (HEADER_CONTENT_TYPE, CONTENT_SEALED.encode())


def record(key: bytes | None, value: bytes | None, headers: Headers = ()) -> Record:
    return Record("plaintext-ingest", 0, 7, 0, key, value, headers)


def message(index: str = "i", doc: str = "a", **more: object) -> bytes:
    return json.dumps({"v": 1, "index": index, "id": doc, "auth": {"token": "t"}, **more}).encode()


def test_a_clear_record_is_read() -> None:
    item = read(record(b"i/a", message(content="x"), ((HEADER_SIGNATURE, b"s" * 64),)))
    assert isinstance(item, Incoming)
    assert (item.index, item.request.id, item.signature) == ("i", "a", b"s" * 64)


@pytest.mark.parametrize("key", [None, b"", b"i/b", b"j/a", b"i/a ", b"\xff"])
def test_the_key_must_name_the_document(key: bytes | None) -> None:
    item = read(record(key, message()))
    assert isinstance(item, Refused)
    assert item.error.field == "key"
    assert item.request is not None


@pytest.mark.parametrize("value", [None, b"", b"[]", b"{", b"\xff", message() + b"x"])
def test_what_is_no_message_is_refused(value: bytes | None) -> None:
    item = read(record(b"i/a", value))
    assert isinstance(item, Refused)
    assert item.error.code is ErrorCode.INVALID_MESSAGE
    assert item.request is None


def test_a_signature_of_a_wrong_length_is_refused() -> None:
    item = read(record(b"i/a", message(), ((HEADER_SIGNATURE, b"s"),)))
    assert isinstance(item, Refused)
    assert item.error.field == HEADER_SIGNATURE


def test_a_sealed_record_opens() -> None:
    value = seal_value(Info.INGEST_VALUE, KEY.public, "i", message())
    item = read(record(b"i/" + b"0a" * 16, value, (SEALED, (HEADER_AUTH, b"YQ=="))))
    assert isinstance(item, SealedIncoming)
    assert item.auth is not None
    opened = open_sealed(item, KEY)
    assert isinstance(opened, Incoming)
    assert (opened.request.id, opened.sealed) == ("a", True)


def test_sealed_records_that_share_an_encapsulation_open() -> None:
    sealer = IngestSealer(KEY.public, "i")
    values = [sealer.value(message()) for _ in range(3)]
    assert len({decode(SealedValue, value).shared for value in values}) == 1
    for value in values:
        item = read(record(b"i/" + b"0" * 32, value, (SEALED,)))
        assert isinstance(item, SealedIncoming)
        opened = open_sealed(item, KEY)
        assert isinstance(opened, Incoming)
        assert opened.request.id == "a"
    # Neither for another index, nor by another key, nor with a part of another message.
    sealed = decode(SealedValue, values[0])
    stranger = IngestSealer(HpkePrivateKey.generate(HpkeSuite.X25519).public, "i")
    for changed in (
        {"index": "j"},
        {"key_id": "00" * 16},
        {"shared": decode(SealedValue, stranger.value(b"{}")).shared},
        {"shared": None},
        {"sealed": decode(SealedValue, IngestSealer(KEY.public, "j").value(message())).sealed},
    ):
        with pytest.raises(Reject) as refusal:
            open_value(Info.INGEST_VALUE, KEY, msgspec.structs.replace(sealed, **changed))
        assert refusal.value.code is ErrorCode.INVALID_MESSAGE
    with pytest.raises(Reject) as refusal:
        open_value(Info.QUERY_VALUE, KEY, sealed)
    assert refusal.value.field == "shared"


@pytest.mark.parametrize("key", [b"i/a", b"i/" + b"0" * 31, b"i/" + b"A" * 32, b"j/" + b"0" * 32])
def test_the_key_of_a_sealed_record_says_nothing(key: bytes) -> None:
    value = seal_value(Info.INGEST_VALUE, KEY.public, "i", message())
    item = read(record(key, value, (SEALED,)))
    assert isinstance(item, Refused)
    assert item.error.field == "key"


def test_a_sealed_value_must_be_for_the_index_it_names() -> None:
    value = seal_value(Info.INGEST_VALUE, KEY.public, "i", message("other"))
    item = read(record(b"i/" + b"0" * 32, value, (SEALED,)))
    assert isinstance(item, SealedIncoming)
    opened = open_sealed(item, KEY)
    assert isinstance(opened, Refused)
    assert opened.error.field == "index"


def test_what_does_not_open_is_refused_without_an_alert() -> None:
    value = seal_value(Info.INGEST_VALUE, KEY.public, "i", message())
    item = read(record(b"i/" + b"0" * 32, value, (SEALED,)))
    assert isinstance(item, SealedIncoming)
    for other in (HpkePrivateKey.generate(HpkeSuite.X25519), HpkePrivateKey.generate()):
        opened = open_sealed(item, other)
        assert isinstance(opened, Refused)
        assert opened.error.code is ErrorCode.INVALID_MESSAGE


@pytest.mark.parametrize(("header", "offset"), [(None, 7), (b"0", 0), (b"6", 6)])
def test_a_replayed_record_is_ordered_where_it_first_stood(
    header: bytes | None, offset: int
) -> None:
    headers = () if header is None else ((HEADER_REPLAY, header),)
    item = read(record(b"i/a", message(), headers))
    assert isinstance(item, Incoming)
    assert item.order_offset == offset


@pytest.mark.parametrize("header", [b"7", b"8", b"-1", b"", b"x", b"1" * 30])
def test_a_replay_cannot_claim_a_later_place(header: bytes) -> None:
    item = read(record(b"i/a", message(), ((HEADER_REPLAY, header),)))
    assert isinstance(item, Refused)
    assert item.error.field == HEADER_REPLAY
