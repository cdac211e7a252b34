"""What runs in the containers of a stack: the services of docker-compose.yml, as values.

Every part says its image, its command and what it sees of the deployment's files
(`workers.local.provision`), nothing else. In the network they are called as there: `s3`, `kms`,
`broker`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from workers.local.access import BROKER_BUCKET, BUCKET, REGION, KeyPair
from workers.local.provision import HOME, S3_PORT, WORKERS, Kms
from workers.testing.images import Images

Broker = Literal["tansu", "kafka"]

# Of the image's user; no container needs more.
USER: Final = "10001:10001"
_ROOT: Final = "/provision"
_OWN_TMPFS: Final = "uid=10001,gid=10001,mode=0700"
_KAFKA_PORT: Final = 9092
_OUTER_PORT: Final = 19092
_FOLDERS: Final = ("s3", "kms", "operator", *WORKERS)
_DATA: Final = ("s3-data", "kms-data")
VOLUMES: Final = (*_FOLDERS, *_DATA)


@dataclass(frozen=True, slots=True)
class Part:
    """One container.

    Args:
        name: host name in the network.
        image: its image.
        command: arguments.
        entrypoint: instead of the image's.
        environment: variables; no secrets but the broker's.
        volumes: mount point -> (volume, mode).
        tmpfs: mount point -> options.
        port: where the container listens, to be published at `Parts.port`.
        connected: whether it has a network.
        hardened: read-only root, and the user of our image.
    """

    name: str
    image: str
    command: tuple[str, ...]
    entrypoint: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    connected: bool = True
    hardened: bool = True


@dataclass(frozen=True, slots=True)
class Parts:
    """All containers of one stack.

    Args:
        images: what they run.
        kms: where the root of all keys is wrapped.
        broker: which Kafka.
        host: where clients outside reach it: host name or address.
        port: and port.
        broker_keys: credentials for the broker's bucket.
    """

    images: Images
    kms: Kms
    broker: Broker
    host: str
    port: int
    broker_keys: KeyPair = field(
        default_factory=lambda: KeyPair(secrets.token_hex(10), secrets.token_urlsafe(30))
    )

    @property
    def address(self) -> str:
        """HOST:PORT of the broker for clients outside."""
        return f"{self.host}:{self.port}"

    def secrets(self) -> Part:
        """Draw credentials and keys."""
        return self._once(
            "secrets",
            ("provision", "secrets", "--kms", self.kms),
            VOLUMES,
            environment={
                "BROKER_S3_ACCESS_KEY_ID": self.broker_keys.access,
                "BROKER_S3_SECRET_ACCESS_KEY": self.broker_keys.secret,
            },
            connected=False,
        )

    def buckets(self) -> Part:
        """Make the buckets, once the object store answers."""
        return self._once("buckets", ("provision", "buckets", "--broker"), ("operator",))

    def topics(self) -> Part:
        """Make the topics, once the broker answers."""
        return self._once("topics", ("topics", "apply"), ())

    def realm(self) -> Part:
        """Make the realm and enrol the workers."""
        command = ("provision", "realm", "--client-kafka", self.address)
        return self._once("realm", command, ("operator", *WORKERS))

    def workers(self) -> list[Part]:
        """The four workers; each sees its own home only."""
        return [
            Part(
                name=worker,
                image=self.images.sealstream,
                command=("worker", worker.partition("-")[0], "--id", worker),
                environment=_ENVIRONMENT,
                # A worker keeps the certificates there that it is given while it runs.
                volumes={str(HOME): (worker, "ro" if worker == "keys-1" else "rw")},
                tmpfs={f"{HOME}/run": f"{_OWN_TMPFS},size=1m", "/tmp": "size=16m"},  # noqa: S108
            )
            for worker in WORKERS
        ]

    def stores(self) -> list[Part]:
        """The object store, and the key-management service if it is one."""
        s3 = Part(
            name="s3",
            image=self.images.seaweedfs,
            entrypoint="weed",
            command=("-logtostderr=true", "server", "-options=/s3/weed.options"),
            volumes={"/s3": ("s3", "ro"), "/data": ("s3-data", "rw,nocopy")},
            tmpfs=_TMP,
        )
        if self.kms == "local":
            return [s3]
        kms = Part(
            name="kms",
            image=self.images.openbao,
            entrypoint="bao",
            command=("server", "-config=/kms/openbao.json"),
            environment={"HOME": "/tmp"},  # noqa: S108 - of the container
            volumes={"/kms": ("kms", "ro"), "/openbao/file": ("kms-data", "rw,nocopy")},
            tmpfs=_TMP,
        )
        return [s3, kms]

    def brokers(self) -> list[Part]:
        """Kafka, and what this machine reaches it by."""
        return [self._kafka()] if self.broker == "kafka" else self._tansu()

    def _tansu(self) -> list[Part]:
        """Tansu tells clients one address only: outside they ask the proxy before it."""
        broker = Part(
            name="broker",
            image=self.images.tansu,
            command=(
                "broker",
                f"--listener-url=tcp://0.0.0.0:{_KAFKA_PORT}",
                f"--advertised-listener-url=tcp://broker:{_KAFKA_PORT}",
                f"--storage-engine=s3://{BROKER_BUCKET}/",
            ),
            environment={
                "AWS_ENDPOINT": f"http://s3:{S3_PORT}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_CONDITIONAL_PUT": "etag",
                "AWS_DEFAULT_REGION": REGION,
                **self.broker_keys.env(),
            },
            tmpfs=_TMP,
        )
        proxy = Part(
            name="broker-proxy",
            image=self.images.tansu,
            command=(
                "proxy",
                f"--listener-url=tcp://0.0.0.0:{_KAFKA_PORT}",
                f"--advertised-listener-url=tcp://{self.address}",
                f"--origin-url=tcp://broker:{_KAFKA_PORT}",
            ),
            tmpfs=_TMP,
            port=_KAFKA_PORT,
        )
        return [broker, proxy]

    def _kafka(self) -> Part:
        inner, outer = f"0.0.0.0:{_KAFKA_PORT}", f"0.0.0.0:{_OUTER_PORT}"
        names = ("CONTROLLER", "INSIDE", "OUTSIDE")
        return Part(
            name="broker",
            image=self.images.kafka,
            command=(),
            environment={
                "KAFKA_NODE_ID": "1",
                "KAFKA_PROCESS_ROLES": "broker,controller",
                "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
                "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
                "KAFKA_INTER_BROKER_LISTENER_NAME": "INSIDE",
                "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": ",".join(f"{n}:PLAINTEXT" for n in names),
                "KAFKA_LISTENERS": (
                    f"INSIDE://{inner},OUTSIDE://{outer},CONTROLLER://localhost:9093"
                ),
                "KAFKA_ADVERTISED_LISTENERS": (
                    f"INSIDE://broker:{_KAFKA_PORT},OUTSIDE://{self.address}"
                ),
                "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
                "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
                "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
                "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
                "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
                "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
                "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
            },
            port=_OUTER_PORT,
            # Its start script writes the configuration into the image.
            hardened=False,
        )

    def _once(
        self,
        name: str,
        command: tuple[str, ...],
        folders: tuple[str, ...],
        *,
        environment: Mapping[str, str] | None = None,
        connected: bool = True,
    ) -> Part:
        return Part(
            name=name,
            image=self.images.sealstream,
            command=command,
            environment={**_ENVIRONMENT, **(environment or {})},
            volumes={f"{_ROOT}/{folder}": (folder, "rw") for folder in folders},
            connected=connected,
        )


CLIENT_ENV: Final = f"{_ROOT}/operator/client.env"
_TMP: Final = {"/tmp": _OWN_TMPFS}  # noqa: S108 - of the container
_ENVIRONMENT: Final = {
    "SEALSTREAM_KAFKA_BOOTSTRAP": f"broker:{_KAFKA_PORT}",
    # Tansu lets a first member wait for half of this.
    "SEALSTREAM_KAFKA_SESSION_TIMEOUT_S": "10",
    "SEALSTREAM_S3_ENDPOINT": f"http://s3:{S3_PORT}",
    "SEALSTREAM_S3_BUCKET": BUCKET,
    "SEALSTREAM_ALLOW_PLAIN_CREDENTIALS": "true",
    "SEALSTREAM_ALLOW_PLAIN_RESULTS": "true",
}
