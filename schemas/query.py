"""query-request and query-result.

A query is one of eight kinds; the key that is present says which. `Query` is their union for
type checkers and their common base at run time, because the wire form has no type tag.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from schemas import codec
from schemas.auth import Auth
from schemas.errors import ErrorInfo, InvalidMessage
from schemas.filter import Filter, parse_filter
from schemas.ids import DocIdField, IndexField, Millis, UuidField, check_doc_id, check_name
from schemas.index import (
    DEFAULT_ALPHA,
    DEFAULT_PAGE,
    DEFAULT_TIMEOUT_MS,
    DEFAULT_TOP_K,
    MAX_BATCH_QUERIES,
    MAX_GET_IDS,
    MAX_PROBES,
    MAX_RERANK,
    MAX_TIMEOUT_MS,
    MAX_TOP_K,
    RRF_K,
    Weight,
)
from schemas.ingest import Keyword, MetadataValue, ReplyKey, check_signed
from schemas.message import Answer, AnswerPart, Part, Request
from schemas.position import MinPosition, Partition
from schemas.topics import QUERY_RESULT
from schemas.values import Binary, Vector

Words = Annotated[str, Meta(min_length=1)]
Probes = Annotated[int, Meta(ge=1, le=MAX_PROBES)]
Rerank = Annotated[int, Meta(ge=0, le=MAX_RERANK)]
TopK = Annotated[int, Meta(ge=1, le=MAX_TOP_K)]
Operator = Literal["or", "and"]
Always = Annotated[bool, Meta(extra_json_schema={"const": True})]
Cursor = Annotated[str, Meta(min_length=1, max_length=8192)]

REPLY_TOPIC_PATTERN: Final = r"^query-result(\.[A-Za-z0-9._-]+)?(?<!\.dead-letter)(?!\n)$"
_reply_topic: Final = re.compile(REPLY_TOPIC_PATTERN).match
MAX_TOPIC_CHARS: Final = 200


class QueryKind:
    """Base of the eight kinds of query."""

    __slots__ = ()
    key: ClassVar[str]
    """The field whose presence chooses the kind."""


class KeywordQuery(Part, QueryKind, frozen=True, kw_only=True):
    """Every identifier of exactly this keyword, in the order of ingestion."""

    key: ClassVar[str] = "keyword"
    keyword: Keyword


class TextQuery(Part, QueryKind, frozen=True, kw_only=True):
    """BM25. Only with `syntax` do quotes, `-`, `*` and parentheses mean something.

    `fields`: weights; empty searches all fields with the index's weights.
    """

    key: ClassVar[str] = "text"
    text: Words
    fields: dict[str, Weight] = {}
    operator: Operator = "or"
    syntax: bool = False

    def __post_init__(self) -> None:
        for name in self.fields:
            check_name(name, "fields")


class VectorQuery(Part, QueryKind, frozen=True, kw_only=True):
    """Nearest neighbours by the index's metric.

    `nprobe`: clusters to search, 1 to 10,000. `rerank`: rows to score again with their full
    vectors, 0 to 10,000. None lets the worker choose.
    """

    key: ClassVar[str] = "vector"
    vector: Vector
    nprobe: Probes | None = None
    rerank: Rerank | None = None


class Hybrid(Part, frozen=True, kw_only=True):
    """A text query and a vector query, fused by weighted reciprocal ranks.

    `alpha`: weight of the vector list, 0 to 1; the text list weighs 1 - alpha. `rrf_k`: the
    constant k of the fusion. At most one of the two is given.
    """

    text: Words
    vector: Vector
    fields: dict[str, Weight] = {}
    operator: Operator = "or"
    syntax: bool = False
    nprobe: Probes | None = None
    rerank: Rerank | None = None
    alpha: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    rrf_k: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and self.rrf_k is not None:
            raise InvalidMessage("give one of alpha and rrf_k", "alpha")
        for name in self.fields:
            check_name(name, "fields")

    def text_query(self) -> TextQuery:
        """Return the text half."""
        return TextQuery(
            text=self.text, fields=self.fields, operator=self.operator, syntax=self.syntax
        )

    def vector_query(self) -> VectorQuery:
        """Return the vector half."""
        return VectorQuery(vector=self.vector, nprobe=self.nprobe, rerank=self.rerank)

    def weights(self) -> tuple[float, float]:
        """Return the weights of the text list and of the vector list; they add up to 1."""
        alpha = DEFAULT_ALPHA if self.alpha is None else self.alpha
        return 1.0 - alpha, alpha

    def k(self) -> int:
        """Return the constant of the fusion."""
        return RRF_K if self.rrf_k is None else self.rrf_k


class HybridQuery(Part, QueryKind, frozen=True, kw_only=True):
    """Text and vector, fused."""

    key: ClassVar[str] = "hybrid"
    hybrid: Hybrid


class FilterOnly(Part, QueryKind, frozen=True, kw_only=True):
    """What the request's filter lets through, ordered by a metadata field if one is named."""

    key: ClassVar[str] = "filter_only"
    filter_only: Always
    order_by: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    ascending: bool = True

    def __post_init__(self) -> None:
        _must_be_true(self.filter_only, "filter_only")
        if self.order_by is not None:
            check_name(self.order_by, "order_by")


class GetQuery(Part, QueryKind, frozen=True, kw_only=True):
    """The documents of these ids."""

    key: ClassVar[str] = "get"
    get: Annotated[list[DocIdField], Meta(min_length=1, max_length=MAX_GET_IDS)]

    def __post_init__(self) -> None:
        for number, doc_id in enumerate(self.get):
            check_doc_id(doc_id, f"get[{number}]")


class IdsQuery(Part, QueryKind, frozen=True, kw_only=True):
    """All ids, in pages."""

    key: ClassVar[str] = "ids"
    ids: Always

    def __post_init__(self) -> None:
        _must_be_true(self.ids, "ids")


class CountQuery(Part, QueryKind, frozen=True, kw_only=True):
    """How many documents there are, or pass the request's filter."""

    key: ClassVar[str] = "count"
    count: Always

    def __post_init__(self) -> None:
        _must_be_true(self.count, "count")


QUERY_KINDS: Final = (
    KeywordQuery,
    TextQuery,
    VectorQuery,
    HybridQuery,
    FilterOnly,
    GetQuery,
    IdsQuery,
    CountQuery,
)
_KINDS: Final[dict[str, type[QueryKind]]] = {kind.key: kind for kind in QUERY_KINDS}

if TYPE_CHECKING:
    Query: TypeAlias = (
        KeywordQuery
        | TextQuery
        | VectorQuery
        | HybridQuery
        | FilterOnly
        | GetQuery
        | IdsQuery
        | CountQuery
    )
else:
    Query = QueryKind


class Include(StrEnum):
    """What a hit may carry besides its id."""

    SCORE = "score"
    DISTANCE = "distance"
    METADATA = "metadata"
    CONTENT = "content"
    ASSOCIATED_DATA = "associated_data"
    VECTOR = "vector"
    GROUPS = "groups"


SEALED_INCLUDES: Final = frozenset({Include.METADATA, Include.CONTENT, Include.VECTOR})
"""What leaves the workers only sealed to the caller."""


class Reply(ReplyKey, frozen=True, kw_only=True):
    """Where the result goes: `query-result` or a topic matching `query-result.*`.

    `topic` is without the deployment's prefix. `partition`: None lets the producer choose.
    """

    topic: str = QUERY_RESULT
    partition: Partition | None = None

    def __post_init__(self) -> None:
        ReplyKey.__post_init__(self)
        if len(self.topic) > MAX_TOPIC_CHARS or not _reply_topic(self.topic):
            raise InvalidMessage("must be query-result or match query-result.*", "topic")


class QueryRequest(Request, frozen=True, kw_only=True):
    """One query, or a batch of them, on one index."""

    request_id: UuidField
    index: IndexField
    auth: Auth
    query: Query | None = None
    queries: Annotated[list[Query], Meta(max_length=MAX_BATCH_QUERIES)] = []
    top_k: TopK | None = None
    filter: dict[str, Any] | None = None
    include: list[Include] = msgspec.field(default_factory=lambda: [Include.SCORE])
    min_position: list[MinPosition] = []
    timeout_ms: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)] = DEFAULT_TIMEOUT_MS
    reply: Reply = Reply()
    explain: bool = False
    cursor: Cursor | None = None
    message_id: UuidField | None = None
    issued_ms: Millis | None = None

    def __post_init__(self) -> None:
        check_signed(self.auth, self.message_id, self.issued_ms)
        if (self.query is None) == (not self.queries):
            raise InvalidMessage("exactly one of query and queries is needed", "query")
        if self.cursor is not None and self.queries:
            raise InvalidMessage("does not go with a batch", "cursor")
        if self.filter is not None:
            parse_filter(self.filter)

    def all_queries(self) -> list[Query]:
        """Return the batch, or the one query as a batch of one."""
        return [self.query] if self.query is not None else self.queries

    def parsed_filter(self) -> Filter | None:
        """Return the filter as a tree."""
        return None if self.filter is None else parse_filter(self.filter)

    def limit(self, query: Query) -> int | None:
        """Return how many hits `query` may have; None is no limit."""
        if self.top_k is not None:
            return self.top_k
        if isinstance(query, IdsQuery):
            return DEFAULT_PAGE
        if isinstance(query, KeywordQuery | GetQuery | CountQuery):
            return None
        return DEFAULT_TOP_K


def requires_sealed_reply(request: QueryRequest) -> bool:
    """Tell whether the request asks for what only a sealed reply may carry, and gives no key.

    Such a request is refused unless the setting `allow_plain_results` is true.
    """
    return request.reply.public_key is None and not SEALED_INCLUDES.isdisjoint(request.include)


class Hit(AnswerPart, frozen=True, kw_only=True):
    """One document of a result. Fields that were not asked for are absent.

    `denied`: the caller's groups may not read it; nothing but the id is given.
    """

    id: str
    score: float | None = None
    distance: float | None = None
    metadata: dict[str, MetadataValue] | None = None
    content: str | Binary | None = None
    content_type: str | None = None
    associated_data: Binary | None = None
    vector: Vector | None = None
    groups: list[str] | None = None
    version: int | None = None
    denied: bool = False


class ShardVersion(AnswerPart, frozen=True, kw_only=True):
    """The version of a shard's head that answered."""

    shard: int
    version: int


class QueryAnswer(AnswerPart, frozen=True, kw_only=True):
    """The result of one query of a batch."""

    hits: list[Hit] = []
    count: int | None = None
    error: ErrorInfo | None = None


class QueryResult(Answer, frozen=True, kw_only=True):
    """Answer to one query-request; `results` has one entry per query of a batch."""

    request_id: str
    status: Literal["ok", "error"]
    hits: list[Hit] = []
    count: int | None = None
    results: list[QueryAnswer] | None = None
    cursor: str | None = None
    snapshot: list[ShardVersion] = []
    took_ms: float | None = None
    explain: dict[str, Any] | None = None
    error: ErrorInfo | None = None


def _must_be_true(value: bool, field: str) -> None:
    if value is not True:
        raise InvalidMessage("must be true", field)


def _read_query(value: Any) -> QueryKind:
    """Convert the JSON of one query to its kind."""
    if type(value) is not dict:
        raise InvalidMessage("must be an object")
    kinds = [kind for key, kind in _KINDS.items() if key in value]
    if len(kinds) != 1:
        raise InvalidMessage(f"must have exactly one of {', '.join(_KINDS)}")
    return codec.convert(kinds[0], value)


codec.register(QueryKind, _read_query)
