"""Encode ingest-results: signed by the worker, sealed to the producer when it asked for that.

Record: key = the source record's key, value = JSON of an `IngestResult`, or the sealed value of it.
Headers: `content-type`, and the worker's signature and certificate (`workers/leases/signed.py`,
domain INGEST_RESULT).

Used by the ingest worker (`accepted`, `rejected`) and by the index worker (late `rejected`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.ingest import IngestResult
from schemas.sealed import SealedValue
from schemas.topics import CONTENT_JSON, CONTENT_SEALED, HEADER_CONTENT_TYPE
from workers.crypto.errors import InvalidKey
from workers.crypto.hpke import HpkePublicKey, key_id
from workers.crypto.info import Info, info
from workers.errors import Reject
from workers.kafka.broker import Headers
from workers.leases.certificate import WorkerIdentity
from workers.leases.signed import signature_headers


class Outgoing(NamedTuple):
    """A record to produce."""

    key: bytes
    value: bytes
    headers: Headers


@lru_cache(maxsize=1024)
def decode_reply_key(data: bytes) -> HpkePublicKey:
    """Decode a caller's `reply.public_key`; a producer sends the same one again and again.

    Raises:
        Reject: INVALID_MESSAGE.
    """
    try:
        return HpkePublicKey.decode(data)
    except InvalidKey:
        pass
    raise Reject(
        ErrorCode.INVALID_MESSAGE, "is no encoded HPKE public key", field="reply.public_key"
    )


def encode_result(
    result: IngestResult, *, key: bytes, reply_key: bytes, identity: WorkerIdentity
) -> Outgoing:
    """Encode one result. Pure CPU: 50 us in clear, 200 us sealed.

    Args:
        result: what to say.
        key: the source record's key.
        reply_key: encoded HPKE public key to seal to; b"" for a result in clear.
        identity: of this worker.

    Raises:
        Reject: INVALID_MESSAGE, `reply_key` is no key.
    """
    value, content_type = encode(result), CONTENT_JSON
    if reply_key:
        public = decode_reply_key(reply_key)
        sealed = public.seal(info(Info.INGEST_RESULT, result.index, result.id), value)
        value = encode(SealedValue.of(sealed, key_id=key_id(public), suite=public.suite))
        content_type = CONTENT_SEALED
    return Outgoing(
        key,
        value,
        (
            (HEADER_CONTENT_TYPE, content_type.encode()),
            *signature_headers(identity, Info.INGEST_RESULT, key, value),
        ),
    )
