"""Is a server ready? Each probe asks for what its users need; none just looks at a port."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import orjson

from workers.local.ports import LOOPBACK

Probe = Callable[[], Awaitable[bool]]
"""Return whether it is ready; may raise OSError, TimeoutError or EOFError while it is not."""

ANSWER_S = 10.0
_POLL_S = 0.05
_NOT_YET = (OSError, TimeoutError, EOFError, orjson.JSONDecodeError)


async def until(probe: Probe) -> None:
    """Poll a probe until it says yes. Never ends by itself: give it a deadline."""
    while True:
        with suppress(*_NOT_YET):
            if await probe():
                return
        await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a port of this machine.

    Raises:
        OSError: nobody listens.
    """
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def http(
    method: str,
    port: int,
    path: str,
    *,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    timeout_s: float = ANSWER_S,
) -> tuple[int, bytes]:
    """Send one HTTP/1.0 request to this machine; return the status and the body.

    Raises:
        OSError, EOFError, TimeoutError: no server, or an answer that is no HTTP.
    """
    lines = [f"{method} {path} HTTP/1.0", f"Host: {LOOPBACK}:{port}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    async with asyncio.timeout(timeout_s), connection(port) as (reader, writer):
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()
        head, separator, payload = (await reader.read()).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)
    if not separator or len(status) < 2 or not status[1].isdigit():
        raise EOFError("no HTTP answer")
    return int(status[1]), payload


def weed_leader(port: int) -> Probe:
    """The SeaweedFS master has elected itself (its restart takes an election)."""

    async def probe() -> bool:
        _, body = await http("GET", port, "/cluster/status")
        return bool(orjson.loads(body).get("IsLeader"))

    return probe


def weed_volume(master_port: int, volume_port: int) -> Probe:
    """The SeaweedFS volume server has reported to the master."""
    marker = f'"{LOOPBACK}:{volume_port}"'.encode()

    async def probe() -> bool:
        _, body = await http("GET", master_port, "/dir/status")
        return marker in body

    return probe


def http_answers(port: int, path: str = "/") -> Probe:
    """Any HTTP answer at all."""

    async def probe() -> bool:
        await http("GET", port, path)
        return True

    return probe


def kafka_answers(port: int) -> Probe:
    """The broker answers an ApiVersions request (key 18, version 0)."""
    request = struct.pack(">hhih", 18, 0, 1, -1)

    async def probe() -> bool:
        async with asyncio.timeout(ANSWER_S), connection(port) as (reader, writer):
            writer.write(struct.pack(">i", len(request)) + request)
            await writer.drain()
            _, correlation = struct.unpack(">ii", await reader.readexactly(8))
        return bool(correlation == 1)

    return probe
