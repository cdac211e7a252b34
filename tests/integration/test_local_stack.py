"""The local stack as its owner meets it: started, asked, killed, stopped, started again."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from workers.local.process import start_ticks
from workers.local.servers import weed_sockets
from workers.local.state import read_remembered, read_state, running
from workers.settings import load_settings
from workers.storage.errors import AlreadyExists
from workers.storage.open import open_store

pytestmark = pytest.mark.integration

DEADLINE_S = 300.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "workers.cli.main", *arguments]


def environment() -> dict[str, str]:
    prefixes = ("SEALSTREAM_", "AWS_", "VAULT_")
    return {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), check=False
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


def pids(home: Path) -> list[int]:
    state = read_state(home)
    assert state is not None
    return [p.pid for p in state.processes if p.pid is not None]


def pid_of(home: Path, name: str) -> int | None:
    state = read_state(home)
    assert state is not None
    return next(p.pid for p in state.processes if p.name == name)


def assert_nothing_is_left(home: Path, pids: list[int]) -> None:
    assert [pid for pid in pids if start_ticks(pid) is not None] == []
    assert [p for p in weed_sockets(home, read_remembered(home).ports) if p.exists()] == []
    assert running(home) is None


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home
    run("down", "--home", str(home))


@pytest.fixture
def detached(home: Path) -> Path:
    started = run("up", "--detach", "--servers-only", "--home", str(home))
    assert started.returncode == 0, started.stdout + started.stderr
    assert "S3 and Kafka run" in started.stdout
    return home


def test_down_and_up_keep_data_ports_and_credentials(detached: Path) -> None:
    home = str(detached)
    before = (detached / "stack.env").read_text()
    assert stat.S_IMODE((detached / "stack.env").stat().st_mode) == 0o600
    topics = orjson.loads(run("topics", "apply", "--json", "--home", home).stdout)
    assert all(topic["created"] for topic in topics)

    again = run("up", "--detach", "--home", home)
    assert again.returncode == 0
    assert "already ready" in again.stdout

    children = pids(detached)
    stopped = run("down", "--home", home)
    assert stopped.returncode == 0
    assert "stopped" in stopped.stdout
    assert_nothing_is_left(detached, children)
    assert run("status", "--home", home).returncode == 3

    restarted = run("up", "--detach", "--servers-only", "--home", home)
    assert restarted.returncode == 0, restarted.stderr
    assert (detached / "stack.env").read_text() == before
    topics = orjson.loads(run("topics", "apply", "--json", "--home", home).stdout)
    assert not any(topic["created"] for topic in topics)


def test_a_killed_server_comes_back(detached: Path) -> None:
    first = pid_of(detached, "tansu")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pid_of(detached, "tansu") not in (None, first), "the broker is back")
    wait_until(
        lambda: run("status", "--home", str(detached)).returncode == 0, "everything is ready"
    )
    report: dict[str, Any] = orjson.loads(run("status", "--json", "--home", str(detached)).stdout)
    tansu = next(p for p in report["processes"] if p["name"] == "tansu")
    assert (tansu["restarts"], tansu["last_exit"]) == (1, "killed by SIGKILL")
    log = (detached / "logs" / "supervisor.log").read_text()
    assert "tansu ended (killed by SIGKILL)" in log
    assert "tansu runs again" in log


def test_children_do_not_survive_a_killed_supervisor(detached: Path) -> None:
    state = running(detached)
    assert state is not None
    children = pids(detached)
    watches = [os.pidfd_open(pid) for pid in children]
    os.kill(state.pid, signal.SIGKILL)
    for watch in watches:
        readable, _, _ = select.select([watch], [], [], DEADLINE_S)
        os.close(watch)
        assert readable, "a server outlived its supervisor"
    # The state file is stale now: nothing runs, and a new start works.
    status = run("status", "--home", str(detached))
    assert (status.returncode, "nothing runs" in status.stdout) == (3, True)
    assert run("up", "--detach", "--servers-only", "--home", str(detached)).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_the_start_leaves_nothing(home: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        command("up", "--servers-only", "--home", str(home)),
        stdout=subprocess.DEVNULL,
        env=environment(),
    )
    try:
        wait_until(lambda: read_state(home) is not None and bool(pids(home)), "a server started")
        children = pids(home)
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert_nothing_is_left(home, children)


def test_a_taken_port_is_replaced(detached: Path) -> None:
    ports = read_remembered(detached).ports
    run("down", "--home", str(detached))
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", ports["s3"]))
        other.listen()
        assert run("up", "--detach", "--servers-only", "--home", str(detached)).returncode == 0
    moved = read_remembered(detached).ports
    assert moved["s3"] != ports["s3"]
    assert moved["kafka"] == ports["kafka"]
    assert f"127.0.0.1:{moved['s3']}" in (detached / "stack.env").read_text()


def test_a_server_that_cannot_start_shows_its_log(home: Path) -> None:
    # Where SeaweedFS wants its folder there is a file.
    (home / "seaweedfs" / "filer").mkdir(parents=True)
    (home / "seaweedfs" / "filer" / "filerldb2").touch()
    started = run("up", "--detach", "--servers-only", "--home", str(home))
    assert started.returncode == 3
    assert "seaweedfs-filer ended while starting" in started.stderr
    assert "filerldb2" in started.stderr
    assert running(home) is None


async def test_clients_find_everything_in_stack_env(servers: Any) -> None:
    settings = load_settings(home=servers.home, environ={})
    store = open_store(settings)
    try:
        await store.create("local-stack-test", b"one")
        with pytest.raises(AlreadyExists):
            await store.create("local-stack-test", b"two")
        await store.delete(["local-stack-test"])
    finally:
        await store.aclose()


def test_openbao_wraps_the_realm(home: Path) -> None:
    started = run("up", "--detach", "--kms", "vault", "--home", str(home))
    assert started.returncode == 0, started.stdout + started.stderr
    assert not (home / "kms.key").exists()
    assert "SEALSTREAM_KMS=vault:transit/sealstream" in (home / "stack.env").read_text()
    assert "VAULT_TOKEN" not in (home / "stack.env").read_text()
    fingerprint = load_settings(home=home, environ={}).key_service_fingerprint
    assert run("down", "--home", str(home)).returncode == 0

    refused = run("up", "--detach", "--kms", "local", "--home", str(home))
    assert refused.returncode == 3
    assert "--kms vault" in refused.stderr

    again = run("up", "--detach", "--home", str(home))
    assert again.returncode == 0, again.stdout + again.stderr
    assert load_settings(home=home, environ={}).key_service_fingerprint == fingerprint


def test_a_whole_stack_is_ready(stack: Any) -> None:
    def ready_workers() -> set[str]:
        report = orjson.loads(run("status", "--json", "--home", str(stack.home)).stdout)
        assert report["phase"] == "ready"
        return {p["name"] for p in report["processes"] if p.get("health", {}).get("ready")}

    # At once, but for a worker that was late with a heartbeat and is about to have its partitions.
    workers = {"keys-1", "ingest-1", "index-1", "query-1"}
    wait_until(lambda: ready_workers() == workers, "all workers are ready")
    assert run("status", "--home", str(stack.home)).returncode == 0
    settings = stack.settings
    assert settings.token is not None
    assert settings.key_service_fingerprint is not None
    token = settings.token.get_secret_value()
    for log in (stack.home / "logs").iterdir():
        assert token not in log.read_text(errors="replace"), log.name


def test_a_killed_worker_is_ready_again(stack: Any) -> None:
    first = pid_of(stack.home, "ingest-1")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pid_of(stack.home, "ingest-1") not in (None, first), "it was started again")
    status = ["status", "--home", str(stack.home)]
    wait_until(lambda: run(*status).returncode == 0, "it has its partitions again")


def test_detached_interruption_stops_the_supervisor(home: Path) -> None:
    # It waits for a broker that is not there: however late the signal comes, this is still a start.
    options = ("--servers-only", "--kafka", "127.0.0.1:9", "--home", str(home))
    process = subprocess.Popen(
        command("up", "--detach", *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        # Ignored by what a script starts in the background, these tests included.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_until(lambda: read_state(home) is not None and bool(pids(home)), "a server started")
        children = pids(home)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 3
    finally:
        process.kill()
        process.wait()
    assert_nothing_is_left(home, children)
