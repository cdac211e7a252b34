"""Encode ingest-results: signed by the worker, sealed to the producer when it asked for that.

Record: key and partition of the source record, value = JSON of an `IngestResult`, or the sealed
value of it (`open_result`; the results of a batch share their encapsulation:
`workers/crypto/shared.py`).
Headers: `content-type`, and the worker's signature and certificate (`workers/leases/signed.py`,
domain INGEST_RESULT).

Used by the ingest worker (`accepted`, `rejected`) and by the index worker (late `rejected`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from schemas.codec import encode
from schemas.errors import ErrorCode
from schemas.ingest import IngestResult
from schemas.sealed import SealedValue
from schemas.topics import CONTENT_JSON, CONTENT_SEALED, HEADER_CONTENT_TYPE
from workers.crypto.errors import InvalidKey
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, key_id
from workers.crypto.info import Info, info
from workers.crypto.lp import lp
from workers.crypto.shared import SharedSeal, open_shared
from workers.errors import Reject
from workers.kafka.broker import Headers, Producer
from workers.leases.certificate import WorkerIdentity
from workers.leases.signed import headers_together


class Outgoing(NamedTuple):
    """A record to produce. `partition` of the record it answers, None if there is none."""

    key: bytes
    value: bytes
    headers: Headers
    partition: int | None = None


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


class Answer(NamedTuple):
    """A result to be sent.

    Attributes:
        result: what to say.
        key: the source record's key.
        reply_key: encoded HPKE public key to seal to; b"" for a result in clear.
    """

    result: IngestResult
    key: bytes
    reply_key: bytes


def encode_results(answers: Iterable[Answer], identity: WorkerIdentity) -> list[Outgoing]:
    """Encode results, in order. Pure CPU: 15 us each in clear, 50 us sealed; 200 for the first.

    Those whose reply key is none are left out: in clear they would name the document to everybody,
    and nobody waits for them, since the ingest worker refuses such a key.
    """
    values: list[tuple[bytes, bytes]] = []
    about: list[tuple[str, int | None]] = []
    sealer = _Sealer()
    for answer in answers:
        value, content_type = encode(answer.result), CONTENT_JSON
        if answer.reply_key:
            try:
                value = sealer.seal(value, answer)
            except Reject:
                continue
            content_type = CONTENT_SEALED
        values.append((answer.key, value))
        source = answer.result.source
        about.append((content_type, None if source is None else source.partition))
    headers = headers_together(identity, Info.INGEST_RESULT, values)
    return [
        Outgoing(key, value, ((HEADER_CONTENT_TYPE, kind.encode()), *signed), partition)
        for (key, value), (kind, partition), signed in zip(values, about, headers, strict=True)
    ]


class ResultTopic:
    """Where results are produced: each in the partition that its record stood in.

    So the results of one document stay in order, as by their key, and those of a micro-batch go out
    as one batch.
    """

    def __init__(self, producer: Producer, topic: str, partitions: int) -> None:
        """Prepare.

        Args:
            producer: sends them.
            topic: with prefix.
            partitions: how many it has; 0, where that is not known, lets the key choose.
        """
        self._producer = producer
        self._topic = topic
        self._partitions = partitions

    async def send(self, results: Sequence[Outgoing]) -> None:
        """Produce results, in order; return when all are acknowledged. Raises Retry."""
        futures = [
            await self._producer.send(
                self._topic,
                one.value,
                key=one.key,
                partition=self._partition(one),
                headers=one.headers,
            )
            for one in results
        ]
        # Each is awaited before the first error is raised: none is left without an owner.
        for done in await asyncio.gather(*futures, return_exceptions=True):
            if isinstance(done, BaseException):
                raise done

    def _partition(self, one: Outgoing) -> int | None:
        if one.partition is None or not self._partitions:
            return None
        return one.partition % self._partitions


def open_result(reply: HpkePrivateKey, value: SealedValue, index: str, doc_id: str) -> bytes:
    """Open a sealed result: what `encode_results` sealed to the public half of `reply`.

    Raises:
        CryptoError: it is not sealed to this key, or is about another document.
    """
    shared = value.shared_bytes()
    if shared is None:
        return reply.open(info(Info.INGEST_RESULT, index, doc_id), value.ciphertext())
    about = info(Info.RESULT_KEY, index)
    return open_shared(reply, about, shared, value.ciphertext(), lp(index, doc_id))


class _Sealer:
    """Seals the results of a batch: those to one producer about one index share their key."""

    def __init__(self) -> None:
        self._seals: dict[tuple[bytes, str], SharedSeal] = {}

    def seal(self, value: bytes, answer: Answer) -> bytes:
        index = answer.result.index
        name = (answer.reply_key, index)
        seal = self._seals.get(name)
        if seal is None:
            public = decode_reply_key(answer.reply_key)
            seal = self._seals[name] = SharedSeal(public, info(Info.RESULT_KEY, index))
        sealed = SealedValue.of(
            seal.seal(value, lp(index, answer.result.id)),
            key_id=key_id(seal.public),
            suite=seal.public.suite,
            shared=seal.shared,
        )
        return encode(sealed)
