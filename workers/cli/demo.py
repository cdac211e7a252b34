"""`sealstream demo`: the whole story on this machine, then everything stopped again."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from schemas.errors import ErrorCode
from schemas.query import Hit
from schemas.topics import ALL_TOPICS, with_prefix
from workers.cli.common import OK, REFUSED, complain, fail, say, say_table
from workers.cli.corpus import Docstring, stdlib_docstrings
from workers.client import Client
from workers.client.embedder import Embedder, WordLlamaEmbedder
from workers.errors import Reject
from workers.kafka.open import open_broker
from workers.local.canary import (
    Canary,
    Scan,
    random_text,
    scan_store,
    scan_topics,
    text_canary,
    vector_canary,
)
from workers.local.control import start_detached, stop
from workers.settings import Settings, load_settings
from workers.storage.open import open_store

INDEX = "demo/docstrings"
_OWN_KEY_INDEX = "demo/own-key"
_RUNS = 5
_HEX_BYTES = 32


def demo(
    *,
    documents: int = 1500,
    home: Annotated[Path | None, Parameter(show_default=False)] = None,
) -> int:
    """Show Sealstream at work: start, ingest, search, prove, stop.

    Real servers and all workers run on this machine in a temporary folder. Docstrings of Python's
    standard library with their embeddings go in through Kafka and come back out of searches; then
    broker and store are searched for the plaintext, and a wrong key is tried. Nothing is left.

    Parameters
    ----------
    documents
        How many docstrings to ingest.
    home
        Keep the data in this folder (default: a temporary one, removed at the end).
    """
    folder = home.absolute() if home else Path(tempfile.mkdtemp(prefix="sealstream-demo-"))
    started_s = time.perf_counter()
    try:
        _title("Start S3, Kafka and the four kinds of workers")
        start_detached(folder, ["--home", str(folder)], lambda line: say(f"  {line}"))
        good = asyncio.run(_story(folder, documents))
    finally:
        _title("Stop everything")
        stop(folder)
        if home is None:
            shutil.rmtree(folder, ignore_errors=True)
        say(f"  stopped after {time.perf_counter() - started_s:.0f} s; nothing is left running")
    if not good:
        complain("the demo found something wrong: see above")
    return OK if good else REFUSED


async def _story(home: Path, documents: int) -> bool:
    # The environment may point to another deployment; the demo must only touch its own.
    settings = load_settings(environ={}, home=home)
    async with Client(settings) as client:
        embedder, docs = await _embed(documents)
        canaries = await _ingest(client, embedder, docs)
        await _search(client, embedder)
        await _worked_example(client)
        clean = await _look_for_plaintext(settings, canaries)
        refused = await _wrong_key(settings)
    return clean and refused


async def _embed(documents: int) -> tuple[Embedder, list[Docstring]]:
    try:
        embedder = await asyncio.to_thread(WordLlamaEmbedder)
    except ImportError:
        fail("the demo needs the extra `embed`: pip install 'sealstream[embed,local]'")
    docs = await asyncio.to_thread(stdlib_docstrings, documents)
    return embedder, docs


async def _ingest(
    client: Client, embedder: Embedder, docs: Sequence[Docstring]
) -> dict[str, Canary]:
    """Ingest the docstrings and one document full of canaries; return the canaries."""
    _title(f"Ingest {len(docs):,} docstrings of the standard library with their embeddings")
    began_s = time.perf_counter()
    vectors = await asyncio.to_thread(embedder.embed, [doc.text for doc in docs])
    say(f"  {len(docs):,} embeddings of {embedder.dimension} dimensions in {_since(began_s)}")
    await client.create_index(INDEX, dimension=embedder.dimension)
    secret = {name: random_text() for name in ("id", "content", "keyword", "metadata")}
    secret_vector = vectors[0] + vectors[-1] * 0.5
    operations: list[dict[str, Any]] = [
        {
            "index": INDEX,
            "id": doc.id,
            "content": doc.text,
            "keywords": [doc.module, doc.kind],
            "vector": vector,
            "metadata": {"module": doc.module, "kind": doc.kind, "lines": doc.lines},
        }
        for doc, vector in zip(docs, vectors, strict=True)
    ]
    operations.append(
        {
            "index": INDEX,
            "id": secret["id"],
            "content": f"A secret: {secret['content']}",
            "keywords": [secret["keyword"]],
            "vector": secret_vector,
            "metadata": {"note": secret["metadata"]},
        }
    )
    began_s = time.perf_counter()
    size = sum(len(doc.text) for doc in docs)
    rejected = 0
    async for result in client.ingest_many(operations, wait="searchable"):
        rejected += result.status == "rejected"
    took_s = time.perf_counter() - began_s
    say(
        f"  sealed, stored and searchable in {took_s:.1f} s:"
        f" {len(operations) / took_s:,.0f} documents/s, {size / took_s / 1e6:.1f} MB/s,"
        f" {rejected} rejected"
    )
    canaries = {name: text_canary(name, text) for name, text in secret.items()}
    return {**canaries, "vector": vector_canary("vector", secret_vector)}


async def _search(client: Client, embedder: Embedder) -> None:
    _title("Search it, sealed on the way in and out; times are through Kafka, median of 5")
    words = "read a file line by line"
    vector = (await asyncio.to_thread(embedder.embed, [words]))[0]
    searches: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("keyword", "tarfile", {"keyword": "tarfile"}, {"top_k": 3}),
        ("text (BM25)", words, {"text": words}, {}),
        ("phrase, -not", '"context manager" -async', _syntax('"context manager" -async'), {}),
        ("prefix*", "compress* file", _syntax("compress* file"), {}),
        ("vector", words, {"vector": vector}, {}),
        (
            "vector, filtered",
            f"{words} | lines < 4",
            {"vector": vector},
            {"filter": {"lines": {"$lt": 4}}},
        ),
        ("hybrid", words, {"hybrid": {"text": words, "vector": _json(vector)}}, {}),
        (
            "filter, ordered",
            "module = json, most lines first",
            {"filter_only": True, "order_by": "lines", "ascending": False},
            {"filter": {"module": "json"}},
        ),
        ("count", "kind = class", {"count": True}, {"filter": {"kind": "class"}}),
        ("content", "the best hit's text", {"text": words}, {"include": ["content"], "top_k": 1}),
    ]
    rows = []
    for kind, what, query, options in searches:
        times = []
        for _ in range(_RUNS):
            began_s = time.perf_counter()
            result = await client.query(INDEX, query, **{"top_k": 3, **options})
            times.append((time.perf_counter() - began_s) * 1000)
        shown = f"{result.count:,}" if result.count is not None else _shown(result.hits)
        rows.append((kind, what, shown, f"{sorted(times)[_RUNS // 2]:.0f}", result.took_ms))
    say_table(("  kind", "query", "best hits", "ms", "in the worker"), rows)


async def _worked_example(client: Client) -> None:
    """Run the worked example of CYBERCRYPT D1's documentation."""
    _title("Add, Search, Delete of keyword/identifier pairs")
    index = "demo/pairs"
    await client.create_index(index)
    pairs = {
        "id1": ["keyword1", "keyword2", "keyword4"],
        "id2": ["keyword2", "keyword3", "keyword4"],
        "id3": ["keyword4"],
    }
    done = [await client.add_keywords(index, name, words) for name, words in pairs.items()]
    before = await client.search(index, keyword="keyword4", after=done)
    gone = await client.remove_keywords(index, "id1", ["keyword4"])
    after = await client.search(index, keyword="keyword4", after=[gone])
    say(f"  Search(keyword4) = {[hit.id for hit in before.hits]}")
    say(f"  after Delete(keyword4, id1): {[hit.id for hit in after.hits]}")


async def _look_for_plaintext(settings: Settings, canaries: dict[str, Canary]) -> bool:
    _title("What broker and store hold")
    store = open_store(settings, read_only=True)
    broker = open_broker(settings)
    try:
        infos = sorted([info async for info in store.list("")], key=lambda info: -info.size)
        for info in infos[:3]:
            say(f"  {info.size:>9,} B  {info.key}")
        data = await store.get_range(infos[0].key, infos[0].size // 2, _HEX_BYTES)
        say(f"  {_HEX_BYTES} bytes from the middle of the first: {data.hex(' ')}")
        looked_for = list(canaries.values())
        stored = await scan_store(store, looked_for)
        topics = [with_prefix(settings.topic_prefix, topic.name) for topic in ALL_TOPICS]
        sent = await scan_topics(broker, topics, looked_for)
    finally:
        await broker.aclose()
        await store.aclose()
    say(
        f"  random canaries in {', '.join(canaries)} were looked for, raw, as hex, base64,"
        " float32 and float16"
    )
    return all(
        [
            _verdict("objects of the bucket", stored),
            _verdict("records of the topics, with keys and headers", sent),
        ]
    )


def _verdict(what: str, scan: Scan) -> bool:
    found = ", ".join(sorted(scan.found)) or "none"
    say(f"  {scan.things:,} {what} ({scan.size_bytes / 1e6:.1f} MB): {found} found")
    for leak in scan.leaks:
        say(f"    LEAK: {leak.canary} in {leak.place}")
    return not scan.leaks


async def _wrong_key(settings: Settings) -> bool:
    _title("A wrong key is refused")
    key = os.urandom(32)
    async with Client(settings, index_key=key) as owner:
        await owner.create_index(_OWN_KEY_INDEX, kms={"provider": "none"})
        done = await owner.ingest(_OWN_KEY_INDEX, "1", content="for the owner's eyes only")
        found = await owner.search(_OWN_KEY_INDEX, "eyes", after=[done])
        say(f"  with the caller's own 32-byte key: {[hit.id for hit in found.hits]}")
    async with Client(settings, index_key=os.urandom(32)) as stranger:
        try:
            await stranger.search(_OWN_KEY_INDEX, "eyes")
        except Reject as refusal:
            say(f"  with another key: {refusal.code.value}: {refusal.message}")
            return refusal.code is ErrorCode.WRONG_KEY
    say("  with another key: it was answered")
    return False


def _syntax(text: str) -> dict[str, Any]:
    return {"text": text, "syntax": True, "operator": "and"}


def _json(vector: Any) -> dict[str, str]:
    from schemas.values import Vector

    return Vector.of(vector).to_json()


def _shown(hits: Sequence[Hit]) -> str:
    if hits and isinstance(hits[0].content, str):
        return f"{hits[0].id}: {' '.join(hits[0].content.split())[:60]}..."
    return ", ".join(hit.id for hit in hits) or "-"


def _since(began_s: float) -> str:
    return f"{time.perf_counter() - began_s:.1f} s"


def _title(text: str) -> None:
    say(f"\n{text}")
