"""The data sets: real ones from a folder beside the checkout, else generated ones.

The folder is `$SEALSTREAM_SHARED/data`, else `../shared/data` beside the checkout. Each set says in
`source` what it is, and reports print that: figures of generated data do not compare with others.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.cli.corpus import stdlib_docstrings

F32 = npt.NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[2]


def folder() -> Path | None:
    """Return the folder of the real data sets, None if there is none."""
    named = os.environ.get("SEALSTREAM_SHARED")
    path = (Path(named) if named else ROOT.parent / "shared") / "data"
    return path if path.is_dir() else None


@dataclass(frozen=True, slots=True)
class Mails:
    """Texts to ingest: (id, subject, text)."""

    source: str
    mails: list[tuple[str, str, str]]

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of subjects and texts."""
        return sum(len(s.encode()) + len(t.encode()) for _, s, t in self.mails)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings, L2-normalised: float32 `(n, d)`, `(q, d)`; true neighbours int64 `(q, k)`."""

    source: str
    base: F32
    queries: F32
    truth: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Collection:
    """A test collection: documents, queries, judgements, and embeddings of both."""

    name: str
    source: str
    ids: list[str]
    texts: list[str]
    queries: list[str]
    relevant: list[set[str]]
    doc_vectors: F32
    query_vectors: F32


def enron(limit: int | None = None) -> Mails:
    """Return the Enron mails, or docstrings of the standard library."""
    root = folder()
    if root is None:
        docs = stdlib_docstrings(limit or 5000)
        texts = [(doc.id, doc.id, doc.text) for doc in docs]
        return Mails(f"{len(texts)} docstrings of the standard library (no shared data)", texts)
    rows = _lines(root / "enron" / "mails.jsonl")[:limit]
    mails = [(row["id"], row["subject"], row["text"]) for row in rows]
    return Mails(f"Enron-Spam enron1, {len(mails)} mails", mails)


@cache
def minilm(limit: int = 60_000) -> Vectors:
    """Return 60,000 MiniLM embeddings with held-out queries, or generated clusters of vectors."""
    root = folder()
    if root is None:
        return _generated(limit, 384)
    base = np.load(root / "minilm" / "base.f16.npy")[:limit].astype(np.float32)
    queries = np.load(root / "minilm" / "queries.f32.npy")
    truth = np.load(root / "minilm" / "groundtruth100.i32.npy").astype(np.int64)
    if len(base) < 60_000:
        truth = exact(base, queries, 100)
    return Vectors(
        f"MiniLM, {len(base)} x 384 float32, {len(queries)} queries", base, queries, truth
    )


def collection(name: str) -> Collection | None:
    """Return `vaswani` or `cranfield`; None without the shared data: judgements can't be made up.

    A Cranfield document is its title and its abstract (which begins with the title again), as in
    the figures it is compared with. Grades above 0 count as relevant.
    """
    root = folder()
    if root is None:
        return None
    base = root / name
    docs, queries = _lines(base / "docs.jsonl"), _lines(base / "queries.jsonl")
    relevant: dict[str, set[str]] = defaultdict(set)
    for line in (base / "qrels.tsv").read_text(encoding="utf-8").splitlines():
        query, doc, grade = line.split("\t")
        if int(grade) > 0:
            relevant[query].add(doc)
    texts = [f"{d['title']} {d['text']}" if "title" in d else d["text"] for d in docs]
    return Collection(
        name=name,
        source=f"{name}: {len(docs)} documents, {len(queries)} queries",
        ids=[doc["id"] for doc in docs],
        texts=texts,
        queries=[query["text"] for query in queries],
        relevant=[relevant[query["id"]] for query in queries],
        doc_vectors=np.load(base / "docs.minilm.f16.npy").astype(np.float32),
        query_vectors=np.load(base / "queries.minilm.f16.npy").astype(np.float32),
    )


def abstracts() -> Collection:
    """Return Vaswani, or docstrings with generated vectors: texts to search, not to judge."""
    found = collection("vaswani")
    if found is not None:
        return found
    docs = stdlib_docstrings(5000)
    vectors = _generated(len(docs), 384)
    queries = [doc.text.split(".")[0][:200] for doc in docs[::50]]
    return Collection(
        name="docstrings",
        source=f"{len(docs)} docstrings of the standard library, generated vectors",
        ids=[doc.id for doc in docs],
        texts=[doc.text for doc in docs],
        queries=queries,
        relevant=[set() for _ in queries],
        doc_vectors=vectors.base,
        query_vectors=vectors.queries[: len(queries)],
    )


def exact(base: F32, queries: F32, k: int) -> npt.NDArray[np.int64]:
    """Return the `k` best rows of each query by inner product, ties by row: int64 `(q, k)`."""
    return np.argsort(-(queries @ base.T), axis=1, kind="stable")[:, :k].astype(np.int64)


def _generated(count: int, dimension: int) -> Vectors:
    random = np.random.default_rng(7)
    centres = random.standard_normal((count // 100, dimension)).astype(np.float32)

    def draw(n: int) -> F32:
        points = centres[random.integers(0, len(centres), n)]
        points = points + 0.7 * random.standard_normal((n, dimension)).astype(np.float32)
        return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32)

    base, queries = draw(count), draw(500)
    source = f"generated clusters, {count} x {dimension} float32 (no shared data)"
    return Vectors(source, base, queries, exact(base, queries, 100))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
