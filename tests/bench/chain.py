"""`chain`: the keyword index against D1's layout, on the same object store.

D1 keeps one object per node and walks a keyword's chain from its first node, to add as well as to
search. Ours writes a micro-batch as one segment and derives every label at once. Both sides run
here without broker and key service; D1's is our own small model of it (`d1.py`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from bench.d1 import D1Index
from bench.engine import Keys, Reading, Writing, parse
from bench.report import Figure, Report
from bench.stack import local_stack, progress
from bench.timing import Samples, alternate
from schemas.index import IndexConfig
from workers.settings import load_settings
from workers.storage.open import open_store
from workers.storage.store import Store

SIZES: Final = (1, 100, 1000, 10_000)
CHAIN: Final = 1000
"""Postings of each keyword when one is added."""
BATCH: Final = 500
KEYWORDS: Final = 20
ADD_ROUNDS: Final = 5
SEARCH_ROUNDS: Final = 5
_LOADERS: Final = 32


async def run(home: Path | None) -> Report:
    """Run it on the store of `home`'s stack, or on one of its own."""
    report = Report("chain", data=["made-up keywords and identifiers"])
    report.settings = {
        "identifiers per micro-batch": BATCH,
        "keywords per identifier": KEYWORDS,
        "padding": "standard",
        "rounds": SEARCH_ROUNDS,
    }
    async with local_stack(home, servers_only=True) as folder:
        settings = load_settings(home=folder)
        store, theirs = open_store(settings), open_store(settings)
        d1 = D1Index(theirs, f"bench-d1-{uuid4().hex[:8]}")
        await _adds(report, store, theirs, d1)
        await _searches(report, store, theirs, d1)
    return report


async def _adds(report: Report, store: Store, theirs: Store, d1: D1Index) -> None:
    """Measure adding to keywords that have `CHAIN` postings already."""
    progress(f"adding to chains of {CHAIN}")
    config = IndexConfig()
    writing = await Writing(store, Keys.make(), config).load()
    words = [f"word-{number}" for number in range(KEYWORDS)]
    for start in range(0, CHAIN, BATCH):
        await writing.write(_pairs(start, BATCH, words))
    await writing.settle()
    await _load(d1, {"word-0": CHAIN})
    number = CHAIN

    async def ours() -> None:
        nonlocal number
        await writing.write(_pairs(number, BATCH, words))
        number += BATCH
        await writing.settle()

    async def model() -> None:
        await d1.add("word-0", f"id-{number}")

    before, before_d1 = _requests(store), _requests(theirs)
    found = await alternate({"ours": ours, "d1": model}, ADD_ROUNDS, warm=0)
    value, spread = found["ours"].rates(BATCH * KEYWORDS)
    baseline, _ = found["d1"].rates(1)
    adds = ADD_ROUNDS * BATCH * KEYWORDS
    per_add = (_requests(store) - before) / adds
    per_add_d1 = (_requests(theirs) - before_d1) / ADD_ROUNDS
    report.figures += [
        Figure(
            f"adds at {CHAIN} postings per keyword, merges included",
            value,
            "postings/s",
            spread,
            "D1's layout",
            baseline,
            value / baseline,
            ">= 50x",
            value >= 50 * baseline,
        ),
        Figure(
            "S3 requests per posting added",
            per_add,
            "requests",
            None,
            "D1's layout",
            per_add_d1,
            per_add_d1 / per_add,
        ),
    ]


async def _searches(report: Report, store: Store, theirs: Store, d1: D1Index) -> None:
    """Measure searches, each by a reader that has nothing in memory."""
    config, keys = IndexConfig(), Keys.make()
    writing = await Writing(store, keys, config).load()
    progress("writing what is searched")
    largest = max(SIZES)
    for start in range(0, largest, BATCH):
        bodies = _pairs(start, BATCH, [])
        for number, body in enumerate(bodies, start):
            body["keywords"] = [f"of-{size}" for size in SIZES if number < size]
        await writing.write(bodies)
        await writing.settle()
    await _load(d1, {f"of-{size}": size for size in SIZES})
    report.settings["live segments searched"] = writing.segments
    for size in SIZES:
        progress(f"searching a keyword of {size} postings")
        query = parse({"keyword": f"of-{size}"})
        cost: dict[str, int] = {}

        async def ours(query: Any = query, size: int = size, cost: dict[str, int] = cost) -> float:
            reading = Reading(store, keys, config)
            counted = _Rounds(store)
            began = time.perf_counter()
            found = await reading.answer(query, top_k=None)
            took = time.perf_counter() - began
            if len(found.candidates) != size:
                raise RuntimeError(f"found {len(found.candidates)} of {size}")
            cost["gets"], cost["rounds"] = counted.gets, counted.rounds
            counted.close()
            return took

        async def model(size: int = size) -> None:
            if len(await d1.search(f"of-{size}")) != size:
                raise RuntimeError("the model lost a posting")

        rounds = 1 if size >= 10_000 else SEARCH_ROUNDS
        samples = await alternate({"ours": ours, "d1": model}, rounds, warm=0)
        for _ in range(SEARCH_ROUNDS - rounds):
            samples["ours"].seconds.append(await ours())
        report.figures += _search_figures(size, samples, cost, writing.segments)


def _search_figures(
    size: int, samples: dict[str, Samples], cost: dict[str, int], segments: int
) -> list[Figure]:
    ours, theirs = samples["ours"], samples["d1"]
    most = 2 + 1
    return [
        Figure(
            f"cold search, {size} postings",
            ours.median * 1000,
            "ms",
            (min(ours.seconds) * 1000, max(ours.seconds) * 1000),
            "D1's layout",
            theirs.median * 1000,
            theirs.median / ours.median,
        ),
        Figure(
            f"round trips, {size} postings",
            cost["rounds"],
            "rounds",
            None,
            "D1's layout",
            size,
            size / cost["rounds"],
            f"<= {most}" if size == max(SIZES) else "",
            cost["rounds"] <= most if size == max(SIZES) else None,
            {"gets": cost["gets"], "segments": segments},
        ),
        Figure(
            f"GETs, {size} postings",
            cost["gets"],
            "requests",
            None,
            "D1's layout",
            size,
            size / cost["gets"],
        ),
    ]


class _Rounds:
    """Counts the GETs of a store, and the rounds they came in: those under way together are one."""

    def __init__(self, store: Any) -> None:
        self.gets = self.rounds = 0
        self._running = 0
        self._store = store
        self._saved = {name: getattr(store, name) for name in ("get", "get_if_changed", "_span")}
        for name, method in self._saved.items():
            setattr(store, name, self._wrap(method))

    def close(self) -> None:
        """Count no more."""
        for name in self._saved:
            delattr(self._store, name)

    def _wrap(self, method: Any) -> Any:
        async def counted(*arguments: Any) -> Any:
            self.gets += 1
            self.rounds += self._running == 0
            self._running += 1
            try:
                return await method(*arguments)
            finally:
                self._running -= 1

        return counted


def _pairs(start: int, count: int, words: list[str]) -> list[dict[str, Any]]:
    return [
        {"op": "add_keywords", "id": f"id-{number}", "keywords": list(words)}
        for number in range(start, start + count)
    ]


async def _load(d1: D1Index, chains: dict[str, int]) -> None:
    """Write chains of D1's layout, in parallel: it is only preparation."""
    for word, size in chains.items():
        progress(f"D1's layout: writing a chain of {size}")
        await d1.load(word, [f"id-{number}" for number in range(size)], _LOADERS)


def _requests(store: Store) -> int:
    stats = store.stats
    return stats.gets + stats.puts + stats.deletes + stats.lists
