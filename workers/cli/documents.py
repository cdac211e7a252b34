"""`sealstream get`, `delete`, `count`, `ids`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import orjson

from workers.cli.common import (
    COMMON,
    OK,
    REFUSED,
    USAGE,
    AsJson,
    Common,
    complain,
    fail,
    say,
    say_json,
)
from workers.cli.connect import IndexKey, connected
from workers.cli.options import ANSWER_S, Filter, Include, Timeout, Wait, include_names, read_filter
from workers.cli.show import cell, error_json, error_text, for_terminal, hit_json, say_document

if TYPE_CHECKING:
    from schemas.query import Hit
    from workers.client import Client

_GET_IDS: Final = 100


async def get(
    index: str,
    /,
    *ids: str,
    include: Include = ("metadata", "content"),
    raw: bool = False,
    timeout: Timeout = ANSWER_S,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Show documents by id.

    The exit code is 1 if one of them does not exist or may not be read.

    Parameters
    ----------
    index
        Name of the index.
    ids
        Ids of documents.
    raw
        Write the content of one document, unchanged and nothing else: for a file or a pipe.
    """
    if not ids:
        fail("give at least one id", USAGE)
    if raw and (len(ids) != 1 or json):
        fail("--raw writes the content of exactly one document", USAGE)
    names = ["content"] if raw else include_names(include)
    wanted = list(dict.fromkeys(ids))
    hits: list[Hit] = []
    async with connected(common, index_key, index=index) as client:
        for start in range(0, len(wanted), _GET_IDS):
            hits += await _fetch(client, index, wanted[start : start + _GET_IDS], names, timeout)
    found = {hit.id for hit in hits if not hit.denied}
    missing = [one for one in wanted if one not in found]
    if raw and not missing:
        _write_content(hits[0])
    elif json:
        say_json([hit_json(hit) for hit in hits])
    else:
        for hit in hits:
            say_document(hit)
    for one in missing:
        complain(f"sealstream: NOT_FOUND: {cell(one)}")
    return REFUSED if missing else OK


async def _fetch(
    client: Client, index: str, ids: Sequence[str], include: list[str], timeout_s: float
) -> list[Hit]:
    """Get documents, in smaller parts if one record cannot hold the answer."""
    from schemas.errors import ErrorCode
    from workers.errors import Reject

    try:
        return await client.get(index, ids, include=include, timeout_s=timeout_s)
    except Reject as error:
        if error.code is not ErrorCode.TOO_LARGE or len(ids) == 1:
            raise
    half = len(ids) // 2
    first = await _fetch(client, index, ids[:half], include, timeout_s)
    return first + await _fetch(client, index, ids[half:], include, timeout_s)


def _write_content(hit: Hit) -> None:
    if hit.content is None:
        fail(f"NOT_FOUND: {cell(hit.id)} has no content")
    data = hit.content.encode() if isinstance(hit.content, str) else hit.content.decode()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


async def delete(
    index: str,
    /,
    *ids: str,
    wait: Wait = "accepted",
    timeout: Timeout = 60.0,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Delete documents and their keywords; one that does not exist is no error.

    The exit code is 1 if a deletion was refused.

    Parameters
    ----------
    index
        Name of the index.
    ids
        Ids of documents.
    """
    if not ids:
        fail("give at least one id", USAGE)
    operations = [{"op": "delete", "index": index, "id": one} for one in ids]
    deleted, refused = [], []
    async with connected(common, index_key, index=index) as client:
        async for result in client.ingest_many(operations, wait=wait, timeout_s=timeout):
            if result.error is None:
                deleted.append(result.id)
            else:
                refused.append({"id": result.id, "error": error_json(result.error)})
                complain(f"sealstream: {error_text(result.error)}: {cell(result.id)}")
    if json:
        say_json({"deleted": deleted, "refused": refused})
    else:
        say(f"deleted {len(deleted)}" + (f", refused {len(refused)}" if refused else ""))
    return REFUSED if refused else OK


async def count(
    index: str,
    /,
    *,
    filter: Filter = None,  # noqa: A002 - the name of the option
    timeout: Timeout = ANSWER_S,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Print how many documents an index has, or how many pass a filter.

    Parameters
    ----------
    index
        Name of the index.
    """
    condition = read_filter(filter)
    async with connected(common, index_key, index=index) as client:
        number = await client.count(index, filter=condition, timeout_s=timeout)
    if json:
        say_json({"index": index, "count": number})
    else:
        say(str(number))
    return OK


async def ids(
    index: str,
    /,
    *,
    filter: Filter = None,  # noqa: A002 - the name of the option
    timeout: Timeout = ANSWER_S,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Print the ids of all documents, one a line, as they come.

    Parameters
    ----------
    index
        Name of the index.
    """
    condition = read_filter(filter)
    separator = "["
    async with connected(common, index_key, index=index) as client:
        async for one in client.ids(index, filter=condition, timeout_s=timeout):
            if json:
                sys.stdout.write(f"{separator}\n  {orjson.dumps(one).decode()}")
                separator = ","
            else:
                sys.stdout.write(for_terminal(one) + "\n")
    if json:
        sys.stdout.write("[]\n" if separator == "[" else "\n]\n")
    sys.stdout.flush()
    return OK
