"""Nodes and blocks of a segment: AES-256-GCM under keys that each seal one message.

    sealed = AES-256-GCM(key, nonce = 12 zero bytes, payload, aad): ciphertext || 16 bytes tag
    node:  aad = lp(index uid, shard, segment uid, label, codec)
    block: aad = lp(index uid, shard, segment uid, kind, number)

Invariant: a zero nonce is safe only because `derive.node_label_and_key` and `derive.block_key` give
a key of its own to every (segment uid, kind, part) and the segment's uid is random and drawn anew
at every attempt to write it. Never seal twice under one such key. A cipher object costs more than
the encryption of a small node, so nothing here caches them.
"""

from __future__ import annotations

import io
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from workers.crypto.derive import LABEL_BYTES, TOKEN_BYTES, Prf, mac, node_message
from workers.crypto.errors import OpenFailed
from workers.crypto.lp import lp
from workers.crypto.secret import Key, key_view

TAG_BYTES = 16
# From here up the `_into` calls are used: they release the GIL, `encrypt` and `decrypt` do not.
INTO_BYTES = 64 * 1024
_NONCE = bytes(12)
_BYTES16 = lp(bytes(16))[:-16]
# Kinds, codecs and most part numbers are a handful of small integers.
_ints = lru_cache(maxsize=4096)(lp)

Buffer = bytes | bytearray | memoryview


def seal_node(key: Key, payload: Buffer, aad: bytes) -> bytes:
    """Seal `payload` under a key that is used for nothing else, ever.

    Raises:
        InvalidKey: `key` is not 32 bytes.
    """
    cipher = AESGCM(key_view(key))
    if len(payload) < INTO_BYTES:
        return cipher.encrypt(_NONCE, payload, aad)
    out = io.BytesIO(bytes(len(payload) + TAG_BYTES))
    with out.getbuffer() as view:
        cipher.encrypt_into(_NONCE, payload, aad, view)
    return out.getvalue()


def open_node(key: Key, sealed: Buffer, aad: bytes) -> bytes:
    """Open what `seal_node` made.

    Raises:
        InvalidKey: `key` is not 32 bytes.
        OpenFailed: Another key or `aad`, or changed bytes.
    """
    cipher = AESGCM(key_view(key))
    try:
        if len(sealed) < INTO_BYTES:
            return cipher.decrypt(_NONCE, sealed, aad)
        out = io.BytesIO(bytes(len(sealed) - TAG_BYTES))
        with out.getbuffer() as view:
            cipher.decrypt_into(_NONCE, sealed, aad, view)
    except InvalidTag as exc:
        raise OpenFailed("a node or block does not open") from exc
    return out.getvalue()


# Blocks have the same format; the names keep call sites readable.
seal_block = seal_node
open_block = open_node


def node_aad(index_uid: bytes, shard: int, segment_uid: bytes, label: bytes, codec: int) -> bytes:
    """Encode what a node is bound to."""
    return lp(index_uid, shard, segment_uid, label, codec)


def block_aad(index_uid: bytes, shard: int, segment_uid: bytes, kind: int, number: int) -> bytes:
    """Encode what a block is bound to."""
    return lp(index_uid, shard, segment_uid, kind, number)


class NodeSealer:
    """Labels, seals and opens the nodes of one segment with everything constant computed once.

    Gives exactly what `node_secret`, `node_label_and_key`, `node_aad` and `seal_node` give.
    """

    __slots__ = ("_aad", "_prf", "_uid")

    def __init__(self, segment_key: Key, index_uid: bytes, shard: int, segment_uid: bytes) -> None:
        """Bind to a segment.

        Args:
            segment_key: the `segment` subkey of the segment's generation, 32 bytes.
            index_uid: 16 bytes.
            shard: the shard's number.
            segment_uid: 16 random bytes, drawn anew at every attempt to write the segment.
        """
        self._prf = Prf(segment_key)
        self._uid = lp(segment_uid)
        self._aad = lp(index_uid, shard, segment_uid) + _BYTES16

    def label_and_key(self, token: bytes, kind: int, part: int) -> tuple[bytes, bytes]:
        """Return a node's label (16 bytes) and key (32 bytes)."""
        secret = self._prf.digest(node_message(token))[:TOKEN_BYTES]
        derived = mac(secret, self._uid + _ints(kind, part))
        return derived[:LABEL_BYTES], derived[LABEL_BYTES:48]

    def seal(
        self, token: bytes, kind: int, part: int, codec: int, payload: Buffer
    ) -> tuple[bytes, bytes]:
        """Return the label and the sealed node; call it once per (token, kind, part)."""
        label, key = self.label_and_key(token, kind, part)
        return label, seal_node(key, payload, self._aad + label + _ints(codec))

    def open(self, token: bytes, kind: int, part: int, codec: int, sealed: Buffer) -> bytes:
        """Open a node.

        Raises:
            OpenFailed: The node was changed, or belongs elsewhere.
        """
        return self.open_labelled(*self.label_and_key(token, kind, part), codec, sealed)

    def open_labelled(self, label: bytes, key: bytes, codec: int, sealed: Buffer) -> bytes:
        """Open a node with what `label_and_key` gave.

        Raises:
            OpenFailed: The node was changed, or belongs elsewhere.
        """
        return open_node(key, sealed, self._aad + label + _ints(codec))
