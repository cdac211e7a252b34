"""Prove that broker and store hold no plaintext: plant random canaries and look for them.

A canary is searched in every form in which a careless program would write it: raw, hex, and base64
at each of its three alignments; a vector also as float32, float16 and decimal digits. What is found
is a leak; that nothing is found proves something only because the canaries are random and were
searched in what was really written.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from workers.kafka.broker import TP, Broker, Record
from workers.storage.store import Store

CANARY_BYTES = 16
_POLL_S = 0.2
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Canary:
    """Something secret and random.

    Attributes:
        name: where it was planted, e.g. `keyword`.
        patterns: byte strings that give it away.
    """

    name: str
    patterns: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Leak:
    """A canary that was found: its name, and the place in words."""

    canary: str
    place: str


@dataclass(slots=True)
class Scan:
    """What was looked at and what was found."""

    things: int = 0
    size_bytes: int = 0
    leaks: list[Leak] = field(default_factory=list)

    def look(self, canaries: Sequence[Canary], place: str, *parts: bytes | None) -> None:
        """Search one record, object or file."""
        self.things += 1
        for part in parts:
            if not part:
                continue
            self.size_bytes += len(part)
            self.leaks += [
                Leak(canary.name, place)
                for canary in canaries
                if any(pattern in part for pattern in canary.patterns)
            ]

    @property
    def found(self) -> set[str]:
        """Names of the canaries that were found."""
        return {leak.canary for leak in self.leaks}


def random_text() -> str:
    """Return 16 random bytes as hex digits, to plant in an id, a keyword or a text."""
    return os.urandom(CANARY_BYTES).hex()


def text_canary(name: str, text: str) -> Canary:
    """Return the canary of a planted text of `random_text`."""
    return Canary(name, (*_forms(text.encode()), *_forms(bytes.fromhex(text))))


def vector_canary(name: str, vector: npt.NDArray[np.float32]) -> Canary:
    """Return the canary of a planted random vector `(d,)`, d >= 8, by its first 8 numbers.

    The vector is also searched as it is after normalisation, which cosine indexes store.
    """
    patterns: list[bytes] = []
    unit = vector / np.linalg.norm(vector)
    for values in (vector, unit):
        for width in ("<f4", "<f2"):
            patterns += _forms(values[:8].astype(width).tobytes())
        # As it comes back from where it was stored as float16.
        patterns += _forms(values[:8].astype("<f2").astype("<f4").tobytes())
    patterns += [repr(float(value)).encode() for value in vector[:2]]
    return Canary(name, tuple(patterns))


async def scan_topics(broker: Broker, topics: Iterable[str], canaries: Sequence[Canary]) -> Scan:
    """Read topics from their beginning to their present end: keys, values and headers.

    Args:
        broker: where they are.
        topics: names with prefix; those that do not exist are left out.
        canaries: what to look for.
    """
    scan = Scan()
    sources = [
        TP(topic, partition)
        for topic in topics
        for partition in range(await broker.partitions(topic))
    ]
    reader = broker.topic_reader(sources, start="beginning")
    await reader.start()

    async def follow() -> None:
        while True:
            for record in await reader.next(_POLL_S):
                _look_at(record, canaries, scan)

    following = asyncio.create_task(follow(), name="canary-scan")
    try:
        await reader.caught_up()
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await reader.stop()
    return scan


async def scan_store(store: Store, canaries: Sequence[Canary]) -> Scan:
    """Read every object of a store: its key and its bytes."""
    scan = Scan()
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(key: str) -> None:
        async with limit:
            data = (await store.get(key)).data
        await asyncio.to_thread(scan.look, canaries, f"object {key}", key.encode(), data)

    keys = [info.key async for info in store.list("")]
    await asyncio.gather(*(one(key) for key in keys))
    return scan


def _look_at(record: Record, canaries: Sequence[Canary], scan: Scan) -> None:
    headers = [part for name, value in record.headers for part in (name.encode(), value)]
    place = f"{record.topic}/{record.partition}@{record.offset}"
    scan.look(canaries, place, record.key, record.value, *headers)


def _forms(data: bytes) -> tuple[bytes, ...]:
    """Return the encodings of `data` that may stand inside something longer."""
    forms = [data, data.hex().encode(), data.hex().upper().encode()]
    for lead in range(3):
        # Of a base64 text only the characters that depend on `data` alone can be searched.
        text = base64.b64encode(bytes(lead) + data)
        first, last = (0, 2, 3)[lead], len(data) + lead
        inner = text[first : last * 4 // 3]
        forms += [inner, inner.translate(bytes.maketrans(b"+/", b"-_"))]
    return tuple(dict.fromkeys(forms))
