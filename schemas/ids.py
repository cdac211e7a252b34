r"""Names and ids: what they are made of, and the checks for them.

Patterns end in `(?!\n)$` because Python's `$` alone also matches before a final newline;
in JSON Schema's dialect the look-ahead changes nothing.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, NewType

from msgspec import Meta

from schemas.errors import InvalidMessage

IndexName = NewType("IndexName", str)
"""What callers call an index, e.g. `acme/docs`."""
DocId = NewType("DocId", str)
"""What a producer calls a document: 1 to 512 bytes of UTF-8."""
GroupId = NewType("GroupId", str)
"""UUID of a group."""

MAX_ID_BYTES: Final = 512
MAX_NAME_CHARS: Final = 128

_END: Final = r"(?!\n)$"
INDEX_PATTERN: Final = r"^[a-z0-9][a-z0-9._/-]{0,127}" + _END
UUID_PATTERN: Final = (
    "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}" + _END
)
HEX16_PATTERN: Final = "^[0-9a-f]{32}" + _END
HEX32_PATTERN: Final = "^[0-9a-f]{64}" + _END

PATTERN_WORDS: Final = {
    INDEX_PATTERN: "an index name: 1 to 128 characters of a-z 0-9 . _ / -, "
    "the first a letter or a digit",
    UUID_PATTERN: "a UUID of 8-4-4-4-12 hex digits",
    HEX16_PATTERN: "32 lower-case hex digits",
    HEX32_PATTERN: "64 lower-case hex digits",
}
"""What a value that does not match is told."""

IndexField = Annotated[
    IndexName, Meta(pattern=INDEX_PATTERN, max_length=128, description="Name of the index.")
]
DocIdField = Annotated[
    DocId, Meta(min_length=1, max_length=MAX_ID_BYTES, description="1 to 512 bytes of UTF-8.")
]
UuidField = Annotated[str, Meta(pattern=UUID_PATTERN, max_length=36, description="A UUID.")]
GroupField = Annotated[
    GroupId, Meta(pattern=UUID_PATTERN, max_length=36, description="UUID of a group.")
]
Hex16Field = Annotated[
    str, Meta(pattern=HEX16_PATTERN, description="16 bytes as 32 lower-case hex digits.")
]
Hex32Field = Annotated[
    str, Meta(pattern=HEX32_PATTERN, description="32 bytes as 64 lower-case hex digits.")
]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A number that starts from 0 and fits 63 bits."""
Millis = Annotated[int, Meta(ge=0, le=2**53, description="Milliseconds since 1970, UTC.")]

_index_match = re.compile(INDEX_PATTERN).match
_uuid_match = re.compile(UUID_PATTERN).match


def check_index_name(name: str, field: str = "index") -> IndexName:
    """Return `name` typed.

    Raises:
        InvalidMessage: not `[a-z0-9][a-z0-9._/-]{0,127}`.
    """
    if not _index_match(name):
        raise InvalidMessage(f"must be {PATTERN_WORDS[INDEX_PATTERN]}", field)
    return IndexName(name)


def check_doc_id(doc_id: str, field: str = "id") -> DocId:
    """Return `doc_id` typed.

    Raises:
        InvalidMessage: empty, longer than 512 bytes of UTF-8, or not encodable as UTF-8.
    """
    # Below 128 characters no UTF-8 encoding is longer than 512 bytes: skip encoding those,
    # but only where no lone surrogate can hide.
    if doc_id.isascii():
        size = len(doc_id)
    else:
        try:
            size = len(doc_id.encode())
        except UnicodeEncodeError:
            raise InvalidMessage("an id is UTF-8: no lone surrogates", field) from None
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidMessage(f"an id is 1 to {MAX_ID_BYTES} bytes of UTF-8", field)
    return DocId(doc_id)


def check_uuid(value: str, field: str) -> str:
    """Return `value` unchanged.

    Raises:
        InvalidMessage: not a UUID of 8-4-4-4-12 hex digits.
    """
    if not _uuid_match(value):
        raise InvalidMessage(f"must be {PATTERN_WORDS[UUID_PATTERN]}", field)
    return value


def check_name(name: str, field: str) -> str:
    """Return the name of a text or metadata field unchanged.

    Args:
        name: chosen by the sender, so never quoted.
        field: path of the object that holds it.

    Raises:
        InvalidMessage: empty, longer than 128 characters, or beginning with `$`, which the
            filter language keeps for its operators.
    """
    if not name or len(name) > MAX_NAME_CHARS or name[0] == "$":
        raise InvalidMessage(
            f"a field name is 1 to {MAX_NAME_CHARS} characters and does not begin with $", field
        )
    return name
