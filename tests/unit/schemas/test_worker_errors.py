from __future__ import annotations

import copy
import pickle

import pytest

from schemas.errors import RETRYABLE, ErrorCode, ErrorInfo, InvalidMessage
from workers.errors import Damaged, Fatal, Fenced, Reject, Retry, SealstreamError

CLASSES = [SealstreamError, Retry, Reject, Damaged, Fenced, Fatal]


@pytest.mark.parametrize("kind", CLASSES)
def test_copies_keep_everything(kind: type[SealstreamError]) -> None:
    error = kind(ErrorCode.CONFLICT, "do it again", field="id")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert (other.code, other.message, other.field) == (error.code, error.message, "id")
    assert str(error) == "CONFLICT: do it again (field id)"


@pytest.mark.parametrize("code", ErrorCode)
def test_info_says_whether_to_retry(code: ErrorCode) -> None:
    info = SealstreamError(code, "m").info()
    assert info == ErrorInfo(code=code, message="m", retryable=code in RETRYABLE)
    assert InvalidMessage("m", code=code).info() == info


def test_damaged_is_a_reject() -> None:
    assert issubclass(Damaged, Reject)
    assert not issubclass(Fenced, Reject)


def test_codes_are_checked() -> None:
    assert SealstreamError("DAMAGED", "m").code is ErrorCode.DAMAGED
    with pytest.raises(ValueError):
        SealstreamError("NO_SUCH_CODE", "m")


def test_invalid_messages_pickle() -> None:
    error = pickle.loads(pickle.dumps(InvalidMessage("m", "a.b", ErrorCode.TOO_LARGE)))
    assert (error.message, error.field, error.code) == ("m", "a.b", ErrorCode.TOO_LARGE)
