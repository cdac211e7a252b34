"""index-update: what ingest workers hand to the index worker. Internal, packed as msgpack.

One record is one `UpdateEnvelope`: a clear envelope around the sealed batch of one shard. Its
body, once opened, is one `UpdateBatch`. Structs are written as arrays in the order of their
fields; new fields are only ever added at the end, with a default.

    UpdateBatch.tokens     32-byte chain tokens, each once; ops name them by their index
    UpdateBatch.token_kinds   one byte per token: its kind (keyword, term, metadata, group)
    TermField.terms        u32 LE per distinct term: index into UpdateBatch.tokens
    TermField.tfs          u16 LE per term: how often it occurs, at most 65535
    TermField.positions    per term, tf varints (LEB128): first position, then the differences
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Final, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from schemas.errors import ErrorCode, InvalidMessage
from schemas.ids import Count
from schemas.index import MAX_RECORD_BYTES
from schemas.message import Quiet
from schemas.position import Order, Source

MAX_BATCH_BYTES: Final = 64 * 1024 * 1024
"""Largest opened body; only a body in a sealed object comes near it."""
ENVELOPE_VERSION: Final = 1

U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]

T = TypeVar("T")


class OpKind(IntEnum):
    """What an operation does."""

    UPSERT = 1
    DELETE = 2
    ADD_KEYWORDS = 3
    REMOVE_KEYWORDS = 4
    ACCESS = 5


class TermField(Quiet, frozen=True, kw_only=True, array_like=True):
    """Postings of one analysed text field of one document. `length`: words, with repetitions."""

    name: str
    length: U32
    terms: bytes
    tfs: bytes
    positions: bytes = b""

    def __post_init__(self) -> None:
        if len(self.terms) % 4 or len(self.tfs) != len(self.terms) // 2:
            raise InvalidMessage("terms and tfs do not match", "terms")


class UpdateOp(Quiet, frozen=True, kw_only=True, array_like=True):
    """One operation on one document.

    Args:
        op_id: ordinal of the source record in its batch.
        keywords: indexes into `UpdateBatch.tokens`.
        metadata: msgpack of a dict; empty if there is none.
        vector: float32 LE; empty if there is none.
        content: encoded object pointer; empty if there is none.
        groups: group tokens of the document's access list (ACCESS: of its new one).
        caller_groups: group tokens of the caller, who must be in the old access list.
        reply_key: encoded HPKE public key that results are sealed to; empty if in clear.
        scope_overwrite: the caller's scope alone allows overwriting.
        request_key: Kafka key of the source record; results are sent under it.
        access_version: ACCESS: of the new list; `if_version` names the document's version.
    """

    kind: OpKind
    order: Order
    id: str
    object_id: Bytes16
    op_id: U32
    keywords: list[U32] = []
    fields: list[TermField] = []
    metadata: bytes = b""
    vector: bytes = b""
    content: bytes = b""
    groups: list[Bytes16] = []
    caller_groups: list[Bytes16] = []
    if_version: Count | None = None
    issued_ms: int = 0
    source: Source
    reply_key: bytes = b""
    scope_overwrite: bool = False
    request_key: bytes = b""
    access_version: U32 = 0


class UpdateBatch(Quiet, frozen=True, kw_only=True, array_like=True):
    """The operations of one shard from one micro-batch.

    Args:
        vocabulary: words behind the term tokens, sealed to the query key; opaque here.
        packs: the wrapped keys of the packs that the operations' contents lie in.
        created_ms: when the batch was made.
    """

    tokens: list[Bytes32]
    token_kinds: bytes
    ops: list[UpdateOp]
    vocabulary: bytes = b""
    packs: list[bytes] = []
    created_ms: int

    def __post_init__(self) -> None:
        if len(self.token_kinds) != len(self.tokens):
            raise InvalidMessage("must have one byte per token", "token_kinds")


class UpdateEnvelope(Quiet, frozen=True, kw_only=True, array_like=True):
    """Clear envelope of one record.

    Args:
        wrapped_key: batch key, HPKE-sealed to the update key of `generation`.
        body: the sealed batch, unless it lies in a sealed object.
        body_object: key of that object in the store.
        body_sha256: of the sealed batch, wherever it lies.
        certificate, signature: of the ingest worker, over all other fields.
    """

    v: int
    index_uid: Bytes16
    shard: U32
    generation: U32
    worker: str
    certificate: bytes
    wrapped_key: bytes
    body: bytes | None = None
    body_object: str | None = None
    body_sha256: Bytes32
    signature: Signature

    def __post_init__(self) -> None:
        if self.v != ENVELOPE_VERSION:
            raise InvalidMessage(f"must be {ENVELOPE_VERSION}", "v")
        if (self.body is None) == (self.body_object is None):
            raise InvalidMessage("exactly one of body and body_object is needed", "body")


def encode_envelope(envelope: UpdateEnvelope) -> bytes:
    """Encode one record.

    Raises:
        InvalidMessage: `TOO_LARGE`: split the batch, or put its body into an object.
    """
    return _bounded(msgspec.msgpack.encode(envelope), MAX_RECORD_BYTES)


def decode_envelope(value: bytes | None) -> UpdateEnvelope:
    """Decode one record.

    Raises:
        InvalidMessage: not an envelope, or larger than any worker writes.
    """
    return _decode(_ENVELOPE, value, MAX_RECORD_BYTES)


def encode_batch(batch: UpdateBatch) -> bytes:
    """Encode the body of an envelope, before it is sealed.

    Raises:
        InvalidMessage: `TOO_LARGE`.
    """
    return _bounded(msgspec.msgpack.encode(batch), MAX_BATCH_BYTES)


def decode_batch(value: bytes | None) -> UpdateBatch:
    """Decode an opened body, checking that every token index is one of the batch's.

    Raises:
        InvalidMessage: not a batch.
    """
    batch = _decode(_BATCH, value, MAX_BATCH_BYTES)
    count = len(batch.tokens)
    keywords = max((max(op.keywords) for op in batch.ops if op.keywords), default=-1)
    if keywords >= count:
        raise InvalidMessage("names a token that the batch does not have", "ops.keywords")
    # All at once: an array of its own for each field would cost more than the look.
    terms = np.frombuffer(b"".join([one.terms for op in batch.ops for one in op.fields]), "<u4")
    if terms.size and int(terms.max()) >= count:
        raise InvalidMessage("names a token that the batch does not have", "ops.fields")
    return batch


_ENVELOPE: Final = msgspec.msgpack.Decoder(UpdateEnvelope)
_BATCH: Final = msgspec.msgpack.Decoder(UpdateBatch)


def _bounded(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise InvalidMessage(f"is larger than {limit} bytes", code=ErrorCode.TOO_LARGE)
    return data


def _decode(decoder: msgspec.msgpack.Decoder[T], value: bytes | None, limit: int) -> T:
    if not value:
        raise InvalidMessage("the record has no value")
    _bounded(value, limit)
    problem: Any = None
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        problem = cause if isinstance(cause, InvalidMessage) else None
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    raise InvalidMessage(
        problem.message if problem else "not an index-update of this version",
        problem.field if problem else None,
    )
