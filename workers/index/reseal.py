"""Bring what is sealed inside of rows to the present key generation, with the key service's help.

An index worker carries access records and words that it cannot open. When it rewrites a segment
under another generation, the key service seals them anew (`workers.objects.reseal`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from schemas.errors import ErrorCode
from workers.chain.rows import Rows
from workers.errors import Damaged, Retry
from workers.leases.holder import LeaseHolder
from workers.leases.lease import Lease
from workers.objects.pack import ObjectPointer, decode_pointer, encode_pointer
from workers.objects.reseal import (
    MAX_RECORDS,
    Resealed,
    Wanted,
    WantedRecord,
    decode_job,
    drop_jobs,
    read_job,
    write_job,
)
from workers.storage.store import Store


@dataclass(frozen=True, slots=True)
class _Old:
    """A row whose access record is of an earlier generation."""

    row: int
    pack: int
    pointer: ObjectPointer


class Resealer:
    """As `workers.chain.compactor.Reseal`."""

    def __init__(self, holder: LeaseHolder, store: Store, lease: Callable[[], Lease]) -> None:
        """Prepare; `lease` returns the present lease of the index."""
        self._holder = holder
        self._store = store
        self._lease = lease

    async def __call__(self, rows: Rows, generation: int) -> None:
        """Replace the access records, pack keys and words in `rows`.

        Args:
            rows: of a segment that is not written yet.
            generation: the present key generation.

        Raises:
            Retry: KEY_UNAVAILABLE, STORAGE_UNAVAILABLE. Damaged: something does not open.
        """
        old = await asyncio.to_thread(_old_rows, rows, generation)
        kept = rows.packs
        packs: list[bytes] = []
        words: list[bytes] = []
        chunks = list(_chunks(old))
        for number, chunk in enumerate(chunks or [[]]):
            # The words of a segment are few and large: they go with the first job.
            vocabulary = rows.vocabulary if number == 0 else []
            if not chunk and not vocabulary:
                continue
            used = sorted({one.pack for one in chunk})
            where = {pack: place for place, pack in enumerate(used)}
            wanted = Wanted(
                [kept[pack] for pack in used],
                [
                    WantedRecord(
                        one.pointer.object_id,
                        one.pointer.sha256,
                        one.pointer.access,
                        where[one.pack],
                    )
                    for one in chunk
                ],
                vocabulary,
            )
            done = await self._ask(wanted, generation)
            for one, record in zip(chunk, done.records, strict=True):
                pointer = msgspec.structs.replace(one.pointer, generation=generation, access=record)
                rows.objects[one.row] = encode_pointer(pointer)
                rows.pack[one.row] = -2 - len(packs) - where[one.pack]
            packs += done.pack_keys
            words += done.vocabulary
        rows.vocabulary = words
        _renumber(rows, kept, packs)

    async def _ask(self, wanted: Wanted, generation: int) -> Resealed:
        lease = self._lease()
        job = await write_job(self._store, lease.uid, msgspec.msgpack.encode(wanted))
        answer, sealed_for = await self._holder.reseal(lease, job)
        if sealed_for != generation:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the key generation changed meanwhile")
        done = decode_job(await read_job(self._store, lease.uid, answer), Resealed)
        asked = (len(wanted.pack_keys), len(wanted.records), len(wanted.vocabulary))
        if (len(done.pack_keys), len(done.records), len(done.vocabulary)) != asked:
            raise Damaged(ErrorCode.DAMAGED, "the key service answered another job")
        await drop_jobs(self._store, lease.uid, job, answer)
        return done


def _old_rows(rows: Rows, generation: int) -> list[_Old]:
    found = []
    for row, encoded in enumerate(rows.objects):
        if encoded:
            pointer = decode_pointer(encoded)
            if pointer.generation < generation:
                found.append(_Old(row, int(rows.pack[row]), pointer))
    # Records of one pack together: its key is sealed once for all of them.
    found.sort(key=lambda one: one.pack)
    return found


def _chunks(old: Sequence[_Old]) -> Iterator[list[_Old]]:
    for start in range(0, len(old), MAX_RECORDS):
        yield list(old[start : start + MAX_RECORDS])


def _renumber(rows: Rows, kept: list[bytes], packs: list[bytes]) -> None:
    """Put old and new pack keys into one list; new ones are marked -2 - number until here."""
    used = sorted(set(rows.pack[rows.pack >= 0].tolist()))
    place = {pack: number for number, pack in enumerate(used)}
    rows.packs = [*(kept[pack] for pack in used), *packs]
    rows.pack = np.array(
        [
            -1 if pack == -1 else place[pack] if pack >= 0 else len(used) - 2 - pack
            for pack in rows.pack.tolist()
        ],
        np.int32,
    )
