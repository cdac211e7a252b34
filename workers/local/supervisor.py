"""The supervisor: starts the stack in order, keeps it running, stops it in the reverse order.

    SeaweedFS -> buckets, and the promises we rely on -> (OpenBao) -> Tansu -> stack.env
    -> topics -> realm -> keys workers -> all other workers

With the option `kafka` somebody else runs the broker, and it only has to answer.
Each step waits until the one before is ready. A process that ends later is started again. All of
it belongs to one process, detached or not: when that dies, however it dies, the kernel ends the
children.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from workers.errors import SealstreamError
from workers.local import access, openbao, ports, roles, servers
from workers.local.errors import StackError
from workers.local.process import Command, start_ticks
from workers.local.roles import worker_server
from workers.local.servers import Server
from workers.local.service import Service, run_once
from workers.local.state import (
    Phase,
    Remembered,
    StackState,
    read_remembered,
    state_path,
    write_remembered,
    write_state,
)
from workers.local.topics import apply_topics, await_broker, persist
from workers.runtime.wait import Stopped, unless
from workers.settings import Settings, load_settings, parse_env_file
from workers.storage.open import open_store

_STEP_DEADLINE_S = 240.0


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to run.

    Args:
        home: folder of everything; absolute.
        workers: number of processes per role.
        kms: `local` or `vault`; None as the last time.
        kafka: bootstrap servers of a broker that somebody else runs; None as the last time, which
            is Tansu at first.
        servers_only: no topics, no realm, no workers.
    """

    home: Path
    workers: dict[str, int] = field(default_factory=lambda: dict(roles.DEFAULT_COUNTS))
    kms: str | None = None
    kafka: str | None = None
    servers_only: bool = False


class Stack:
    """The local stack of one home folder; the caller holds its lock.

    Args:
        options: what to run.
        say: gets one line for each thing that happened.
    """

    def __init__(self, options: StackOptions, say: Callable[[str], None]) -> None:
        roles.check_counts(options.workers)
        self._options = options
        self._home = options.home
        self._say = say
        self._services: list[Service] = []
        self._stages: list[list[Service]] = []
        self._ports: dict[str, int] = {}
        self._keys: dict[str, access.KeyPair] = {}
        self._kms_env: dict[str, str] = {}
        self._remembered = Remembered()
        own = _self()
        self._state = StackState(
            pid=own[0],
            ticks=own[1],
            servers_only=options.servers_only,
            workers={} if options.servers_only else dict(options.workers),
        )
        self.force = asyncio.Event()

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None]) -> None:
        """Run until `stop` is set; `on_ready` is called once everything is ready.

        Raises:
            StackError: it could not be started; what had started has been stopped.
        """
        failure: StackError | None = None
        async with asyncio.TaskGroup() as keepers:
            try:
                with suppress(Stopped):
                    await unless(stop, self._start(keepers))
                    self._set_phase("ready")
                    on_ready()
                    await stop.wait()
            except* (StackError, SealstreamError) as errors:
                failure = _first(errors)
                self._state.error = str(failure)
            finally:
                self._set_phase("stopping")
                await self._stop()
        if failure is not None:
            self._set_phase("failed")
            raise failure
        state_path(self._home).unlink(missing_ok=True)

    # -- start -----------------------------------------------------------------------------------

    async def _start(self, keepers: asyncio.TaskGroup) -> None:
        self._set_phase("starting")
        began = time.monotonic()
        self._choose()
        await self._start_storage(keepers)
        if self._remembered.kms == "vault":
            await self._launch(keepers, [openbao.bao_server(self._home, self._ports)], "OpenBao")
            self._kms_env = await openbao.key_service_env(self._home, self._ports)
        if self._remembered.kafka is None:
            tansu = servers.tansu_server(self._home, self._ports, self._keys["broker"])
            await self._launch(keepers, [tansu], "Kafka (Tansu)")
        self._write_env()
        if self._remembered.kafka is not None:
            await self._await_kafka(self._remembered.kafka)
        if not self._options.servers_only:
            await self._start_workers(keepers)
        self._say(f"ready after {time.monotonic() - began:.1f} s")

    def _choose(self) -> None:
        """Settle ports, KMS and credentials; keep them for the next time."""
        known = read_remembered(self._home)
        kms = self._options.kms or known.kms
        exists = (self._home / "stack.env").exists()
        if exists and kms != known.kms:
            raise StackError(
                f"this home was made with --kms {known.kms}: its keys are wrapped there;"
                " use another --home"
            )
        kafka = self._options.kafka or known.kafka
        if exists and (kafka is None) != (known.kafka is None):
            raise StackError(
                f"this home was made {'with' if known.kafka else 'without'} --kafka: its indexes go"
                " by the offsets of that broker; use another --home"
            )
        names = [*servers.PORTS, *(openbao.PORTS if kms == "vault" else ())]
        # Sockets of a supervisor that was killed; their ports may be replaced below.
        self._remove_sockets(known.ports)
        self._ports = ports.choose(names, known.ports)
        self._remembered = Remembered(self._ports, kms, kafka)
        write_remembered(self._home, self._remembered)
        self._keys = access.load_identities(self._identities)

    @property
    def _identities(self) -> Path:
        return self._home / "seaweedfs" / "identities.json"

    async def _start_storage(self, keepers: asyncio.TaskGroup) -> None:
        began = time.monotonic()
        for stage in servers.weed_servers(self._home, self._ports, self._identities):
            await self._launch(keepers, stage)
        brokers = () if self._remembered.kafka else (access.BROKER_BUCKET,)
        for bucket in (access.BUCKET, *brokers):
            await self._check_bucket(bucket)
        self._say(f"S3 (SeaweedFS): {time.monotonic() - began:.1f} s")

    async def _check_bucket(self, bucket: str) -> None:
        """Make the bucket by its first PUT, and prove conditional writes on it."""
        admin = self._keys["admin"]
        settings = Settings(
            s3_endpoint=f"http://{ports.LOOPBACK}:{self._ports['s3']}",
            s3_bucket=bucket,
            s3_region=access.REGION,
            s3_access_key_id=admin.access,
            s3_secret_access_key=SecretStr(admin.secret),
        )
        store = open_store(settings)
        try:
            # Volumes report to the master by and by: the first writes may fail.
            await persist(store.check, f"the bucket {bucket}")
        finally:
            await store.aclose()

    async def _await_kafka(self, bootstrap: str) -> None:
        began = time.monotonic()
        settings = load_settings(environ=self._worker_env("ingest"), home=self._home)
        await await_broker(settings)
        self._say(f"Kafka ({bootstrap}): {time.monotonic() - began:.1f} s")

    async def _start_workers(self, keepers: asyncio.TaskGroup) -> None:
        settings = load_settings(environ=self._worker_env("ingest"), home=self._home)
        began = time.monotonic()
        created = len(await apply_topics(settings))
        self._say(f"topics: {created} created, {time.monotonic() - began:.1f} s")
        counts = self._options.workers
        began = time.monotonic()
        await run_once(
            Command(
                "realm",
                roles.sealstream(
                    "realm",
                    "init",
                    "--workers",
                    roles.worker_identities(counts),
                    "--env-file",
                    str(self._home / "stack.env"),
                    "--home",
                    str(self._home),
                ),
                self._worker_env("keys"),
                self._home / "logs" / "realm.log",
            ),
            _STEP_DEADLINE_S,
        )
        self._say(f"realm: {time.monotonic() - began:.1f} s")
        # Together, since each waits seconds for its group. Stopped apart: the others drain with
        # the help of the key service.
        began = time.monotonic()
        async with asyncio.TaskGroup() as both:
            for group in (("keys",), ("ingest", "index", "query")):
                stage = [
                    worker_server(self._home, role, number, self._worker_env(role))
                    for role in group
                    for number in range(1, counts[role] + 1)
                ]
                both.create_task(self._launch(keepers, stage))
        self._say(f"workers: {time.monotonic() - began:.1f} s")

    async def _launch(
        self, keepers: asyncio.TaskGroup, stage: list[Server], what: str | None = None
    ) -> None:
        """Start processes side by side; go on when all are ready."""
        began = time.monotonic()
        services = [
            Service(server, say=self._say, changed=self._changed, force=self.force)
            for server in stage
        ]
        # Known before they start: whatever happens now, they will be stopped.
        self._stages.append(services)
        self._services += services
        self._state.processes += [service.state for service in services]
        async with asyncio.TaskGroup() as starts:
            for service in services:
                starts.create_task(service.start())
        for service in services:
            keepers.create_task(service.keep())
        if what:
            self._say(f"{what}: {time.monotonic() - began:.1f} s")

    # -- stop ------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Stop the workers, then the servers, the last started first; the keys workers last."""
        for stage in reversed(self._stages):
            await asyncio.gather(*(service.stop() for service in stage))
        self._remove_sockets(self._ports)

    def _remove_sockets(self, known: dict[str, int]) -> None:
        for path in servers.weed_sockets(self._home, known):
            path.unlink(missing_ok=True)

    # -- state -----------------------------------------------------------------------------------

    def _set_phase(self, phase: Phase) -> None:
        self._state.phase, self._state.since = phase, time.time()
        self._changed()

    def _changed(self) -> None:
        write_state(self._home, self._state)

    def _write_env(self) -> None:
        """Write stack.env; token and fingerprint stay until the realm gives new ones."""
        path = self._home / "stack.env"
        kept = ("SEALSTREAM_TOKEN", "SEALSTREAM_KEY_SERVICE_FINGERPRINT")
        old = parse_env_file(path.read_text(encoding="utf-8")) if path.exists() else {}
        variables = access.stack_variables(self._ports, self._keys["admin"], self._remembered.kafka)
        if self._remembered.kms == "vault":
            variables["SEALSTREAM_KMS"] = openbao.KMS_SPEC
        variables |= {name: old[name] for name in kept if name in old}
        access.write_env(path, variables)

    def _worker_env(self, role: str) -> dict[str, str]:
        stack = parse_env_file((self._home / "stack.env").read_text(encoding="utf-8"))
        return roles.worker_env(stack, self._keys[role], self._kms_env if role == "keys" else {})


def _first(errors: BaseExceptionGroup[StackError | SealstreamError]) -> StackError:
    """Return the failure that ended the start; its neighbours were cancelled for it."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, StackError) else StackError(str(error))


def _self() -> tuple[int, int]:
    pid = os.getpid()
    return pid, start_ticks(pid) or 0
