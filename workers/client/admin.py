"""Send admin-requests, always sealed to the key service, and open their results."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from schemas.admin import UNAUTHENTICATED_OPS, AdminRequest, AdminResult
from schemas.codec import convert, decode, encode, to_plain
from schemas.errors import ErrorCode, InvalidMessage
from schemas.sealed import SealedValue
from schemas.topics import ADMIN_REQUEST, ADMIN_RESULT, HEADER_SIGNATURE
from workers.client.connection import SEALED_HEADERS, Connection, check_open, new_id, timed_out
from workers.client.replies import Listener
from workers.crypto.errors import CryptoError
from workers.crypto.info import Info, info
from workers.errors import Reject
from workers.kafka.broker import Record
from workers.leases.grant import denial

TIMEOUT_S: Final = 30.0


class Administrator:
    """The administrative part of a client. Listens from its first use on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._topic = connection.topic(ADMIN_REQUEST)
        self._listener = Listener(
            connection.broker, [connection.topic(ADMIN_RESULT)], self._on_result
        )
        self._starting = asyncio.Lock()
        self._started = False
        self._closed = False
        self._waiting: dict[bytes, asyncio.Future[AdminResult]] = {}

    async def start(self) -> None:
        """Listen for results; harmless to repeat. Raises Retry, Fatal."""
        async with self._starting:
            check_open(closed=self._closed)
            if not self._started:
                await self._listener.start()
                self._started = True
            self._listener.check()

    async def stop(self) -> None:
        """Stop listening; who still waits is cancelled."""
        self._closed = True
        async with self._starting:
            await self._listener.stop()
        for waiting in self._waiting.values():
            waiting.cancel()

    async def run(
        self, op: str, args: dict[str, Any], *, timeout_s: float = TIMEOUT_S
    ) -> dict[str, Any]:
        """Run one operation of the contract and return its `result`.

        Args:
            op: e.g. `index.create`.
            args: its arguments.
            timeout_s: seconds to wait.

        Raises:
            Reject, Retry: the code of the error result; DEADLINE_EXCEEDED without an answer.
            InvalidMessage: the request breaks the contract.
        """
        await self.start()
        session = self._connection.session
        request_id = new_id()
        request = convert(
            AdminRequest,
            {
                "v": 1,
                "request_id": request_id,
                "auth": (None if op in UNAUTHENTICATED_OPS else to_plain(session.admin_auth())),
                "op": op,
                "args": args,
                "reply": {"public_key": session.reply_public},
                "message_id": request_id,
                "issued_ms": int(time.time() * 1000),
            },
        )
        service = self._connection.directory.key_service
        sealed = service.hpke_pub.seal(info(Info.ADMIN_REQUEST), encode(request))
        value = encode(
            SealedValue.of(sealed, key_id=service.hpke_key_id, suite=service.hpke_pub.suite)
        )
        key = request_id.encode()
        waiting: asyncio.Future[AdminResult] = asyncio.get_running_loop().create_future()
        self._waiting[key] = waiting
        try:
            async with asyncio.timeout(timeout_s):
                await self._connection.send(self._topic, key, value, SEALED_HEADERS)
                result = await waiting
        except TimeoutError:
            raise timed_out("admin-result", timeout_s) from None
        finally:
            del self._waiting[key]
        if result.error is not None:
            raise denial(result.error)
        return result.result or {}

    def _on_result(self, record: Record) -> None:
        waiting = self._waiting.get(record.key or b"")
        if waiting is None or waiting.done():
            return
        request_id = (record.key or b"").decode()
        service = self._connection.directory.key_service.sign_pub
        try:
            service.verify(
                record.header(HEADER_SIGNATURE) or b"",
                Info.ADMIN_RESULT,
                record.key or b"",
                record.value or b"",
            )
            value = self._connection.open_reply(record, Info.ADMIN_RESULT, request_id)
            result = decode(AdminResult, value)
        except (CryptoError, InvalidMessage) as error:
            raise Reject(
                ErrorCode.UNAUTHENTICATED, "an admin-result is not from the pinned key service"
            ) from error
        if result.request_id == request_id:
            waiting.set_result(result)
