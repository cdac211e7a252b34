"""Who lost their rights before their time: topic `key-revocation` (compacted).

Record key `<kind>/<principal>`, value one flat JSON object, a `Revocation` and `"signature"`
(base64): Ed25519 by the key service over lp(domain, record key, canonical JSON of all other
members), canonical as in `directory.py`. The key service writes all of them anew at every start and
every hour, so that a record which somebody deleted from the topic comes back.

A revoked worker's certificate is refused if it was issued before the revocation: enrolled anew, the
worker may work again. What it wrote earlier stays; for heads a little longer than a lease is
granted besides, in which an honest worker ends that had not heard of it.
"""

from __future__ import annotations

import base64
from typing import Any, Final, Literal

import msgspec
import orjson

from workers.crypto.info import Info
from workers.crypto.sign import SigningKey, VerifyKey
from workers.leases.certificate import CLOCK_SKEW_S, WorkerCertificate

Kind = Literal["user", "user_key", "worker", "token"]

HEAD_GRACE_MS: Final = (300 + CLOCK_SKEW_S) * 1000
_MAX_BYTES: Final = 4096


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """One revocation. `policy_epoch` counts the changes of this kind of the whole realm."""

    v: Literal[1] = 1
    principal: str
    kind: Kind
    policy_epoch: int
    revoked_ms: int

    @property
    def key(self) -> str:
        """The key of its record."""
        return f"{self.kind}/{self.principal}"


def sign_revocation(revocation: Revocation, signer: SigningKey) -> bytes:
    """Return the value of the record."""
    members: dict[str, Any] = msgspec.to_builtins(revocation)
    signature = signer.sign(Info.REVOCATION, revocation.key, _canonical(members))
    members["signature"] = base64.b64encode(signature).decode("ascii")
    return _canonical(members)


class Revocations:
    """All revocations that the pinned key service published."""

    def __init__(self) -> None:
        self._known: dict[str, Revocation] = {}
        self.epoch = 0

    def take(self, key: str, value: bytes, service: VerifyKey) -> None:
        """Take in a record.

        Raises:
            ValueError, TypeError, BadSignature, msgspec.MsgspecError: it is none, or older than the
                one known.
        """
        if len(value) > _MAX_BYTES:
            raise ValueError("too long")
        members = orjson.loads(value)
        signature = base64.b64decode(str(members.pop("signature", "")), validate=True)
        service.verify(signature, Info.REVOCATION, key, _canonical(members))
        revocation = msgspec.convert(members, Revocation)
        before = self._known.get(key)
        if revocation.key != key:
            raise ValueError("a revocation of somebody else")
        if before is not None and revocation.policy_epoch < before.policy_epoch:
            raise ValueError("older than one already seen")
        self._known[key] = revocation
        self.epoch = max(self.epoch, revocation.policy_epoch)

    def find(self, kind: Kind, principal: str) -> Revocation | None:
        """Return the revocation of a principal, or None."""
        return self._known.get(f"{kind}/{principal}")

    def covers(self, certificate: WorkerCertificate, at_ms: int | None = None) -> bool:
        """Tell whether a worker had lost its rights.

        Args:
            certificate: what it shows.
            at_ms: when it wrote, milliseconds since 1970; None: now.
        """
        found = self.find("worker", certificate.worker_id)
        if found is None or certificate.not_before_s * 1000 > found.revoked_ms:
            return False
        return at_ms is None or at_ms >= found.revoked_ms


def _canonical(members: dict[str, Any]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
