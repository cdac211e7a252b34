"""`sealstream audit`: what the key service says it did."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from cyclopts import App

from workers.cli.common import (
    COMMON,
    OK,
    REFUSED,
    USAGE,
    AsJson,
    Common,
    complain,
    fail,
    say_json,
    say_table,
)
from workers.cli.show import cell, moment

if TYPE_CHECKING:
    from workers.crypto.sign import VerifyKey
    from workers.kafka.broker import Broker, Record
    from workers.settings import Settings

app = App(name="audit", help="The audit of the key service.")


@app.command
async def verify(
    *, public_key: str | None = None, json: AsJson = False, common: Common = COMMON
) -> int:
    """Check that the audit is whole: chains, gaps, signed checkpoints. Exit code 1 if it is not.

    Parameters
    ----------
    public_key
        The key service's public key, base64 (`sealstream key export-directory` shows it). Default:
        the one in key-directory, if it has the pinned fingerprint.
    """
    from schemas.topics import ALL_TOPICS, KEY_AUDIT, with_prefix
    from workers.cli.connect import check_pinned, quiet_logs
    from workers.kafka.open import open_broker
    from workers.keys.audit_chain import check_audit

    settings = common.settings()
    if public_key is None:
        check_pinned(settings)
    quiet_logs()
    async with AsyncExitStack() as stack:
        broker = open_broker(settings, client_id="sealstream-audit")
        stack.push_async_callback(broker.aclose)
        if public_key is not None:
            service = _decoded(public_key)
        else:
            service = await _pinned(broker, settings)
        topic = with_prefix(settings.topic_prefix, KEY_AUDIT)
        chains = check_audit(
            await read_all(broker, topic),
            service,
            now_ms=int(time.time() * 1000),
            retention_ms=next(t.retention_ms or 0 for t in ALL_TOPICS if t.name == KEY_AUDIT),
        )
    problems = [f"{one.instance}: {problem}" for one in chains for problem in one.problems]
    if json:
        say_json(
            [
                {
                    "instance": one.instance,
                    "records": one.records,
                    "checkpoints": one.checkpoints,
                    "unsigned": one.unsigned,
                    "ended": one.ended,
                    "first_ms": one.first_ms,
                    "last_ms": one.last_ms,
                    "problems": one.problems,
                }
                for one in chains
            ]
        )
    else:
        say_table(
            ("instance", "records", "checkpoints", "unsigned", "ended", "last", "problems"),
            [
                (
                    cell(one.instance),
                    one.records,
                    one.checkpoints,
                    one.unsigned,
                    "yes" if one.ended else "no",
                    moment(one.last_ms),
                    len(one.problems),
                )
                for one in chains
            ],
        )
    for problem in problems:
        complain(problem)
    return REFUSED if problems else OK


async def read_all(broker: Broker, topic: str) -> list[Record]:
    """Return every record that a topic holds now. Raises Retry, Fatal."""
    reader = broker.topic_reader([topic], start="beginning", low_latency=False)
    await reader.start()
    found: list[Record] = []

    async def collect() -> None:
        while True:
            found.extend(await reader.next(1.0))

    task = asyncio.create_task(collect(), name="audit")
    try:
        caught_up = asyncio.ensure_future(reader.caught_up())
        await asyncio.wait({caught_up, task}, return_when=asyncio.FIRST_COMPLETED)
        (task if task.done() else caught_up).result()
    finally:
        caught_up.cancel()
        task.cancel()
        await asyncio.gather(caught_up, task, return_exceptions=True)
        await reader.stop()
    return found


async def _pinned(broker: Broker, settings: Settings) -> VerifyKey:
    from workers.leases.directory import KeyDirectory

    directory = KeyDirectory(broker, settings)
    try:
        await directory.start()
        return directory.key_service.sign_pub
    finally:
        await directory.stop()


def _decoded(text: str) -> VerifyKey:
    from workers.crypto.errors import InvalidKey
    from workers.crypto.sign import VerifyKey

    try:
        return VerifyKey(base64.b64decode(text, validate=True))
    except (InvalidKey, binascii.Error, ValueError):
        fail("--public-key: not a public key of 32 bytes in base64", USAGE)
