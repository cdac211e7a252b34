"""How to reach Kafka, and the limits that everything made from it keeps."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Idempotent = bool | Literal["auto"]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """Connection, time limits and sizes.

    Args:
        bootstrap: `host:port`, several separated by commas.
        client_id: name in the broker's logs and quotas.
        security_protocol: transport; everything but PLAINTEXT and SSL needs the `sasl_*` fields.
        sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        tls_ca: authorities (PEM) the broker is checked against; None: the system's.
        tls_cert, tls_key, tls_key_password: this client's certificate (PEM), for mutual TLS.
        idempotent: append a record once however often it had to be sent. `auto`: where the broker
            can (Tansu cannot). Nothing relies on it: what comes twice is known by its order.
        replication_factor: of topics we create; -1 is the broker's default (Kafka >= 2.4).
        max_record_bytes: refuse to send larger values. Fetches accept a margin above it.
        session_timeout_s: a member that is silent for so long is thrown out of its group. Tansu
            keeps everybody who joins waiting for half of it.
        rebalance_timeout_s: how long a rebalance waits for members; the client's default is the
            session timeout, too short for a drain. Partitions are drained within half of it.
        request_timeout_s: deadline of a single request and of an unacknowledged record.
    """

    bootstrap: str
    client_id: str = "sealstream"
    security_protocol: SecurityProtocol = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_key_password: str | None = field(default=None, repr=False)
    idempotent: Idempotent = "auto"
    replication_factor: int = -1
    max_record_bytes: int = 900_000
    session_timeout_s: float = 10.0
    rebalance_timeout_s: float = 60.0
    request_timeout_s: float = 30.0

    @property
    def request_bytes(self) -> int:
        """Bytes of the largest request: one record with key, headers and framing."""
        return self.max_record_bytes + 120_000

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the TLS settings, None if the transport has no TLS."""
        if not self.security_protocol.endswith("SSL"):
            return None
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_cert is not None:
            context.load_cert_chain(self.tls_cert, self.tls_key, self.tls_key_password)
        return context
