"""Moving access records and words from one key generation to the next.

An index worker rewrites segments under the new generation, but cannot open what is sealed to the
`object` and `query` keys. It writes a job object; the key service opens everything, seals it anew
and writes an answer object. Neither object holds anything in clear, and nothing in them can be
exchanged: every record opens only for its object, index, generation and content.

    job      <uid>/bodies/<uid>, msgpack `Wanted`
    answer   <uid>/bodies/<uid>, msgpack `Resealed`, in the same order

The object keys stay as they are, and so do the sealed contents; the pack keys are drawn anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.errors import OpenFailed
from workers.crypto.hpke import HpkePrivateKey
from workers.crypto.info import Info, info
from workers.crypto.secret import SecretBytes, random_secret
from workers.errors import Damaged
from workers.leases.request import Job
from workers.objects.pack import split_pack_key, wrap_pack_key
from workers.objects.record import AccessRecord, open_pack_key, open_record, seal_record
from workers.storage import layout
from workers.storage.errors import NotFound
from workers.storage.store import Store

MAX_RECORDS: Final = 4096
"""Records of one job: keeps the answer well within the time that is waited for it."""


class WantedRecord(msgspec.Struct, array_like=True, frozen=True):
    """An access record; `pack` is an index into `Wanted.pack_keys`."""

    object_id: bytes
    sealed_sha256: bytes
    record: bytes
    pack: int


class Wanted(msgspec.Struct, array_like=True, frozen=True):
    """A job: wrapped pack keys, the records under them, sealed vocabulary blocks."""

    pack_keys: list[bytes]
    records: list[WantedRecord]
    vocabulary: list[bytes]


class Resealed(msgspec.Struct, array_like=True, frozen=True):
    """The answer to a job, in its order."""

    pack_keys: list[bytes]
    records: list[bytes]
    vocabulary: list[bytes]


@dataclass(frozen=True, slots=True)
class ResealPairs:
    """The key pairs of an index by generation, and the generation to seal for."""

    objects: Mapping[int, HpkePrivateKey] = field(repr=False)
    queries: Mapping[int, HpkePrivateKey] = field(repr=False)
    generation: int


S = TypeVar("S", bound=msgspec.Struct)


def reseal(data: bytes, pairs: ResealPairs, index_uid: bytes) -> bytes:
    """Do a job; return the answer's bytes. Pure CPU, about 30 µs a record: for a thread.

    Raises:
        Damaged: the job is malformed, or something in it does not open.
    """
    wanted = decode_job(data, Wanted)
    opened: list[SecretBytes] = []
    fresh: list[SecretBytes] = []
    generations: list[int] = []
    wrapped: list[bytes] = []
    public = pairs.objects[pairs.generation].public
    try:
        for key in wanted.pack_keys:
            old = split_pack_key(key)
            private = pairs.objects.get(old.generation)
            if private is None:
                raise OpenFailed("a pack key of an unknown generation")
            opened.append(
                open_pack_key(
                    private,
                    old.sealed,
                    index_uid=index_uid,
                    generation=old.generation,
                    pack_uid=old.uid,
                )
            )
            generations.append(old.generation)
            fresh.append(random_secret())
            wrapped.append(wrap_pack_key(public, fresh[-1], index_uid, pairs.generation, old.uid))
        records = []
        for item in wanted.records:
            if not 0 <= item.pack < len(opened):
                raise OpenFailed("a record names no pack key")
            found = open_record(
                opened[item.pack],
                item.record,
                index_uid=index_uid,
                generation=generations[item.pack],
                object_id=item.object_id,
                content_sha256=item.sealed_sha256,
            )
            records.append(
                seal_record(
                    fresh[item.pack],
                    AccessRecord(found.object_key, found.groups, found.version),
                    index_uid=index_uid,
                    generation=pairs.generation,
                    object_id=item.object_id,
                    content_sha256=item.sealed_sha256,
                )
            )
        words = [_reseal_words(block, pairs, index_uid) for block in wanted.vocabulary]
    except OpenFailed as error:
        raise Damaged(
            ErrorCode.DAMAGED, "an access record or a list of words does not open: it stays"
        ) from error
    finally:
        for secret in (*opened, *fresh):
            secret.wipe()
    return msgspec.msgpack.encode(Resealed(wrapped, records, words))


def _reseal_words(block: bytes, pairs: ResealPairs, index_uid: bytes) -> bytes:
    about = info(Info.VOCABULARY, index_uid, pairs.generation)
    for generation in sorted(pairs.queries, reverse=True):
        try:
            words = pairs.queries[generation].open(
                info(Info.VOCABULARY, index_uid, generation), block
            )
        except OpenFailed:
            continue
        return pairs.queries[pairs.generation].public.seal(about, words)
    raise OpenFailed("a list of words opens under no generation")


def decode_job(data: bytes, kind: type[S]) -> S:
    """Decode a job or an answer. Raises Damaged."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise Damaged(ErrorCode.DAMAGED, "a job for the key service is malformed") from error


async def write_job(store: Store, index_uid: bytes, data: bytes) -> Job:
    """Store a job or an answer. Raises Retry."""
    job = Job(os.urandom(16), hashlib.sha256(data).digest())
    await store.create(layout.body(index_uid, job.uid), data)
    return job


async def read_job(store: Store, index_uid: bytes, job: Job) -> bytes:
    """Read a job or an answer.

    Raises:
        Damaged: it is gone, or another one. Retry: STORAGE_UNAVAILABLE.
    """
    try:
        data = (await store.get(layout.body(index_uid, job.uid))).data
    except NotFound as error:
        raise Damaged(ErrorCode.DAMAGED, "a job for the key service is gone") from error
    if hashlib.sha256(data).digest() != job.sha256:
        raise Damaged(ErrorCode.DAMAGED, "a job for the key service was exchanged")
    return data


async def drop_jobs(store: Store, index_uid: bytes, *jobs: Job) -> None:
    """Delete jobs and answers that are done with. Raises Retry."""
    await store.delete([layout.body(index_uid, job.uid) for job in jobs])
