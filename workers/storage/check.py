"""The promises of an object store that everything else is built on, proved at start.

Some S3-compatible servers ignore `If-None-Match` and `If-Match` on PUT and overwrite silently: two
writers of one shard would then both succeed. Better not to start.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from schemas.errors import ErrorCode
from workers.errors import Fatal
from workers.storage.errors import AccessDenied, AlreadyExists, NotFound, PreconditionFailed

if TYPE_CHECKING:
    from workers.storage.store import Store

_BODY = bytes(range(256))


async def check_read_write(store: Store) -> None:
    """Prove conditional create, conditional replace, conditional GET, ranges and deletion.

    Raises:
        Fatal: what is missing, and what to do.
        Retry: the store does not answer.
    """
    key = f"check/{secrets.token_hex(16)}"
    try:
        first = await store.create(key, _BODY)
        try:
            await _conditional_writes(store, key, first)
            await _reads(store, key)
        finally:
            await store.delete([key])
        await _missing(store, key)
    except AccessDenied as error:
        raise _fatal("denies reading, writing or deleting under the prefix") from error
    except NotFound as error:
        raise _fatal("loses what was written") from error


async def check_read_only(store: Store) -> None:
    """Prove that the bucket is there and may be read.

    Raises:
        Fatal: what is missing.
        Retry: the store does not answer.
    """
    try:
        await _missing(store, f"check/{secrets.token_hex(16)}")
        async for _ in store.list("check"):
            break
    except AccessDenied as error:
        raise _fatal("denies reading or listing under the prefix") from error


async def _conditional_writes(store: Store, key: str, first: str) -> None:
    try:
        await store.create(key, b"2")
    except AlreadyExists:
        pass
    else:
        raise _fatal("ignores If-None-Match: * on PUT; use a server with conditional writes")
    second = await store.replace(key, _BODY[::-1], first)
    try:
        await store.replace(key, _BODY, first)
    except PreconditionFailed:
        pass
    else:
        raise _fatal("ignores If-Match on PUT; use a server with conditional writes")
    await store.replace(key, _BODY, second)


async def _reads(store: Store, key: str) -> None:
    stored = await store.get(key)
    if stored.data != _BODY:
        raise _fatal("returns other bytes than were written")
    if await store.get_if_changed(key, stored.etag) is not None:
        raise _fatal("ignores If-None-Match on GET")
    if await store.get_range(key, 16, 8) != _BODY[16:24]:
        raise _fatal("ignores Range on GET")


async def _missing(store: Store, key: str) -> None:
    try:
        await store.get(key)
    except NotFound:
        return
    raise _fatal("returns an object that was deleted or never written")


def _fatal(what: str) -> Fatal:
    return Fatal(ErrorCode.UNSUPPORTED, f"the object store {what}")
