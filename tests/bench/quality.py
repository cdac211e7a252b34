"""`quality`: is what comes out of the topics as good as plaintext search?

Vaswani and Cranfield go through plaintext-ingest, the queries through query-request. The baselines
see the plaintext: bm25s (Lucene form, k1 1.2, b 0.75, English stemmer, its stop words), exact dense
search in numpy, and their fusion by reciprocal ranks of the top 100 (depth 10 * k for MAP).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np

from bench.data import Collection, collection, exact
from bench.measures import average_precision, fuse, ndcg
from bench.report import Figure, Report
from bench.stack import local_stack, progress
from schemas.index import fusion_depth
from workers.client import Client
from workers.errors import Retry

TOP: Final = 10
DEEP: Final = 1000
WITHIN: Final = 0.005
_AT_ONCE: Final = 8
_ATTEMPTS: Final = 5

Ranking = Sequence[Sequence[str]]


async def run(home: Path | None) -> Report:
    """Run it on the stack of `home`, or on one of its own."""
    report = Report("quality", settings={"top_k": TOP, "map_depth": DEEP, "relevance": "binary"})
    found = [one for name in ("vaswani", "cranfield") if (one := collection(name)) is not None]
    if not found:
        report.notes.append("no shared data, and judgements cannot be made up: nothing measured")
        return report
    async with local_stack(home) as folder, Client(home=folder, protection="sealed") as client:
        for one in found:
            report.data.append(one.source)
            ours = await _through_topics(client, one)
            progress(f"{one.name}: plaintext baselines")
            plain = await asyncio.to_thread(_plaintext, one)
            report.figures += _figures(one, ours, plain)
    return report


async def _through_topics(client: Client, one: Collection) -> dict[tuple[str, int], Ranking]:
    index = f"bench/{one.name}-{uuid4().hex[:8]}"
    await client.create_index(index, dimension=one.doc_vectors.shape[1])
    progress(f"{one.name}: ingesting {len(one.ids)} documents")
    operations = (
        {"index": index, "id": doc_id, "text": {"body": text}, "vector": vector}
        for doc_id, text, vector in zip(one.ids, one.texts, one.doc_vectors, strict=True)
    )
    last = None
    async for result in client.ingest_many(operations):
        if result.error is not None:
            raise RuntimeError(f"refused: {result.error.code.value} {result.error.message}")
        last = result
    after = [] if last is None else [last]
    progress(f"{one.name}: querying")
    rankings: dict[tuple[str, int], Ranking] = {}
    for kind, make in _QUERIES.items():
        for depth in (TOP, DEEP):

            async def ask(number: int, make: Any = make, depth: int = depth) -> list[str]:
                query = make(one, number)
                for attempt in range(_ATTEMPTS):
                    try:
                        found = await client.query(
                            index, query, top_k=depth, after=after, timeout_s=60
                        )
                    except Retry as error:
                        progress(f"{one.name}: once more after {error}")
                        if attempt == _ATTEMPTS - 1:
                            raise
                    else:
                        break
                return [hit.id for hit in found.hits]

            rankings[kind, depth] = await _gather(ask, len(one.queries))
    return rankings


_QUERIES: Final[dict[str, Callable[[Collection, int], dict[str, Any]]]] = {
    "text": lambda one, i: {"text": one.queries[i]},
    "vector": lambda one, i: {"vector": one.query_vectors[i]},
    "hybrid": lambda one, i: {
        "hybrid": {"text": one.queries[i], "vector": one.query_vectors[i].tolist()}
    },
}


async def _gather(ask: Callable[[int], Awaitable[list[str]]], count: int) -> list[list[str]]:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def bounded(number: int) -> list[str]:
        async with limit:
            return await ask(number)

    return list(await asyncio.gather(*(bounded(number) for number in range(count))))


def _plaintext(one: Collection) -> dict[tuple[str, int], Ranking]:
    import bm25s
    import snowballstemmer

    stemmer = snowballstemmer.stemmer("english")
    options: dict[str, Any] = {
        "stopwords": "en",
        "stemmer": lambda words: stemmer.stemWords(words),
        "show_progress": False,
    }
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index(bm25s.tokenize(one.texts, **options), show_progress=False)
    depth = min(len(one.ids), fusion_depth(DEEP))
    words = bm25s.tokenize(one.queries, return_ids=False, **options)
    rows, scores = index.retrieve(words, k=depth, show_progress=False)
    # Documents that no word matches are no answer.
    texts = [
        [one.ids[row] for row in best[score > 0]] for best, score in zip(rows, scores, strict=True)
    ]
    near = exact(one.doc_vectors, one.query_vectors, depth)
    vectors = [[one.ids[row] for row in best] for best in near]
    found: dict[tuple[str, int], Ranking] = {}
    for k in (TOP, DEEP):
        found["text", k] = [ranked[:k] for ranked in texts]
        found["vector", k] = [ranked[:k] for ranked in vectors]
        found["hybrid", k] = [
            fuse([text[: fusion_depth(k)], vector[: fusion_depth(k)]])[:k]
            for text, vector in zip(texts, vectors, strict=True)
        ]
    return found


def _figures(
    one: Collection, ours: dict[tuple[str, int], Ranking], plain: dict[tuple[str, int], Ranking]
) -> list[Figure]:
    figures = []
    for kind in _QUERIES:
        for name, measure, depth in (("nDCG@10", ndcg, TOP), ("MAP", average_precision, DEEP)):
            value, baseline = (
                float(np.mean([measure(r, rel) for r, rel in zip(side, one.relevant, strict=True)]))
                for side in (ours[kind, depth], plain[kind, depth])
            )
            figures.append(
                Figure(
                    name=f"{one.name} {kind} {name}",
                    value=value,
                    unit="",
                    against="plaintext",
                    baseline=baseline,
                    ratio=value / baseline,
                    target=f">= plaintext - {WITHIN}",
                    met=value >= baseline - WITHIN,
                )
            )
    return figures
