"""Read what a hit shows besides its id and score, for the hits that are shown.

Nothing is read for a candidate that the caller may not read.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.query import Include
from workers.chain.segment_file import gather_all
from workers.search.filter import decode_metadata
from workers.search.run import Candidate
from workers.search.snapshot import IndexSnapshot, ShardSnapshot

_OBJECT = frozenset({Include.CONTENT, Include.ASSOCIATED_DATA, Include.GROUPS})


@dataclass(frozen=True, slots=True)
class Shown:
    """What was read for one candidate; None where it was not asked for or there is none.

    Attributes:
        version: of the document, 0 where unknown.
        metadata: as ingested.
        vector: float16 or float32 `(d,)`, as stored.
        pointer: encoded object pointer (`workers.objects.pack`), b"" for no content.
        pack: wrapped key of the pack that the pointer names, b"" for none.
        groups: group tokens of the access list; () where they were not asked for.
    """

    version: int = 0
    metadata: dict[str, Any] | None = None
    vector: npt.NDArray[Any] | None = None
    pointer: bytes = b""
    pack: bytes = b""
    groups: tuple[bytes, ...] = ()


async def hydrate(
    snapshot: IndexSnapshot, candidates: Sequence[Candidate], include: Collection[Include]
) -> list[Shown]:
    """Read what `include` asks for; one entry for each candidate, in order.

    Object pointers are read for content, associated data and groups: all three stand in what the
    pointer leads to.
    """
    by_segment: dict[tuple[int, int], list[int]] = {}
    for index, one in enumerate(candidates):
        if not one.denied and one.document:
            by_segment.setdefault((one.shard, one.segment), []).append(index)
    groups = list(by_segment.items())
    wanted = frozenset(include)
    found = await gather_all(
        [
            _read(
                snapshot.shards[shard],
                segment,
                np.array([candidates[i].row for i in chosen], dtype=np.int64),
                wanted,
            )
            for (shard, segment), chosen in groups
        ]
    )
    out = [Shown()] * len(candidates)
    for (_, chosen), shown in zip(groups, found, strict=True):
        for index, read in zip(chosen, shown, strict=True):
            out[index] = read
    return out


async def _read(
    shard: ShardSnapshot, segment: int, rows: npt.NDArray[np.int64], wanted: frozenset[Include]
) -> list[Shown]:
    metadata: list[dict[str, Any] | None] = [None] * rows.size
    vectors: dict[int, npt.NDArray[Any]] = {}
    objects: list[tuple[bytes, bytes]] = [(b"", b"")] * rows.size
    groups: list[tuple[bytes, ...]] = [()] * rows.size
    versions: list[int] = [0] * rows.size

    async def read_metadata() -> None:
        metadata[:] = [decode_metadata(one) for one in await shard.metadata(segment, rows)]

    async def read_vectors() -> None:
        having, values = await shard.vectors(segment, rows)
        vectors.update(zip(having.tolist(), values, strict=True))

    async def read_objects() -> None:
        objects[:] = await shard.objects(segment, rows)
        if Include.GROUPS in wanted:
            # Not at the same time: both read the same column.
            groups[:] = await shard.groups(segment, rows)

    async def read_versions() -> None:
        versions[:] = (await shard.origins(segment, rows))["version"].tolist()

    reads: list[Coroutine[Any, Any, None]] = []
    if Include.METADATA in wanted:
        reads.append(read_metadata())
    if Include.VECTOR in wanted:
        reads.append(read_vectors())
    if wanted & _OBJECT:
        reads += [read_objects(), read_versions()]
    await gather_all(reads)
    return [
        Shown(
            version=versions[i],
            metadata=metadata[i],
            vector=vectors.get(row),
            pointer=objects[i][0],
            pack=objects[i][1],
            groups=groups[i],
        )
        for i, row in enumerate(rows.tolist())
    ]
