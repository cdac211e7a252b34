"""CyborgDB (PyPI `cyborgdb-core`) as a peer, on the object store of the stack.

Free tier, no key, no service: the library in this process, on the same S3 server and bucket as
ours, below a prefix of its own.
"""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import uuid4

import numpy as np

from bench.data import F32
from workers.settings import Settings

BATCH = 500
"""Vectors of one upsert: as many as a micro-batch of ours."""


def available() -> bool:
    """Tell whether the library is installed."""
    try:
        import cyborgdb_core  # noqa: F401
    except ImportError:
        return False
    return True


class Cyborg:
    """One CyborgDB index of L2-normalised vectors, cosine, its default precision."""

    def __init__(self, settings: Settings, prefix: str | None = None, key: bytes | None = None):
        import cyborgdb_core as peer

        secret = settings.s3_secret_access_key
        storage = peer.StorageConfig.s3(
            settings.s3_bucket,
            region=settings.s3_region,
            endpoint=settings.s3_endpoint,
            prefix=prefix or f"bench-peer-{uuid4().hex[:8]}",
            credentials=peer.S3Credentials(
                settings.s3_access_key_id or "", "" if secret is None else secret.get_secret_value()
            ),
        )
        self.key = key or os.urandom(32)
        self._client = peer.Client(storage_config=storage)
        self._index: Any = None

    def create(self, dimension: int) -> None:
        """Make the index."""
        self._index = self._client.create_index(
            "bench", self.key, dimension=dimension, metric="cosine"
        )

    def load(self) -> None:
        """Open an index that exists."""
        self._index = self._client.load_index("bench", self.key)

    def upsert(self, vectors: F32, first: int = 0, batch: int = BATCH) -> None:
        """Add or replace vectors, in batches, one after the other."""
        for start in range(0, len(vectors), batch):
            part = vectors[start : start + batch]
            ids = [str(first + start + number) for number in range(len(part))]
            self._index.upsert(ids, np.ascontiguousarray(part), index_key=self.key)

    def delete(self, ids: list[str], batch: int = BATCH) -> None:
        """Delete vectors, in batches."""
        for start in range(0, len(ids), batch):
            self._index.delete(ids[start : start + batch], index_key=self.key)

    def train(self, lists: int) -> None:
        """Train."""
        self._index.train(n_lists=lists, index_key=self.key)

    def search(self, queries: F32, k: int, probes: int, rerank: int) -> Any:
        """Return int64 ids `(k,)`, or `(q, k)` for several queries."""
        return self._index.query_numpy(
            np.ascontiguousarray(queries),
            top_k=k,
            n_probes=probes,
            rerank_mult=rerank,
            batch=queries.ndim == 2,
            index_key=self.key,
        )

    def wait_trained(self, deadline_s: float = 300.0) -> None:
        """Wait for a training that runs in the background.

        Raises:
            TimeoutError: it did not end.
        """
        until = time.monotonic() + deadline_s
        while not self._index.is_trained():
            if time.monotonic() > until:
                raise TimeoutError("the peer's training did not end")
            time.sleep(0.1)
