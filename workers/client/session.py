"""The caller's side of authority: session key, sealed credentials, reply key, routing keys.

One session is made per client. Its Ed25519 session key signs every message (proof of possession),
its HPKE reply key opens every result. Credentials are made per index and reused until shortly
before they end, because workers cache their decision by the credential.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from schemas.admin import AdminAuth
from schemas.auth import Auth, Credential, Scope
from schemas.errors import ErrorCode
from schemas.ids import IndexName
from schemas.values import encode_base64
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, HpkeSuite
from workers.crypto.lp import lp
from workers.crypto.secret import SecretBytes
from workers.crypto.sign import SigningKey
from workers.errors import Reject
from workers.leases.credential import IngestSealer, Proof, seal_credential, sign_messages
from workers.leases.directory import KeyDirectory

Protection = Literal["sealed", "signed", "plain"]
"""`sealed`: requests and results are sealed, nothing but sizes and index names shows in Kafka.
`signed`: requests in clear, their credential sealed and the message signed; results sealed.
`plain`: requests and the identity token in clear, where a local stack allows it."""

CREDENTIAL_LIFE_S: Final = 3600
_RENEW_BEFORE_S: Final = 120
SHARED_MESSAGES: Final = 4096
"""Messages that share one encapsulation at most, and for how many seconds."""
SHARE_S: Final = 300


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a caller authenticates with: an identity token, the index's own key, or both.

    `user_key`: or a user id and key of an index. `anonymous`: or nothing at all.
    """

    token: str | None = None
    index_key: SecretBytes | None = None
    user_key: tuple[str, SecretBytes] | None = None
    anonymous: bool = False

    def __post_init__(self) -> None:
        if not self.anonymous and not (self.token or self.index_key or self.user_key):
            raise _no_credential()
        if self.index_key is not None and len(self.index_key) != 32:
            raise Reject(ErrorCode.WRONG_KEY, "an index key is exactly 32 bytes")

    def __repr__(self) -> str:
        return "Secrets()"


def _no_credential() -> Reject:
    return Reject(
        ErrorCode.UNAUTHENTICATED, "no credential: set SEALSTREAM_TOKEN, or give the index's key"
    )


@dataclass(frozen=True, slots=True)
class _Made:
    auth: Auth
    renew_s: float
    sealed_to: bytes


@dataclass(slots=True)
class _Sealing:
    """An encapsulation in use, until when, and for how many messages more."""

    sealer: IngestSealer
    public: HpkePublicKey
    until_s: float
    left: int


class Session:
    """Keys and credentials of one client.

    Args:
        secrets: what to authenticate with.
        directory: names the key service to seal to.
        protection: see `Protection`.
        scopes: what the credentials ask for; empty asks for all that the caller has.
        suite: HPKE suite of the reply key.
    """

    def __init__(
        self,
        secrets: Secrets,
        directory: KeyDirectory,
        *,
        protection: Protection = "sealed",
        scopes: Sequence[Scope] = (),
        suite: HpkeSuite = HpkeSuite.MLKEM768_X25519,
    ) -> None:
        if protection == "plain" and secrets.token is None:
            raise Reject(ErrorCode.UNAUTHENTICATED, "an index key is never sent in clear")
        self._secrets = secrets
        self._directory = directory
        self.protection = protection
        self._scopes = list(scopes)
        self._key = SigningKey.generate()
        self.reply_key = HpkePrivateKey.generate(suite)
        self.reply_public = encode_base64(self.reply_key.public.encode())
        self._made: dict[str, _Made] = {}
        self._sealers: dict[str, _Sealing] = {}
        # Equal for every client with the same secret, so that all of them put one document on one
        # partition; says nothing about the document to who lacks the secret.
        if secrets.user_key is not None:
            seed = secrets.user_key[1].copy()
        elif secrets.index_key is not None:
            seed = secrets.index_key.copy()
        else:
            seed = (secrets.token or "").encode()
        self._routing = hmac.digest(seed, b"sealstream/1 routing", "sha256")

    def auth(self, index: str) -> Auth:
        """Return the credential to show for `index`.

        Raises:
            Retry: KEY_UNAVAILABLE, no key service is known to seal to.
        """
        if self.protection == "plain":
            return Auth(token=self._secrets.token)
        now = time.time()
        made = self._made.get(index)
        key = self._directory.key_service.hpke_key_id
        # Anew also when the key service has a new key: it does not keep the old one for ever.
        if made is None or made.renew_s <= now or made.sealed_to != key:
            made = _Made(self._seal(index, now), now + CREDENTIAL_LIFE_S - _RENEW_BEFORE_S, key)
            self._made[index] = made
        return made.auth

    def admin_auth(self) -> AdminAuth:
        """Return the credential inside an admin-request, which is sealed as a whole.

        Raises:
            Reject: UNAUTHENTICATED, there is none.
        """
        if self._secrets.anonymous:
            raise _no_credential()
        index_key = self._index_key()
        if self._secrets.user_key is not None:
            user_id, key = self._secrets.user_key
            return AdminAuth(
                user_id=user_id, user_key=encode_base64(key.view()), index_key=index_key
            )
        return AdminAuth(token=self._secrets.token, index_key=index_key)

    @property
    def holds_key(self) -> bool:
        """Whether it brings a key of its own, without which an index may not be open to workers."""
        return self._secrets.index_key is not None or self._secrets.user_key is not None

    def sign(self, topic: str, records: Sequence[tuple[bytes | None, bytes]]) -> list[bytes]:
        """Return the value of the header `sealstream-sig` for records as they will be produced.

        Args:
            topic: with prefix.
            records: key and value of each.
        """
        return sign_messages(self._key, topic, records)

    def seal_ingest(self, public: HpkePublicKey, index: str, message: bytes) -> bytes:
        """Seal a message of plaintext-ingest; many share one encapsulation for a while.

        Args:
            public: the index's ingest key.
            index: its name.
            message: JSON.
        """
        made = self._sealers.get(index)
        if made is None or made.public != public or not made.left or made.until_s <= time.time():
            sealer = IngestSealer(public, index)
            made = _Sealing(sealer, public, time.time() + SHARE_S, SHARED_MESSAGES)
            self._sealers[index] = made
        made.left -= 1
        return made.sealer.value(message)

    def proof(self, topic: str) -> Proof | None:
        """Return what proves this session for a tool that reads as a worker, without a message."""
        [signature] = self.sign(topic, [(None, b"")])
        return Proof.made(signature, None, b"")

    def routing_key(self, index: str, doc_id: str) -> bytes:
        """Return the Kafka key of a sealed operation on a document: stable, and telling nothing."""
        name = hmac.digest(self._routing, lp(index, doc_id), "sha256")[:16]
        return f"{index}/{name.hex()}".encode()

    def _seal(self, index: str, now: float) -> Auth:
        if self._secrets.anonymous:
            raise _no_credential()
        index_key = self._index_key()
        user_id, user_key = None, None
        if self._secrets.user_key is not None:
            user_id = self._secrets.user_key[0]
            user_key = encode_base64(self._secrets.user_key[1].view())
            index_key = None
        credential = Credential(
            # An index key authenticates by itself: whoever has it owns the index.
            token=None if index_key or user_key else self._secrets.token,
            index_key=index_key,
            user_id=user_id,
            user_key=user_key,
            index=IndexName(index),
            scopes=self._scopes,
            exp=int(now) + CREDENTIAL_LIFE_S,
            cnf=encode_base64(self._key.public.raw),
        )
        return seal_credential(self._directory.key_service.hpke_pub, credential)

    def _index_key(self) -> str | None:
        key = self._secrets.index_key
        return None if key is None else encode_base64(key.view())
