"""Segments that this process wrote a moment ago, as they were before they were sealed.

Most segments are merged soon after they were written, by the process that wrote them. While they
are kept here, a merge neither reads them back nor opens a node: that is the larger half of its
work. A segment is immutable and its uid random, so what is kept is what is stored.

What is kept is what its writer handled anyway (tokens, ids, metadata), for a bounded time in a
bounded space, and nothing depends on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, Protocol

from workers.chain.faults import damaged
from workers.chain.head import SegmentRef
from workers.chain.kinds import NodeKind
from workers.chain.rows import Rows

NODE_BYTES: Final = 240
"""What a kept node takes besides its payload."""
_ROW_BYTES: Final = 400


class Source(Protocol):
    """A segment as a merge reads it."""

    ref: SegmentRef

    def rows(self) -> Rows:
        """Return the whole document table. It is not changed by a merge."""
        ...

    def dictionary(self) -> Iterable[bytes]:
        """Yield `kind u8 ‖ token 32` of every node, sorted."""
        ...

    def node(self, kind: NodeKind, token: bytes) -> bytes:
        """Return the payload of a node that the dictionary lists. Raises Damaged."""
        ...


class FreshSegment:
    """A `Source` in clear.

    Args:
        nodes: payloads by `kind u8 ‖ token 32`.
    """

    def __init__(self, ref: SegmentRef, rows: Rows, nodes: Mapping[bytes, bytes]) -> None:
        self.ref = ref
        self._rows = rows
        self._nodes = nodes
        texts = sum(map(len, rows.ids)) + sum(map(len, rows.metadata)) + sum(map(len, rows.objects))
        vectors = 0 if rows.vectors is None else rows.vectors.nbytes
        payloads = sum(map(len, nodes.values())) + NODE_BYTES * len(nodes)
        self.bytes = texts + vectors + payloads + _ROW_BYTES * len(rows)

    def rows(self) -> Rows:
        """Return the document table."""
        return self._rows

    def dictionary(self) -> Iterator[bytes]:
        """Yield the keys of all nodes, sorted."""
        return iter(sorted(self._nodes))

    def node(self, kind: NodeKind, token: bytes) -> bytes:
        """Return the payload of a node. Raises Damaged: there is none."""
        payload = self._nodes.get(bytes((kind,)) + token)
        if payload is None:
            raise damaged("a node that the dictionary lists is missing")
        return payload


class FreshSegments:
    """What is kept by one process, of all its shards; the oldest go first. For the event loop.

    Args:
        max_bytes: about how much; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[bytes, FreshSegment] = OrderedDict()
        self._bytes = 0

    def keep(self, ref: SegmentRef, rows: Rows, nodes: Mapping[bytes, bytes]) -> None:
        """Keep a segment that was published, if there is room."""
        segment = FreshSegment(ref, rows, nodes)
        if segment.bytes > self.max_bytes:
            return
        self._kept[ref.uid] = segment
        self._bytes += segment.bytes
        while self._bytes > self.max_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].bytes

    def get(self, uid: bytes) -> FreshSegment | None:
        """Return a segment that is kept."""
        return self._kept.get(uid)

    def drop(self, uids: Collection[bytes]) -> None:
        """Forget segments that are not live any more."""
        for uid in uids:
            segment = self._kept.pop(uid, None)
            if segment is not None:
                self._bytes -= segment.bytes
