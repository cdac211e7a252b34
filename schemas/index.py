"""What an index is made of, and the numeric defaults and limits of messages."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from schemas.errors import InvalidMessage
from schemas.ids import MAX_ID_BYTES as MAX_ID_BYTES
from schemas.ids import check_name

DEFAULT_TOP_K: Final = 10
MAX_TOP_K: Final = 10_000
MAX_PROBES: Final = 10_000
"""Clusters that a vector query may ask for; training makes at most 8,192 a shard."""
MAX_RERANK: Final = 10_000
"""Rows whose full vectors a vector query may have read."""
DEFAULT_PAGE: Final = 1_000
"""Ids of one page of `{"ids": true}` when `top_k` is not given."""
DEFAULT_TIMEOUT_MS: Final = 5_000
MAX_TIMEOUT_MS: Final = 300_000
MAX_GET_IDS: Final = 1_000
MAX_BATCH_QUERIES: Final = 256

RRF_K: Final = 60
DEFAULT_ALPHA: Final = 0.5
BM25_K1: Final = 1.2
BM25_B: Final = 0.75
BODY_FIELD: Final = "body"
"""Text field that a `text/*` content is analysed as when `text` is not given."""

MAX_RECORD_BYTES: Final = 900_000
"""Largest record the workers write; larger bodies go through a sealed object."""
MAX_MESSAGE_BYTES: Final = 1_048_576
"""Largest record value that is read; the default limit of common brokers."""
MAX_DIMENSION: Final = 65_536
MAX_SHARDS: Final = 1_024
MAX_FILTER_DEPTH: Final = 16
MAX_FILTER_NODES: Final = 256

Metric = Literal["cosine", "euclidean", "dot"]
Precision = Literal["float32", "float16", "int8"]
Padding = Literal["off", "standard", "strict"]
Visibility = Literal["members", "index"]
Overwrite = Literal["members", "scope"]

Shards = Annotated[int, Meta(ge=1, le=MAX_SHARDS)]
Dimension = Annotated[int, Meta(ge=1, le=MAX_DIMENSION)]
Weight = Annotated[float, Meta(ge=0.0, le=1e6)]
Analyzer = Annotated[str, Meta(min_length=1, max_length=64)]


def fusion_depth(top_k: int) -> int:
    """Return how many of each list are fused: ten times what is asked, 100 to 10,000."""
    return min(MAX_TOP_K, max(100, 10 * top_k))


class IndexConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of an index, fixed at creation.

    `storage_precision`: `float32` and `float16` store full vectors of that width; both are
    searched by int8 codes and reranked; `int8` stores the codes alone.
    `fields`: weights of text fields; a field that is not named weighs 1.
    """

    shards: Shards = 1
    dimension: Dimension | None = None
    metric: Metric = "cosine"
    storage_precision: Precision = "float16"
    fields: dict[str, Weight] = {}
    analyzer: Analyzer = "english"
    padding: Padding = "standard"
    visibility: Visibility = "members"
    overwrite: Overwrite = "members"
    bm25_k1: Annotated[float, Meta(ge=0.0, le=100.0)] = BM25_K1
    bm25_b: Annotated[float, Meta(ge=0.0, le=1.0)] = BM25_B

    def __post_init__(self) -> None:
        if type(self.fields) is not dict:
            raise InvalidMessage("must be an object of field weights", "fields")
        for name in self.fields:
            check_name(name, "fields")
