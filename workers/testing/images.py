"""The images of a stack. Defaults are those of docker-compose.yml, with the same variables."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


def _image(variable: str, default: str) -> str:
    """Return a dataclass field that the environment may set."""
    image: str = field(default_factory=lambda: os.environ.get(variable) or default)
    return image


@dataclass(frozen=True, slots=True)
class Images:
    """Names of the images to run; what is not given comes from the environment.

    Args:
        sealstream: built from deploy/Dockerfile (`SEALSTREAM_IMAGE`).
        seaweedfs: object store (`SEAWEEDFS_IMAGE`).
        tansu: broker (`TANSU_IMAGE`).
        kafka: broker, with `broker="kafka"` (`KAFKA_IMAGE`).
        openbao: key-management service, with `kms="openbao"` (`OPENBAO_IMAGE`).
    """

    sealstream: str = _image("SEALSTREAM_IMAGE", "sealstream")
    seaweedfs: str = _image("SEAWEEDFS_IMAGE", "chrislusf/seaweedfs:4.48")
    tansu: str = _image("TANSU_IMAGE", "ghcr.io/tansu-io/tansu:0.6.0")
    kafka: str = _image("KAFKA_IMAGE", "apache/kafka:4.3.1")
    openbao: str = _image("OPENBAO_IMAGE", "openbao/openbao:2.7.2")
