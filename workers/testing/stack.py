"""The stack itself: starts the containers in order, and leaves nothing behind.

    network, volumes -> secrets -> object store, KMS -> buckets -> broker -> topics
                                                               -> realm  -> the four workers

Containers, volumes and the network carry testcontainers' labels: if the tests are killed, its
reaper removes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import secrets
import tarfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self

from docker.errors import DockerException, NotFound
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.labels import create_labels
from testcontainers.core.network import Network

from workers.client import Client
from workers.local import ports
from workers.local.files import write_private
from workers.local.provision import WORKERS, Kms
from workers.settings import Settings, parse_env_file, variables
from workers.testing.images import Images
from workers.testing.parts import CLIENT_ENV, USER, VOLUMES, Broker, Part, Parts

_POLL_S: Final = 0.25
_LOG_LINES: Final = 40
_ONCE_S: Final = 300.0
# Seconds for a single call: a busy machine makes and removes containers slowly.
_API: Final = {"timeout": 300}


class ContainersError(RuntimeError):
    """Raised when a part does not start; the text has the end of its log."""


class SealstreamStack:
    """A whole system in containers; a context manager, also an asynchronous one.

    Args:
        index: an index to create; None creates none.
        index_options: arguments of its creation: `{"dimension": 384, "metric": "cosine"}`.
        index_key: 32 bytes: the index's own key, which its callers keep. Clients of `client` have
            it; the key service cannot open the index without.
        kms: where the root of all keys is wrapped: a key file, or an OpenBao that runs along.
        broker: Tansu, which starts at once, or Apache Kafka.
        images: what to run; defaults and the environment see `Images`.
        start_timeout_s: seconds that a worker may take until it works.
    """

    def __init__(
        self,
        *,
        index: str | None = None,
        index_options: Mapping[str, Any] | None = None,
        index_key: bytes | None = None,
        kms: Kms = "local",
        broker: Broker = "tansu",
        images: Images | None = None,
        start_timeout_s: float = 300.0,
    ) -> None:
        if index is None and (index_options or index_key):
            raise ValueError("index_options and index_key are of an index: name it")
        self._index = index
        self._index_options = dict(index_options or {})
        self._index_key = index_key
        self._kms: Kms = kms
        self._broker: Broker = broker
        self._images = images or Images()
        self._start_timeout_s = start_timeout_s
        self._prefix = f"sealstream-{secrets.token_hex(6)}"
        self._docker: DockerClient | None = None
        self._network: Network | None = None
        self._volumes: list[Any] = []
        self._containers: dict[str, DockerContainer] = {}
        self._home: TemporaryDirectory[str] | None = None
        self._settings: Settings | None = None

    # --- for tests ---------------------------------------------------------------------------

    def client(self, **options: Any) -> Client:
        """Return a client of this stack; use it as an async context manager.

        Args:
            options: of `Client`, e.g. `protection="plain"`.
        """
        return Client(self.settings, **{"index_key": self._index_key, **options})

    @property
    def settings(self) -> Settings:
        """The settings of a client: nothing comes from the environment of the tests."""
        if self._settings is None:
            raise RuntimeError("the stack is not started: use it as a context manager")
        return self._settings

    @property
    def env(self) -> dict[str, str]:
        """The same as variables, with the token, for other programs."""
        return parse_env_file((self.settings.home / "stack.env").read_text(encoding="utf-8"))

    @property
    def home(self) -> Path:
        """A folder with `stack.env`: `sealstream search INDEX TEXT --home FOLDER`."""
        return self.settings.home

    @property
    def bootstrap(self) -> str:
        """Bootstrap servers of the broker, HOST:PORT, for any Kafka client."""
        return self.settings.kafka_bootstrap

    def container(self, name: str) -> DockerContainer:
        """Return a container: `keys-1`, `ingest-1`, `index-1`, `query-1`, `s3`, `broker`, `kms`.

        For tests that kill, stop or freeze a part: `stack.container("index-1")
        .get_wrapped_container().kill()`, then `.start()`, and `wait_ready`.
        """
        return self._containers[name]

    def wait_ready(self, *names: str) -> None:
        """Wait until workers (default: all) have their partitions.

        Raises:
            ContainersError: one has ended, or takes too long.
        """
        for name in names or WORKERS:
            self._until_ready(name)

    def logs(self, name: str) -> str:
        """Return what a container has written, as `container`."""
        out, err = self._containers[name].get_logs()
        return (out + err).decode(errors="replace")

    # --- start and stop ----------------------------------------------------------------------

    def start(self) -> Self:
        """Start everything; returns when all workers have their partitions.

        Raises:
            ContainersError: a part does not start; what had started is removed.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Remove containers, volumes and network; may be called at any time."""
        for container in reversed(list(self._containers.values())):
            with contextlib.suppress(NotFound):
                container.stop()
        self._containers.clear()
        for volume in self._volumes:
            with contextlib.suppress(NotFound):
                volume.remove(force=True)
        self._volumes.clear()
        if self._network is not None:
            with contextlib.suppress(NotFound):
                self._network.remove()
            self._network = None
        if self._home is not None:
            self._home.cleanup()
            self._home = None
        if self._docker is not None:
            self._docker.client.close()
            self._docker = None
        self._settings = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _start(self) -> None:
        try:
            self._docker = DockerClient(**_API)
        except DockerException as error:
            raise ContainersError("no Docker daemon answers that this user may ask") from error
        self._network = Network(docker_client_kw=_API).create()
        for name in VOLUMES:
            labels = create_labels(self._images.sealstream, None)
            made = self._docker.client.volumes.create(f"{self._prefix}-{name}", labels=labels)
            self._volumes.append(made)
        # The broker must tell clients its port before it has one.
        host, port = self._docker.host(), ports.draw()
        parts = Parts(self._images, self._kms, self._broker, host, port)
        self._once(parts.secrets())
        for part in parts.stores():
            self._run(part)
        self._once(parts.buckets())
        for part in parts.brokers():
            self._run(part, parts)
        _together(lambda: self._once(parts.topics()), lambda: self._make_realm(parts))
        workers = parts.workers()
        for part in workers:
            self._run(part)
        self.wait_ready()
        if self._index is not None:
            self._make_index(self._index)

    def _make_realm(self, parts: Parts) -> None:
        container = self._once(parts.realm(), keep=True)
        chunks, _ = container.get_wrapped_container().get_archive(CLIENT_ENV)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            member = archive.extractfile(archive.getmembers()[0])
            text = member.read() if member is not None else b""
        self._remove(parts.realm().name)
        self._home = TemporaryDirectory(prefix="sealstream-")
        home = Path(self._home.name)
        write_private(home / "stack.env", text)
        values = parse_env_file(text.decode())
        given = {
            name: values[variable]
            for name in Settings.model_fields
            for variable in variables(name)
            if variable in values
        }
        self._settings = Settings.model_validate({**given, "home": home})

    def _make_index(self, name: str) -> None:
        options = dict(self._index_options)
        if self._index_key is not None:
            options.setdefault("kms", {"provider": "none"})

        async def create() -> None:
            async with self.client() as client:
                await client.create_index(name, **options)

        # Of its own, since a loop may be running in this thread.
        _together(lambda: asyncio.run(create()))

    # --- containers --------------------------------------------------------------------------

    def _run(self, part: Part, outside: Parts | None = None) -> DockerContainer:
        container = DockerContainer(part.image, docker_client_kw=_API, env=dict(part.environment))
        options: dict[str, Any] = {
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
        }
        if part.hardened:
            options |= {"user": USER, "read_only": True}
        if part.entrypoint is not None:
            options["entrypoint"] = [part.entrypoint]
        if part.connected and self._network is not None:
            container.with_network(self._network).with_network_aliases(part.name)
        else:
            options["network_mode"] = "none"
        if part.command:
            container.with_command(list(part.command))
        for folder, (volume, mode) in part.volumes.items():
            container.with_volume_mapping(f"{self._prefix}-{volume}", folder, mode)
        container.tmpfs.update(part.tmpfs)
        if part.port is not None and outside is not None:
            place: Any = outside.port
            if outside.host in ("localhost", "127.0.0.1"):
                # Nobody else needs to reach it.
                place = ("127.0.0.1", outside.port)
            container.ports[str(part.port)] = place
        container.with_kwargs(**options)
        # Known before it starts: whatever happens now, it will be removed.
        self._containers[part.name] = container
        return container.start()

    def _once(self, part: Part, *, keep: bool = False) -> DockerContainer:
        """Run a container to its end."""
        container = self._run(part)
        code = container.get_wrapped_container().wait(timeout=_ONCE_S)["StatusCode"]
        if code != 0:
            raise self._failed(part.name, f"ended with {code}")
        if not keep:
            self._remove(part.name)
        return container

    def _remove(self, name: str) -> None:
        self._containers.pop(name).stop()

    def _until_ready(self, name: str) -> None:
        container = self._containers[name]
        end = time.monotonic() + self._start_timeout_s
        while True:
            container.reload()
            if container.status not in ("created", "running"):
                raise self._failed(name, f"is {container.status}")
            if container.exec(["python3", "-m", "workers.runtime.alive"]).exit_code == 0:
                return
            if time.monotonic() > end:
                raise self._failed(name, f"is not ready after {self._start_timeout_s:g} s")
            time.sleep(_POLL_S)

    def _failed(self, name: str, what: str) -> ContainersError:
        lines = self.logs(name).splitlines()[-_LOG_LINES:]
        return ContainersError("\n".join([f"the container {name} {what}:", *lines]))


def _together(*calls: Callable[[], Any]) -> None:
    """Run calls side by side; raise the first failure."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()
