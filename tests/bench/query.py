"""`query`: how long a search takes and how many there are in a second.

Three parts, each with baselines in turns with ours:

vectors   the engine alone on 60,000 embeddings: CyborgDB on the same object store at equal recall,
          faiss IVFFlat in plaintext and in memory; one by one, in a batch, filtered, and cold
words     the engine alone on abstracts: keyword, BM25, hybrid; bm25s and faiss in plaintext
topics    through Kafka: a request that an idle process echoes is one bare round trip
"""

from __future__ import annotations

from pathlib import Path

from bench.query_topics import measure_topics
from bench.query_vectors import measure_vectors
from bench.query_words import measure_words
from bench.report import Report
from bench.stack import local_stack


async def run(home: Path | None) -> Report:
    """Run it on the stack of `home`, or on one of its own."""
    report = Report("query", settings={"top_k": 10, "workers": "1 of each"})
    async with local_stack(home) as folder:
        await measure_vectors(report, folder)
        await measure_words(report, folder)
        await measure_topics(report, folder)
    return report
