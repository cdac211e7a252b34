"""The metrics over HTTP, for a Prometheus server. GET /metrics and nothing else."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from workers.telemetry import metrics

_MAX_REQUEST_BYTES = 8192
_DEADLINE_S = 5.0
_OK = "200 OK"


class MetricsEndpoint:
    """A server that lives as long as its `async with`.

    Args:
        host: address to listen on.
        port: 0 takes any free one; `port` then says which.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self.port = port
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._answer, self._host, self.port, limit=_MAX_REQUEST_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                request = await reader.readuntil(b"\r\n\r\n")
                status, body = _respond(request)
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that does not speak HTTP, or is gone: nobody to tell
        finally:
            writer.close()


def _respond(request: bytes) -> tuple[str, bytes]:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method != b"GET":
        return "405 Method Not Allowed", b""
    if path != b"/metrics":
        return "404 Not Found", b""
    return _OK, metrics.render().encode()
