"""Verify the signature of a SAML assertion: pysaml2, and the program `xmlsec1`.

pysaml2 checks the assertion against the schema and its signature against what SAML allows of XML
signatures (one reference, enveloped, exclusive canonicalization), and has `xmlsec1` verify it with
the keys that it is given: none that the document brings counts. Here `xmlsec1` gets the document by
a pipe, so that it lies in no file, an empty environment, and `TIMEOUT_S`.

Why a signature does not count is found out for the log, and decides nothing: whether what is signed
was changed is what `xmlsec1` says of the digests, whether the signer is known is what certificate
the document brings, if any.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, Final

from saml2 import class_name, saml
from saml2.samlp import response_from_string
from saml2.sigver import CryptoBackend, CryptoBackendXmlSec1, SecurityContext

from schemas.errors import ErrorCode
from workers.errors import Fatal, Retry
from workers.identity.refusal import Refused, Unavailable, Why
from workers.identity.saml_document import DSIG, Document, refused

TIMEOUT_S: Final = 2.0
_LAX_SINCE: Final = (1, 3)
# How many digests are right, of how many: said whether the signature is right or not.
_DIGESTS: Final = re.compile(rb"SignedInfo References \(ok/all\): (\d+)/(\d+)")

# They log the documents and schemas that they read.
for _library in ("saml2", "xmlschema"):
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)


class Xmlsec(CryptoBackendXmlSec1):  # type: ignore[misc]
    """Runs `xmlsec1` to verify.

    Args:
        program: its path; None: found on the PATH.

    Raises:
        Fatal: there is none, or it does not run.
    """

    def __init__(self, program: Path | None = None) -> None:
        path = shutil.which("xmlsec1") if program is None else program
        if path is None:
            raise _missing("it is not on the PATH")
        found = str(Path(path).absolute())
        super().__init__(found)
        try:
            said = _run([found, "--version"], b"").stdout.decode("ascii", "replace").split()
            self._version = tuple(int(part) for part in said[1].split(".")[:2])
        except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
            raise _missing("it does not run") from None

    def validate_signature(
        self, signedtext: str | bytes, cert_file: str, cert_type: str, node_name: str, node_id: str
    ) -> bool:
        """Tell whether an element is signed with the key of a certificate.

        Args:
            signedtext: the document.
            cert_file: the certificate; nothing but its key is used.
            cert_type: its form, "pem".
            node_name: class of the element, for pysaml2 "<namespace>:<name>".
            node_id: its id.

        Raises:
            Refused: CHANGED, what is there is not what was signed, whoever did.
            Retry: OVERLOADED, it takes too long.
        """
        # Later versions want to be told that the key may have no name.
        lax = ["--lax-key-search"] if self._version >= _LAX_SINCE else []
        command = [
            *(self.xmlsec, "--verify"),
            *("--enabled-reference-uris", "same-doc"),
            *("--enabled-key-data", "raw-x509-cert"),
            *(f"--pubkey-cert-{cert_type}", cert_file),
            *("--id-attr:ID", node_name, "--node-id", node_id),
            *(*lax, "-"),
        ]
        data = signedtext if isinstance(signedtext, bytes) else signedtext.encode()
        try:
            done = _run(command, data)
        except (OSError, subprocess.TimeoutExpired):
            # Not chained: the cause holds the command's input.
            raise Retry(
                ErrorCode.OVERLOADED, "xmlsec1 does not verify a signature in time"
            ) from None
        digests = _DIGESTS.search(done.stdout + done.stderr)
        if done.returncode != 0 and digests is not None and digests[1] != digests[2]:
            raise _not_signed(Why.CHANGED)
        return done.returncode == 0


class _Certificates:
    """Metadata as pysaml2 asks for them: these certificates sign, whoever is named."""

    def __init__(self, files: Iterable[IO[bytes]]) -> None:
        self._files = list(files)

    def certs(self, _entity: str, _descriptor: str, _use: str) -> list[tuple[None, IO[bytes]]]:
        return [(None, file) for file in self._files]


class _Asked(CryptoBackend):  # type: ignore[misc]
    """The program as pysaml2 asks it: remembers that it came to that, so the form was right."""

    def __init__(self, xmlsec: Xmlsec) -> None:
        self._xmlsec = xmlsec
        self.once = False

    def validate_signature(self, *args: Any, **options: Any) -> bool:
        self.once = True
        return self._xmlsec.validate_signature(*args, **options)


def verify_signature(document: Document, certificates: tuple[str, ...], xmlsec: Xmlsec) -> None:
    """Refuse a document whose assertion is not signed by one of the certificates' keys.

    Blocks, for tens of milliseconds.

    Args:
        document: the assertion; its form was checked.
        certificates: PEM.
        xmlsec: verifies.

    Raises:
        Reject: UNAUTHENTICATED.
        Retry: OVERLOADED, it takes too long. Unavailable: no temporary file can be made.
    """
    with ExitStack() as stack:
        try:
            signers = _Certificates(stack.enter_context(_file(one)) for one in certificates)
        except OSError:
            raise Unavailable("the folder for temporary files cannot be written to") from None
        asked = _Asked(xmlsec)
        context = SecurityContext(asked, metadata=signers, only_use_keys_in_metadata=True)
        try:
            item = _item(document)
            context.check_signature(item, class_name(item), document.text)
        except (Refused, Retry):
            raise
        except Exception:
            # Whatever it stumbles over. Not chained: its errors hold the document.
            why = _why(document, certificates) if asked.once else Why.MALFORMED
            raise _not_signed(why) from None


def _why(document: Document, certificates: tuple[str, ...]) -> Why:
    """Tell by which certificate a document says that it is signed: a known one, or another."""
    # Without the first and the last line, PEM is what the document has.
    known = {"".join(one.splitlines()[1:-1]) for one in certificates}
    brought = {
        "".join((element.text or "").split())
        for element in document.assertion.iter(f"{DSIG}X509Certificate")
    }
    return Why.UNKNOWN_SIGNER if brought and known.isdisjoint(brought) else Why.SIGNATURE


def _not_signed(why: Why) -> Refused:
    # Callers are told no more: it would help who tries to forge one.
    return refused(why, "is not signed by its issuer")


def _item(document: Document) -> Any:
    if not document.in_response:
        return saml.assertion_from_string(document.text)
    [item] = response_from_string(document.text).assertion
    return item


def _file(certificate: str) -> IO[bytes]:
    # Not by a pipe: that is the document's.
    file = NamedTemporaryFile(suffix=".pem")  # noqa: SIM115 - the caller closes it
    file.write(certificate.encode("ascii"))
    file.flush()
    return file


def _run(command: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603 - a program of the operator, no shell
        command, input=data, capture_output=True, timeout=TIMEOUT_S, env={}, cwd="/", check=False
    )


def _missing(why: str) -> Fatal:
    return Fatal(
        ErrorCode.UNSUPPORTED,
        f"SAML needs the program xmlsec1, and {why}: install it (Debian: apt-get install xmlsec1),"
        " or say where it is with saml_xmlsec1",
    )
