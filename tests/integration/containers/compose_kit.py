"""docker-compose.yml as a running system, for the tests."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.local import ports
from workers.settings import Settings, load_settings, parse_env_file

PROJECT = Path(__file__).parents[3]
WORKERS = ("keys", "ingest", "index", "query")
UP_S = 900.0


@dataclass(frozen=True, slots=True)
class Composed:
    """A system that was started by `docker compose up`.

    `home` has the stack.env of a client on this machine; `up_s` is how long `up` took.
    """

    name: str
    home: Path
    environment: Mapping[str, str] = field(repr=False)
    up_s: float

    @property
    def env(self) -> dict[str, str]:
        return parse_env_file((self.home / "stack.env").read_text())

    @property
    def settings(self) -> Settings:
        return load_settings(home=self.home, environ={})

    def compose(self, *arguments: str, check: bool = True) -> str:
        return compose(self.name, self.environment, *arguments, check=check)

    def container(self, client: Any, service: str) -> Any:
        """Return the container of a service, also one that has ended."""
        [identifier] = self.compose("ps", "--all", "--quiet", service).split()
        return client.containers.get(identifier)

    def inside(self, service: str, *command: str) -> str:
        return self.compose("exec", "-T", service, *command)


def command() -> list[str]:
    """Return `docker compose`, or the older program where there is no plugin."""
    plugin = subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False, timeout=300
    )
    old = shutil.which("docker-compose")
    return [old] if plugin.returncode != 0 and old else ["docker", "compose"]


def compose(name: str, environment: Mapping[str, str], *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        [*command(), "--project-name", name, *arguments],
        cwd=PROJECT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=UP_S,
    )
    if check and done.returncode != 0:
        said = f"{done.stdout}{done.stderr}"
        raise AssertionError(f"{done.returncode}: docker compose {' '.join(arguments)}:\n{said}")
    return done.stdout


@contextmanager
def composed(home: Path, **variables: str) -> Iterator[Composed]:
    """Run the system under a name and a port of its own; gone at the end, data too."""
    name = f"sealstream-test-{secrets.token_hex(4)}"
    port = str(ports.draw())
    environment = {**os.environ, "KAFKA_PORT": port, **variables}
    began = time.monotonic()
    try:
        try:
            compose(name, environment, "up", "--detach", "--wait", "--no-build")
        except AssertionError as error:
            logs = compose(name, environment, "logs", "--tail", "20", check=False)
            raise AssertionError(f"{error}\n{logs}") from None
        up_s = time.monotonic() - began
        env = compose(name, environment, "run", "--rm", "-T", "client-env")
        home.mkdir(parents=True, exist_ok=True)
        (home / "stack.env").write_text(env)
        yield Composed(name, home, environment, up_s)
    finally:
        compose(name, environment, "down", "--volumes", "--timeout", "5", check=False)
