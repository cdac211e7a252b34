"""A real Apache Kafka for the tests: one KRaft node, run from the jars that Apache publishes.

    KAFKA_BOOTSTRAP=HOST:PORT    that broker is used instead (not where it is killed or secured);
                                 it must have no topics of ours
    java (17 or newer) and mvn   the jars are fetched once, into ~/.cache/sealstream
    neither                      tests that need Kafka skip and say so; with CI set they fail

Every node has a folder and ports of its own, and dies with the tests.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from schemas.topics import ALL_TOPICS
from workers.local import ports
from workers.local.process import die_with_parent

FOLDER = Path(__file__).parent / "kafka"
POM = FOLDER / "pom.xml"
BOOTSTRAP = "KAFKA_BOOTSTRAP"
START_S = 300.0
_POLL_S = 0.1
STOP_S = 60.0
JAVA = 17
# How often a download is tried.
DOWNLOADS = 4
# Small, and quick to start rather than quick in the long run.
_JVM = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
_LOG = """
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c: %m%n
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
"""
# One node, little data, many starts; the rest is as Kafka has it.
SMALL = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
    "log.cleaner.backoff.ms": "500",
    "num.network.threads": "2",
    "num.io.threads": "4",
}


# --- may it run here? ----------------------------------------------------------------------------


def missing(*, own: bool = False, jdk: bool = False) -> str | None:
    """Return why there is no Apache Kafka here, None if there is.

    Args:
        own: somebody else's does not do.
        jdk: a program in Java has to be compiled besides.
    """
    if not own and os.environ.get(BOOTSTRAP):
        return None
    for program in ("java", "mvn", *(["javac"] if jdk else [])):
        if shutil.which(program) is None:
            return f"Apache Kafka needs {BOOTSTRAP}, or java and mvn: there is no `{program}`"
    found = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', found.stderr)
    if version is None or int(version[1]) < JAVA:
        return f"Apache Kafka needs Java {JAVA} or newer, or {BOOTSTRAP}"
    return None


def need(*, own: bool = False, jdk: bool = False) -> None:
    """Skip the test without Kafka, or fail it where everything must be tested (CI)."""
    if why := missing(own=own, jdk=jdk):
        _give_up(why)


def jars() -> Path:
    """Return the folder with the jars; fetch them if this is the first time."""
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sealstream"
    folder = cache / f"kafka-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("w") as lock:
        # Two runs at once: the second waits for the first.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        output = Path(made) / "jars"
        # `-U`: what could not be had a moment ago may be there now.
        argv = ["mvn", "-B", "-q", "-U", "-f", str(POM), "dependency:copy-dependencies"]
        for _ in range(DOWNLOADS):
            done = subprocess.run(
                [*argv, f"-DoutputDirectory={output}"], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                break
        else:
            pytest.fail(f"Maven cannot fetch Apache Kafka:\n{done.stdout}", pytrace=False)
        output.rename(folder)


def java(main: str | Path, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """Return the command line of one of Kafka's programs, or of a Java source file."""
    return ["java", *_JVM, *options, "-cp", f"{jars()}/*", str(main), *arguments]


# --- a node --------------------------------------------------------------------------------------


class Node:
    """A broker and its storage. `start` after `kill` or `stop` goes on with what it has.

    Args:
        home: folder of its own, made here.
        properties: text of server.properties.
        port: of a listener that clients use.
        tls: how to reach that listener; None in clear.
        users: SCRAM users, name to password, that exist from the start.
    """

    def __init__(
        self,
        home: Path,
        properties: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.bootstrap = f"{ports.LOOPBACK}:{port}"
        self.log = home / "kafka.log"
        self._port = port
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._properties = home / "server.properties"
        self._properties.write_text(properties)
        self._properties.chmod(0o600)
        self._log_settings = home / "log4j2.properties"
        self._log_settings.write_text(_LOG)
        scram = [
            part
            for name, password in (users or {}).items()
            for part in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]")
        ]
        self._run(
            "kafka.tools.StorageTool",
            "format",
            "--standalone",
            *("--cluster-id", "sealstream-tests-00000"),
            *("--config", str(self._properties)),
            *scram,
        )

    def _argv(self, main: str, *arguments: str) -> list[str]:
        log = f"-Dlog4j2.configurationFile={self._log_settings}"
        return java(main, *arguments, options=(log, f"-Djava.io.tmpdir={self.home}"))

    def _run(self, main: str, *arguments: str) -> None:
        done = subprocess.run(
            self._argv(main, *arguments), capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.fail(f"{main} failed:\n{done.stdout}{done.stderr}", pytrace=False)

    def start(self) -> None:
        """Start it and wait until it serves clients."""
        self.launch()
        while not self.serves():
            time.sleep(_POLL_S)

    def launch(self) -> None:
        """Start it, and do not wait. In the main thread only: it dies with the thread's end."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv("kafka.Kafka", str(self._properties)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        self._deadline = time.monotonic() + START_S

    def serves(self) -> bool:
        """Return whether it serves clients; fail the test if it will not."""
        process = self._process
        assert process is not None
        if process.poll() is not None or time.monotonic() > self._deadline:
            self.kill()
            tail = self.log.read_text(errors="replace")[-4000:]
            pytest.fail(f"Apache Kafka did not start:\n{tail}", pytrace=False)
        return self._answers()

    def _answers(self) -> bool:
        """Ask which versions it speaks (ApiVersions, key 18): answered once it is in service."""
        request = struct.pack(">hhih", 18, 0, 1, -1)
        try:
            with socket.create_connection((ports.LOOPBACK, self._port), 10.0) as plain:
                peer = plain
                if self._tls is not None:
                    peer = self._tls.wrap_socket(plain, server_hostname="localhost")
                with peer:
                    peer.sendall(struct.pack(">i", len(request)) + request)
                    return len(peer.recv(8)) > 0
        except OSError:
            return False

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order; kill it if that takes too long."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def lines(properties: Mapping[str, str]) -> str:
    """Return properties as a file has them."""
    return "".join(f"{name}={value}\n" for name, value in properties.items())


@contextmanager
def plain_node(home: Path) -> Iterator[Node]:
    """Yield a node that asks nobody for a password. It is not started."""
    chosen = ports.choose(("clients", "controller"), {})
    clients, controller = (f"{ports.LOOPBACK}:{chosen[name]}" for name in chosen)
    properties = {
        **SMALL,
        "log.dirs": str(home / "data"),
        "listeners": f"PLAINTEXT://{clients},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{clients}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.bootstrap.servers": controller,
    }
    node = Node(home, lines(properties), chosen["clients"])
    try:
        yield node
    finally:
        node.stop()


# --- what the fixtures use -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kafka:
    """An Apache Kafka that runs; `node` is None if somebody else runs it."""

    bootstrap: str
    node: Node | None = None


_borrowed = False


@contextmanager
def kafka(home: Path, *, topics: bool) -> Iterator[Kafka]:
    """Yield a broker without topics of ours: a node of its own, or that in KAFKA_BOOTSTRAP.

    Args:
        home: folder for the node.
        topics: ours shall be made there, so nobody else's may; else the caller's have names that
            nobody has.
    """
    need()
    given = os.environ.get(BOOTSTRAP)
    if given:
        with _borrow(given) if topics else nullcontext():
            yield Kafka(given)
        return
    with plain_node(home) as node:
        node.start()
        yield Kafka(node.bootstrap, node)


@contextmanager
def own_node(home: Path) -> Iterator[Node]:
    """Yield a node that the test starts and may kill."""
    need(own=True)
    with plain_node(home) as node:
        yield node


@contextmanager
def _borrow(bootstrap: str) -> Iterator[None]:
    """Use somebody's broker for one stack at a time, and leave no topics there."""
    global _borrowed
    if _borrowed:
        _give_up(f"a second broker is needed at the same time: {BOOTSTRAP} is only one")
    names = {spec.name for spec in ALL_TOPICS}
    if found := names & _topics(bootstrap):
        pytest.fail(f"{BOOTSTRAP} has topics of ours already ({min(found)}): use another broker")
    _borrowed = True
    try:
        yield
    finally:
        _borrowed = False
        _topics(bootstrap, delete=names)


def _give_up(why: str) -> None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


def _topics(bootstrap: str, delete: set[str] | None = None) -> set[str]:
    """Return the names of a broker's topics, and delete some."""

    async def ask() -> set[str]:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            found = set(await admin.list_topics())
            if doomed := found & (delete or set()):
                await admin.delete_topics(sorted(doomed))
            return found
        finally:
            await admin.close()

    # A loop of its own that never becomes the current one: that belongs to the tests.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(ask())
