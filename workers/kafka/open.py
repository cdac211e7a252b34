"""Open the broker that the settings name."""

from __future__ import annotations

from pydantic import SecretStr

from workers.kafka.aio import AioBroker
from workers.kafka.broker import Broker
from workers.kafka.config import KafkaConfig
from workers.settings import Settings


def kafka_config(settings: Settings, *, client_id: str = "sealstream") -> KafkaConfig:
    """Return the settings of the broker. `client_id`: name in the broker's logs and quotas."""
    password, key_password = settings.kafka_sasl_password, settings.kafka_ssl_password
    return KafkaConfig(
        bootstrap=settings.kafka_bootstrap,
        client_id=client_id,
        security_protocol=settings.kafka_security_protocol,
        sasl_mechanism=settings.kafka_sasl_mechanism,
        sasl_username=settings.kafka_sasl_username,
        sasl_password=_plain(password),
        tls_ca=settings.kafka_ssl_cafile,
        tls_cert=settings.kafka_ssl_certfile,
        tls_key=settings.kafka_ssl_keyfile,
        tls_key_password=_plain(key_password),
        idempotent=settings.idempotent_producer,
        max_record_bytes=settings.max_record_bytes,
        session_timeout_s=settings.kafka_session_timeout_s,
    )


def open_broker(settings: Settings, *, client_id: str = "sealstream") -> Broker:
    """Return the configured broker; it connects with its first reader or producer."""
    return AioBroker(kafka_config(settings, client_id=client_id))


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
