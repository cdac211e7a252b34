"""What a search needs besides the snapshot: keys behind narrow functions, settings, the caller.

A context is made for one query from a live lease and dropped with it. Search holds no key itself:
it asks for tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from schemas.index import IndexConfig
from workers.crypto.derive import TokenKind
from workers.search.cache import DecodedCache
from workers.search.snapshot import ShardSnapshot
from workers.vector.centroids import VectorState


class Tokens(Protocol):
    """Chain tokens under the index's TAG key (`workers.crypto.token_cache.TokenCache`)."""

    def token(self, kind: TokenKind, field: str, value: str | bytes) -> bytes:
        """Return the 32-byte chain token of a value."""
        ...


class LoadCentroids(Protocol):
    """Reads the centroids that a shard's head names."""

    async def __call__(self, shard: ShardSnapshot) -> VectorState | None:
        """Return them, or None for a shard without vectors."""
        ...


async def no_centroids(shard: ShardSnapshot) -> VectorState | None:
    """Stand in for `LoadCentroids` on an index without vectors."""
    return None


@dataclass(frozen=True, slots=True)
class SearchContext:
    """The circumstances of one query.

    Attributes:
        config: settings of the index.
        tokens: chain tokens of words, keywords.
        object_id: object id (16 bytes) of a document id.
        groups: group tokens (16 bytes) of the caller.
        cache: decoded columns and codes, shared by the queries of the process.
        centroid_tokens: chain tokens of (epoch, cluster), one for each readable key generation.
        centroids: reads the centroids of a shard.
        open_vocabulary: opens one sealed word list; None where prefixes are not offered.
    """

    config: IndexConfig
    tokens: Tokens
    object_id: Callable[[str], bytes]
    groups: frozenset[bytes]
    cache: DecodedCache = field(repr=False)
    centroid_tokens: Callable[[int, int], list[bytes]] | None = field(default=None, repr=False)
    centroids: LoadCentroids = field(default=no_centroids, repr=False)
    open_vocabulary: Callable[[bytes], bytes] | None = field(default=None, repr=False)

    @property
    def members_only(self) -> bool:
        """Whether what the caller may not read is left out, rather than named as denied."""
        return self.config.visibility == "members"
