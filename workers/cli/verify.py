"""`sealstream verify`: walk a whole sealed index and check everything in it.

It reads the store itself, with the keys that a query worker may lease: nothing of what the workers
say is taken for granted, and nothing can be changed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from workers.cli.common import COMMON, OK, REFUSED, AsJson, Common, complain, say, say_json
from workers.cli.connect import IndexKey, check_index, check_pinned, quiet_logs, read_index_key
from workers.cli.show import printable

if TYPE_CHECKING:
    from workers.client.session import Session
    from workers.crypto.secret import SecretBytes
    from workers.leases.holder import LeaseHolder
    from workers.leases.lease import Lease
    from workers.search.verify import Report, Verifier
    from workers.settings import Settings

_FRESH_S: Final = 30.0
_SHOWN: Final = 50


async def verify(
    index: str,
    /,
    *,
    worker_id: str = "query-1",
    index_key: IndexKey = None,
    json: AsJson = False,
    common: Common = COMMON,
) -> int:
    """Check every stored byte of an index: seals, signatures, hashes, counts.

    Contents are compared with the digests in the index, not opened. The exit code is 1 if something
    is damaged or missing.

    Parameters
    ----------
    index
        Name of the index.
    worker_id
        Whose identity in HOME/workers leases the keys: one of role query.
    """
    check_index(index)
    key = None if index_key is None else read_index_key(index_key)
    quiet_logs()
    with _progress() as told:
        report = await _verify(common.settings(), index, worker_id, key, told)
    if json:
        say_json({"index": index, "ok": report.ok, **asdict(report)})
    else:
        say(
            f"{printable(index)}: {report.shards} shards, {report.segments} segments,"
            f" {report.documents:,} documents, {report.nodes:,} nodes,"
            f" {report.contents:,} contents, {report.bytes:,} bytes"
        )
        for problem in report.problems[:_SHOWN]:
            complain(f"DAMAGED {problem.where}: {problem.what}")
        if len(report.problems) > _SHOWN:
            complain(f"... and {len(report.problems) - _SHOWN:,} more")
        say("everything opens and fits together" if report.ok else "the index is damaged")
    return OK if report.ok else REFUSED


async def _verify(
    settings: Settings,
    index: str,
    worker_id: str,
    index_key: bytes | None,
    told: Callable[[int, int], None],
) -> Report:
    from workers.search.verify import verify_index

    async with _verifier(settings, index, worker_id, index_key, told) as (verifier, shards):
        return await verify_index(verifier, range(shards))


@asynccontextmanager
async def _verifier(
    settings: Settings,
    index: str,
    worker_id: str,
    index_key: bytes | None,
    told: Callable[[int, int], None],
) -> AsyncGenerator[tuple[Verifier, int]]:
    """Lease the keys of an index, and yield what verification needs and the number of shards.

    Raises:
        Exit: no key service is known to be trusted.
        Fatal: no such identity, or not of the role query.
        Reject, Retry: the key service refuses, or is not there.
    """
    from schemas.errors import ErrorCode
    from schemas.prepare import prepare_types
    from schemas.topics import QUERY_REQUEST, with_prefix
    from workers.client.session import Secrets, Session
    from workers.crypto.secret import SecretBytes
    from workers.errors import Fatal
    from workers.kafka.open import open_broker
    from workers.leases.certificate import WorkerIdentity
    from workers.leases.directory import KeyDirectory
    from workers.leases.heads import head_verifier
    from workers.leases.holder import LeaseHolder
    from workers.search.verify import Verifier
    from workers.storage.open import open_store

    check_pinned(settings)
    prepare_types()
    token = settings.token
    secrets = Secrets(
        token=None if token is None else token.get_secret_value(),
        index_key=None if index_key is None else SecretBytes(index_key),
    )
    identity = WorkerIdentity.load(settings.identity_dir(worker_id))
    if identity.role != "query":
        raise Fatal(ErrorCode.FORBIDDEN, f"{worker_id} is not of the role query")
    async with AsyncExitStack() as stack:
        broker = open_broker(settings, client_id="sealstream-verify")
        stack.push_async_callback(broker.aclose)
        store = open_store(settings, read_only=True)
        stack.push_async_callback(store.aclose)
        directory = KeyDirectory(broker, settings)
        stack.push_async_callback(directory.stop)
        await directory.start()
        holder = LeaseHolder(broker, identity, directory, settings)
        stack.push_async_callback(holder.stop)
        await holder.start()
        # As a query worker: what a caller would have signed for one.
        topic = with_prefix(settings.topic_prefix, QUERY_REQUEST)
        keys = await stack.enter_async_context(
            _leased(holder, Session(secrets, directory), index, topic)
        )
        verifier = Verifier(
            store,
            keys.lease.uid,
            segment_keys=keys.segment,
            vector_keys=keys.vector,
            verify_writer=head_verifier(directory, index),
            progress=told,
        )
        yield verifier, keys.lease.config.shards


@dataclass(slots=True)
class _Keys:
    """The keys of the lease that is good now."""

    lease: Lease

    def segment(self, generation: int) -> SecretBytes:
        """Return the `segment` subkey of a generation."""
        from workers.crypto.derive import Purpose

        return self.lease.keys(generation, Purpose.SEGMENT)

    def vector(self, generation: int) -> SecretBytes:
        """Return the `vector` subkey of a generation."""
        from workers.crypto.derive import Purpose

        return self.lease.keys(generation, Purpose.VECTOR)


@asynccontextmanager
async def _leased(
    holder: LeaseHolder, session: Session, index: str, topic: str
) -> AsyncGenerator[_Keys]:
    """Lease an index, and take over each renewed lease: a large index outlives one lease."""
    from workers.errors import Retry

    async def lease() -> Lease:
        return await holder.lease(index, auth=session.auth(index), proof=session.proof(topic))

    keys = _Keys(await lease())

    async def follow() -> None:
        while True:
            await asyncio.sleep(_FRESH_S)
            # While the key service is away the lease in hand is good until it ends.
            with suppress(Retry):
                keys.lease = await lease()

    task = asyncio.create_task(follow(), name="verify-lease")
    try:
        yield keys
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show how far it is, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("segments checked: 0")
        yield lambda done, _all: progress.update(task, description=f"segments checked: {done}")
