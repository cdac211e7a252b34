"""The one table of HPKE `info` strings and signature domains.

Base-mode HPKE says nothing about its sender and takes no associated data here, so everything a
message depends on goes into `info`; a ciphertext or signature made for one line of this table never
opens or verifies on another. Context parts are passed in the order shown.

HPKE (`info(Info.X, *context)`):

    name           sealed to             plaintext                   context
    CREDENTIAL     key service           credential in `auth.sealed` index name
    INGEST_VALUE   index's ingest key    plaintext-ingest value      index name, key id
    VALUE_KEY      index's ingest key    key of several such values  index name, key id
    QUERY_VALUE    index's query key     query-request value         index name, key id
    UPDATE         index's update key    key of an update batch      index uid, shard, generation
    PACK           index's object key    key of a pack's records     index uid, generation, pack uid
    VOCABULARY     index's query key     words of a vocabulary       index uid, generation
    KEY_REQUEST    key service           lp(body, worker signature)  worker id
    KEY_GRANT      worker's one-time key subkeys                     clear header
    OBJECT_KEYS    worker's one-time key object keys of a batch      clear header
    ADMIN_REQUEST  key service           admin-request               (none)
    ADMIN_RESULT   caller's reply key    admin-result                request id
    QUERY_RESULT   caller's reply key    query-result                request id
    INGEST_RESULT  producer's reply key  ingest-result               index name, id
    RESULT_KEY     producer's reply key  key of several such results index name
    USER_KEY       who has a user key    KEK of the callers          index uid, user id, epoch

Signatures (`SigningKey.sign(Info.X, *parts)`; of MESSAGE and INGEST_RESULT also several together,
`together.py`, over "together" and the root of their tree):

    name           signed by             parts
    MESSAGE        caller's session key  topic, record key, SHA-256 of the value (header
                                         `sealstream-sig`)
    KEY_REQUEST    worker                body
    KEY_GRANT      key service           clear header, sealed part (grants of every kind)
    CERTIFICATE    key service           encoded certificate
    DIRECTORY      key service           record key, record
    REVOCATION     key service           record key, record
    ENROLMENT      worker                worker id, role, indexes, public key
    ENVELOPE       key service           encoded KMS envelope
    AUDIT          key service           checkpoint: instance, sequence number, chain hash
    ADMIN_RESULT   key service           record key, value
    UPDATE         ingest worker         every field of the envelope, the body by its SHA-256
    INDEX_EVENT    index worker          record key, event
    HEAD           index worker          index uid, shard, sealed head
    INGEST_RESULT  ingest, index worker  record key, value
    QUERY_RESULT   query worker          record key, value
"""

from __future__ import annotations

from enum import StrEnum, unique

from workers.crypto.lp import Part, lp

_PREFIX = lp("sealstream/1")


@unique
class Info(StrEnum):
    """A message type; see the table above for who seals or signs what, over which context."""

    CREDENTIAL = "credential"
    INGEST_VALUE = "ingest-value"
    VALUE_KEY = "value-key"
    QUERY_VALUE = "query-value"
    UPDATE = "update"
    PACK = "pack"
    VOCABULARY = "vocabulary"
    KEY_REQUEST = "key-request"
    KEY_GRANT = "key-grant"
    OBJECT_KEYS = "object-keys"
    ADMIN_REQUEST = "admin-request"
    ADMIN_RESULT = "admin-result"
    QUERY_RESULT = "query-result"
    INGEST_RESULT = "ingest-result"
    RESULT_KEY = "result-key"
    USER_KEY = "user-key"
    MESSAGE = "message"
    CERTIFICATE = "certificate"
    DIRECTORY = "directory"
    REVOCATION = "revocation"
    ENROLMENT = "enrolment"
    ENVELOPE = "envelope"
    AUDIT = "audit"
    INDEX_EVENT = "index-event"
    HEAD = "head"


def info(kind: Info, *context: Part) -> bytes:
    """Build the HPKE `info` of a message type.

    Args:
        kind: the message type.
        context: what the message is bound to, in the order of the table.
    """
    return _PREFIX + lp("hpke", kind, *context)


def signed_bytes(kind: Info, *parts: Part) -> bytes:
    """Build the bytes that a signature of this domain covers."""
    return _PREFIX + lp("sign", kind, *parts)
