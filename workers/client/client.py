"""The Python client: the same verbs as the command line.

    async with Client() as client:
        await client.create_index("acme/docs", dimension=384)
        done = await client.ingest("acme/docs", "doc-1", content="hello", keywords=["greeting"])
        found = await client.search("acme/docs", keyword="greeting", after=[done])

Settings come from options, `SEALSTREAM_*` variables, `HOME/stack.env`, a TOML file and defaults, in
that order. One client serves any number of tasks; make one per process, not one per request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import numpy.typing as npt

from schemas.auth import Scope
from schemas.errors import ErrorCode
from schemas.ingest import IngestResult
from schemas.prepare import prepare_types
from schemas.query import Hit, QueryResult
from schemas.values import Vector
from workers.client.admin import Administrator
from workers.client.administration import Administration
from workers.client.connection import Connection, plain_json
from workers.client.ingest import IN_FLIGHT, Ingestor, Operations, Wait
from workers.client.query import FANOUT, QUERY_S, Querier
from workers.client.session import Protection, Secrets, Session
from workers.crypto.secret import SecretBytes
from workers.errors import Reject
from workers.kafka.broker import Broker, Producer
from workers.kafka.open import open_broker
from workers.leases.certificate import read_secret_file
from workers.leases.directory import KeyDirectory
from workers.leases.holder import SUITES
from workers.settings import Settings, load_settings

# A content of the largest size is base64 twice once it is sealed; still below brokers' 1 MiB.
_MAX_RECORD_BYTES: Final = 1_000_000

VectorLike = npt.ArrayLike | Vector
T = TypeVar("T")


class Client(Administration):
    """A connection to Sealstream. Use it as an async context manager.

    Args:
        settings: all settings at once; otherwise they are loaded, `options` outranking the rest.
        index_key: 32 bytes, the key of an index whose KMS provider is `none`.
        user_key: user id and key of an index, as `create_user_key` made it.
        anonymous: no credential: such a client can log in and change passwords, nothing else.
        protection: `sealed` (default): neither request nor result shows in Kafka; `signed`: the
            request does; `plain`: the identity token does too (only for a local stack).
        scopes: what the credentials ask for; empty asks for all that the caller has.
        fanout: Kafka keys over which queries on one index are spread.
        broker: an open broker to use instead of the configured one; it is not closed.
        options: settings by name, e.g. `home=Path("...")`, `token="..."`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        index_key: bytes | None = None,
        user_key: tuple[str, bytes] | None = None,
        anonymous: bool = False,
        protection: Protection = "sealed",
        scopes: Sequence[Scope] = (),
        fanout: int = FANOUT,
        broker: Broker | None = None,
        **options: Any,
    ) -> None:
        """Prepare; connects on entering the context.

        Raises:
            SettingsError: a setting is wrong.
            Reject: UNAUTHENTICATED, no credential; WRONG_KEY, not 32 bytes.
            Fatal: the file of a user key is missing, or open to others.
        """
        self._settings = settings or load_settings(**options)
        token = self._settings.token
        if user_key is None and not anonymous:
            user_key = _configured_user_key(self._settings)
        self._secrets = Secrets(
            token=None if token is None or anonymous else token.get_secret_value(),
            index_key=None if index_key is None else SecretBytes(index_key),
            user_key=None if user_key is None else (user_key[0], SecretBytes(user_key[1])),
            anonymous=anonymous,
        )
        self._protection: Protection = protection
        self._scopes = tuple(scopes)
        self._fanout = fanout
        self._given_broker = broker
        self._broker: Broker | None = None
        self._directory: KeyDirectory | None = None
        self._ingestor: Ingestor | None = None
        self._querier: Querier | None = None
        self._producer: Producer | None = None
        self._administrator: Administrator | None = None

    async def __aenter__(self) -> Self:
        """Connect and read the key directory.

        Raises:
            Retry: broker or key service cannot be reached.
            Fatal: no key service is pinned.
        """
        try:
            await self._open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _open(self) -> None:
        prepare_types()
        broker = self._given_broker or open_broker(
            self._settings.model_copy(update={"max_record_bytes": _MAX_RECORD_BYTES}),
            client_id="sealstream-client",
        )
        self._broker = broker
        self._directory = KeyDirectory(broker, self._settings)
        await self._directory.start()
        session = Session(
            self._secrets,
            self._directory,
            protection=self._protection,
            scopes=self._scopes,
            suite=SUITES[self._settings.hpke_suite],
        )
        self._producer = await broker.producer()
        connection = Connection(self._settings, broker, self._producer, self._directory, session)
        self._ingestor = Ingestor(connection)
        self._querier = Querier(connection, fanout=self._fanout)
        self._administrator = Administrator(connection)

    async def aclose(self) -> None:
        """Stop listening and close the connection; unanswered calls are cancelled."""
        parts = (
            self._ingestor,
            self._querier,
            self._administrator,
            self._directory,
            self._producer,
        )
        self._ingestor = self._querier = self._administrator = None
        self._directory = self._producer = None
        for part in parts:
            if part is not None:
                await part.stop()
        if self._broker is not None and self._given_broker is None:
            await self._broker.aclose()
        self._broker = None

    # --- documents ---------------------------------------------------------------------------

    async def ingest(
        self,
        index: str,
        id: str,  # noqa: A002 - the contract's name
        *,
        content: str | bytes | None = None,
        content_type: str | None = None,
        associated_data: bytes | None = None,
        text: dict[str, str] | None = None,
        keywords: Sequence[str] = (),
        vector: VectorLike | None = None,
        metadata: dict[str, Any] | None = None,
        groups: Sequence[str] = (),
        if_version: int | None = None,
        wait: Wait = "accepted",
        timeout_s: float = 60.0,
    ) -> IngestResult:
        """Store one document, replacing what had its id.

        Args:
            index: name of the index.
            id: 1 to 512 bytes of UTF-8.
            content: encrypted and returned on request; text is also analysed if `text` is absent.
            content_type: media type (default `text/plain`, `application/octet-stream` for bytes).
            associated_data: stored in clear, authenticated with the content.
            text: fields for ranked search.
            keywords: exact terms.
            vector: finite numbers `(d,)`, d = the index's dimension.
            metadata: strings, numbers, booleans or lists of these; filterable.
            groups: ids of groups that may read it besides the caller's default group.
            if_version: only if the document has this version (0: if there is none).
            wait: for `accepted` (durable) or `searchable`.
            timeout_s: seconds to wait.

        Raises:
            Reject, Retry: as the service says, or DEADLINE_EXCEEDED.
            InvalidMessage: an argument breaks the contract.
        """
        operation: dict[str, Any] = {
            "op": "upsert",
            "index": index,
            "id": id,
            "content": content,
            "content_type": content_type,
            "associated_data": associated_data,
            "text": text,
            "keywords": list(keywords),
            "vector": vector,
            "metadata": metadata,
            "groups": list(groups),
            "if_version": if_version,
        }
        return await self._ingest.ingest(operation, wait=wait, timeout_s=timeout_s)

    def ingest_many(
        self,
        operations: Operations,
        *,
        wait: Wait = "accepted",
        timeout_s: float = 300.0,
        in_flight: int = IN_FLIGHT,
    ) -> AsyncIterator[IngestResult]:
        """Stream operations; yield their results in order. Rejections are results, not errors.

        Args:
            operations: bodies of plaintext-ingest without `v` and `auth`; `content` and
                `associated_data` may be bytes, `vector` an array. An asynchronous iterable may
                take its time: results come as they are known.
            wait: for `accepted` or `searchable`.
            timeout_s: seconds to wait for each result.
            in_flight: most operations that are unanswered at once.

        Raises:
            Retry: DEADLINE_EXCEEDED; the broker cannot be reached.
            Reject: UNKNOWN_INDEX, UNAUTHENTICATED.
            ValueError: `in_flight` is below 1.
        """
        return self._ingest.ingest_many(
            operations, wait=wait, timeout_s=timeout_s, in_flight=in_flight
        )

    async def delete(
        self,
        index: str,
        id: str,  # noqa: A002 - the contract's name
        *,
        if_version: int | None = None,
        wait: Wait = "accepted",
        timeout_s: float = 60.0,
    ) -> IngestResult:
        """Delete a document and its keywords. Raises as `ingest`."""
        operation = {"op": "delete", "index": index, "id": id, "if_version": if_version}
        return await self._ingest.ingest(operation, wait=wait, timeout_s=timeout_s)

    async def add_keywords(
        self,
        index: str,
        id: str,  # noqa: A002 - the contract's name
        keywords: Sequence[str],
        *,
        wait: Wait = "accepted",
        timeout_s: float = 60.0,
    ) -> IngestResult:
        """Add keyword/identifier pairs; needs no document. Raises as `ingest`."""
        operation = {"op": "add_keywords", "index": index, "id": id, "keywords": list(keywords)}
        return await self._ingest.ingest(operation, wait=wait, timeout_s=timeout_s)

    async def remove_keywords(
        self,
        index: str,
        id: str,  # noqa: A002 - the contract's name
        keywords: Sequence[str],
        *,
        wait: Wait = "accepted",
        timeout_s: float = 60.0,
    ) -> IngestResult:
        """Remove keyword/identifier pairs. Raises as `ingest`."""
        operation = {"op": "remove_keywords", "index": index, "id": id, "keywords": list(keywords)}
        return await self._ingest.ingest(operation, wait=wait, timeout_s=timeout_s)

    # --- queries -----------------------------------------------------------------------------

    async def query(
        self,
        index: str,
        query: dict[str, Any] | Sequence[dict[str, Any]],
        *,
        after: Sequence[IngestResult] = (),
        timeout_s: float = QUERY_S,
        **options: Any,
    ) -> QueryResult:
        """Send a `query` of the contract, or a batch of them.

        Args:
            index: name of the index.
            query: e.g. `{"text": "..."}`; vectors may be arrays.
            after: results of own operations that the answer must contain.
            timeout_s: seconds the workers may take.
            options: `top_k`, `filter`, `include`, `explain`, `cursor`.

        Raises:
            Reject, Retry: as the service says, or DEADLINE_EXCEEDED.
            InvalidMessage: an argument breaks the contract.
        """
        plain = plain_json(query) if isinstance(query, dict) else [plain_json(one) for one in query]
        return await self._query.query(index, plain, after=after, timeout_s=timeout_s, **options)

    async def search(
        self,
        index: str,
        text: str | None = None,
        *,
        keyword: str | None = None,
        vector: VectorLike | None = None,
        alpha: float | None = None,
        after: Sequence[IngestResult] = (),
        timeout_s: float = QUERY_S,
        **options: Any,
    ) -> QueryResult:
        """Search by keyword, text or vector; by text and vector together it is hybrid.

        Args:
            index: name of the index.
            text: words for ranked search.
            keyword: exact term; not together with the others.
            vector: finite numbers `(d,)`.
            alpha: weight of the vector list in a hybrid search, 0 to 1.
            after: as `query`.
            timeout_s: as `query`.
            options: as `query`.

        Raises:
            Reject: INVALID_MESSAGE, nothing to search for; and as `query`.
        """
        if keyword is not None and text is None and vector is None:
            query: dict[str, Any] = {"keyword": keyword}
        elif keyword is None and text is not None and vector is not None:
            weight = {} if alpha is None else {"alpha": alpha}
            query = {"hybrid": plain_json({"text": text, "vector": vector}) | weight}
        elif keyword is None and text is not None:
            query = {"text": text}
        elif keyword is None and vector is not None:
            query = {"vector": vector}
        else:
            raise Reject(
                ErrorCode.INVALID_MESSAGE, "search by keyword, by text, by vector, or text + vector"
            )
        return await self.query(index, query, after=after, timeout_s=timeout_s, **options)

    async def get(self, index: str, ids: Sequence[str], **options: Any) -> list[Hit]:
        """Return the documents that exist, in the order asked. Options and errors as `query`."""
        result = await self.query(index, {"get": list(ids)}, **options)
        return result.hits

    async def count(self, index: str, **options: Any) -> int:
        """Return how many documents there are, or pass a `filter`. Raises as `query`."""
        result = await self.query(index, {"count": True}, **options)
        return result.count or 0

    async def ids(self, index: str, **options: Any) -> AsyncIterator[str]:
        """Yield all ids, page by page. Raises as `query`."""
        cursor: str | None = None
        while True:
            page = await self.query(index, {"ids": True}, cursor=cursor, **options)
            for hit in page.hits:
                yield hit.id
            cursor = page.cursor
            if cursor is None:
                return

    # --- parts -------------------------------------------------------------------------------

    @property
    def _ingest(self) -> Ingestor:
        return _open(self._ingestor)

    @property
    def _query(self) -> Querier:
        return _open(self._querier)

    @property
    def _admin(self) -> Administrator:
        return _open(self._administrator)

    def _administrator_directory(self) -> KeyDirectory:
        return _open(self._directory)


def _configured_user_key(settings: Settings) -> tuple[str, bytes] | None:
    """Return the user key that the settings name, if any. Raises Fatal: it cannot be read."""
    if settings.user_id is None or settings.user_key_file is None:
        return None
    return settings.user_id, read_secret_file(settings.user_key_file)


def _open(part: T | None) -> T:
    if part is None:
        raise RuntimeError("the client is not open: use `async with Client(...) as client`")
    return part
