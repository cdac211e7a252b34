"""A pipeline in memory: real ingest and index workers, broker and store in memory, a key service
that is nothing but a table of keys."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.auth import Auth, Scope
from schemas.codec import decode
from schemas.deadletter import DeadLetter
from schemas.errors import ErrorCode
from schemas.event import IndexEvent
from schemas.index import IndexConfig
from schemas.ingest import IngestResult
from schemas.topics import (
    ALL_TOPICS,
    INDEX_EVENT,
    INDEX_UPDATE,
    INGEST_RESULT,
    PLAINTEXT_INGEST,
    dead_letter,
)
from workers.chain.kinds import NodeKind
from workers.chain.reader import ShardReader
from workers.chain.snapshot import Snapshot
from workers.crypto.derive import Purpose, TokenKind, chain_token, subkey
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite, key_id
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey
from workers.errors import Reject, Retry
from workers.index.emit import Emitter
from workers.index.handler import IndexHandler
from workers.index.notes import Notes
from workers.index.services import Services
from workers.index.totals import Total
from workers.ingest.decide import Decider
from workers.ingest.handler import IngestHandler
from workers.ingest.prepare import Limits
from workers.ingest.publish import Publisher
from workers.kafka.broker import TP, Record
from workers.kafka.memory import MemoryBroker
from workers.leases.certificate import WorkerIdentity, issue_certificate
from workers.leases.credential import open_value, verify_message
from workers.leases.directory import IndexEntry, KeyServiceEntry
from workers.leases.heads import head_verifier
from workers.leases.lease import Decision, Lease
from workers.leases.revocation import Revocations
from workers.runtime.announced import Announced
from workers.runtime.deadletter import DeadLetters
from workers.runtime.health import Health
from workers.runtime.policy import BatchPolicy, RetryPolicy
from workers.runtime.pump import Pump
from workers.storage.memory import MemoryStore
from workers.telemetry import metrics
from workers.text.postings import decode_rows

SUITE = HpkeSuite.X25519
GROUP_A = "00000000-0000-4000-8000-00000000000a"
GROUP_B = "00000000-0000-4000-8000-00000000000b"
QUICK = RetryPolicy(first_s=0.01, max_s=0.05, pending_s=0.02)
INGEST_GROUP, INDEX_GROUP = "ingest", "index"
MAX_RECORDS = 500
# Longer than anything takes, also on a machine that has stood still: whoever needs it hangs.
PATIENCE_S = 100.0


@dataclass
class Caller:
    groups: tuple[str, ...] = (GROUP_A,)
    scopes: frozenset[Scope] = frozenset(Scope)
    cnf: bytes | None = None


@dataclass
class Realm:
    """What the key service knows. `down`: indexes whose keys it does not give out now."""

    signer: SigningKey = field(default_factory=SigningKey.generate)
    service: HpkePrivateKey = field(default_factory=lambda: HpkePrivateKey.generate(SUITE))
    entries: dict[str, IndexEntry] = field(default_factory=dict)
    configs: dict[str, IndexConfig] = field(default_factory=dict)
    tags: dict[str, bytes] = field(default_factory=dict)
    deks: dict[str, bytes] = field(default_factory=dict)
    intake: dict[str, HpkePrivateKey] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=lambda: {"alice": Caller()})
    down: set[str] = field(default_factory=set)
    decisions: int = 0
    reports: list[Any] = field(default_factory=list)

    def create(self, name: str, partitions: tuple[int, ...] = (0,), **config: Any) -> bytes:
        uid = name.encode().ljust(16, b"\0")[:16]
        self.configs[name] = IndexConfig(shards=len(partitions), padding="off", **config)
        self.tags[name], self.deks[name] = (name[:1] + "t").encode() * 16, b"d" * 32
        self.intake[name] = HpkePrivateKey.generate(SUITE)
        self.entries[name] = IndexEntry(
            name=name,
            uid=uid,
            version=1,
            expires_ms=2**50,
            shards=len(partitions),
            partitions=partitions,
            generation=1,
            ingest_pubs=(self.intake[name].public,),
            query_pub=self.private(name, Purpose.QUERY).public,
        )
        return uid

    def private(self, name: str, purpose: Purpose) -> HpkePrivateKey:
        uid = name.encode().ljust(16, b"\0")[:16]
        return HpkePrivateKey.from_seed(SUITE, subkey(self.deks[name], purpose, uid))

    def key(self, name: str, purpose: Purpose) -> SecretBytes:
        return subkey(self.deks[name], purpose, self.entries[name].uid)

    def lease(self, name: str, role: Any) -> Lease:
        secrets, publics, privates, intake = {}, {}, {}, {}
        if role == "ingest":
            secrets[0, Purpose.TAG] = SecretBytes(self.tags[name])
            publics[1, Purpose.OBJECT] = self.private(name, Purpose.OBJECT).public
            publics[1, Purpose.UPDATE] = self.private(name, Purpose.UPDATE).public
            intake = {key_id(self.intake[name].public): self.intake[name]}
        else:
            privates[1, Purpose.UPDATE] = self.private(name, Purpose.UPDATE)
            secrets[1, Purpose.SEGMENT] = self.key(name, Purpose.SEGMENT)
            secrets[1, Purpose.VECTOR] = self.key(name, Purpose.VECTOR)
        entry = self.entries[name]
        return Lease(
            index=name,
            uid=entry.uid,
            config=self.configs[name],
            role=role,
            generation=1,
            partitions=entry.partitions,
            issued_s=time.time(),
            expires_s=time.time() + 300,
            full=True,
            directory_version=1,
            _secrets=secrets,
            _publics=publics,
            _privates=privates,
            _ingest=intake,
            _query_public=entry.query_pub,
        )

    # As a `KeyDirectory`.

    revocations = Revocations()

    @property
    def key_service(self) -> KeyServiceEntry:
        return KeyServiceEntry(
            version=1,
            expires_ms=2**50,
            sign_pub=self.signer.public,
            hpke_pub=self.service.public,
            hpke_key_id=key_id(self.service.public),
            streams={PLAINTEXT_INGEST: 7},
        )

    def indexes(self) -> list[IndexEntry]:
        return list(self.entries.values())

    async def refresh(self) -> None:
        await asyncio.sleep(0)


class Holder:
    """As a `LeaseHolder`."""

    def __init__(self, realm: Realm, role: str) -> None:
        self._realm = realm
        self._role = role
        self._leases: dict[str, Lease] = {}

    async def lease(
        self,
        index: str | None,
        *,
        uid: bytes | None = None,
        auth: Auth | None = None,
        proof: Any = None,
    ) -> Lease:
        if index is None:
            found = [name for name, entry in self._realm.entries.items() if entry.uid == uid]
            index = found[0] if found else ""
        if index in self._realm.down:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "down")
        if index not in self._realm.entries:
            raise Reject(ErrorCode.UNKNOWN_INDEX, "there is no such index", field="index")
        if index not in self._leases:
            self._leases[index] = self._realm.lease(index, self._role)
        return self._leases[index]

    async def open_value(
        self, kind: Any, value: Any, *, auth: Auth | None = None, proof: Any = None
    ) -> bytes:
        lease = await self.lease(value.index, auth=auth)
        return open_value(kind, lease.intake_key(value.key_id_bytes()), value)

    async def note_refusals(self, index: str, why: Any, operations: Any) -> bool:
        if index in self._realm.down:
            return False
        self._realm.reports.append((index, why, tuple(operations)))
        return True

    async def report(self, index: str, auth: Auth, scopes: Any, *, proof: Any = None) -> None:
        self._realm.reports.append((index, tuple(scopes)))

    async def decide(
        self,
        index: str,
        auth: Auth,
        *,
        signature: bytes | None = None,
        signed: Any = None,
        message_id: str | None = None,
        issued_ms: int | None = None,
    ) -> Decision:
        self._realm.decisions += 1
        if index not in self._realm.entries:
            raise Reject(ErrorCode.UNKNOWN_INDEX, "there is no such index", field="index")
        if index in self._realm.down:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "down")
        caller = self._realm.callers.get(auth.token or auth.sealed or "")
        if caller is None:
            raise Reject(ErrorCode.UNAUTHENTICATED, "who?", field="auth")
        if caller.cnf is not None:
            verify_message(caller.cnf, signature, *signed)
        return Decision(
            caller="c",
            index=index,
            groups=caller.groups,
            default_group=caller.groups[0],
            scopes=caller.scopes,
            cnf=caller.cnf,
            expires_s=time.time() + 60,
        )


def identity(realm: Realm, role: Any, worker_id: str) -> WorkerIdentity:
    key = SigningKey.generate()
    certificate = issue_certificate(
        realm.signer, worker_id=worker_id, role=role, indexes=["*"], sign_pub=key.public.raw
    )
    return WorkerIdentity(certificate, key)


@dataclass
class Pipeline:
    """The world of a test. Workers run while their context is open."""

    realm: Realm = field(default_factory=Realm)
    store: MemoryStore = field(default_factory=MemoryStore)
    broker: MemoryBroker = field(
        default_factory=lambda: MemoryBroker({spec.name: 2 for spec in ALL_TOPICS})
    )
    handlers: list[IndexHandler] = field(default_factory=list)

    async def publisher(self, worker_id: str = "ingest-1", **limits: int) -> Publisher:
        producer = await self.broker.producer()
        return Publisher(
            store=self.store,
            producer=producer,
            dead_letters=DeadLetters(producer, b"h" * 32),
            directory=self.realm,
            identity=identity(self.realm, "ingest", worker_id),
            topic_prefix="",
            limits=Limits(**{"content_bytes": 512 * 1024, "record_bytes": 900_000, **limits}),
        )

    async def ingest_handler(self, **limits: int) -> IngestHandler:
        return IngestHandler(
            Decider(Holder(self.realm, "ingest")),
            await self.publisher(**limits),
            Health("ingest-1"),
            max_blocked_records=1000,
            retry=QUICK,
        )

    async def services(self, worker_id: str = "index-1") -> Services:
        producer = await self.broker.producer()
        who = identity(self.realm, "index", worker_id)
        events = self.broker.topic_reader([INDEX_EVENT], start="beginning")
        await events.start()
        holder = Holder(self.realm, "index")
        return Services(
            holder=holder,
            directory=self.realm,
            store=self.store,
            identity=who,
            emitter=Emitter(producer, who, ""),
            dead_letters=DeadLetters(producer, b"h" * 32),
            retry=QUICK,
            blocked=Total(metrics.BLOCKED_RECORDS, topic=INDEX_UPDATE),
            segments=Total(metrics.LIVE_SEGMENTS),
            health=Health(worker_id),
            announced=Announced(events, self.realm, None),
            notes=Notes(holder, QUICK),
        )

    @asynccontextmanager
    async def ingest(
        self, *, max_blocked_records: int = 1000, max_records: int = MAX_RECORDS, **limits: int
    ) -> Any:
        publisher = await self.publisher(**limits)
        decider = Decider(Holder(self.realm, "ingest"))

        def make(_tp: TP) -> IngestHandler:
            return IngestHandler(
                decider,
                publisher,
                Health("ingest-1"),
                max_blocked_records=max_blocked_records,
                retry=QUICK,
            )

        async with self._running(INGEST_GROUP, PLAINTEXT_INGEST, make, max_records):
            yield

    @asynccontextmanager
    async def index(
        self,
        *,
        background: bool = False,
        max_blocked_records: int = 1000,
        max_records: int = MAX_RECORDS,
    ) -> Any:
        services = await self.services()

        def make(tp: TP) -> IndexHandler:
            handler = IndexHandler(
                tp, services, max_blocked_records=max_blocked_records, background=background
            )
            self.handlers.append(handler)
            return handler

        async with services.notes, self._running(INDEX_GROUP, INDEX_UPDATE, make, max_records):
            yield

    @asynccontextmanager
    async def _running(
        self,
        group: str,
        topic: str,
        make: Callable[[TP], Any],
        max_records: int = MAX_RECORDS,
    ) -> Any:
        stop = asyncio.Event()
        policy = BatchPolicy(max_records=max_records, max_bytes=16_000_000, linger_s=0.01)
        pump = Pump(self.broker, group, [topic], make, policy=policy, retry=QUICK, bulk=False)
        task = asyncio.create_task(pump.run(stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def put(
        self, index: str, doc: str, *, headers: Any = (), key: bytes | None = None, **body: Any
    ) -> Record:
        message = {"v": 1, "index": index, "id": doc, "auth": {"token": "alice"}, **body}
        return await self.put_raw(
            key if key is not None else f"{index}/{doc}".encode(),
            json.dumps(message).encode(),
            headers=headers,
        )

    async def put_raw(
        self, key: bytes | None, value: bytes | None, *, partition: int = 0, headers: Any = ()
    ) -> Record:
        producer = await self.broker.producer()
        at = await producer.send_and_wait(
            PLAINTEXT_INGEST, value, key=key, partition=partition, headers=headers
        )
        found = await self.broker.read(TP(PLAINTEXT_INGEST, at.partition), at.offset)
        assert found is not None
        return found

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until the broker satisfies `condition`; return what it returned."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        while not (found := condition()):
            # A commit wakes nobody, so look again after a moment.
            await self.broker.wait(loop.time() + 0.02)
            assert loop.time() < deadline, "it never came"
        return found

    def results(self) -> list[IngestResult]:
        return [decode(IngestResult, r.value) for r in self.broker.records(INGEST_RESULT)]

    def events(self) -> list[IndexEvent]:
        return [decode(IndexEvent, r.value) for r in self.broker.records(INDEX_EVENT)]

    def dead(self, topic: str = PLAINTEXT_INGEST) -> list[DeadLetter]:
        return [decode(DeadLetter, r.value) for r in self.broker.records(dead_letter(topic))]

    async def accepted(self, count: int) -> list[IngestResult]:
        return await self.until(
            lambda: (
                found
                if len(found := [r for r in self.results() if r.status == "accepted"]) >= count
                else None
            )
        )

    async def applied(self, *results: IngestResult) -> None:
        """Wait until every result's update is in its shard, as the events say."""
        for result in results:
            place = result.position
            assert place is not None
            await self.until(
                lambda place=place, result=result: any(
                    event.index == result.index
                    and event.shard == place.shard
                    and event.applied.offset >= place.offset
                    for event in self.events()
                )
            )

    async def snapshot(self, index: str, shard: int = 0) -> Snapshot:
        entry = self.realm.entries[index]
        reader = ShardReader(
            self.store,
            None,
            entry.uid,
            shard,
            lambda _generation: self.realm.key(index, Purpose.SEGMENT),
            head_verifier(self.realm, index),
        )
        return await reader.refresh()

    async def keyword(self, index: str, keyword: str, shard: int = 0) -> list[str]:
        """Answer a keyword search from the chain alone."""
        snapshot = await self.snapshot(index, shard)
        token = chain_token(self.realm.tags[index], TokenKind.KEYWORD, "", keyword)
        found = await snapshot.lookup([(NodeKind.KEYWORD, token)])
        postings = [
            (segment, rows.rows, ~rows.removed)
            for segment, payload in found[NodeKind.KEYWORD, token]
            for rows in [decode_rows(payload)]
        ]
        return [
            (await snapshot.ids(segment, np.array([row])))[0]
            for segment, row in await snapshot.resolve_pairs(postings)
        ]

    def committed(self, group: str, topic: str, partition: int = 0) -> int | None:
        return self.broker.committed(group, TP(topic, partition))
