"""Sealing and opening the parts of one segment.

Every block and node has a key of its own, derived from the segment key, the segment's random uid
and the part's kind and number (blocks) or chain token (nodes), and each key seals exactly one
message. So an AEAD tag alone proves that a part belongs to this place of this segment of this
shard: what was flipped, truncated, or copied from another part, segment, shard or index does not
open. `Damaged` is raised then, never "not found".
"""

from __future__ import annotations

from workers.chain.faults import Leased, damaged
from workers.chain.kinds import BlockKind, NodeKind, Padding
from workers.chain.padding import pad, unpad
from workers.crypto.derive import block_key
from workers.crypto.errors import OpenFailed
from workers.crypto.nodes import NodeSealer, block_aad, open_node, seal_node
from workers.crypto.secret import SecretBytes


class SegmentSeals:
    """The keys of one segment (or of one deletion bitmap, which has a uid of its own).

    It holds keyed state that cannot be wiped: make one per operation, do not keep it. Making one
    raises Retry where the lease of the key has ended.
    """

    __slots__ = ("_index_uid", "_key", "_nodes", "_shard", "_uid")

    def __init__(self, index_uid: bytes, shard: int, uid: bytes, key: SecretBytes) -> None:
        self._index_uid = index_uid
        self._shard = shard
        self._uid = uid
        self._key = key
        with Leased(key):
            self._nodes = NodeSealer(key, index_uid, shard, uid)

    def seal_block(self, kind: BlockKind, number: int, data: bytes, level: Padding) -> bytes:
        """Pad and seal block `number` of `kind`. Raises Retry: the lease of the key ended."""
        key = self._block_key(kind, number)
        aad = block_aad(self._index_uid, self._shard, self._uid, kind, number)
        return seal_node(key, pad(data, level), aad)

    def open_block(self, kind: BlockKind, number: int, blob: bytes) -> bytes:
        """Open a block.

        Raises:
            Damaged: it does not authenticate as this block.
            Retry: the lease of the key ended.
        """
        key = self._block_key(kind, number)
        aad = block_aad(self._index_uid, self._shard, self._uid, kind, number)
        try:
            return unpad(open_node(key, blob, aad))
        except (OpenFailed, ValueError) as exc:
            raise damaged(f"a {kind.name} block of shard {self._shard} is damaged") from exc

    def _block_key(self, kind: BlockKind, number: int) -> bytes:
        with Leased(self._key):
            return block_key(self._key, self._uid, kind, number)

    def label_and_key(self, kind: NodeKind, token: bytes) -> tuple[bytes, bytes]:
        """Derive label (16 bytes) and key of the node of a chain in this segment."""
        return self._nodes.label_and_key(token, kind, 0)

    def seal_node(self, kind: NodeKind, token: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """Return the label and the sealed node; once per (kind, token)."""
        return self._nodes.seal(token, kind, 0, kind, payload)

    def open_node(self, kind: NodeKind, label: bytes, key: bytes, blob: bytes) -> bytes:
        """Open a node with what `label_and_key` gave.

        Raises:
            Damaged: it does not authenticate as the node with this label.
        """
        try:
            return self._nodes.open_labelled(label, key, kind, blob)
        except (OpenFailed, ValueError) as exc:
            raise damaged(f"a {kind.name} node of shard {self._shard} is damaged") from exc
