"""The promises of an object store that everything else is built on, proved at start.

Some S3-compatible servers ignore `If-None-Match` and `If-Match` on PUT and overwrite silently: two
writers of one shard would then both succeed. Better not to start.

Each role proves what it needs, below a prefix where its rights reach:

    all      check/                        everything; the owner's credentials
    keys     realm/check/                  read, write, list, delete, conditional writes
    index    <no uid>/shards/check/        the same
    ingest   <no uid>/packs/check          write; reads, lists and deletes nothing
    query    <no uid>/shards/check/        read

`<no uid>` is sixteen zero bytes in hex, which no index ever has. What `ingest` writes stays there:
one object of 256 bytes, always the same.
"""

from __future__ import annotations

import secrets

from schemas.errors import ErrorCode
from workers.errors import Fatal
from workers.storage import layout
from workers.storage.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    PreconditionFailed,
    StorageError,
)
from workers.storage.store import Role, Store

_BODY = bytes(range(256))
_UPDATE = "use a server with conditional writes"


async def check_store(store: Store, role: Role) -> None:
    """Prove that the store gives a role what it builds on.

    Raises:
        Fatal: what is missing, and what to do.
        Retry: the store does not answer, or the bucket does not exist.
    """
    place = layout.check(role)
    who = "the owner" if role == "all" else f"a worker of role {role}"
    try:
        if role == "ingest":
            await store.put(place, _BODY)
        elif role == "query":
            await _absent(store, f"{place}{secrets.token_hex(16)}")
        else:
            await _everything(store, f"{place}{secrets.token_hex(16)}")
    except AccessDenied as error:
        raise _fatal(
            f"denies what {who} needs below {place}: give the rights of its role; without the right"
            " to list, some servers deny what is only missing"
        ) from error
    except NotFound as error:
        raise _fatal("loses what was written") from error
    except StorageError as error:
        raise _fatal(f"cannot be used: {error}") from error


async def _everything(store: Store, key: str) -> None:
    # First without conditions: the outcome of a conditional write that failed is unknown, and so
    # would be its cause.
    first = await store.put(key, _BODY)
    try:
        await _replaces(store, key, first)
        await _reads(store, key)
        folder = key.rpartition("/")[0]
        if key not in [info.key async for info in store.list(folder)]:
            raise _fatal("does not list what was written")
    finally:
        await store.delete([key])
    await _absent(store, key)
    await _creates(store, key, first)


async def _replaces(store: Store, key: str, first: str) -> None:
    second = await store.replace(key, _BODY[::-1], first)
    try:
        await store.replace(key, b"stale", first)
    except PreconditionFailed:
        pass
    else:
        raise _fatal(f"ignores If-Match on PUT; {_UPDATE}")
    await store.replace(key, _BODY, second)
    try:
        await store.create(key, b"second")
    except AlreadyExists:
        pass
    else:
        raise _fatal(f"ignores If-None-Match: * on PUT; {_UPDATE}")


async def _reads(store: Store, key: str) -> None:
    stored = await store.get(key)
    if stored.data != _BODY:
        raise _fatal("returns other bytes than were written")
    if await store.get_if_changed(key, stored.etag) is not None:
        raise _fatal("ignores If-None-Match on GET")
    if await store.get_range(key, 16, 8) != _BODY[16:24]:
        raise _fatal("ignores Range on GET")


async def _creates(store: Store, key: str, gone: str) -> None:
    """Prove both conditions on a key that is free."""
    try:
        await store.replace(key, _BODY, gone)
    except PreconditionFailed:
        pass
    else:
        await store.delete([key])
        raise _fatal(f"takes If-Match for a new object; {_UPDATE}")
    await store.create(key, _BODY)
    await store.delete([key])


async def _absent(store: Store, key: str) -> None:
    try:
        await store.get(key)
    except NotFound:
        return
    raise _fatal("returns an object that was deleted or never written")


def _fatal(what: str) -> Fatal:
    return Fatal(ErrorCode.UNSUPPORTED, f"the object store {what}")
