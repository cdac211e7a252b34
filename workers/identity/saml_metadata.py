"""With what an identity provider signs assertions: the certificates in a file of its metadata.

The file is what the operator trusts: it comes from the provider by a way that is trusted, and
no signature of its own is looked at. It is read again when it changes, so a new certificate is put
beside the old one before the provider rotates, and the old one is taken away afterwards. A file
that cannot be read, or is no metadata of the provider, leaves the known certificates in force for
`STALE_S`, as if the provider did not answer: it may be in the middle of being written.

Only keys count, not what else their certificates say (their end, who issued them): that is what
metadata are for.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, ParseError

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from schemas.errors import ErrorCode
from workers.errors import Fatal
from workers.identity.refusal import Unavailable
from workers.identity.saml_claims import parse_time
from workers.identity.saml_document import DSIG

STALE_S: Final = 3600.0
MAX_BYTES: Final = 256 * 1024
MAX_CERTIFICATES: Final = 8
MIN_RSA_BITS: Final = 2048
MIN_EC_BITS: Final = 256
_METADATA: Final = "{urn:oasis:names:tc:SAML:2.0:metadata}"

log = structlog.get_logger("identity.saml")


@dataclass(frozen=True, slots=True)
class Signers:
    """Certificates (PEM) whose keys sign, until when; `ends_s`: seconds since 1970 or infinite."""

    certificates: tuple[str, ...]
    ends_s: float


class MetadataFile:
    """The metadata of one identity provider.

    Args:
        path: of the file.
        issuer: entity id of the provider.
        clock: seconds since 1970.
        monotonic: seconds.

    Raises:
        Fatal: the file is no metadata of this provider.
    """

    def __init__(
        self,
        path: Path,
        issuer: str,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._issuer = issuer
        self._clock = clock
        self._monotonic = monotonic
        try:
            self._stamp = self._look()
            self._signers = self._read()
        except (OSError, ValueError) as error:
            raise Fatal(
                ErrorCode.UNSUPPORTED, f"saml_metadata cannot be used: {_reason(error)}"
            ) from None
        self._good_s = monotonic()
        log.info("saml metadata read", certificates=len(self._signers.certificates))

    def signers(self) -> Signers:
        """Return what signs now; the same object while nothing has changed.

        Raises:
            Unavailable: the file has been unusable for `STALE_S`, or has expired.
        """
        now_s = self._monotonic()
        try:
            stamp = self._look()
            if stamp != self._stamp:
                found = self._read()
                if found != self._signers:
                    self._signers = found
                    log.info("saml metadata read anew", certificates=len(found.certificates))
                self._stamp = stamp
            self._good_s = now_s
        except (OSError, ValueError) as error:
            log.warning("saml metadata cannot be used", reason=_reason(error))
            if now_s - self._good_s >= STALE_S:
                raise Unavailable("saml_metadata cannot be used: renew the file") from None
        if self._clock() >= self._signers.ends_s:
            raise Unavailable("saml_metadata has expired (validUntil): renew the file")
        return self._signers

    def _look(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> Signers:
        """Read the file. Raises OSError, ValueError."""
        with self._path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        try:
            root: Element = fromstring(data, forbid_dtd=True)
        except (ParseError, DefusedXmlException):
            raise ValueError("it is malformed XML, or has a document type") from None
        entities = [
            entity
            for entity in root.iter(f"{_METADATA}EntityDescriptor")
            if entity.get("entityID") == self._issuer
        ]
        if len(entities) != 1:
            raise ValueError("it does not describe saml_issuer exactly once")
        [entity] = entities
        roles = entity.findall(f"{_METADATA}IDPSSODescriptor")
        certificates = tuple(dict.fromkeys(one for role in roles for one in _certificates(role)))
        if not 1 <= len(certificates) <= MAX_CERTIFICATES:
            raise ValueError(
                f"it has not 1 to {MAX_CERTIFICATES} certificates for signing, with keys of RSA"
                f" ({MIN_RSA_BITS} bits at least) or EC ({MIN_EC_BITS} bits at least)"
            )
        ends = [
            parse_time(text)
            for element in (root, entity, *roles)
            if (text := element.get("validUntil")) is not None
        ]
        return Signers(certificates, min(ends, default=float("inf")))


def _certificates(role: Element) -> Iterator[str]:
    for descriptor in role.findall(f"{_METADATA}KeyDescriptor"):
        if descriptor.get("use", "signing") != "signing":
            continue
        for element in descriptor.iter(f"{DSIG}X509Certificate"):
            raw = b64decode("".join((element.text or "").split()), validate=True)
            certificate = x509.load_der_x509_certificate(raw)
            if _is_strong(certificate):
                yield certificate.public_bytes(Encoding.PEM).decode("ascii")


def _is_strong(certificate: x509.Certificate) -> bool:
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        return False
    if isinstance(key, RSAPublicKey):
        return key.key_size >= MIN_RSA_BITS
    return isinstance(key, EllipticCurvePublicKey) and key.key_size >= MIN_EC_BITS


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or "it cannot be read") if isinstance(error, OSError) else str(error)
