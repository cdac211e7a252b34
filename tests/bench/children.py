"""What runs in a process of its own: a first query on nothing in memory, and an echo on the broker.

python -m bench.children cold < task.pickle      prints {"ms", "gets", "bytes", "found"}
python -m bench.children peer < task.pickle      the same for CyborgDB
python -m bench.children echo HOME REQUESTS REPLIES     answers until killed
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import F32, ROOT
from bench.engine import Keys, Reading, parse
from bench.peer import Cyborg
from schemas.index import IndexConfig
from workers.kafka.open import open_broker
from workers.settings import load_settings
from workers.storage.open import open_store


@dataclass(frozen=True, slots=True)
class ColdTask:
    """One query of ours."""

    home: Path
    keys: Keys
    config: IndexConfig
    query: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PeerTask:
    """One query of the peer."""

    home: Path
    prefix: str
    key: bytes
    vector: F32
    probes: int
    rerank: int


async def spawn(*arguments: str) -> asyncio.subprocess.Process:
    """Start a child of this module."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.children",
        *arguments,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def ask(task: ColdTask | PeerTask) -> dict[str, Any]:
    """Run a task in a fresh process and return what it printed.

    Raises:
        RuntimeError: the child failed.
    """
    child = await spawn("cold" if isinstance(task, ColdTask) else "peer")
    output, _ = await child.communicate(pickle.dumps(task))
    if child.returncode:
        raise RuntimeError("the child process failed")
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


async def _cold(task: ColdTask) -> dict[str, Any]:
    query = parse(task.query)
    settings = load_settings(home=task.home)
    began = time.perf_counter()
    reading = Reading(open_store(settings, read_only=True), task.keys, task.config)
    found = await reading.answer(query)
    ms = (time.perf_counter() - began) * 1000
    ids = [one.id for one in found.candidates]
    return {"ms": ms, "gets": reading.gets, "bytes": reading.bytes, "found": ids}


def _peer(task: PeerTask) -> dict[str, Any]:
    settings = load_settings(home=task.home)
    began = time.perf_counter()
    peer = Cyborg(settings, task.prefix, task.key)
    peer.load()
    found = peer.search(task.vector, 10, task.probes, task.rerank)
    ms = (time.perf_counter() - began) * 1000
    return {"ms": ms, "found": [str(one) for one in np.asarray(found).tolist()]}


async def _echo(home: str, requests: str, replies: str) -> None:
    broker = open_broker(load_settings(home=Path(home)), client_id="sealstream-echo")
    reader = broker.topic_reader([requests], start="end")
    producer = await broker.producer()
    await reader.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for record in await reader.next(1.0):
            await producer.send(replies, record.value, key=record.key)


def main() -> None:
    """Run the task that the arguments name."""
    match sys.argv[1:]:
        case ["cold"]:
            answer = asyncio.run(_cold(pickle.loads(sys.stdin.buffer.read())))
        case ["peer"]:
            answer = _peer(pickle.loads(sys.stdin.buffer.read()))
        case ["echo", home, requests, replies]:
            asyncio.run(_echo(home, requests, replies))
            return
        case _:
            sys.exit(2)
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
