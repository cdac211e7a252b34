"""Finding the nodes of chains in all live segments: two parallel round trips, no pointer chasing.

1. Labels are derived for all segments at once; the buckets they fall into are read in parallel,
   and with them the large nodes of segments that have few.
2. Other large nodes are read in parallel. On padded segments a chain without a node costs a dummy
   read here (strict: also one whose node was small), so that the requests tell less; which large
   node serves as dummy depends on the label only.

What was found, also "nothing", is cached per (segment, chain).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from workers.chain.buckets import Bucket, Found, bucket_of
from workers.chain.faults import damaged
from workers.chain.kinds import NodeKind
from workers.chain.padding import unpad
from workers.chain.seals import SegmentSeals
from workers.chain.segment_file import THREAD_BYTES, ReadStats, SegmentFile, gather_all
from workers.errors import Damaged
from workers.storage.cache import BlockCache

T = TypeVar("T")

Request = tuple[NodeKind, bytes]
"""A chain: its kind and its token (32 bytes)."""

Nodes = dict[Request, list[tuple[int, bytes]]]


class _Probe(NamedTuple):
    """One chain in one segment."""

    segment: int
    request: Request
    label: bytes
    key: bytes


_Slot = tuple[_Probe, Found | None]


async def look_up(
    files: Sequence[SegmentFile],
    cache: BlockCache | None,
    requests: Sequence[Request],
    only: Mapping[Request, Collection[int]] | None,
    stats: ReadStats,
) -> Nodes:
    """Return the nodes of `requests`; see `Snapshot.lookup`."""
    found: dict[Request, dict[int, bytes]] = {request: {} for request in requests}
    probes: list[_Probe] = []
    seals: dict[int, SegmentSeals] = {}
    for segment, file in enumerate(files):
        sealer = seals[segment] = file.seals()
        for request in found:
            if only is not None and request in only and segment not in only[request]:
                continue
            hit = cache.peek(_node_id(file, request)) if cache is not None else None
            if hit is not None:
                stats.cache_hits += 1
                if hit:
                    found[request][segment] = hit
                continue
            probes.append(_Probe(segment, request, *sealer.label_and_key(*request)))
    slots, kept = await _read_buckets(files, probes, stats)
    await _read_nodes(files, seals, cache, slots, kept, found, stats)
    return {
        request: [(segment, nodes[segment]) for segment in sorted(nodes)]
        for request, nodes in found.items()
    }


def _node_id(file: SegmentFile, request: Request) -> tuple[str, int, int]:
    # The token as a number fills the slot that a range's start has for other entries.
    return (f"{file.key}#node", int.from_bytes(request[1], "big"), request[0])


async def _read_buckets(
    files: Sequence[SegmentFile], probes: Sequence[_Probe], stats: ReadStats
) -> tuple[list[_Slot], set[int]]:
    """Return where each node is, and the segments whose large nodes were in the cache before."""
    places = [
        (probe.segment, bucket_of(probe.label, files[probe.segment].ref.bucket_bits))
        for probe in probes
    ]
    distinct = sorted(set(places))
    segments = sorted({i for i, _ in distinct})
    # The directories come along: whoever finds rows will read them.
    blocks, _, before = await asyncio.gather(
        _lot(lambda: [files[i].bucket(number, stats) for i, number in distinct]),
        _lot(lambda: [files[i].directory(stats) for i in segments]),
        _lot(lambda: [files[i].large_nodes(stats) for i in segments]),
    )
    buckets = {place: Bucket(block) for place, block in zip(distinct, blocks, strict=True)}
    slots = [
        (probe, buckets[place].find(probe.label))
        for probe, place in zip(probes, places, strict=True)
    ]
    return slots, {segment for segment, kept in zip(segments, before, strict=True) if kept}


async def _lot(make: Callable[[], Sequence[Coroutine[Any, Any, T]]]) -> list[T]:
    """Make coroutines and await them: none is made if this is cancelled before it begins."""
    return await gather_all(make())


async def _read_nodes(
    files: Sequence[SegmentFile],
    seals: Mapping[int, SegmentSeals],
    cache: BlockCache | None,
    slots: Sequence[_Slot],
    kept: Collection[int],
    found: dict[Request, dict[int, bytes]],
    stats: ReadStats,
) -> None:
    """Add nodes to `found`. `kept`: the segments whose large nodes were in the cache before."""
    large = [(probe, slot) for probe, slot in slots if slot is not None and not slot.node]
    dummies = [probe for probe, slot in slots if _wants_dummy(files[probe.segment], slot)]
    blobs, _ = await asyncio.gather(
        _lot(lambda: [files[p.segment].read(s.place, s.length, stats) for p, s in large]),
        _lot(lambda: [_dummy_read(files[p.segment], p.label, stats) for p in dummies]),
    )
    sealed = [(probe, slot, slot.node) for probe, slot in slots if slot is not None and slot.node]
    sealed += [(probe, slot, blob) for (probe, slot), blob in zip(large, blobs, strict=True)]

    def open_all() -> list[bytes | Damaged]:
        return [
            _open(seals[probe.segment], probe, blob, padded=not slot.node)
            for probe, slot, blob in sealed
        ]

    heavy = sum(len(blob) for _, _, blob in sealed) >= THREAD_BYTES
    payloads = await asyncio.to_thread(open_all) if heavy else open_all()
    wrong: list[tuple[_Slot, Damaged]] = []
    for (probe, slot, _), payload in zip(sealed, payloads, strict=True):
        if isinstance(payload, Damaged):
            wrong.append(((probe, slot), payload))
            continue
        found[probe.request][probe.segment] = payload
        if cache is not None and payload:
            cache.put(_node_id(files[probe.segment], probe.request), payload)
    if cache is not None:
        for probe in (probe for probe, slot in slots if slot is None):
            cache.put(_node_id(files[probe.segment], probe.request), b"")
    if wrong:
        # Large nodes that were read together are cached as they came: not what is wrong with them.
        segments = {probe.segment for (probe, _), _ in wrong}
        for segment in segments:
            files[segment].forget_large_nodes()
        if not segments.issubset(kept):
            raise wrong[0][1]
        # They may have been mended since: damage is told of what has just come from the store.
        await _read_nodes(files, seals, cache, [slot for slot, _ in wrong], (), found, stats)


def _open(seals: SegmentSeals, probe: _Probe, blob: bytes, *, padded: bool) -> bytes | Damaged:
    try:
        payload = seals.open_node(probe.request[0], probe.label, probe.key, blob)
        return unpad(payload) if padded else payload
    except Damaged as exc:
        return exc
    except ValueError:
        return damaged("a node has no valid frame")


def _wants_dummy(file: SegmentFile, slot: Found | None) -> bool:
    if file.padding == "off" or not file.ref.buckets_at:
        return False
    return slot is None or (file.padding == "strict" and bool(slot.node))


async def _dummy_read(file: SegmentFile, label: bytes, stats: ReadStats) -> None:
    """Read a large node chosen by the label, so that asking twice looks alike."""
    lengths = np.frombuffer((await file.directory(stats)).large, "<u4").astype(np.int64)
    chosen = int.from_bytes(label[4:12], "big") % len(lengths)
    stats.dummies += 1
    await file.read(int(lengths[:chosen].sum()), int(lengths[chosen]), stats)
