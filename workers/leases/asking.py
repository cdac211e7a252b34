"""Ask the key service: one record to key-request, and the grant that answers it.

- Only a grant that answers an outstanding request, as asked, is taken (`grant.py`).
- While the key service does not answer, one request at a time tries whether it is back; the others
  fail at once, so that nothing piles up in key-request.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec
import structlog

from schemas.errors import ErrorCode
from schemas.topics import KEY_GRANT, KEY_REQUEST, with_prefix
from workers.crypto.hpke import HpkePrivateKey, HpkeSuite
from workers.errors import Retry, SealstreamError
from workers.kafka.broker import TP, Broker, Producer, TopicReader
from workers.leases.certificate import Clock, WorkerIdentity
from workers.leases.directory import KeyDirectory
from workers.leases.grant import GrantHeader, Pending, SignedGrant, open_grant, verify_grant
from workers.leases.request import (
    MAX_REQUEST_LIFE_MS,
    VERSION,
    Caller,
    Job,
    Kind,
    ObjectItem,
    RequestBody,
    seal_request,
)
from workers.telemetry import metrics

log = structlog.get_logger("leases.asking")

T = TypeVar("T", bound=msgspec.Struct)

ASK_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 3.0
"""Seconds without an answer after which the key service counts as away."""
_RETRY_S: Final = 5.0
_POLL_S: Final = 1.0


class Asking:
    """A worker's requests to the key service, any number at a time.

    Order: `await start()`, a task that runs `listen()`, `await ask(...)`, ..., `await stop()`.
    """

    def __init__(
        self,
        broker: Broker,
        identity: WorkerIdentity,
        directory: KeyDirectory,
        suite: HpkeSuite,
        topic_prefix: str,
        check: Callable[[], None],
        *,
        clock: Clock,
        timeout_s: float,
    ) -> None:
        """Prepare.

        Args:
            broker: where to ask.
            identity: who asks.
            directory: whom to ask.
            suite: of the keys that grants are sealed to.
            topic_prefix: of the topics.
            check: raises Fatal when this worker may not ask any more.
            clock: seconds since 1970.
            timeout_s: seconds to wait for an answer.
        """
        self._broker = broker
        self._identity = identity
        self._directory = directory
        self._suite = suite
        self._requests = with_prefix(topic_prefix, KEY_REQUEST)
        self._grants = with_prefix(topic_prefix, KEY_GRANT)
        self._check = check
        self._clock = clock
        self._timeout_s = timeout_s
        self._partition = 0
        self._producer: Producer | None = None
        self._reader: TopicReader | None = None
        self._outstanding: dict[bytes, asyncio.Future[SignedGrant]] = {}
        # Set while anything is outstanding.
        self._waited_for = asyncio.Event()
        # Since when the key service is silent, by the number of times it was heard; until when
        # nobody tries.
        self._silent_since: int | None = None
        self._silent_until_s = 0.0
        self.refused = 0

    async def start(self) -> None:
        """Begin to read grants; returns when none can be missed. Raises Retry, Fatal."""
        count = await self._broker.partitions(self._grants)
        if count == 0:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "the topic key-grant does not exist")
        digest = hashlib.sha256(self._identity.worker_id.encode()).digest()
        self._partition = int.from_bytes(digest[:8], "big") % count
        self._reader = self._broker.topic_reader([TP(self._grants, self._partition)], start="end")
        await self._reader.start()
        self._producer = await self._broker.producer(linger_ms=0)

    async def stop(self) -> None:
        """Read and send no more; `listen` has ended."""
        if self._reader is not None:
            await self._reader.stop()
        if self._producer is not None:
            await self._producer.stop()

    async def ask(
        self,
        payload_type: type[T],
        *,
        kind: Kind,
        index: str = "",
        uid: bytes = b"",
        purposes: Sequence[str] = (),
        caller: Caller | None = None,
        objects: Sequence[ObjectItem] = (),
        pack_keys: Sequence[bytes] = (),
        job: Job | None = None,
    ) -> tuple[GrantHeader, T]:
        """Send one request and return the header and payload of its grant.

        What it says is up to its kind; see `RequestBody`.

        Raises:
            Reject: the key service refuses; or the grant is malformed.
            Retry: KEY_UNAVAILABLE.
            Fatal: this worker may not ask any more.
        """
        if self._producer is None:
            raise RuntimeError("the lease holder is not started")
        self._check()
        service = self._directory.key_service
        self._check_silence()
        ephemeral = HpkePrivateKey.generate(self._suite)
        now_ms = int(self._clock() * 1000)
        body = RequestBody(
            v=VERSION,
            kind=kind,
            request_id=os.urandom(16),
            worker_id=self._identity.worker_id,
            certificate=self._identity.certificate.encoded,
            reply_partition=self._partition,
            index=index,
            uid=uid,
            generation=0,
            purposes=list(purposes),
            ephemeral=ephemeral.public.encode(),
            issued_ms=now_ms,
            expires_ms=now_ms + MAX_REQUEST_LIFE_MS,
            caller=caller,
            objects=list(objects),
            pack_keys=list(pack_keys),
            job=job,
        )
        value = seal_request(body, self._identity, service)
        pending = Pending(body, hashlib.sha256(value).digest(), ephemeral)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[SignedGrant] = loop.create_future()
        asked_s = loop.time()
        self._outstanding[body.request_id] = answer
        self._waited_for.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._producer.send_and_wait(
                    self._requests, value, key=body.worker_id.encode()
                )
                grant = await answer
            self._silent_since = None
        except asyncio.CancelledError:
            # Who asked had less patience; it says as much as a timeout if it was not too little.
            if loop.time() - asked_s >= SILENCE_S:
                self._note_silence()
            raise
        except TimeoutError:
            self._check()
            self._note_silence()
            metrics.LEASE_REQUESTS.inc(outcome="timeout")
            raise Retry(
                ErrorCode.KEY_UNAVAILABLE, "the key service does not answer: is it running?"
            ) from None
        finally:
            del self._outstanding[body.request_id]
            if not self._outstanding:
                self._waited_for.clear()
        outcome = "deny" if grant.header.deny is not None else "grant"
        metrics.LEASE_REQUESTS.inc(outcome=outcome)
        return grant.header, open_grant(grant, pending, payload_type, now_s=self._clock())

    async def listen(self) -> None:
        """Take grants until cancelled; `ask` needs it to run."""
        reader = self._reader
        if reader is None:
            raise RuntimeError("asking is not started")
        own = self._identity.worker_id.encode()
        while True:
            if not self._outstanding:
                # A worker seldom asks: meanwhile its reader need not ask the broker.
                reader.pause()
                await self._waited_for.wait()
                reader.resume()
            for record in await reader.next(_POLL_S):
                if record.key != own:
                    continue
                try:
                    grant = verify_grant(record.value, self._directory.key_service.sign_pub)
                except SealstreamError as error:
                    self.refused += 1
                    log.warning("grant refused", code=error.code.value)
                    continue
                answer = self._outstanding.get(grant.header.request_id)
                if answer is None or answer.done():
                    self.refused += 1
                    log.info("grant without a request ignored")
                else:
                    answer.set_result(grant)

    def _note_silence(self) -> None:
        self._silent_since = self._directory.heard
        self._silent_until_s = self._clock() + _RETRY_S

    def _check_silence(self) -> None:
        """Let one request try whether a key service that was silent is back. Raises Retry."""
        if self._silent_since is None:
            return
        if self._directory.heard == self._silent_since:
            if self._clock() < self._silent_until_s:
                raise Retry(
                    ErrorCode.KEY_UNAVAILABLE, "the key service did not answer lately: try again"
                )
            self._silent_until_s = self._clock() + self._timeout_s
        else:
            self._silent_since = None
