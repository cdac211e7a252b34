"""Vectors for documents that have none, by the packaged model (`--embed`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workers.cli.common import USAGE, fail

if TYPE_CHECKING:
    from workers.cli.items import Block
    from workers.client.embedder import Embedder


def open_embedder() -> Embedder:
    """Return the packaged model, loaded.

    Raises:
        Exit: it is not installed.
    """
    from workers.client.embedder import WordLlamaEmbedder

    try:
        return WordLlamaEmbedder()
    except ImportError:
        fail("--embed needs the packaged model: pip install 'sealstream[embed]'", USAGE)


def embedded(blocks: Iterator[Block], embedder: Embedder) -> Iterator[Block]:
    """Give every document of `blocks` that has text and no vector one. Pure CPU."""
    for block in blocks:
        wanting = [
            (item.operation, text)
            for item in block
            if item.operation is not None and (text := _text(item.operation))
        ]
        vectors = embedder.embed([text for _, text in wanting])
        for (operation, _), vector in zip(wanting, vectors, strict=True):
            operation["vector"] = vector
        yield block


def _text(operation: dict[str, Any]) -> str:
    """Return what an upsert without a vector says; "" if there is nothing to embed."""
    if operation.get("op", "upsert") != "upsert" or operation.get("vector") is not None:
        return ""
    fields, content = operation.get("text"), operation.get("content")
    if isinstance(fields, dict):
        return "\n".join(value for value in fields.values() if isinstance(value, str)).strip()
    return content.strip() if isinstance(content, str) else ""
