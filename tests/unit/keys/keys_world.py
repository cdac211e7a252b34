"""A realm in memory: key services, workers and callers on one broker, store, KMS and clock."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import SecretStr

from schemas.admin import AdminRequest, AdminResult
from schemas.audit import AuditRecord
from schemas.auth import Auth, Credential, Scope
from schemas.codec import convert, decode, encode
from schemas.errors import ErrorCode
from schemas.ids import IndexName
from schemas.sealed import SealedValue
from schemas.topics import ADMIN_REQUEST, ADMIN_RESULT, ALL_TOPICS, HEADER_SIGNATURE
from schemas.values import encode_base64
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.crypto.info import Info, info
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey
from workers.errors import Retry
from workers.kafka.broker import Record
from workers.kafka.memory import MemoryBroker
from workers.keys.realm import init_realm
from workers.keys.worker import KeyService, serve
from workers.kms.base import KeyInfo, Kms, Wrapped
from workers.kms.local import LocalKms
from workers.leases.certificate import WorkerIdentity
from workers.leases.credential import Proof, seal_credential, sign_message
from workers.leases.directory import KeyDirectory
from workers.leases.holder import LeaseHolder
from workers.settings import Settings
from workers.storage.memory import MemoryStore

# Longer than anything takes, also on a machine that has stood still: whoever needs it hangs.
PATIENCE_S = 100.0


class Clock:
    """Seconds since 1970 that move only when told to."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += seconds


class RunningClock(Clock):
    """The time of the machine, ahead of it by what was told to pass.

    For worlds with somebody in them who goes by the machine's time, as workers do: behind a clock
    that stands still they come to be from the future.
    """

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s

    def pass_s(self, seconds: float) -> None:
        self.ahead_s += seconds


class ShakyKms:
    """A KMS that can be switched off; counts its calls."""

    def __init__(self, inner: Kms) -> None:
        self._inner = inner
        self.name = inner.name
        self.default_key = inner.default_key
        self.down = False
        self.unwraps = 0

    def _check(self) -> None:
        if self.down:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the KMS is down")

    async def wrap(
        self, key_id: str, plaintext: SecretBytes, context: Mapping[str, str]
    ) -> Wrapped:
        self._check()
        return await self._inner.wrap(key_id, plaintext, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> SecretBytes:
        self._check()
        self.unwraps += 1
        return await self._inner.unwrap(key_id, wrapped, context)

    async def rewrap(self, key_id: str, wrapped: bytes, context: Mapping[str, str]) -> Wrapped:
        self._check()
        return await self._inner.rewrap(key_id, wrapped, context)

    async def describe(self, key_id: str) -> KeyInfo:
        return await self._inner.describe(key_id)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass
class Running:
    """A key service with its pump."""

    task: asyncio.Task[None]
    stop: asyncio.Event

    async def end(self) -> None:
        self.stop.set()
        await self.task

    async def kill(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@dataclass
class Caller:
    """A session: what signs messages and seals credentials."""

    world: World
    token: str | None = None
    index_key: bytes | None = None
    session: SigningKey = field(default_factory=SigningKey.generate)

    def auth(
        self,
        index: str | None,
        *,
        scopes: tuple[Scope, ...] = (),
        life_s: int = 3600,
        **changes: Any,
    ) -> Auth:
        key = None if self.index_key is None else encode_base64(self.index_key)
        values: dict[str, Any] = {
            "token": None if key else self.token,
            "index_key": key,
            "index": None if index is None else IndexName(index),
            "scopes": list(scopes),
            "exp": int(self.world.clock()) + life_s,
            "cnf": encode_base64(self.session.public.raw),
        }
        credential = Credential(**{**values, **changes})
        return seal_credential(self.world.directory.key_service.hpke_pub, credential)

    def shown(self, topic: str = "plaintext-ingest") -> dict[str, Any]:
        """Return the argument of `LeaseHolder.lease` that proves possession."""
        signature = sign_message(self.session, topic, b"k", b"{}")
        return {"proof": Proof.made(signature, b"k", b"{}")}

    def proof(
        self, value: bytes = b"{}", key: bytes = b"k", topic: str = "plaintext-ingest"
    ) -> dict[str, Any]:
        """Return the arguments of `LeaseHolder.decide` that prove possession."""
        return {
            "signature": sign_message(self.session, topic, key, value),
            "signed": (topic, key, value),
            "message_id": str(uuid4()),
            "issued_ms": int(self.world.clock() * 1000),
        }


class World:
    """Everything around the key service; close it with `aclose`."""

    def __init__(self, home: Path, *, clock: Clock | None = None, **settings: Any) -> None:
        self.clock = clock or Clock()
        self.broker = MemoryBroker({topic.name: topic.partitions for topic in ALL_TOPICS})
        self.store = MemoryStore()
        self.kms = ShakyKms(LocalKms(home / "kms.key", create=True))
        self.settings = Settings(home=home, hpke_suite="x25519", **settings)
        self._closers: list[Any] = []
        self._services: list[Running] = []

    async def open(self) -> None:
        info = await init_realm(self.settings, store=self.store, kms=self.kms, clock=self.clock)
        self.token = info.token
        self.settings = self.settings.model_copy(
            update={"key_service_fingerprint": info.fingerprint, "token": SecretStr(info.token)}
        )
        self.running = await self.start_service()
        self.directory = KeyDirectory(self.broker, self.settings, clock=self.clock)
        await self.directory.start()
        self._closers.append(self.directory.stop)
        self.admin_caller = Caller(self, token=self.token)
        self.producer = await self.broker.producer()

    async def aclose(self) -> None:
        for running in self._services:
            if not running.task.done():
                await running.end()
        for close in reversed(self._closers):
            await close()

    async def start_service(self, worker_id: str = "keys-1") -> Running:
        stop = asyncio.Event()
        settings = self.settings.model_copy(update={"worker_id": worker_id})
        audit = self.broker.topic_reader(["key-audit"], start="end")
        await audit.start()
        task = asyncio.create_task(
            serve(
                settings, stop, broker=self.broker, store=self.store, kms=self.kms, clock=self.clock
            )
        )
        running = Running(task, stop)
        self._services.append(running)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not task.done():
                    if any(b'"start"' in (r.value or b"") for r in await audit.next(0.5)):
                        break
        finally:
            await audit.stop()
        if task.done():
            task.result()
        return running

    async def service(self) -> KeyService:
        """Return a key service without a pump: tests hand it records one by one."""
        service = KeyService(
            self.settings, broker=self.broker, store=self.store, kms=self.kms, clock=self.clock
        )
        await service.start()
        self._closers.append(service.stop)
        return service

    def identity(self, worker_id: str) -> WorkerIdentity:
        return WorkerIdentity.load(self.settings.home / "workers" / worker_id)

    async def holder(
        self, worker_id: str | WorkerIdentity, *, ask_timeout_s: float = PATIENCE_S
    ) -> LeaseHolder:
        identity = self.identity(worker_id) if isinstance(worker_id, str) else worker_id
        holder = LeaseHolder(
            self.broker,
            identity,
            self.directory,
            self.settings,
            clock=self.clock,
            ask_timeout_s=ask_timeout_s,
        )
        await holder.start()
        self._closers.append(holder.stop)
        return holder

    async def admin_record(
        self, op: str, args: dict[str, Any], reply: HpkePrivateKey, **changes: Any
    ) -> tuple[bytes, bytes, tuple[tuple[str, bytes], ...]]:
        """Return key, value and headers of an admin-request."""
        request_id = changes.pop("request_id", str(uuid4()))
        caller: Caller = changes.pop("caller", self.admin_caller)
        public_key = changes.pop("public_key", encode_base64(reply.public.encode()))
        body = {
            "v": 1,
            "request_id": request_id,
            "auth": {"token": self.token},
            "op": op,
            "args": args,
            "reply": {"public_key": public_key},
            "issued_ms": int(self.clock() * 1000),
            **changes,
        }
        service = self.directory.key_service
        sealed = service.hpke_pub.seal(
            info(Info.ADMIN_REQUEST), encode(convert(AdminRequest, body))
        )
        value = encode(
            SealedValue.of(sealed, key_id=service.hpke_key_id, suite=service.hpke_pub.suite)
        )
        key = request_id.encode()
        signature = sign_message(caller.session, ADMIN_REQUEST, key, value)
        return key, value, ((HEADER_SIGNATURE, signature),)

    async def admin(self, op: str, args: dict[str, Any], **changes: Any) -> AdminResult:
        """Run an admin operation through the topics and return its result."""
        reply = HpkePrivateKey.generate(HpkeSuite.X25519)
        key, value, headers = await self.admin_record(op, args, reply, **changes)
        reader = self.broker.topic_reader([ADMIN_RESULT], start="end")
        await reader.start()
        try:
            await self.producer.send_and_wait(ADMIN_REQUEST, value, key=key, headers=headers)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    for record in await reader.next(5.0):
                        if record.key == key:
                            return self.open_result(record, reply)
        finally:
            await reader.stop()

    async def key_status(self, index: str) -> dict[str, Any]:
        """Return the result of key.status; in the moment of a change the answer is to ask again."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = await self.admin("key.status", {"index": index})
                if told.error is None:
                    found: dict[str, Any] = told.result or {}
                    return found
                assert told.error.code is ErrorCode.KEY_UNAVAILABLE, told.error
                await asyncio.sleep(0.1)

    def open_result(self, record: Record, reply: HpkePrivateKey) -> AdminResult:
        self.directory.key_service.sign_pub.verify(
            record.header(HEADER_SIGNATURE) or b"",
            Info.ADMIN_RESULT,
            record.key or b"",
            record.value or b"",
        )
        sealed = decode(SealedValue, record.value)
        context = info(Info.ADMIN_RESULT, (record.key or b"").decode())
        return decode(AdminResult, reply.open(context, sealed.ciphertext()))

    async def create(self, index: str, **args: Any) -> dict[str, Any]:
        auth = args.pop("auth", {"token": self.token})
        result = await self.admin("index.create", {"index": index, **args}, auth=auth)
        assert result.error is None, result.error
        await self.directory.refresh()
        return result.result or {}

    @property
    def latest(self) -> Running:
        """The key service that was started last."""
        return self._services[-1]

    def stored(self) -> list[str]:
        """Return the keys of all objects in the bucket."""
        return list(self.store.keys())

    def audited(self, event: str, decision: str | None = None) -> int:
        """Count the audit records of an event."""
        found = [decode(AuditRecord, r.value) for r in self.broker.records("key-audit")]
        return sum(r.event == event and (decision is None or r.decision == decision) for r in found)
