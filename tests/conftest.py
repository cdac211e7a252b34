"""Real servers and a whole stack, started at most once a run, by the command that users call.

`servers`: S3 and Kafka. `stack`: all workers as well. Both run in a temporary home and are gone
when pytest ends, also when it is killed. `--broker` says which Kafka: Tansu, which the local stack
brings along, or Apache Kafka (`kafka_kit.py`).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import structlog

# Test folders are no packages (importlib mode): make the kit importable.
sys.path.insert(0, str(Path(__file__).parent))

from kafka_kit import Kafka, kafka

from workers.local.process import die_with_parent
from workers.local.state import StackState, read_state
from workers.settings import Settings, load_settings, parse_env_file

START_DEADLINE_S = 600.0
# Folders in the order of their tests. Stacks stay until the end, and an idle one takes a good part
# of a small machine: first comes what needs none, last what is not named here.
ORDER = ("unit", "vectors", "simulation", "contract", "integration", "chaos", "kafka")

# Examples are the same in every run, and none has to be quick: a test fails for what the code does,
# never for what was drawn or for how busy the machine is. Others: --hypothesis-profile=default.
hypothesis.settings.register_profile(
    "steady",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("steady")


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A local stack that runs; `process` is its supervisor."""

    home: Path
    process: subprocess.Popen[bytes]

    @property
    def env(self) -> dict[str, str]:
        """What stack.env says."""
        return parse_env_file((self.home / "stack.env").read_text())

    @property
    def settings(self) -> Settings:
        """The settings of a client: nothing comes from the environment of the tests."""
        return load_settings(home=self.home, environ={})

    @property
    def state(self) -> StackState:
        state = read_state(self.home)
        assert state is not None
        return state

    def pid(self, name: str) -> int | None:
        """Process id of a server or worker; None while it does not run."""
        return next(p.pid for p in self.state.processes if p.name == name)


def clean_env() -> dict[str, str]:
    """The environment without settings of ours and credentials of whoever runs the tests."""
    prefixes = ("SEALSTREAM_", "AWS_", "VAULT_")
    return {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}


@contextmanager
def local_stack(
    home: Path, *options: str, environ: Mapping[str, str] | None = None
) -> Iterator[RunningStack]:
    log = home / "up.log"
    home.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli.main", "up", "--home", str(home), *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**clean_env(), **(environ or {})},
            preexec_fn=die_with_parent(),
        )
    try:
        end = time.monotonic() + START_DEADLINE_S
        while (state := read_state(home)) is None or state.phase != "ready":
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the local stack did not start:\n{log.read_text()}", pytrace=False)
            time.sleep(0.05)
        yield RunningStack(home, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker",
        choices=("tansu", "kafka"),
        default="tansu",
        help="broker of stacks and contract suites: Tansu (default) or Apache Kafka",
    )


StartStack = Callable[..., AbstractContextManager[RunningStack]]


@contextmanager
def stack_on_kafka(
    home: Path, *options: str, environ: Mapping[str, str] | None = None
) -> Iterator[RunningStack]:
    """`local_stack` on a broker that is not part of it."""
    servers_only = "--servers-only" in options
    with (
        kafka(home / "kafka", topics=not servers_only) as broker,
        local_stack(home, "--kafka", broker.bootstrap, *options, environ=environ) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def start_stack(pytestconfig: pytest.Config) -> StartStack:
    """Run a stack on the broker of this run; for tests that need one of another shape."""
    return local_stack if pytestconfig.getoption("broker") == "tansu" else stack_on_kafka


@pytest.fixture(scope="session")
def servers(
    start_stack: StartStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """S3 and Kafka, without topics and workers; tests make topics and prefixes of their own."""
    with start_stack(tmp_path_factory.mktemp("servers"), "--servers-only") as running:
        yield running


@pytest.fixture(scope="session")
def stack(
    start_stack: StartStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """The whole local stack; tests make indexes of their own."""
    with start_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Apache Kafka for tests whose topics have names of their own."""
    with kafka(tmp_path_factory.mktemp("kafka"), topics=False) as broker:
        yield broker


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Commands set up logging for their whole process, with the streams of the test's capture."""
    aiokafka = logging.getLogger("aiokafka")
    level = aiokafka.level
    yield
    structlog.reset_defaults()
    aiokafka.setLevel(level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(here).parts[0]
        return ORDER.index(folder) if folder in ORDER else len(ORDER)

    items.sort(key=place)
    for item in items:
        if {"servers", "stack"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)
