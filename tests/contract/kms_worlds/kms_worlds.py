"""Every KMS that the suites run on, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import kms_aws_world
import kms_azure_world
import kms_bao_world
import kms_gcp_world
import kms_hsm_world
import kms_local_world
from kms_world import StartWorld

WORLDS: dict[str, Callable[[Path], StartWorld]] = {
    "local": kms_local_world.start,
    "openbao": kms_bao_world.start,
    "aws": kms_aws_world.start,
    "gcp": kms_gcp_world.start,
    "azure-rsa": partial(kms_azure_world.start, kty="RSA"),
    "azure-hsm": partial(kms_azure_world.start, kty="oct-HSM"),
    "pkcs11": kms_hsm_world.start,
}
