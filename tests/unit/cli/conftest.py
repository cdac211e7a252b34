"""A command line in the process, with a client that remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from schemas.errors import ErrorInfo
from schemas.ingest import IngestOp, IngestResult
from schemas.query import Hit, QueryResult
from workers.cli import main


@dataclass
class Output:
    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class FakeClient:
    """As `workers.client.Client`: answers from `documents`, refuses ids in `refuse`."""

    documents: dict[str, Hit] = field(default_factory=dict)
    refuse: dict[str, ErrorInfo] = field(default_factory=dict)
    failure: Exception | None = None
    fail_after: int | None = None
    result: QueryResult | None = None
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    operations: list[dict[str, Any]] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    anonymous: list[bool] = field(default_factory=list)
    closed: int = 0

    def __getattr__(self, name: str) -> Any:
        """Answer any other method with what `answers` has for it."""
        if name.startswith("_") or name not in self.answers:
            raise AttributeError(name)

        async def method(*arguments: Any, **options: Any) -> Any:
            self._called(name, arguments=arguments, **options)
            answer = self.answers[name]
            return answer(*arguments, **options) if callable(answer) else answer

        return method

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed += 1

    def _called(self, name: str, **arguments: Any) -> None:
        self.calls.append((name, arguments))
        if self.failure is not None and self.fail_after is None:
            raise self.failure

    async def create_index(self, index: str, **config: Any) -> dict[str, Any]:
        self._called("create", index=index, **config)
        return {"index": index, "config": config}

    async def list_indexes(self) -> list[dict[str, Any]]:
        self._called("list")
        return [{"index": "acme/docs", "shards": 1, "metric": "cosine", "created_ms": 0}]

    async def describe_index(self, index: str) -> dict[str, Any]:
        self._called("describe", index=index)
        return {"index": index, "config": {"shards": 1}, "created_ms": 1000}

    async def delete_index(self, index: str) -> dict[str, Any]:
        self._called("delete", index=index)
        return {"index": index, "deleted": True}

    async def query(self, index: str, query: Any, **options: Any) -> QueryResult:
        self._called("query", index=index, query=query, **options)
        assert self.result is not None
        return self.result

    async def get(self, index: str, ids: list[str], **options: Any) -> list[Hit]:
        self._called("get", index=index, ids=list(ids), **options)
        return [self.documents[one] for one in ids if one in self.documents]

    async def count(self, index: str, **options: Any) -> int:
        self._called("count", index=index, **options)
        return 42

    async def ids(self, index: str, **options: Any) -> AsyncIterator[str]:
        self._called("ids", index=index, **options)
        for one in self.documents:
            yield one

    async def ingest_many(
        self, operations: Any, *, wait: str, timeout_s: float
    ) -> AsyncIterator[IngestResult]:
        self._called("ingest_many", wait=wait, timeout_s=timeout_s)
        if not hasattr(operations, "__aiter__"):
            operations = _each(operations)
        async for operation in operations:
            if self.fail_after is not None and len(self.operations) >= self.fail_after:
                assert self.failure is not None
                raise self.failure
            self.operations.append(operation)
            error = self.refuse.get(operation.get("id", ""))
            yield IngestResult(
                index=operation["index"],
                id=operation.get("id", ""),
                op=IngestOp(operation.get("op", "upsert")),
                status="rejected" if error else "accepted",
                error=error,
            )


async def _each(operations: Any) -> AsyncIterator[dict[str, Any]]:
    for operation in operations:
        yield operation


Run = Callable[..., Output]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()

    def opened(_settings: Any, index_key: bytes | None, *, anonymous: bool) -> FakeClient:
        fake.keys.append(index_key)
        fake.anonymous.append(anonymous)
        return fake

    monkeypatch.setattr("workers.cli.connect.open_client", opened)
    monkeypatch.setattr("workers.cli.connect.quiet_logs", lambda: None)
    return fake


@pytest.fixture
def run(
    capsysbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run one command; commands start an event loop of their own, so they get a thread."""
    monkeypatch.chdir(tmp_path)
    for name in ("SEALSTREAM_TOKEN", "SEALSTREAM_HOME", "SEALSTREAM_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Output:
        done: list[int | BaseException] = []

        def work() -> None:
            try:
                done.append(main.run(arguments))
            except BaseException as error:
                done.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        captured = capsysbinary.readouterr()
        if isinstance(done[0], BaseException):
            raise done[0]
        return Output(done[0], captured.out, captured.err.decode())

    return call
