"""`sealstream ingest`.

Blocks are read, and embedded, in a thread of their own, two ahead of what is sent; the client holds
what is unanswered. Memory is bounded by both, whatever the size of the input.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from cyclopts import Parameter, validators

from workers.cli.common import COMMON, OK, REFUSED, AsJson, Common, complain, say, say_json
from workers.cli.connect import IndexKey, check_index, connected
from workers.cli.options import Wait
from workers.cli.show import error_json, printable

if TYPE_CHECKING:
    from schemas.errors import ErrorInfo
    from schemas.ingest import IngestResult
    from workers.cli.items import Block
    from workers.cli.sources import Sources
    from workers.client import Client

T = TypeVar("T")

_SHOWN: Final = 20
_AHEAD: Final = 2


async def ingest(
    index: str,
    /,
    *path: Annotated[str, Parameter(allow_leading_hyphen=True)],
    ids: Path | None = None,
    embed: bool = False,
    wait: Wait = "accepted",
    timeout: Annotated[
        float,
        Parameter(
            validator=validators.Number(gt=0),
            help="Seconds to wait for the answer about a document.",
        ),
    ] = 300.0,
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Store documents in an index.

    The exit code is 1 if a document was rejected; the others are stored. Documents that are
    ingested again replace their earlier selves, so an interrupted ingest can be repeated.

    Parameters
    ----------
    index
        Name of the index.
    path
        .jsonl (one body of plaintext-ingest a line), .txt, .md or .eml files, folders of these,
        .npy or .parquet embeddings; - reads JSON lines from standard input. The id of a file is
        its path as given.
    ids
        File with one id a line for the rows of the .npy or .parquet file (default for .npy: the
        row's number, from 0).
    embed
        Make vectors for documents without one, by a small model: the index needs dimension 256.
    """
    from workers.cli.sources import Sources

    check_index(index)
    settings = common.settings()
    limit = settings.max_content_bytes
    sources = Sources(index, path, ids=ids, max_content_bytes=limit)
    sources.check()
    blocks = sources.blocks()
    if embed:
        from workers.cli.embed import embedded, open_embedder

        blocks = embedded(blocks, open_embedder())
    report = Report()
    try:
        async with connected(common, index_key) as client:
            with _progress(report) as show:
                await _ingest(client, blocks, report, show, wait=wait, timeout_s=timeout)
    finally:
        _tell(report, sources, json=json)
    return REFUSED if report.rejected else OK


@dataclass(slots=True)
class Report:
    """What became of the documents.

    Attributes:
        unanswered: handed to the client and not answered when it ended.
        rejections: the first ones.
    """

    accepted: int = 0
    rejected: int = 0
    unanswered: int = 0
    began_s: float = field(default_factory=time.perf_counter)
    rejections: list[dict[str, Any]] = field(default_factory=list)

    def add(self, where: str, result: IngestResult) -> None:
        """Count an answer."""
        if result.error is None:
            self.accepted += 1
        else:
            self.reject(where, result.id, result.error)

    def reject(self, where: str, doc_id: str, error: ErrorInfo) -> None:
        """Count a rejection."""
        self.rejected += 1
        if len(self.rejections) < _SHOWN:
            self.rejections.append(
                {"source": where, "id": printable(doc_id), "error": error_json(error)}
            )


async def _ingest(
    client: Client,
    blocks: Iterator[Block],
    report: Report,
    show: Callable[[], None],
    *,
    wait: Wait,
    timeout_s: float,
) -> None:
    sent: deque[str] = deque()

    async def operations() -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(in_thread(blocks)) as incoming:
            async for block in incoming:
                for item in block:
                    if item.operation is not None:
                        sent.append(item.where)
                        yield item.operation
                    elif item.error is not None:
                        report.reject(item.where, "", item.error)
                show()

    try:
        # Closed here, not by the garbage collector: the thread must end with the command.
        async with aclosing(operations()) as source:
            async for result in client.ingest_many(source, wait=wait, timeout_s=timeout_s):
                report.add(sent.popleft(), result)
                show()
    finally:
        report.unanswered = len(sent)


async def in_thread(values: Iterator[T]) -> AsyncGenerator[T]:
    """Iterate in a daemon thread, at most two values ahead.

    A read from a pipe may never return: nothing waits for the thread.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()
    room = threading.Semaphore(_AHEAD)
    closed = threading.Event()

    def hand(value: tuple[T] | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(ready.put_nowait, value)

    def work() -> None:
        try:
            for value in values:
                room.acquire()
                if closed.is_set():
                    return
                hand((value,))
        except BaseException as error:
            hand(error)
        else:
            hand(None)

    threading.Thread(target=work, name="ingest-sources", daemon=True).start()
    try:
        while (got := await ready.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            room.release()
            yield got[0]
    finally:
        closed.set()
        room.release()


@contextmanager
def _progress(report: Report) -> Iterator[Callable[[], None]]:
    """Show how far it is, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(_counts(report))
        shown_s = 0.0

        def show() -> None:
            nonlocal shown_s
            if (now_s := time.perf_counter()) - shown_s > 0.1:
                shown_s = now_s
                progress.update(task, description=_counts(report))

        yield show


def _counts(report: Report) -> str:
    seconds = time.perf_counter() - report.began_s
    text = f"accepted {report.accepted:,}, rejected {report.rejected:,}"
    return f"{text} in {seconds:.1f} s ({report.accepted / max(seconds, 1e-3):,.0f}/s)"


def _tell(report: Report, sources: Sources, *, json: bool) -> None:
    if json:
        say_json(
            {
                "index": sources.index,
                "accepted": report.accepted,
                "rejected": report.rejected,
                "unanswered": report.unanswered,
                "skipped_files": sources.skipped,
                "seconds": round(time.perf_counter() - report.began_s, 3),
                "rejections": report.rejections,
            }
        )
        return
    say(_counts(report))
    if sources.skipped:
        say(f"skipped, of other kinds, hidden or links: {sources.skipped:,}")
    if report.unanswered:
        say(f"without an answer: {report.unanswered:,} (nothing is stored twice by trying again)")
    for rejection in report.rejections:
        name = f" ({rejection['id']})" if rejection["id"] else ""
        complain(f"rejected {rejection['source']}{name}: {_text(rejection['error'])}")
    if report.rejected > len(report.rejections):
        complain(f"... and {report.rejected - len(report.rejections):,} more")


def _text(error: dict[str, Any]) -> str:
    at = f" (field {error['field']})" if "field" in error else ""
    return printable(f"{error['code']}: {error['message']}{at}")
