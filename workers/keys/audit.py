"""The audit: one record per decision, chained, written before the decision is told.

Topic `key-audit`, key = instance, value = `schemas.audit.AuditRecord`. Per instance:

    hash(n) = SHA-256("sealstream/1 audit" ‖ hash(n-1) ‖ canonical JSON of record n without `hash`
              and `signature`), hash(-1) = 32 zero bytes, canonical = members sorted, no white space

Every 256 records or 10 s a record with `event` = `checkpoint` is signed: Ed25519 by the key service
over (instance, seq, hash). So is the last one of an instance that ends well, `stop`. An instance is
one run of one process, named `<worker id>.<start, ms>.<4 random bytes, hex>`: two processes never
share a chain, whatever their ids and clocks say. When a record is not acknowledged, nobody can say
whether it stands in the topic, so that chain ends there and the next record begins a new instance.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
import orjson
import structlog

from schemas.audit import AuditRecord
from schemas.codec import encode, to_plain
from schemas.errors import ErrorCode
from schemas.topics import CONTENT_JSON, HEADER_CONTENT_TYPE
from schemas.values import encode_base64
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey
from workers.errors import Retry
from workers.kafka.broker import Delivered, Producer
from workers.leases.certificate import Clock
from workers.telemetry import metrics

GENESIS: Final = bytes(32)
CHECKPOINT_RECORDS: Final = 256
CHECKPOINT_S: Final = 10.0
DEADLINE_S: Final = 5.0

log = structlog.get_logger("keys.audit")


def chain_hash(prev: bytes, members: dict[str, Any]) -> bytes:
    """Return the hash of a record: its plain members without `hash` and `signature`."""
    body = {name: value for name, value in members.items() if name not in ("hash", "signature")}
    canonical = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(b"sealstream/1 audit" + prev + canonical).digest()


class Audit:
    """Writes one instance's chain."""

    def __init__(
        self,
        producer: Producer,
        topic: str,
        worker_id: str,
        signer: SigningKey,
        *,
        clock: Clock = time.time,
        deadline_s: float = DEADLINE_S,
        policy_epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        """Prepare.

        Args:
            producer: writes the topic.
            topic: with prefix.
            worker_id: of this key service.
            signer: the key service's identity, for checkpoints.
            clock: seconds since 1970.
            deadline_s: seconds within which a record must be acknowledged.
            policy_epoch: how many revocations there were; stands in every record.
        """
        self._producer = producer
        self._topic = topic
        self._worker_id = worker_id
        self._signer = signer
        self._clock = clock
        self._deadline_s = deadline_s
        self._policy_epoch = policy_epoch
        self._lock = asyncio.Lock()
        self._begin()

    @property
    def instance(self) -> str:
        """The name of the chain that is being written."""
        return self._instance

    async def write(
        self,
        event: str,
        *,
        decision: Literal["grant", "deny", "none"] = "none",
        why: ErrorCode | None = None,
        **facts: Any,
    ) -> None:
        """Write one record and wait until it is durable.

        Args:
            event: what was asked for: `lease`, `decision`, `objects`, an admin op, `start`, ...
            decision: what was decided.
            why: code of a refusal.
            facts: other members of `AuditRecord`.

        Raises:
            Retry: KEY_UNAVAILABLE, it was not acknowledged: grant nothing.
        """
        async with self._lock:
            instance = self._instance
            acknowledged = await self._append(event, decision=decision, why=why, **facts)
            if self._since >= CHECKPOINT_RECORDS:
                await self._checkpoint()
        try:
            async with asyncio.timeout(self._deadline_s):
                await asyncio.shield(acknowledged)
        except (TimeoutError, Retry) as error:
            self._break(instance)
            raise unavailable() from error
        metrics.AUDIT_RECORDS.inc()

    async def tick(self) -> None:
        """Write the checkpoint that is due. Called every second. Raises Retry."""
        async with self._lock:
            if not self._since or self._clock() - self._signed_s < CHECKPOINT_S:
                return
            instance = self._instance
            acknowledged = await self._checkpoint()
        try:
            async with asyncio.timeout(self._deadline_s):
                await asyncio.shield(acknowledged)
        except (TimeoutError, Retry) as error:
            self._break(instance)
            raise unavailable() from error

    async def close(self) -> None:
        """Sign the end of the chain, so that nothing before it can be cut off. Raises Retry."""
        async with self._lock:
            acknowledged = await self._append("stop", sign=True)
        async with asyncio.timeout(self._deadline_s):
            await asyncio.shield(acknowledged)

    def _begin(self) -> None:
        started_ms = int(self._clock() * 1000)
        self._instance = f"{self._worker_id}.{started_ms}.{os.urandom(4).hex()}"
        self._seq = 0
        self._hash = GENESIS
        self._since = 0
        self._signed_s = self._clock()

    def _break(self, instance: str) -> None:
        if instance == self._instance:
            log.error("audit record not acknowledged", instance=instance, seq=self._seq)
            self._begin()

    async def _checkpoint(self) -> asyncio.Future[Delivered]:
        acknowledged = await self._append("checkpoint", sign=True)
        self._since = 0
        self._signed_s = self._clock()
        return acknowledged

    async def _append(
        self,
        event: str,
        *,
        decision: Literal["grant", "deny", "none"] = "none",
        why: ErrorCode | None = None,
        sign: bool = False,
        **facts: Any,
    ) -> asyncio.Future[Delivered]:
        """Queue a record; the lock keeps chain and topic in one order."""
        draft = AuditRecord(
            seq=self._seq,
            ts_ms=int(self._clock() * 1000),
            instance=self._instance,
            event=event,
            decision=decision,
            why=why,
            policy_epoch=self._policy_epoch(),
            prev=self._hash.hex(),
            hash=GENESIS.hex(),
            **facts,
        )
        digest = chain_hash(self._hash, to_plain(draft))
        signature = None
        if sign:
            signed = self._signer.sign(Info.AUDIT, self._instance, self._seq, digest)
            signature = encode_base64(signed)
        record = msgspec.structs.replace(draft, hash=digest.hex(), signature=signature)
        instance = self._instance
        try:
            async with asyncio.timeout(self._deadline_s):
                acknowledged = await self._producer.send(
                    self._topic,
                    encode(record),
                    key=instance.encode(),
                    headers=((HEADER_CONTENT_TYPE, CONTENT_JSON.encode()),),
                )
        except (TimeoutError, Retry) as error:
            self._break(instance)
            raise unavailable() from error
        # Awaited with a deadline, or not at all (checkpoints): never leave an error unseen.
        acknowledged.add_done_callback(_seen)
        self._hash = digest
        self._seq += 1
        self._since += 1
        return acknowledged


def _seen(acknowledged: asyncio.Future[Delivered]) -> None:
    if not acknowledged.cancelled():
        acknowledged.exception()


def unavailable() -> Retry:
    """Return the refusal while the audit cannot be written."""
    return Retry(ErrorCode.KEY_UNAVAILABLE, "the audit cannot be written: nothing is granted")
