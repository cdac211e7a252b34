"""plaintext-ingest and ingest-result."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta

from schemas.auth import Auth
from schemas.errors import ErrorInfo, InvalidMessage
from schemas.ids import (
    Count,
    DocIdField,
    GroupField,
    IndexField,
    Millis,
    UuidField,
    check_doc_id,
    check_name,
)
from schemas.index import BODY_FIELD
from schemas.message import Answer, Part, Request
from schemas.position import Position, Source
from schemas.values import Base64, Binary, Vector, decode_base64
from schemas.values import vector_array as vector_array

Scalar: TypeAlias = str | int | float | bool
MetadataValue: TypeAlias = Scalar | list[Scalar]
Keyword = Annotated[str, Meta(min_length=1)]
MediaType = Annotated[str, Meta(pattern="^[\\x21-\\x7e]+/[\\x20-\\x7e]+(?!\n)$", max_length=255)]

TEXT_PLAIN: Final = "text/plain"
OCTET_STREAM: Final = "application/octet-stream"


class IngestOp(StrEnum):
    """What to do with the document."""

    UPSERT = "upsert"
    DELETE = "delete"
    ADD_KEYWORDS = "add_keywords"
    REMOVE_KEYWORDS = "remove_keywords"


class ReplyKey(Part, frozen=True, kw_only=True):
    """Where a reply is sealed to: base64 of an encoded HPKE public key."""

    public_key: Base64 | None = None

    def __post_init__(self) -> None:
        if self.public_key is not None:
            decode_base64(self.public_key, "public_key")

    def key_bytes(self) -> bytes:
        """Return the encoded public key; empty if replies are to be in clear."""
        return b"" if self.public_key is None else decode_base64(self.public_key, "public_key")


class IngestRequest(Request, frozen=True, kw_only=True):
    """One operation on one document.

    `content` is encrypted; `associated_data` is stored in clear and authenticated with it.
    `text` is analysed for ranked search, `keywords` are exact. `metadata` is encrypted and
    filterable. `groups` join the access list, which always has the caller's default group.
    `if_version`: only if the document has this version (0: only if there is none).
    """

    op: IngestOp = IngestOp.UPSERT
    index: IndexField
    id: DocIdField
    auth: Auth
    content: str | Binary | None = None
    content_type: MediaType | None = None
    associated_data: Binary | None = None
    text: dict[str, str] | None = None
    keywords: list[Keyword] = []
    vector: Vector | None = None
    metadata: dict[str, MetadataValue] | None = None
    groups: list[GroupField] = []
    if_version: Count | None = None
    reply: ReplyKey | None = None
    message_id: UuidField | None = None
    issued_ms: Millis | None = None

    def __post_init__(self) -> None:
        check_doc_id(self.id)
        check_signed(self.auth, self.message_id, self.issued_ms)
        if self.op is not IngestOp.UPSERT:
            self._check_small()
        if self.content is None:
            for name in ("content_type", "associated_data"):
                if getattr(self, name) is not None:
                    raise InvalidMessage("needs a content", name)
        for name in self.text or ():
            check_name(name, "text")
        if self.metadata:
            check_metadata(self.metadata)

    def _check_small(self) -> None:
        """Refuse what only an upsert may have."""
        deleting = self.op is IngestOp.DELETE
        refused = ("content", "content_type", "associated_data", "text", "vector", "metadata")
        for name in (*refused, "groups", *(("keywords",) if deleting else ("if_version",))):
            if getattr(self, name) not in (None, []):
                raise InvalidMessage(f"does not go with the op {self.op.value}", name)
        if not deleting and not self.keywords:
            raise InvalidMessage(f"the op {self.op.value} needs at least one", "keywords")

    def media_type(self) -> str | None:
        """Return the type of the content: as given, or the default for its form."""
        if self.content is None or self.content_type is not None:
            return self.content_type
        return TEXT_PLAIN if isinstance(self.content, str) else OCTET_STREAM

    def content_bytes(self) -> bytes | None:
        """Return the content as it is stored: text as UTF-8."""
        if self.content is None:
            return None
        return self.content.encode() if isinstance(self.content, str) else self.content.decode()

    def analysed_text(self) -> dict[str, str]:
        """Return the text fields to analyse: `text`, or a `text/*` content as `body`.

        Raises:
            InvalidMessage: the content says it is text and is not UTF-8.
        """
        if self.text is not None:
            return self.text
        kind = self.media_type()
        if self.content is None or kind is None or not kind.lower().startswith("text/"):
            return {}
        if isinstance(self.content, str):
            return {BODY_FIELD: self.content}
        try:
            return {BODY_FIELD: self.content.decode().decode()}
        except UnicodeDecodeError:
            pass
        raise InvalidMessage("a text content is UTF-8; give another content_type", "content")


class IngestResult(Answer, frozen=True, kw_only=True):
    """Answer to one operation. `accepted`: durable, and its index-update acknowledged.

    A second result may say `rejected`: the index worker alone knows the current state.
    """

    index: str
    id: str
    op: IngestOp
    status: Literal["accepted", "rejected"]
    object_id: str | None = None
    version: int | None = None
    position: Position | None = None
    error: ErrorInfo | None = None
    source: Source | None = None
    message_id: str | None = None


def check_signed(auth: Auth, message_id: str | None, issued_ms: int | None) -> None:
    """Refuse a sealed credential without what its signature covers.

    Raises:
        InvalidMessage: `message_id` or `issued_ms` is missing.
    """
    if auth.sealed is not None:
        for name, value in (("message_id", message_id), ("issued_ms", issued_ms)):
            if value is None:
                raise InvalidMessage("is required with auth.sealed", name)


def check_metadata(metadata: dict[str, MetadataValue], field: str = "metadata") -> None:
    """Refuse names that a filter could not say, and integers beyond 64 bits.

    Raises:
        InvalidMessage: see above.
    """
    for name, value in metadata.items():
        check_name(name, field)
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, int) and not -(2**63) <= item < 2**63:
                raise InvalidMessage("an integer does not fit signed 64 bits", f"{field}.*")
