"""A stack on Apache Kafka as deploy/kafka has it: SCRAM over TLS, every part under its own user."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kafka_kit import FOLDER, Node, java, lines

from workers.client import Client
from workers.kafka.aio import AioBroker
from workers.kafka.open import kafka_config
from workers.local import ports
from workers.local.files import read_json
from workers.local.process import die_with_parent
from workers.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy" / "kafka"
TABLE: dict[str, Any] = json.loads((DEPLOY / "acls.json").read_text())
WORKERS = ("keys", "ingest", "index", "query")
SUPER = "kafka-admin"
STRANGER = "stranger"
START_S = 300.0


# --- certificates --------------------------------------------------------------------------------


def certificates(folder: Path) -> ssl.SSLContext:
    """Write ca.pem and broker.pem (its key and certificate); return how a client checks them."""
    authority = ec.generate_private_key(ec.SECP256R1())
    root = _certificate("sealstream-tests", authority, "sealstream-tests", authority)
    key = ec.generate_private_key(ec.SECP256R1())
    broker = _certificate("broker", key, "sealstream-tests", authority)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(root.public_bytes(pem))
    (folder / "broker.pem").write_bytes(secret + broker.public_bytes(pem))
    return ssl.create_default_context(cafile=folder / "ca.pem")


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(ports.LOOPBACK))]
    own = key.public_key()
    usage = dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(own)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=name == issuer, **usage),
            critical=True,
        )
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )


# --- the broker ----------------------------------------------------------------------------------


@contextmanager
def secured_node(home: Path, passwords: Mapping[str, str]) -> Iterator[Node]:
    """Run a node with the committed server.properties; only paths and addresses are its own."""
    home.mkdir(mode=0o700)
    tls = certificates(home)
    chosen = ports.choose(("users", "brokers", "controllers"), {})
    at = {name: f"{name.upper()}://{ports.LOOPBACK}:{port}" for name, port in chosen.items()}
    own = {
        "log.dirs": str(home / "data"),
        "listeners": ",".join(at.values()),
        "advertised.listeners": f"{at['users']},{at['brokers']}",
        "controller.quorum.bootstrap.servers": f"{ports.LOOPBACK}:{chosen['controllers']}",
        "ssl.keystore.location": str(home / "broker.pem"),
        "ssl.truststore.location": str(home / "ca.pem"),
        # One node for a minute: few files, no waiting for members who will not come.
        "offsets.topic.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
    }
    committed = (DEPLOY / "server.properties").read_text()
    # Of two lines for one property the last counts.
    properties = f"{committed}\n{lines(own)}"
    node = Node(home, properties, chosen["users"], tls=tls, users=passwords)
    try:
        node.start()
        yield node
    finally:
        node.stop()


def apply_acls(node: Node, password: str) -> None:
    """Run what deploy/kafka/acls.py prints."""
    access = node.home / "admin.properties"
    login = f'username="{SUPER}" password="{password}"'
    module = "org.apache.kafka.common.security.scram.ScramLoginModule"
    access.write_text(
        lines(
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.jaas.config": f"{module} required {login};",
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(node.home / "ca.pem"),
            }
        )
    )
    access.chmod(0o600)
    printed = subprocess.run(
        [
            *(sys.executable, str(DEPLOY / "acls.py")),
            *("--bootstrap-server", node.bootstrap),
            *("--command-config", str(access)),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    commands = node.home / "acls.txt"
    commands.write_text(printed.replace("kafka-acls.sh ", ""))
    done = subprocess.run(
        java(FOLDER / "ManyAcls.java", str(commands)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- the stack -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Secured:
    """S3, the broker and the workers; everybody has a user called sealstream-ROLE."""

    home: Path
    node: Node
    passwords: Mapping[str, str]

    def environment(self, user: str) -> dict[str, str]:
        """Return the variables with which somebody reaches Kafka as `user`."""
        return {
            "SEALSTREAM_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "SEALSTREAM_KAFKA_SASL_USERNAME": user,
            "SEALSTREAM_KAFKA_SASL_PASSWORD": self.passwords[user],
            "SEALSTREAM_KAFKA_SSL_CAFILE": str(self.node.home / "ca.pem"),
        }

    def settings(self, user: str, **more: str) -> Settings:
        return load_settings(home=self.home, environ={**self.environment(user), **more})

    def broker(self, user: str) -> AioBroker:
        return AioBroker(kafka_config(self.settings(user)))

    def client(self, role: str) -> Client:
        return Client(self.settings(f"sealstream-{role}"))

    def start(self, user: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command of ours as a user of Kafka."""
        prefixes = ("SEALSTREAM_", "AWS_", "VAULT_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
        with (self.home / f"{user}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "workers.cli.main", *arguments, "--home", str(self.home)],
                env={**inherited, **self.environment(user)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
            )

    def log(self, user: str) -> str:
        return (self.home / f"{user}.log").read_text(errors="replace")

    def run(self, user: str, *arguments: str) -> None:
        """Run a command of ours to its end."""
        assert self.start(user, *arguments).wait(START_S) == 0, self.log(user)


@contextmanager
def secured_stack(home: Path) -> Iterator[Secured]:
    roles = [f"sealstream-{role}" for role in TABLE]
    passwords = {name: secrets.token_urlsafe(24) for name in (*roles, SUPER, STRANGER)}
    with ExitStack() as stack:
        node = stack.enter_context(secured_node(home / "kafka", passwords))
        secured = Secured(home, node, passwords)
        apply_acls(node, passwords[SUPER])
        admin = "sealstream-admin"
        up = ("up", "--servers-only", "--kafka", node.bootstrap)
        servers = _stopped_after(stack, secured.start(admin, *up))
        _wait(secured, admin, servers, lambda: _phase(home) == "ready")
        secured.run(admin, "topics", "apply")
        secured.run(admin, "realm", "init", "--env-file", str(home / "stack.env"))
        workers = {
            role: _stopped_after(
                stack,
                secured.start(f"sealstream-{role}", "worker", role, "--id", f"{role}-1"),
            )
            for role in WORKERS
        }
        for role, process in workers.items():
            status = home / "run" / f"{role}-1.json"
            _wait(
                secured,
                f"sealstream-{role}",
                process,
                lambda status=status: bool((read_json(status) or {}).get("ready")),
            )
        yield secured


def _phase(home: Path) -> str | None:
    return (read_json(home / "run" / "stack.json") or {}).get("phase")


def _stopped_after(stack: ExitStack, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    def stop() -> None:
        process.terminate()
        process.wait()

    stack.callback(stop)
    return process


def _wait(secured: Secured, user: str, process: subprocess.Popen[bytes], ready: Any) -> None:
    end = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"{user} is not ready:\n{secured.log(user)[-4000:]}", pytrace=False)
        time.sleep(0.05)
