"""Answer one query-request: read, authorise, search, hydrate, reply.

Every request gets exactly one result per delivery, within its deadline. A refused one gets its code
and one dead letter besides; one that may succeed later gets a retryable code and no dead letter,
because the caller, who still waits, is the one to repeat it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog

from schemas.errors import ErrorCode, ErrorInfo, InvalidMessage
from schemas.index import DEFAULT_TIMEOUT_MS
from schemas.query import (
    Hit,
    Include,
    QueryAnswer,
    QueryRequest,
    QueryResult,
    Reply,
    ShardVersion,
)
from schemas.topics import with_prefix
from schemas.values import Binary, Vector
from workers.errors import Damaged, Reject, Retry, SealstreamError
from workers.kafka.broker import Record
from workers.leases.credential import Proof
from workers.leases.lease import Decision, Lease
from workers.query.contents import Opened, Stored, open_contents
from workers.query.indexes import OpenIndex, OpenIndexes
from workers.query.request import Address, Incoming, authorise, read
from workers.query.results import encode_result, error_result
from workers.runtime.lastresort import unexpected
from workers.runtime.process import Stand
from workers.search.execute import Answer, search, search_many
from workers.search.explain import explain
from workers.search.hydrate import Shown, hydrate
from workers.search.run import Candidate
from workers.search.snapshot import IndexSnapshot
from workers.settings import Settings
from workers.storage.errors import NotFound
from workers.storage.store import Store
from workers.telemetry import metrics

log = structlog.get_logger("query.handler")

_OPENED: Final = frozenset({Include.CONTENT, Include.ASSOCIATED_DATA})


@dataclass(frozen=True, slots=True)
class _Found:
    """What a request found, before it is written down."""

    answers: list[Answer]
    hits: list[list[Hit]]
    snapshot: IndexSnapshot


class QueryHandler:
    """Answers requests; any number at a time."""

    def __init__(
        self, stand: Stand, store: Store, indexes: OpenIndexes, settings: Settings
    ) -> None:
        self._stand = stand
        self._store = store
        self._indexes = indexes
        self._settings = settings
        self._running = 0
        self._waiting = 0
        self._places = asyncio.Semaphore(settings.query_concurrency)

    async def handle(self, record: Record) -> None:
        """Answer one record.

        Raises:
            Retry: the answer, within the request's time, or the dead letter was not acknowledged.
        """
        started_s = time.perf_counter()
        incoming = Incoming(record)
        error: SealstreamError | InvalidMessage | None = None
        result: QueryResult | None = None
        self._running += 1
        metrics.QUERIES_RUNNING.set(self._running)
        try:
            result = await self._answer(incoming, started_s)
        except (InvalidMessage, Reject) as refusal:
            error = refusal
            await self._refuse(incoming, refusal)
        except Retry as later:
            error = later
        except Exception as failure:
            error = await self._give_up(incoming, failure)
        finally:
            self._running -= 1
            metrics.QUERIES_RUNNING.set(self._running)
        if result is None and error is not None and incoming.address is not None:
            result = error_result(incoming.address.request_id, error.info())
        self._count(incoming, error, started_s)
        if result is not None and incoming.address is not None:
            try:
                await self._reply(incoming, incoming.address, result)
            except Retry as unsent:
                # The topic or partition may not exist at all: nobody waits any more in any case.
                if not _is_over(incoming):
                    raise
                log.warning("result given up", code=unsent.code.value)

    async def _give_up(self, incoming: Incoming, failure: Exception) -> Reject:
        """Dead-letter a request on which this worker failed; return what its caller is told."""
        refusal = unexpected(failure, incoming.record)
        await self._stand.dead_letters.send(
            incoming.record, refusal.info(), 1, sealed=incoming.sealed
        )
        return refusal

    async def _refuse(self, incoming: Incoming, refusal: Reject | InvalidMessage) -> None:
        """Write the dead letter of a refused request; damage is ours, not the request's."""
        if isinstance(refusal, Damaged):
            metrics.DAMAGED.inc(what="query")
            log.error("stored data damaged", why=refusal.message)
            if incoming.address is not None:
                return
            # Sealed, and its key is what is damaged: nobody can be told.
        await self._stand.dead_letters.send(
            incoming.record, refusal.info(), 1, sealed=incoming.sealed
        )

    async def _answer(self, incoming: Incoming, started_s: float) -> QueryResult:
        """Read, authorise and search, within the deadline that the request names.

        Raises:
            InvalidMessage, Reject: the request is refused. Retry: it may succeed later.
        """
        request = await read(incoming, self._stand.holder)
        stage = "the key service"
        try:
            async with asyncio.timeout(self._left_s(incoming.record, request)):
                decision = await authorise(
                    incoming,
                    request,
                    self._stand.holder,
                    allow_plain_results=self._settings.allow_plain_results,
                )
                proof = Proof.of(incoming.record)
                holder = self._stand.holder
                lease = await holder.lease(request.index, auth=request.auth, proof=proof)
                stage = "the index"
                try:
                    opened, found = await self._find(lease, request, decision, proof)
                except Retry:
                    if not lease.wiped:
                        raise
                    # It ended while it was in use: there is another by now.
                    lease = await holder.lease(request.index, auth=request.auth, proof=proof)
                    opened, found = await self._find(lease, request, decision, proof)
        except TimeoutError:
            if stage == "the key service":
                raise Retry(
                    ErrorCode.KEY_UNAVAILABLE, "the key service did not answer in time: try again"
                ) from None
            raise Retry(
                ErrorCode.DEADLINE_EXCEEDED, "the query did not finish within timeout_ms"
            ) from None
        return self._result(request, opened, found, started_s)

    async def _find(
        self, lease: Lease, request: QueryRequest, decision: Decision, proof: Proof | None
    ) -> tuple[OpenIndex, _Found]:
        with self._indexes.using(lease) as opened:
            await self._reach(opened, request)
            async with self._places:
                return opened, await self._search_again(opened, request, decision, proof)

    def _left_s(self, record: Record, request: QueryRequest) -> float:
        """Return the seconds that are left of a request's time, by the broker's time stamp."""
        waited_s = 0.0 if record.timestamp_ms < 0 else _waited_s(record)
        left_s = request.timeout_ms / 1000 - waited_s
        if left_s <= 0:
            raise Retry(
                ErrorCode.DEADLINE_EXCEEDED, "the request waited longer than its timeout_ms"
            )
        return left_s

    async def _reach(self, opened: OpenIndex, request: QueryRequest) -> None:
        """Wait for `min_position`, outside the places of searches: it may never come.

        Raises:
            Retry: OVERLOADED, too many wait already. Besides what `OpenIndex.snapshot` raises.
        """
        if not request.min_position or await opened.reached(request.min_position):
            return
        if self._waiting >= self._settings.query_concurrency:
            raise Retry(
                ErrorCode.OVERLOADED, "too many queries wait for their min_position: try again"
            )
        self._waiting += 1
        metrics.QUERIES_WAITING.set(self._waiting)
        try:
            await opened.snapshot(request.min_position, 0)
        finally:
            self._waiting -= 1
            metrics.QUERIES_WAITING.set(self._waiting)

    async def _search_again(
        self,
        opened: OpenIndex,
        request: QueryRequest,
        decision: Decision,
        proof: Proof | None,
    ) -> _Found:
        """Search; once more on a new snapshot when the first one was overtaken by clean-up."""
        try:
            stale_ms = self._settings.max_staleness_ms
            return await self._search(opened, request, decision, proof, stale_ms)
        except NotFound:
            pass
        except Reject as error:
            if error.code is not ErrorCode.EXPIRED or request.cursor is not None:
                raise
        try:
            return await self._search(opened, request, decision, proof, 0)
        except NotFound as error:
            raise Damaged(ErrorCode.DAMAGED, "a stored object that is named is missing") from error

    async def _search(
        self,
        opened: OpenIndex,
        request: QueryRequest,
        decision: Decision,
        proof: Proof | None,
        max_staleness_ms: int,
    ) -> _Found:
        snapshot = await opened.snapshot(request.min_position, max_staleness_ms)
        context = opened.context(decision)
        queries = request.all_queries()
        condition = request.parsed_filter()
        if request.query is not None:
            limit = request.limit(request.query)
            one = await search(
                context,
                snapshot,
                request.query,
                top_k=limit,
                condition=condition,
                cursor=request.cursor,
            )
            answers = [one]
        else:
            limits = [request.limit(query) for query in queries]
            answers = await search_many(
                context, snapshot, queries, limits=limits, condition=condition
            )
        candidates = [candidate for answer in answers for candidate in answer.candidates]
        shown = await hydrate(snapshot, candidates, request.include)
        contents = await self._contents(opened, request, shown, proof)
        names = opened.group_names(decision) if Include.GROUPS in request.include else {}
        include = frozenset(request.include)
        hits = [
            _hit(candidate, read_, content, include, names)
            for candidate, read_, content in zip(candidates, shown, contents, strict=True)
        ]
        return _Found(answers, _split(hits, answers), snapshot)

    async def _contents(
        self,
        opened: OpenIndex,
        request: QueryRequest,
        shown: Sequence[Shown],
        proof: Proof | None,
    ) -> Sequence[Opened | None]:
        if _OPENED.isdisjoint(request.include):
            return [None] * len(shown)
        stored = [Stored(one.pointer, one.pack) for one in shown]
        return await open_contents(
            self._store, self._stand.holder, opened.lease, request.auth, stored, proof=proof
        )

    def _result(
        self, request: QueryRequest, opened: OpenIndex, found: _Found, started_s: float
    ) -> QueryResult:
        explained: dict[str, Any] | None = None
        if request.explain:
            explained = explain(opened.lease.config, found.snapshot, found.answers)
        single = request.query is not None
        first = found.answers[0]
        return QueryResult(
            request_id=request.request_id,
            status="ok",
            hits=found.hits[0] if single else [],
            count=first.count if single else None,
            results=None
            if single
            else [
                QueryAnswer(hits=hits, count=answer.count)
                for hits, answer in zip(found.hits, found.answers, strict=True)
            ],
            cursor=first.cursor if single else None,
            snapshot=[
                ShardVersion(shard=shard, version=version)
                for shard, version in found.snapshot.versions()
            ],
            took_ms=round((time.perf_counter() - started_s) * 1000, 3),
            explain=explained,
        )

    async def _reply(self, incoming: Incoming, address: Address, result: QueryResult) -> None:
        """Write the result where the caller listens. Raises Retry."""
        limit = self._settings.max_record_bytes
        reply = address.reply
        try:
            out = encode_result(result, reply, self._stand.identity, max_bytes=limit)
        except Exception as failure:
            # The reply key is what was wrong: the refusal goes out in clear, it holds no secret.
            if isinstance(failure, Reject):
                error = failure
            else:
                error = await self._give_up(incoming, failure)
            reply = Reply(topic=reply.topic, partition=reply.partition)
            refused = error_result(address.request_id, error.info())
            out = encode_result(refused, reply, self._stand.identity, max_bytes=limit)
        topic = with_prefix(self._settings.topic_prefix, reply.topic)
        try:
            await self._stand.producer.send_and_wait(
                topic, out.value, key=out.key, partition=reply.partition, headers=out.headers
            )
        except Reject as error:
            log.warning("result not sent", code=error.code.value, topic=topic)

    def _count(
        self, incoming: Incoming, error: SealstreamError | InvalidMessage | None, started_s: float
    ) -> None:
        kind = "unknown"
        if incoming.request is not None:
            query = incoming.request.query
            kind = "batch" if query is None else query.key
        info: ErrorInfo | None = None if error is None else error.info()
        metrics.QUERIES.inc(kind=kind, status="ok" if info is None else info.code.value)
        metrics.QUERY_SECONDS.observe(time.perf_counter() - started_s, kind=kind)


def _waited_s(record: Record) -> float:
    return max(0.0, time.time() - record.timestamp_ms / 1000)


def _is_over(incoming: Incoming) -> bool:
    """Tell whether the caller has stopped waiting; without a time stamp nobody knows: it has."""
    request = incoming.request
    timeout_ms = DEFAULT_TIMEOUT_MS if request is None else request.timeout_ms
    record = incoming.record
    return record.timestamp_ms < 0 or _waited_s(record) * 1000 >= timeout_ms


def _split(hits: list[Hit], answers: Sequence[Answer]) -> list[list[Hit]]:
    """Give each answer its own part of all hits."""
    out, at = [], 0
    for answer in answers:
        out.append(hits[at : at + len(answer.candidates)])
        at += len(answer.candidates)
    return out


def _hit(
    candidate: Candidate,
    shown: Shown,
    opened: Opened | None,
    include: frozenset[Include],
    names: dict[bytes, str],
) -> Hit:
    """Write one hit down, with what was asked for and nothing else."""
    if candidate.denied or (opened is not None and opened.denied):
        return Hit(id=candidate.id, denied=True)
    content: str | Binary | None = None
    content_type: str | None = None
    associated: Binary | None = None
    if opened is not None:
        content_type = opened.content_type
        if Include.CONTENT in include and opened.content is not None:
            content = _content(opened.content, opened.content_type)
        if Include.ASSOCIATED_DATA in include and opened.associated_data is not None:
            associated = Binary.of(opened.associated_data)
    vector = None
    if shown.vector is not None:
        vector = Vector.of(np.asarray(shown.vector, dtype=np.float32))
    return Hit(
        id=candidate.id,
        score=candidate.score if Include.SCORE in include else None,
        distance=candidate.distance if Include.DISTANCE in include else None,
        metadata=shown.metadata,
        content=content,
        content_type=content_type,
        associated_data=associated,
        vector=vector,
        groups=sorted(names[token] for token in shown.groups if token in names)
        if Include.GROUPS in include
        else None,
        version=shown.version or None,
    )


def _content(data: bytes, content_type: str | None) -> str | Binary:
    """Return text as a string, everything else as base64."""
    if content_type is not None and content_type.lower().startswith("text/"):
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return Binary.of(data)
