"""`sealstream search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.cli.common import COMMON, OK, USAGE, AsJson, Common, complain, fail, say, say_json
from workers.cli.connect import IndexKey, connected
from workers.cli.options import (
    ANSWER_S,
    Filter,
    Include,
    Timeout,
    include_names,
    read_filter,
    read_vector,
)
from workers.cli.show import printable, say_hits

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from schemas.query import QueryResult


async def search(
    index: str,
    text: str | None = None,
    /,
    *,
    keyword: str | None = None,
    vector: Path | None = None,
    embed: bool = False,
    alpha: float | None = None,
    syntax: bool = False,
    filter: Filter = None,  # noqa: A002 - the name of the option
    top_k: int | None = None,
    include: Include = ("score",),
    explain: bool = False,
    timeout: Timeout = ANSWER_S,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Search an index by words, by keyword, by vector, or by words and vector together.

    Parameters
    ----------
    index
        Name of the index.
    text
        Words for ranked search.
    keyword
        Every document with exactly this keyword, in the order of ingestion.
    vector
        File with one vector, .npy or JSON: the documents nearest to it.
    embed
        Search by the meaning of TEXT, too: for documents that were ingested with --embed.
    alpha
        With words and vector: weight of the vector, 0 to 1 (default: 0.5).
    syntax
        Let quotes, -, * and parentheses in TEXT mean something.
    top_k
        Most documents to return (default: 10; by keyword: all).
    explain
        Show what the query cost, and what the storage could learn from it.
    """
    if keyword is not None and (text is not None or vector is not None):
        fail("--keyword is exact and goes alone: no TEXT and no --vector with it", USAGE)
    if keyword is None and text is None and vector is None:
        fail("what to search for? give TEXT, --keyword K or --vector FILE", USAGE)
    if embed and (text is None or vector is not None):
        fail("--embed makes the vector from TEXT: give TEXT, and no --vector", USAGE)
    if alpha is not None and (text is None or (vector is None and not embed)):
        fail("--alpha weighs words against a vector: give both", USAGE)
    if syntax and text is None:
        fail("--syntax is about TEXT: give it", USAGE)
    options: dict[str, Any] = {
        "filter": read_filter(filter),
        "top_k": top_k,
        "include": include_names(include),
        "explain": explain or None,
        "timeout_s": timeout,
    }
    numbers = read_vector(vector) if vector is not None else None
    if embed and text is not None:
        numbers = _embedding(text)
    query = _query(text, keyword, numbers, alpha=alpha, syntax=syntax)
    async with connected(common, index_key, index=index) as client:
        result = await client.query(index, query, **options)
    _show(result, json=json)
    return OK


def _query(
    text: str | None,
    keyword: str | None,
    vector: npt.NDArray[np.float32] | None,
    *,
    alpha: float | None,
    syntax: bool,
) -> dict[str, Any]:
    """Return the `query` object of the contract."""
    from schemas.values import Vector

    how = {"syntax": True} if syntax else {}
    numbers = None if vector is None else Vector(vector).to_json()
    if keyword is not None:
        return {"keyword": keyword}
    if text is not None and numbers is not None:
        weight = {} if alpha is None else {"alpha": alpha}
        return {"hybrid": {"text": text, "vector": numbers, **how, **weight}}
    return {"vector": numbers} if text is None else {"text": text, **how}


def _embedding(text: str) -> npt.NDArray[np.float32]:
    from workers.cli.embed import open_embedder

    row: npt.NDArray[np.float32] = open_embedder().embed([text])[0]
    return row


def _show(result: QueryResult, *, json: bool) -> None:
    from schemas.codec import to_plain

    if json:
        say_json(to_plain(result))
        return
    if result.hits:
        say_hits(result.hits)
    else:
        say("nothing found")
    for name, value in (result.explain or {}).items():
        complain(f"{name}: {printable(_line(value))}")


def _line(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
