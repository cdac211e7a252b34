"""The key directory: public keys and places, signed by the key service.

Topic `key-directory` (compacted), read from the start by everybody, without a group. Record keys:
`key-service`, one per index, and `#<name>` for floors, the lowest versions that the key service
accepts of its own stored records. Invariant: nothing is believed that the pinned key service did
not sign, that has expired, or whose version is below one already seen.

A value is one flat JSON object with `"v": 1`, `"kind"`, `"version"` (grows; milliseconds since
1970), `"expires_ms"` and `"signature"`: Ed25519 by the key service over
lp(domain, record key, canonical JSON of all other members), canonical = members sorted by name, no
white space, UTF-8 (RFC 8785 for the values used here: strings, integers, lists, objects). Members
that a reader does not know are covered by the signature and ignored.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import orjson
import structlog

from schemas.errors import ErrorCode
from schemas.topics import KEY_DIRECTORY, KEY_REVOCATION, with_prefix
from workers.crypto.errors import CryptoError
from workers.crypto.hpke import HpkePublicKey, key_id
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey, VerifyKey, fingerprint
from workers.errors import Fatal, Reject, Retry
from workers.kafka.broker import Broker, TopicReader
from workers.leases.certificate import Clock
from workers.leases.revocation import Revocations
from workers.settings import Settings

KEY_SERVICE_KEY = "key-service"
FLOOR_PREFIX = "#"
"""Begins the record keys of floors; no index name begins so."""
_MAX_BYTES = 256 * 1024
_POLL_S = 1.0

log = structlog.get_logger("leases.directory")


class PublicKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A public key in the directory: `key` = base64 of `HpkePublicKey.encode()`."""

    key: str
    created_ms: int = 0

    @classmethod
    def of(cls, key: HpkePublicKey, created_ms: int = 0) -> PublicKey:
        """Write a key down."""
        return cls(key=base64.b64encode(key.encode()).decode("ascii"), created_ms=created_ms)

    def decode(self) -> HpkePublicKey:
        """Return the key. Raises ValueError (InvalidKey is one)."""
        return HpkePublicKey.decode(base64.b64decode(self.key, validate=True))


class KeyServiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The key service's own entry.

    Args:
        sign_key: base64 of its Ed25519 public key; its SHA-256 is what settings pin.
        hpke_keys: newest first; older ones still open what was sealed to them.
        streams: stream id (`Order.stream`) of each source topic.
    """

    v: Literal[1] = 1
    kind: Literal["key-service"] = "key-service"
    version: int
    expires_ms: int
    sign_key: str
    hpke_keys: list[PublicKey]
    streams: dict[str, int] = {}


class IndexRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An index's entry. `partitions[shard]` is the shard's partition of index-update.

    A deleted index keeps a signed entry with `deleted`: an unsigned tombstone anybody could write.
    """

    v: Literal[1] = 1
    kind: Literal["index"] = "index"
    version: int
    expires_ms: int
    index: str
    uid: str
    deleted: bool = False
    shards: int = 0
    partitions: list[int] = []
    generation: int = 0
    ingest_keys: list[PublicKey] = []
    query_key: PublicKey | None = None


class FloorRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The lowest version that the key service accepts of something it stores. Never expires."""

    v: Literal[1] = 1
    kind: Literal["floor"] = "floor"
    version: int


@dataclass(frozen=True, slots=True)
class KeyServiceEntry:
    """The key service, as pinned.

    Attributes:
        sign_pub: verifies grants, certificates and directory records.
        hpke_pub: what requests and credentials are sealed to now.
        hpke_key_id: its 16-byte id.
        streams: stream id of each source topic.
    """

    version: int
    expires_ms: int
    sign_pub: VerifyKey
    hpke_pub: HpkePublicKey
    hpke_key_id: bytes
    streams: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One index: where its updates go and what producers and callers may seal to.

    Attributes:
        partitions: partition of index-update per shard.
        generation: current data-key generation.
        ingest_pubs: newest first.
    """

    name: str
    uid: bytes
    version: int
    expires_ms: int
    shards: int
    partitions: tuple[int, ...]
    generation: int
    ingest_pubs: tuple[HpkePublicKey, ...]
    query_pub: HpkePublicKey

    @property
    def ingest_pub(self) -> HpkePublicKey:
        """The key to seal plaintext-ingest messages to now."""
        return self.ingest_pubs[0]


def sign_record(
    key: str, record: KeyServiceRecord | IndexRecord | FloorRecord, signer: SigningKey
) -> bytes:
    """Return the value of a key-directory record under `key`."""
    members: dict[str, Any] = msgspec.to_builtins(record)
    signature = signer.sign(Info.DIRECTORY, key, _canonical(members))
    members["signature"] = base64.b64encode(signature).decode("ascii")
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)


class KeyDirectory:
    """Everything the pinned key service published, revocations too, kept up to date.

    `start` returns when the topic has been read to its end. Records that do not verify are counted
    (`refused`), logged and left out; they never replace a good one.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        *,
        fingerprint: str | None = None,
        clock: Clock = time.time,
    ) -> None:
        """Prepare; `fingerprint` overrides the pinned one of the settings.

        Raises:
            Fatal: no fingerprint is pinned.
        """
        pinned = fingerprint or settings.key_service_fingerprint
        if pinned is None:
            raise Fatal(
                ErrorCode.UNAUTHENTICATED,
                "key_service_fingerprint is not set: pin the key service you trust",
            )
        self._pinned = pinned
        self._broker = broker
        self._topic = with_prefix(settings.topic_prefix, KEY_DIRECTORY)
        self._revoked_topic = with_prefix(settings.topic_prefix, KEY_REVOCATION)
        self._clock = clock
        self._reader: TopicReader | None = None
        self._task: asyncio.Task[None] | None = None
        self._service: KeyServiceEntry | None = None
        self._indexes: dict[str, IndexEntry] = {}
        self._floors: dict[str, int] = {}
        # Records that came before the key service's own; checked once it is known.
        self._waiting: dict[str, bytes] = {}
        self._waiting_revoked: dict[str, bytes] = {}
        self.revocations = Revocations()
        # How often the key service has written its own entry: it does at every start.
        self.heard = 0
        self._changed = asyncio.Condition()
        self.refused = 0

    async def start(self) -> None:
        """Read the topic to its end and keep following it. Raises Retry, Fatal."""
        # Entries change rarely and `refresh` asks when it matters: no need to poll often.
        self._reader = self._broker.topic_reader(
            [self._topic, self._revoked_topic], start="beginning", low_latency=False
        )
        await self._reader.start()
        self._task = asyncio.create_task(self._follow(self._reader), name="key-directory")
        await self.refresh()

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._reader is not None:
            await self._reader.stop()
            self._reader = None

    async def refresh(self) -> None:
        """Wait until every record that exists now has been read.

        Raises:
            Fatal: the reader died.
        """
        if self._reader is None or self._task is None:
            raise RuntimeError("the key directory is not started")
        waiter = asyncio.ensure_future(self._reader.caught_up())
        try:
            await asyncio.wait({waiter, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if not waiter.done():
                raise Fatal(
                    ErrorCode.KEY_UNAVAILABLE, "the reader of key-directory ended"
                ) from _cause(self._task)
            waiter.result()
        finally:
            waiter.cancel()

    @property
    def key_service(self) -> KeyServiceEntry:
        """The key service.

        Raises:
            Retry: KEY_UNAVAILABLE, it has not published itself, or its entry has expired.
            Fatal: the reader of the directory died: what is held grows stale.
        """
        if self._task is not None and self._task.done():
            raise Fatal(ErrorCode.KEY_UNAVAILABLE, "the reader of key-directory ended") from _cause(
                self._task
            )
        if self._service is None:
            raise Retry(
                ErrorCode.KEY_UNAVAILABLE,
                "the pinned key service is not in key-directory: is it running?",
            )
        if self._service.expires_ms <= self._clock() * 1000:
            raise Retry(
                ErrorCode.KEY_UNAVAILABLE,
                "the key service's directory entry has expired: is it running?",
            )
        return self._service

    def find(self, name: str) -> IndexEntry | None:
        """Return the live entry of an index, or None."""
        entry = self._indexes.get(name)
        return entry if entry and entry.expires_ms > self._clock() * 1000 else None

    def index(self, name: str) -> IndexEntry:
        """Return the entry of an index.

        An index created a moment ago may be missing: `await refresh()` first when it matters.

        Raises:
            Reject: UNKNOWN_INDEX.
        """
        entry = self.find(name)
        if entry is None:
            raise Reject(ErrorCode.UNKNOWN_INDEX, "there is no such index", field="index")
        return entry

    def by_uid(self, uid: bytes) -> IndexEntry | None:
        """Return the live entry of the index with this uid, or None."""
        return next((entry for entry in self.indexes() if entry.uid == uid), None)

    def indexes(self) -> list[IndexEntry]:
        """Return all live entries."""
        return [entry for name in list(self._indexes) if (entry := self.find(name))]

    def version(self, key: str) -> int:
        """Return the highest version seen under a record key, 0 if none."""
        return self._floors.get(key, 0)

    async def wait_for(self, name: str, version: int) -> None:
        """Wait until the entry of `name` has at least `version`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.version(name) >= version)

    async def _follow(self, reader: TopicReader) -> None:
        while True:
            for record in await reader.next(_POLL_S):
                if record.key is not None and record.value is not None:
                    revoked = record.topic == self._revoked_topic
                    await self._apply(record.key, record.value, revoked=revoked)

    async def _apply(self, raw_key: bytes, value: bytes, *, revoked: bool) -> None:
        try:
            key = raw_key.decode()
            if revoked and self._service is None:
                self._waiting_revoked[key] = value
            elif revoked and self._service is not None:
                self.revocations.take(key, value, self._service.sign_pub)
            elif key == KEY_SERVICE_KEY:
                self._apply_key_service(value)
                waiting, self._waiting = self._waiting, {}
                waiting_revoked, self._waiting_revoked = self._waiting_revoked, {}
                for name, earlier in waiting.items():
                    await self._apply(name.encode(), earlier, revoked=False)
                for name, earlier in waiting_revoked.items():
                    await self._apply(name.encode(), earlier, revoked=True)
            elif self._service is None:
                self._waiting[key] = value
            else:
                self._apply_index(key, value, self._service.sign_pub)
        except (ValueError, TypeError, CryptoError, msgspec.MsgspecError) as error:
            self.refused += 1
            log.warning("directory record refused", why=type(error).__name__)
        async with self._changed:
            self._changed.notify_all()

    def _apply_key_service(self, value: bytes) -> None:
        members, signature = _parse(value)
        record = msgspec.convert(members, KeyServiceRecord)
        sign_pub = VerifyKey(base64.b64decode(record.sign_key, validate=True))
        if not hmac.compare_digest(fingerprint(sign_pub), self._pinned):
            raise ValueError("not the pinned key service")
        sign_pub.verify(signature, Info.DIRECTORY, KEY_SERVICE_KEY, _canonical(members))
        if not self._raise_floor(KEY_SERVICE_KEY, record.version):
            return
        hpke_pub = record.hpke_keys[0].decode()
        self._service = KeyServiceEntry(
            version=record.version,
            expires_ms=record.expires_ms,
            sign_pub=sign_pub,
            hpke_pub=hpke_pub,
            hpke_key_id=key_id(hpke_pub),
            streams=record.streams,
        )
        self.heard += 1

    def _apply_index(self, key: str, value: bytes, sign_pub: VerifyKey) -> None:
        members, signature = _parse(value)
        sign_pub.verify(signature, Info.DIRECTORY, key, _canonical(members))
        if key.startswith(FLOOR_PREFIX):
            self._raise_floor(key, msgspec.convert(members, FloorRecord).version)
            return
        record = msgspec.convert(members, IndexRecord)
        if record.index != key:
            raise ValueError("an entry of another index")
        entry = None if record.deleted else _index_entry(record)
        if not self._raise_floor(key, record.version):
            return
        if entry is None:
            self._indexes.pop(key, None)
        else:
            self._indexes[key] = entry

    def _raise_floor(self, key: str, version: int) -> bool:
        if version < self._floors.get(key, 0):
            self.refused += 1
            log.warning("directory record refused", why="older than one already seen")
            return False
        self._floors[key] = version
        return True


def _index_entry(record: IndexRecord) -> IndexEntry:
    uid = bytes.fromhex(record.uid)
    if len(uid) != 16 or record.query_key is None or not record.ingest_keys:
        raise ValueError("an incomplete entry")
    if record.shards < 1 or len(record.partitions) != record.shards:
        raise ValueError("an entry without a partition for each shard")
    return IndexEntry(
        name=record.index,
        uid=uid,
        version=record.version,
        expires_ms=record.expires_ms,
        shards=record.shards,
        partitions=tuple(record.partitions),
        generation=record.generation,
        ingest_pubs=tuple(key.decode() for key in record.ingest_keys),
        query_pub=record.query_key.decode(),
    )


def _cause(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


def _canonical(members: dict[str, Any]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)


def _parse(value: bytes) -> tuple[dict[str, Any], bytes]:
    if len(value) > _MAX_BYTES:
        raise ValueError("too long")
    members = orjson.loads(value)
    if not isinstance(members, dict):
        raise TypeError("not an object")
    return members, base64.b64decode(str(members.pop("signature", "")), validate=True)
