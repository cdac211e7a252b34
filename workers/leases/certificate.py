"""Who a worker is: its key pair, and the certificate with which the key service vouches for it.

A certificate names the worker, its one role, the indexes it may serve and an expiry of at most
7 days. It is signed by the key service, whose fingerprint every worker has pinned, so anyone can
verify what a worker signed without asking: certificate first, then the signature.

Encoded certificate (`WorkerCertificate.encoded`):

    0   64  Ed25519 signature by the key service over `body`
    64  -   body: msgpack array [v, worker_id, role, indexes, sign_pub, not_before_s, expires_s]

An identity folder holds `certificate` (as above) and `sign.key` (32 raw bytes, 0600). A worker asks
for the next certificate itself when half of the life of the present one is over (`holder.py`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from schemas.errors import ErrorCode
from workers.crypto.errors import BadSignature
from workers.crypto.info import Info
from workers.crypto.sign import SigningKey, VerifyKey
from workers.errors import Fatal, Reject

Role = Literal["ingest", "index", "query"]
ROLES: tuple[Role, ...] = ("ingest", "index", "query")

MAX_LIFE_S = 7 * 86_400
# Clocks of two machines may differ by so much before a certificate or request counts as from the
# future.
CLOCK_SKEW_S = 60

_SIGNATURE_BYTES = 64
_MAX_BYTES = 64 * 1024
_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Body(msgspec.Struct, array_like=True, frozen=True):
    v: int
    worker_id: str
    role: Role
    indexes: list[str]
    sign_pub: bytes
    not_before_s: int
    expires_s: int


@dataclass(frozen=True, slots=True)
class WorkerCertificate:
    """What the key service says about a worker.

    Attributes:
        worker_id: the id it signs with and is answered under.
        role: the only role it may act in.
        indexes: names it may serve, as globs (`acme/*`; `*` crosses `/`).
        sign_pub: its Ed25519 public key, 32 bytes.
        not_before_s, expires_s: validity, seconds since 1970.
        encoded: the signed bytes; what travels.
    """

    worker_id: str
    role: Role
    indexes: tuple[str, ...]
    sign_pub: bytes
    not_before_s: int
    expires_s: int
    encoded: bytes

    @property
    def verify_key(self) -> VerifyKey:
        """The key that verifies what this worker signs."""
        return VerifyKey(self.sign_pub)

    def covers(self, index: str) -> bool:
        """Tell whether the worker may serve `index`."""
        return any(fnmatchcase(index, glob) for glob in self.indexes)


def issue_certificate(
    issuer: SigningKey,
    *,
    worker_id: str,
    role: Role,
    indexes: Sequence[str],
    sign_pub: bytes,
    life_s: int = MAX_LIFE_S,
    now_s: float | None = None,
) -> WorkerCertificate:
    """Sign a certificate with the key service's key.

    Raises:
        ValueError: a bad id, role or glob, or a life above 7 days.
    """
    if not _WORKER_ID.fullmatch(worker_id):
        raise ValueError("a worker id is 1 to 64 letters, digits, dots, dashes and underscores")
    if role not in ROLES:
        raise ValueError(f"a role is one of {', '.join(ROLES)}")
    if not 0 < life_s <= MAX_LIFE_S:
        raise ValueError("a certificate lives at most 7 days")
    if not indexes or any(not glob or len(glob) > 128 for glob in indexes):
        raise ValueError("a certificate names its indexes, by globs of at most 128 characters")
    now = int(time.time() if now_s is None else now_s)
    body = _Body(1, worker_id, role, list(indexes), sign_pub, now, now + life_s)
    raw = msgspec.msgpack.encode(body)
    return _certificate(body, issuer.sign(Info.CERTIFICATE, raw) + raw)


def verify_certificate(
    encoded: bytes, issuer: VerifyKey, *, now_s: float | None = None
) -> WorkerCertificate:
    """Check signature, shape and validity; return what the certificate says.

    Args:
        encoded: as received.
        issuer: the key service's verify key, from the pinned directory.
        now_s: the time to check against, seconds since 1970 (default: now).

    Raises:
        Reject: UNAUTHENTICATED, not signed by the issuer or malformed; EXPIRED.
    """
    signature, raw = encoded[:_SIGNATURE_BYTES], encoded[_SIGNATURE_BYTES:]
    if len(signature) != _SIGNATURE_BYTES or len(encoded) > _MAX_BYTES:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the worker certificate is malformed")
    try:
        issuer.verify(signature, Info.CERTIFICATE, raw)
        body = msgspec.msgpack.decode(raw, type=_Body)
    except BadSignature as error:
        raise Reject(
            ErrorCode.UNAUTHENTICATED, "the worker certificate is not from this key service"
        ) from error
    except msgspec.MsgspecError as error:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the worker certificate is malformed") from error
    if body.v != 1 or body.expires_s - body.not_before_s > MAX_LIFE_S:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the worker certificate has unknown terms")
    now = time.time() if now_s is None else now_s
    if now >= body.expires_s:
        raise Reject(ErrorCode.EXPIRED, "the worker certificate has expired: enrol the worker anew")
    if now < body.not_before_s - CLOCK_SKEW_S:
        raise Reject(ErrorCode.UNAUTHENTICATED, "the worker certificate is from the future")
    return _certificate(body, encoded)


def _certificate(body: _Body, encoded: bytes) -> WorkerCertificate:
    return WorkerCertificate(
        worker_id=body.worker_id,
        role=body.role,
        indexes=tuple(body.indexes),
        sign_pub=body.sign_pub,
        not_before_s=body.not_before_s,
        expires_s=body.expires_s,
        encoded=encoded,
    )


@dataclass(slots=True, eq=False)
class WorkerIdentity:
    """A worker's signing key and certificate; never leaves the worker's machine.

    The certificate is exchanged while the worker runs: read it when it is needed, keep no copy.

    Attributes:
        folder: where it was loaded from, if from anywhere.
    """

    certificate: WorkerCertificate
    signing_key: SigningKey
    folder: Path | None = None

    @property
    def worker_id(self) -> str:
        """The id in the certificate."""
        return self.certificate.worker_id

    @property
    def role(self) -> Role:
        """The role in the certificate."""
        return self.certificate.role

    @classmethod
    def load(cls, folder: Path) -> WorkerIdentity:
        """Read an identity folder.

        The certificate's signature is not checked here (the issuer's key comes from the key
        directory); whoever receives it does.

        Raises:
            Fatal: a file is missing or malformed, or the key file is readable by others.
        """
        if not folder.is_dir():
            raise Fatal(
                ErrorCode.UNAUTHENTICATED,
                f"{folder}: no identity of a worker; enrol this worker id, or run another (--id)",
            )
        seed = read_secret_file(folder / "sign.key")
        try:
            encoded = (folder / "certificate").read_bytes()
            body = msgspec.msgpack.decode(encoded[_SIGNATURE_BYTES:], type=_Body)
            signing_key = SigningKey.from_seed(bytes(seed))
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise Fatal(
                ErrorCode.UNAUTHENTICATED,
                f"{folder / 'certificate'}: no worker certificate ({type(error).__name__})",
            ) from error
        if signing_key.public.raw != body.sign_pub:
            raise Fatal(
                ErrorCode.UNAUTHENTICATED,
                f"{folder}: the certificate is not for this key; enrol the worker anew",
            )
        return cls(_certificate(body, encoded), signing_key, folder)

    def renew(self, certificate: WorkerCertificate) -> None:
        """Go on with the next certificate, which must be for the same worker, role and key.

        Raises:
            Reject: UNAUTHENTICATED, it is for another one.
        """
        same = (self.worker_id, self.role, self.signing_key.public.raw)
        if (certificate.worker_id, certificate.role, certificate.sign_pub) != same:
            raise Reject(ErrorCode.UNAUTHENTICATED, "the certificate is for another worker")
        self.certificate = certificate

    def save_certificate(self) -> None:
        """Write the certificate into the folder it came from. Raises OSError."""
        if self.folder is not None:
            write_secret_file(self.folder / "certificate", self.certificate.encoded)


def save_identity(folder: Path, seed: bytes, certificate: WorkerCertificate) -> None:
    """Write an identity folder (0700, files 0600); replaces what stood there.

    The key is written before the certificate: a crash between leaves a pair that `load` refuses.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_secret_file(folder / "sign.key", seed)
    write_secret_file(folder / "certificate", certificate.encoded)


def write_secret_file(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read (0600), atomically."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_secret_file(path: Path) -> bytes:
    """Read a file of secrets.

    Raises:
        Fatal: it does not exist, or group or others may read it.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise Fatal(
            ErrorCode.UNAUTHENTICATED, f"{path}: cannot be read ({type(error).__name__})"
        ) from error
    if mode & 0o077:
        raise Fatal(ErrorCode.UNAUTHENTICATED, f"{path}: readable by others; chmod 600 it")
    return data


Clock = Callable[[], float]
