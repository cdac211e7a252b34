"""Rankings on two public test collections, through the stored payloads, against bm25s' figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from workers.text.analyzer import get_analyzer
from workers.text.bm25 import FieldStats, score
from workers.text.columns import read_texts
from workers.text.lexicon import Lexicon
from workers.text.postings import TermColumns, build_terms, decode_terms
from workers.text.varint import decode_varints

DATA = Path(__file__).parents[4] / "shared" / "data"
K = 10


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def relevant(path: Path) -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        query, doc, grade = line.split("\t")
        if int(grade) > 0:
            out.setdefault(query, set()).add(doc)
    return out


def ndcg(ranked: list[str], wanted: set[str]) -> float:
    gain = sum(1 / math.log2(i + 2) for i, doc in enumerate(ranked[:K]) if doc in wanted)
    return gain / sum(1 / math.log2(i + 2) for i in range(min(K, len(wanted))))


@pytest.mark.parametrize(("name", "expected"), [("vaswani", 0.436), ("cranfield", 0.385)])
def test_ndcg_is_that_of_bm25s(name, expected):
    folder = DATA / name
    if not (folder / "docs.jsonl").exists():
        pytest.skip(f"the {name} collection is not in ../shared/data")
    english = get_analyzer("english")
    docs = lines(folder / "docs.jsonl")
    lexicon = Lexicon(english)
    columns = read_texts(lexicon, [f"{d.get('title', '')} {d['text']}" for d in docs])
    deltas, _ = decode_varints(columns.positions)
    found = build_terms(TermColumns(columns.terms, columns.texts, columns.tfs, deltas))
    by_term = {lexicon.term(number): payload for number, payload in zip(*found, strict=True)}
    lengths = columns.lengths.astype(np.uint32)
    stats = FieldStats(len(docs), int(lengths.sum()))
    wanted = relevant(folder / "qrels.tsv")
    found = []
    for query in lines(folder / "queries.jsonl"):
        if query["id"] not in wanted:
            continue
        scores = np.zeros(len(docs), dtype=np.float32)
        for term in english.tokens(query["text"]):
            if term in by_term:
                one = decode_terms(by_term[term])
                scores[one.rows] += score(one.tfs, lengths[one.rows], df=one.rows.size, stats=stats)
        best = np.lexsort((np.arange(len(docs)), -scores))[:K]
        found.append(ndcg([docs[i]["id"] for i in best], wanted[query["id"]]))
    assert np.mean(found) == pytest.approx(expected, abs=0.005)
