"""Keyword, BM25 and hybrid queries: the engine alone against plaintext in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.children import ColdTask, ask
from bench.data import Collection, abstracts
from bench.engine import Keys, Reading, Writing, parse
from bench.measures import fuse
from bench.query_vectors import each, latency
from bench.report import Figure, Report
from bench.stack import progress
from bench.timing import Samples
from schemas.index import IndexConfig, fusion_depth
from workers.settings import load_settings
from workers.storage.open import open_store

K: Final = 10
KEYWORDS: Final = 100
COLD_ROUNDS: Final = 3
_BATCH: Final = 500


async def measure_words(report: Report, home: Path) -> None:
    """Add the figures of keyword, text and hybrid queries."""
    docs, settings = abstracts(), load_settings(home=home)
    report.data.append(docs.source)
    keys, config = Keys.make(), IndexConfig(dimension=docs.doc_vectors.shape[1])
    report.settings["text segments"] = await _write(home, keys, config, docs)
    reading = Reading(open_store(settings), keys, config)
    plain = await asyncio.to_thread(_Plain, docs)
    count = len(docs.queries)
    kinds = _queries(docs)
    for kind, queries in kinds.items():
        progress(f"{kind} queries")
        asked = [parse(query) for query in queries]
        for one in asked:
            await reading.answer(one, K)
        samples = await each(
            {
                "ours": lambda i, asked=asked: reading.answer(asked[i], K),
                "plaintext": lambda i, kind=kind: plain.answer(kind, i),
            },
            count,
        )
        detail = {"p99_ms": samples["ours"].p99 * 1000}
        against = _BASELINES[kind]
        report.figures.append(
            latency(f"{kind}, warm, p50", samples, "plaintext", "", None, detail, against)
        )
    for kind, queries in kinds.items():
        report.figures.append(await _cold(home, keys, config, kind, queries))


_BASELINES: Final = {
    "keyword": "dict",
    "text": "bm25s",
    "hybrid": "bm25s + numpy",
}


def _queries(docs: Collection) -> dict[str, list[dict[str, Any]]]:
    count = len(docs.queries)
    return {
        "keyword": [{"keyword": f"of-{number % KEYWORDS}"} for number in range(count)],
        "text": [{"text": text} for text in docs.queries],
        "hybrid": [
            {"hybrid": {"text": text, "vector": vector.tolist()}}
            for text, vector in zip(docs.queries, docs.query_vectors, strict=True)
        ],
    }


async def _write(home: Path, keys: Keys, config: IndexConfig, docs: Collection) -> int:
    progress(f"writing {len(docs.ids)} abstracts")
    writing = await Writing(open_store(load_settings(home=home)), keys, config).load()
    bodies = [
        {
            "id": doc_id,
            "text": {"body": text},
            "vector": vector.tolist(),
            "keywords": [f"of-{number % KEYWORDS}"],
        }
        for number, (doc_id, text, vector) in enumerate(
            zip(docs.ids, docs.texts, docs.doc_vectors, strict=True)
        )
    ]
    for start in range(0, len(bodies), _BATCH):
        await writing.write(bodies[start : start + _BATCH])
        await writing.settle()
    return writing.segments


class _Plain:
    """The same answers from plaintext in memory, by the usual libraries."""

    def __init__(self, docs: Collection) -> None:
        import bm25s
        import snowballstemmer

        stemmer = snowballstemmer.stemmer("english")
        options: dict[str, Any] = {
            "stopwords": "en",
            "stemmer": lambda words: stemmer.stemWords(words),
            "show_progress": False,
        }
        self._tokenize = lambda text: bm25s.tokenize([text], return_ids=False, **options)
        self._bm25 = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        self._bm25.index(bm25s.tokenize(docs.texts, **options), show_progress=False)
        self._docs = docs
        self._ids = np.array(docs.ids)
        self._words = {f"of-{number}": docs.ids[number::KEYWORDS] for number in range(KEYWORDS)}

    def answer(self, kind: str, number: int) -> list[str]:
        """Answer query `number`."""
        if kind == "keyword":
            return self._words[f"of-{number % KEYWORDS}"][:K]
        if kind == "text":
            return self._text(number, K)
        depth = fusion_depth(K)
        scores = self._docs.doc_vectors @ self._docs.query_vectors[number]
        best = np.argpartition(-scores, depth)[:depth]
        near = self._ids[best[np.argsort(-scores[best])]].tolist()
        return fuse([self._text(number, depth), near])[:K]

    def _text(self, number: int, k: int) -> list[str]:
        words = self._tokenize(self._docs.queries[number])
        rows, _ = self._bm25.retrieve(words, k=k, show_progress=False)
        return [str(one) for one in self._ids[rows[0]]]


async def _cold(
    home: Path, keys: Keys, config: IndexConfig, kind: str, queries: list[dict[str, Any]]
) -> Figure:
    """First queries of fresh processes. There is no plaintext peer that reads from S3."""
    progress(f"cold {kind} queries")
    samples, cost = Samples(), {}
    for turn in range(COLD_ROUNDS):
        answer = await ask(ColdTask(home, keys, config, queries[turn]))
        samples.seconds.append(answer["ms"] / 1000)
        cost = {"gets": answer["gets"], "MB": round(answer["bytes"] / 1e6, 2)}
    spread = (min(samples.seconds) * 1000, max(samples.seconds) * 1000)
    return Figure(f"{kind}, cold", samples.median * 1000, "ms", spread, detail=cost)
