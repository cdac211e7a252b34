"""Ranking quality of whole queries over sealed segments: words, vectors, and both fused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from search_kit import Doc, make_index

from schemas.query import Hybrid, HybridQuery, TextQuery, VectorQuery
from schemas.values import Vector
from workers.search.execute import search

DATA = Path(__file__).parents[4] / "shared" / "data"
K = 10


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def ndcg(ranked: list[str], wanted: set[str]) -> float:
    gain = sum(1 / math.log2(i + 2) for i, doc in enumerate(ranked[:K]) if doc in wanted)
    return gain / sum(1 / math.log2(i + 2) for i in range(min(K, len(wanted))))


async def run(name: str) -> dict[str, float]:
    folder = DATA / name
    if not (folder / "docs.minilm.f16.npy").exists():
        pytest.skip(f"the {name} collection is not in ../shared/data")
    docs, queries = lines(folder / "docs.jsonl"), lines(folder / "queries.jsonl")
    vectors = np.load(folder / "docs.minilm.f16.npy").astype(np.float32)
    asked = np.load(folder / "queries.minilm.f16.npy").astype(np.float32)
    wanted: dict[str, set[str]] = {}
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines():
        query, doc, grade = line.split("\t")
        if int(grade) > 0:
            wanted.setdefault(query, set()).add(doc)
    index = await make_index(dimension=vectors.shape[1])
    made = [
        Doc(doc["id"], {"body": f"{doc.get('title', '')} {doc['text']}"}, vector=vectors[i])
        for i, doc in enumerate(docs)
    ]
    for start in range(0, len(made), 4_000):
        await index.write(*made[start : start + 4_000])
    if len(made) > 5_000:
        await index.train()
    context, snapshot = index.context(), await index.snapshot()
    found: dict[str, list[float]] = {"text": [], "vector": [], "hybrid": []}
    for query, values in zip(queries, asked, strict=True):
        if query["id"] not in wanted:
            continue
        vector = Vector(np.ascontiguousarray(values))
        kinds = {
            "text": TextQuery(text=query["text"]),
            "vector": VectorQuery(vector=vector, nprobe=16),
            "hybrid": HybridQuery(hybrid=Hybrid(text=query["text"], vector=vector)),
        }
        for kind, one in kinds.items():
            answer = await search(context, snapshot, one, top_k=K)
            found[kind].append(ndcg([c.id for c in answer.candidates], wanted[query["id"]]))
    return {kind: float(np.mean(values)) for kind, values in found.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cranfield", {"text": 0.385, "vector": 0.401, "hybrid": 0.435}),
        ("vaswani", {"text": 0.436, "vector": 0.437, "hybrid": 0.489}),
    ],
)
async def test_quality_is_that_of_plaintext_search(name, expected):
    assert await run(name) == pytest.approx(expected, abs=0.005)
