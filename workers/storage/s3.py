"""The object store over S3, with `obstore` (Rust's `object_store`).

Two clients to the same bucket: one repeats failed requests (bounded), one never does. Conditional
writes go through the second, because `object_store` repeats every request that got a 5xx, so that a
write that was applied before its 500 would come back as a conflict with itself.
https://docs.rs/object_store/latest/object_store/struct.RetryConfig.html
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import obstore
from obstore import exceptions as obs
from obstore.store import S3Store as ObstoreS3

from workers.storage.check import check_store
from workers.storage.config import StoreConfig
from workers.storage.counting import count, denied, received, sent
from workers.storage.errors import (
    AlreadyExists,
    NotFound,
    PreconditionFailed,
    ReadOnly,
    StorageError,
    conditional,
    unavailable,
)
from workers.storage.store import ObjectInfo, Role, Stored, StoreStats, check_ranges

if TYPE_CHECKING:
    from obstore import GetOptions, PutMode
    from obstore.store import ClientConfig, S3Config

    from workers.storage.profile import ProfileCredentials

# Ranges nearer than this are read in one request: a request costs about what 256 KiB cost.
_COALESCE_BYTES = 256 * 1024
_LIST_CHUNK = 1000
_STATUS = re.compile(r"returned non-2xx status code: (\d{3})\b")
# Of one key in the answer to a deletion of several.
_DENIED = "(code: AccessDenied)"


class S3Store:
    """A `Store` in a bucket. See `store.Store` for the verbs.

    Args:
        config: connection, credentials and limits.
    """

    def __init__(self, config: StoreConfig) -> None:
        self.stats = StoreStats()
        self._config = config
        self._repeating = _client(config, config.max_retries)
        self._once = _client(config, 0)
        self._slots = asyncio.Semaphore(config.max_concurrency)

    async def get(self, key: str) -> Stored:
        """Read an object."""
        return await self._get(key, {})

    async def get_if_changed(self, key: str, etag: str) -> Stored | None:
        """Read an object unless it still has `etag`."""
        try:
            return await self._get(key, {"if_none_match": etag})
        except obs.NotModifiedError:
            return None

    async def _get(self, key: str, options: GetOptions) -> Stored:
        count(self.stats, "get")
        async with self._slots:
            with _errors(key):
                async with asyncio.timeout(self._config.operation_timeout_s):
                    result = await obstore.get_async(self._repeating, key, options=options)
                    data = bytes(await result.bytes_async())
        received(self.stats, len(data))
        etag = result.meta["e_tag"]
        if etag is None:
            raise StorageError(key, "the object store gives no ETag")
        return Stored(data, etag)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `length` bytes from `start`."""
        [data] = await self.get_ranges(key, [(start, length)])
        return data

    async def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several `(start, length)` ranges, near ones in one request."""
        wanted = sorted({(start, length) for start, length in ranges if length})
        check_ranges(ranges)
        groups = _coalesce(wanted)
        spans = await asyncio.gather(*(self._span(key, low, high) for low, high in groups))
        found: dict[tuple[int, int], bytes] = {}
        position = 0
        for start, length in wanted:
            while start >= groups[position][1]:
                position += 1
            offset = start - groups[position][0]
            data = spans[position][offset : offset + length]
            if not data:
                raise ValueError(f"the range begins beyond the end of the object: {key}")
            found[start, length] = data
        return [found[start, length] if length else b"" for start, length in ranges]

    async def _span(self, key: str, low: int, high: int) -> bytes:
        count(self.stats, "get")
        async with self._slots:
            with _errors(key):
                async with asyncio.timeout(self._config.operation_timeout_s):
                    data = bytes(
                        await obstore.get_range_async(self._repeating, key, start=low, end=high)
                    )
        received(self.stats, len(data))
        return data

    async def put(self, key: str, data: bytes) -> str:
        """Write an object, whatever stands there."""
        return await self._put(self._repeating, key, data, "overwrite")

    async def create(self, key: str, data: bytes) -> str:
        """Write an object only if the key is free."""
        with conditional(key):
            return await self._put(self._once, key, data, "create")

    async def replace(self, key: str, data: bytes, etag: str) -> str:
        """Write an object only if the present one has `etag`."""
        try:
            with conditional(key):
                # The stub wants a version, too; the binding refuses None for it.
                mode = cast("PutMode", {"e_tag": etag})
                return await self._put(self._once, key, data, mode)
        except (AlreadyExists, NotFound):
            # 409 (two writers at once) and 404 (deleted meanwhile) mean the same as 412.
            raise PreconditionFailed(key) from None

    async def _put(self, client: ObstoreS3, key: str, data: bytes, mode: PutMode) -> str:
        if self._config.read_only:
            raise ReadOnly(key)
        count(self.stats, "put")
        async with self._slots:
            with _errors(key):
                async with asyncio.timeout(self._config.operation_timeout_s):
                    result = await obstore.put_async(
                        client, key, data, mode=mode, use_multipart=False
                    )
        sent(self.stats, len(data))
        etag = result["e_tag"]
        if etag is None:
            raise StorageError(key, "the object store gives no ETag")
        return etag

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are no error."""
        if not keys:
            return
        if self._config.read_only:
            raise ReadOnly(keys[0])
        count(self.stats, "delete", len(keys))
        async with self._slots:
            with _errors(keys[0]):
                async with asyncio.timeout(self._config.operation_timeout_s):
                    try:
                        await obstore.delete_async(self._repeating, list(keys))
                    except FileNotFoundError:
                        if len(keys) == 1:
                            return
                        for key in keys:
                            await self._delete_one(key)

    async def _delete_one(self, key: str) -> None:
        try:
            await obstore.delete_async(self._repeating, key)
        except FileNotFoundError:
            return

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List the objects below `prefix` (whole path segments)."""
        stream = obstore.list(self._repeating, prefix or None, chunk_size=_LIST_CHUNK)
        chunks = aiter(stream)
        while True:
            count(self.stats, "list")
            with _errors(prefix):
                async with asyncio.timeout(self._config.operation_timeout_s):
                    try:
                        chunk = await anext(chunks)
                    except StopAsyncIteration:
                        return
            for meta in chunk:
                modified_ms = int(meta["last_modified"].timestamp() * 1000)
                yield ObjectInfo(meta["path"], meta["size"], modified_ms)

    async def check(self, role: Role = "all") -> None:
        """Prove at start that the store keeps what the workers build on."""
        await check_store(self, "query" if self._config.read_only else role)

    async def aclose(self) -> None:
        """Nothing to release: obstore closes idle connections with its client."""


def _client(config: StoreConfig, max_retries: int) -> ObstoreS3:
    options: S3Config = {
        "region": config.region,
        "virtual_hosted_style_request": config.virtual_hosted,
        "conditional_put": "etag",
    }
    if config.endpoint is not None:
        options["endpoint"] = config.endpoint
    if config.access_key_id is not None and config.secret_access_key is not None:
        options["access_key_id"] = config.access_key_id
        options["secret_access_key"] = config.secret_access_key
    if config.session_token is not None:
        options["session_token"] = config.session_token
    client: ClientConfig = {
        "allow_http": (config.endpoint or "").startswith("http://"),
        "timeout": timedelta(seconds=config.request_timeout_s),
        "connect_timeout": timedelta(seconds=min(5.0, config.request_timeout_s)),
        "pool_max_idle_per_host": str(config.max_idle_connections),
        "user_agent": "sealstream",
    }
    return ObstoreS3(
        config.bucket,
        prefix=config.prefix or None,
        config=options,
        credential_provider=_profile(config),
        client_options=client,
        retry_config={
            "max_retries": max_retries,
            "retry_timeout": timedelta(seconds=config.operation_timeout_s),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=3),
                "base": 2,
            },
        },
    )


def _profile(config: StoreConfig) -> ProfileCredentials | None:
    """Return what follows the credentials of a named profile (needs boto3)."""
    if config.profile is None or config.access_key_id is not None:
        return None
    from workers.storage.profile import ProfileCredentials

    return ProfileCredentials(config.profile)


@contextmanager
def _errors(key: str) -> Iterator[None]:
    """Translate what obstore raises. `NotModifiedError` passes: it is an answer.

    The texts of obstore's errors quote server answers and URLs, so none goes into ours.
    """
    try:
        yield
    except FileNotFoundError as error:
        # Not the same as a missing object: a writer would take it for a new shard.
        if "<Code>NoSuchBucket</Code>" in str(error):
            raise unavailable("the bucket does not exist") from None
        raise NotFound(key) from None
    except obs.AlreadyExistsError:
        raise AlreadyExists(key) from None
    except obs.PreconditionError:
        raise PreconditionFailed(key) from None
    except obs.NotModifiedError:
        raise
    except (obs.PermissionDeniedError, obs.UnauthenticatedError) as error:
        raise denied(key) from error
    except TimeoutError as error:
        raise unavailable("no answer before the deadline") from error
    except (obs.InvalidPathError, obs.NotSupportedError) as error:
        raise StorageError(key, "the object store cannot do this") from error
    except (obs.BaseError, OSError) as error:
        text = str(error)
        status = _STATUS.search(text)
        if status is not None and status[1] == "416":
            raise ValueError(f"the range begins beyond the end of the object: {key}") from None
        # Lists and deletions have no exception of their own for this.
        if (status is not None and status[1] in ("401", "403")) or _DENIED in text:
            raise denied(key) from error
        why = "no connection" if status is None else f"status {status[1]}"
        raise unavailable(why) from error


def _coalesce(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join sorted `(start, length)` ranges that are near into `(low, high)` spans."""
    spans: list[tuple[int, int]] = []
    for start, length in ranges:
        if spans and start - spans[-1][1] <= _COALESCE_BYTES:
            spans[-1] = (spans[-1][0], max(spans[-1][1], start + length))
        else:
            spans.append((start, start + length))
    return spans
