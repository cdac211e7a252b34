"""Every key, token and label of an index, derived from its TAG and DEK.

    subkey[purpose]  HKDF-Expand-SHA-256(DEK, "sealstream/1 subkey" || lp(purpose, index uid), 32)
    chain token T    HMAC-SHA-512(TAG, lp(kind, field, value))[:32]
    object id        HMAC-SHA-512(TAG, lp("object", id))[:16]
    group token      HMAC-SHA-512(TAG, lp("group", group id))[:16]
    centroid token   HMAC-SHA-512(vector, lp("centroid", epoch, cluster))[:32]
    node secret N    HMAC-SHA-512(segment, lp("node", T))[:32]
    label || key     HMAC-SHA-512(N, lp(segment uid, kind, part))[:48]     16 + 32 bytes
    block key        HMAC-SHA-512(segment, lp("block", segment uid, kind, number))[:32]

The first parts differ in type or text, so no two lines meet under one key. TAG is 32 random bytes,
DEK too. Where many values are derived under one key, use `Prf`: it keeps the keyed state.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum, unique

from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from workers.crypto.lp import Part, lp
from workers.crypto.secret import KEY_BYTES, Key, SecretBytes, key_view, overwrite

TOKEN_BYTES = 32
OBJECT_ID_BYTES = 16
LABEL_BYTES = 16

_SHA512 = SHA512()
_NODE = lp("node")
_TOKEN_HEAD = lp(bytes(TOKEN_BYTES))[:-TOKEN_BYTES]


@unique
class Purpose(StrEnum):
    """What a key of an index is for.

    `TAG` and `INGEST` are random keys of their own, named here because leases ask for them too; the
    other five are subkeys of a DEK generation.
    """

    OBJECT = "object"
    UPDATE = "update"
    SEGMENT = "segment"
    VECTOR = "vector"
    QUERY = "query"
    TAG = "tag"
    INGEST = "ingest"


SUBKEYS = frozenset(
    {Purpose.OBJECT, Purpose.UPDATE, Purpose.SEGMENT, Purpose.VECTOR, Purpose.QUERY}
)


@unique
class TokenKind(IntEnum):
    """What a chain token stands for; part of its derivation, so the numbers never change."""

    KEYWORD = 1
    TERM = 2
    META = 3
    GROUP = 4
    CENTROID = 5


def prf(key: Key, *parts: Part) -> bytes:
    """Return HMAC-SHA-512 over `lp(*parts)` under a 32-byte key: 64 bytes, truncated by the caller.

    Raises:
        InvalidKey: `key` is not 32 bytes.
    """
    return mac(key_view(key), lp(*parts))


def mac(key: bytes | bytearray | memoryview, message: bytes) -> bytes:
    """Return HMAC-SHA-512: 64 bytes.

    Not by `hmac.digest`: that lets the GIL go, and gets it back from another busy thread after
    milliseconds. A segment has tens of thousands of nodes.
    """
    state = HMAC(key, _SHA512)
    state.update(message)
    return state.finalize()


class Prf:
    """HMAC-SHA-512 under one key, keyed once: 2 to 3 times faster than `prf` on short inputs.

    The keyed state lies in OpenSSL's memory and cannot be wiped from Python: drop the object with
    the key. Safe to use from several threads.
    """

    __slots__ = ("_keyed",)

    def __init__(self, key: Key) -> None:
        self._keyed = HMAC(key_view(key), _SHA512)

    def digest(self, message: bytes) -> bytes:
        """Return the 64-byte MAC of `message`, which the caller has encoded with `lp`."""
        state = self._keyed.copy()
        state.update(message)
        return state.finalize()


def subkey(dek: Key, purpose: Purpose, index_uid: bytes) -> SecretBytes:
    """Derive the 32-byte subkey of a DEK for one purpose of one index.

    For `OBJECT`, `UPDATE` and `QUERY` it is the seed of a key pair (`HpkePrivateKey.from_seed`).

    Raises:
        InvalidKey: `dek` is not 32 bytes.
        ValueError: `purpose` is `TAG` or `INGEST`, which are no subkeys.
    """
    if purpose not in SUBKEYS:
        raise ValueError(f"{purpose.value} is a key of its own, not a subkey of a DEK")
    expand = HKDFExpand(SHA256(), KEY_BYTES, b"sealstream/1 subkey" + lp(purpose, index_uid))
    derived = expand.derive(key_view(dek))
    try:
        return SecretBytes(derived)
    finally:
        overwrite(derived)


def chain_token(tag: Key, kind: TokenKind, field: str, value: str | bytes) -> bytes:
    """Derive the 32-byte token of the chain of one keyword, term, field=value or group.

    Args:
        tag: the index's TAG key, 32 bytes.
        kind: what the value is.
        field: the field it stands in, "" where there is none.
        value: the value; text and bytes of the same content give different tokens.
    """
    return prf(tag, kind, field, value)[:TOKEN_BYTES]


def object_id(tag: Key, doc_id: str) -> bytes:
    """Derive the 16-byte object id of a document id."""
    return prf(tag, "object", doc_id)[:OBJECT_ID_BYTES]


def group_token(tag: Key, group_id: str) -> bytes:
    """Derive the 16-byte token that stands for a group in document tables and updates."""
    return prf(tag, "group", group_id)[:OBJECT_ID_BYTES]


def shard_of(object_id: bytes, shards: int) -> int:
    """Return the shard of an object id: its first 8 bytes, big endian, modulo `shards`."""
    return int.from_bytes(object_id[:8], "big") % shards


def centroid_token(vector_key: Key, epoch: int, cluster: int) -> bytes:
    """Derive the 32-byte token of a centroid chain.

    Args:
        vector_key: the `vector` subkey, 32 bytes.
        epoch: the training the centroids come from; 0 is "not trained".
        cluster: the number of the centroid.
    """
    return prf(vector_key, "centroid", epoch, cluster)[:TOKEN_BYTES]


def node_secret(segment_key: Key, token: bytes) -> bytes:
    """Derive the 32-byte secret of a chain in all segments that are sealed under `segment_key`."""
    return prf(segment_key, "node", token)[:TOKEN_BYTES]


def node_label_and_key(
    node_secret: bytes, segment_uid: bytes, kind: int, part: int
) -> tuple[bytes, bytes]:
    """Derive a node's label (16 bytes) and key (32 bytes) in one segment.

    Args:
        node_secret: what `node_secret` returned.
        segment_uid: the segment's random uid, 16 bytes, drawn anew at every attempt.
        kind: the node's kind.
        part: the number of the part, where a chain has several nodes in a segment.
    """
    derived = mac(node_secret, lp(segment_uid, kind, part))
    return derived[:LABEL_BYTES], derived[LABEL_BYTES:48]


def block_key(segment_key: Key, segment_uid: bytes, kind: int, number: int) -> bytes:
    """Derive the 32-byte key that seals one block (directory, dictionary, table …) of a segment."""
    return prf(segment_key, "block", segment_uid, kind, number)[:KEY_BYTES]


def node_message(token: bytes) -> bytes:
    """Return `lp("node", token)` for a token of 32 bytes, faster than `lp`.

    Raises:
        ValueError: `token` is not 32 bytes.
    """
    if len(token) != TOKEN_BYTES:
        raise ValueError("a chain token has 32 bytes")
    return _NODE + _TOKEN_HEAD + token
