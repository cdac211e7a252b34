"""What proves that a caller may ask: sealed credentials, signatures of messages, sealed values.

`auth.sealed` = base64 of HPKE(key service; info = CREDENTIAL, index name or "") of the JSON of a
`Credential`. A message that shows it carries the header `sealstream-sig`: the Ed25519 signature by
the session key (`cnf`) over (topic, key, SHA-256 of the value), alone or together with other
messages (`workers/crypto/together.py`), topic and value as they are in Kafka (with prefix; sealed,
if sealed). A copied credential is useless without
that key. The worker that reads the message checks the signature, and the key service checks it
again before it decides or grants anything (`Proof`): a worker cannot use a credential whose owner
sent nothing to that worker's own input topic. By the digest, because the key service never sees
the message.

A sealing producer may add the header `sealstream-auth`: its `auth.sealed` once more, outside of the
sealed value. It says nothing to who cannot open it, and lets a worker name a caller before it can
open the message: needed only where the key service has no index key without a caller (provider
`none` after a restart).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from schemas.auth import Auth, Credential
from schemas.codec import InvalidMessage, decode, encode
from schemas.errors import ErrorCode
from schemas.sealed import SealedValue
from schemas.topics import HEADER_SIGNATURE
from schemas.values import encode_base64
from workers.crypto.errors import CryptoError
from workers.crypto.hpke import HpkePrivateKey, HpkePublicKey, key_id
from workers.crypto.info import Info, info
from workers.crypto.lp import lp
from workers.crypto.shared import SharedSeal, open_shared
from workers.crypto.sign import SigningKey, VerifyKey
from workers.crypto.together import is_signature, sign_together, verify
from workers.errors import Reject
from workers.kafka.broker import Record

HEADER_AUTH: Final = "sealstream-auth"
# Of base64: a credential with the longest token, sealed.
_MAX_AUTH_BYTES: Final = 49_152


class Proof(msgspec.Struct, array_like=True, frozen=True):
    """That the owner of a session key sent a record: what was signed, but for the topic.

    Args:
        key: of the record.
        value_sha256: of its value, 32 bytes.
        signature: of the header `sealstream-sig`.
    """

    key: bytes
    value_sha256: bytes
    signature: bytes

    def __repr__(self) -> str:
        return "Proof()"

    @classmethod
    def of(cls, record: Record) -> Proof | None:
        """Return what a record proves, None without a signature of a known form."""
        return cls.made(record.header(HEADER_SIGNATURE), record.key, record.value or b"")

    @classmethod
    def made(cls, signature: bytes | None, key: bytes | None, value: bytes) -> Proof | None:
        """Return the proof that a signature over a record makes, None if there is none."""
        if signature is None or not is_signature(signature):
            return None
        return cls(key or b"", hashlib.sha256(value).digest(), signature)


def seal_credential(service: HpkePublicKey, credential: Credential) -> Auth:
    """Seal a credential to the key service.

    Args:
        service: `KeyDirectory.key_service.hpke_pub`.
        credential: its `index` is what it will be good for; None for requests that name none.
    """
    context = info(Info.CREDENTIAL, credential.index or "")
    return Auth(sealed=encode_base64(service.seal(context, encode(credential))))


def open_credential(keys: list[HpkePrivateKey], sealed: bytes, index: str) -> Credential:
    """Open a sealed credential.

    Args:
        keys: private keys of the key service, newest first.
        sealed: the ciphertext.
        index: name of the index it is shown for; "" for requests that name none.

    Raises:
        Reject: UNAUTHENTICATED, it does not open for this index; INVALID_MESSAGE.
    """
    for key in keys:
        try:
            plaintext = key.open(info(Info.CREDENTIAL, index), sealed)
        except CryptoError:
            continue
        try:
            credential = decode(Credential, plaintext)
        except InvalidMessage as error:
            raise Reject(
                error.code, error.message, field=f"auth.{error.field}" if error.field else "auth"
            ) from None
        if (credential.index or "") != index:
            raise Reject(ErrorCode.FORBIDDEN, "the credential is for another index", field="auth")
        return credential
    raise Reject(
        ErrorCode.UNAUTHENTICATED,
        "the credential does not open: sealed for another index, or to a key that is gone;"
        " read key-directory anew and seal again",
        field="auth.sealed",
    )


def outer_auth(record: Record) -> Auth | None:
    """Return the credential of the header `sealstream-auth`, or None without that header.

    Raises:
        InvalidMessage: it is no base64.
    """
    raw = record.header(HEADER_AUTH)
    if raw is None:
        return None
    if len(raw) > _MAX_AUTH_BYTES or not raw.isascii():
        raise InvalidMessage("must be base64", HEADER_AUTH)
    return Auth(sealed=raw.decode("ascii"))


def sign_message(session: SigningKey, topic: str, key: bytes | None, value: bytes) -> bytes:
    """Return the value of the header `sealstream-sig`; see `sign_messages`."""
    [signature] = sign_messages(session, topic, [(key, value)])
    return signature


def sign_messages(
    session: SigningKey, topic: str, records: Sequence[tuple[bytes | None, bytes]]
) -> list[bytes]:
    """Return the value of the header `sealstream-sig` of each of several records.

    Args:
        session: the key whose public half is the credential's `cnf`.
        topic: with prefix.
        records: key and value of each, as they will be produced.
    """
    parts = [(topic, key or b"", hashlib.sha256(value).digest()) for key, value in records]
    return sign_together(session, Info.MESSAGE, parts)


def verify_message(
    cnf: bytes, signature: bytes | None, topic: str, key: bytes | None, value: bytes
) -> None:
    """Check the header `sealstream-sig` of a message whose credential names `cnf`.

    Raises:
        Reject: UNAUTHENTICATED, no signature or not by that key over this record.
    """
    verify_proof(cnf, Proof.made(signature, key, value), topic)


def verify_proof(cnf: bytes, proof: Proof | None, topic: str) -> None:
    """Check that the owner of the session key `cnf` sent a record to `topic`.

    Raises:
        Reject: UNAUTHENTICATED, no proof or not by that key over a record of that topic.
    """
    if proof is None:
        raise Reject(
            ErrorCode.UNAUTHENTICATED,
            "a sealed credential needs the header sealstream-sig",
            field="auth.sealed",
        )
    try:
        parts = (topic, proof.key, proof.value_sha256)
        verify(VerifyKey(cnf), proof.signature, Info.MESSAGE, *parts)
    except CryptoError as error:
        raise Reject(
            ErrorCode.UNAUTHENTICATED,
            "the message is not signed by the credential's session key",
            field="auth.sealed",
        ) from error


def seal_value(kind: Info, public: HpkePublicKey, index: str, message: bytes) -> bytes:
    """Seal a message to an index: the value of a `application/vnd.sealstream.sealed` record.

    Args:
        kind: `Info.INGEST_VALUE` with `IndexEntry.ingest_pub`, `Info.QUERY_VALUE` with
            `IndexEntry.query_pub`.
        public: the index's key.
        index: its name.
        message: the JSON message, its credential inside.
    """
    name = key_id(public)
    sealed = public.seal(info(kind, index, name), message)
    return encode(SealedValue.of(sealed, key_id=name, suite=public.suite, index=index))


class IngestSealer:
    """Seals messages of plaintext-ingest to one index under one encapsulation (`shared.py`)."""

    def __init__(self, public: HpkePublicKey, index: str) -> None:
        """Encapsulate.

        Args:
            public: `IndexEntry.ingest_pub`.
            index: its name.
        """
        self.key_id = key_id(public)
        self._index = index
        self._seal = SharedSeal(public, info(Info.VALUE_KEY, index, self.key_id))
        self._context = lp(index, self.key_id)

    def value(self, message: bytes) -> bytes:
        """Return the value of a sealed record: as `seal_value` for `Info.INGEST_VALUE`."""
        sealed = SealedValue.of(
            self._seal.seal(message, self._context),
            key_id=self.key_id,
            suite=self._seal.public.suite,
            index=self._index,
            shared=self._seal.shared,
        )
        return encode(sealed)


def open_value(kind: Info, private: HpkePrivateKey, value: SealedValue) -> bytes:
    """Open a sealed message; the inverse of `seal_value`, and of `IngestSealer.value`.

    Raises:
        Reject: INVALID_MESSAGE, no index named, or it does not open.
    """
    if value.index is None:
        raise Reject(ErrorCode.INVALID_MESSAGE, "a sealed value names its index", field="index")
    shared = value.shared_bytes()
    if shared is not None and kind is not Info.INGEST_VALUE:
        raise Reject(ErrorCode.INVALID_MESSAGE, "is for plaintext-ingest alone", field="shared")
    name = value.key_id_bytes()
    try:
        if shared is None:
            return private.open(info(kind, value.index, name), value.ciphertext())
        about, context = info(Info.VALUE_KEY, value.index, name), lp(value.index, name)
        return open_shared(private, about, shared, value.ciphertext(), context)
    except CryptoError as error:
        raise Reject(
            ErrorCode.INVALID_MESSAGE, "the sealed value does not open", field="sealed"
        ) from error
