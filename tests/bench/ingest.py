"""`ingest`: documents per second from plaintext-ingest to index-event, everything on this machine.

A round is over when the index-event says that every document is searchable. The producer of the
load, the broker, the object store and all workers share the machine, so the CPU time per document
of every process stands beside the rate: it says what a machine with more cores could do.

Baselines, in turns with ours: the same messages produced and consumed with no work (the limit of
the broker), and CyborgDB's upserts, updates and deletes on the same object store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from bench.data import Mails, Vectors, enron, minilm
from bench.load import (
    Encoder,
    Events,
    Link,
    Message,
    broker_alone,
    change,
    link,
    mail_operations,
    through,
    vector_operations,
)
from bench.peer import BATCH, Cyborg, available
from bench.report import Figure, Report
from bench.stack import Usage, grouped, local_stack, progress
from bench.timing import Samples, alternate, timed
from workers.client import Client
from workers.settings import load_settings

ROUNDS: Final = 3
VECTOR_ROUNDS: Final = 2
MAILS_PER_S: Final = 1000
CHANGED: Final = 2000
"""Existing vectors that are updated and deleted."""
IDLE_S: Final = 10.0
PEER_STREAM: Final = 20_000
_PEER_TRAINED: Final = 10_000
_PEER_LISTS: Final = 256


async def run(home: Path | None) -> Report:
    """Run it on the stack of `home`, or on one of its own."""
    report = Report("ingest")
    report.settings = {
        "rounds": ROUNDS,
        "workers": "1 of each",
        "upserts per batch of the peer": BATCH,
        "updated and deleted vectors": CHANGED,
    }
    async with local_stack(home) as folder:
        settings = load_settings(home=folder)
        async with Client(settings=settings) as client, link(settings) as to:
            events = Events(to)
            await events.start()
            try:
                bench = _Bench(client, to, events, Usage(folder), report)
                await bench.idle()
                await bench.mails(enron())
                await bench.vectors(minilm())
            finally:
                await events.stop()
        report.settings["peak memory, MiB"] = Usage(folder).peak_mib()
    return report


class _Bench:
    def __init__(
        self, client: Client, to: Link, events: Events, usage: Usage, report: Report
    ) -> None:
        self._client = client
        self._to = to
        self._events = events
        self._usage = usage
        self._report = report
        self._cpu: dict[str, list[dict[str, float]]] = {}

    async def mails(self, mails: Mails) -> None:
        """Measure texts: in clear and sealed by the producer."""
        report, count = self._report, len(mails.mails)
        report.data.append(f"{mails.source}, {mails.bytes / 1e6:.1f} MB of text")
        operations = mail_operations(mails)
        sample = await Encoder(self._to, "bench/none", "plain").encode(operations)

        async def plain() -> float:
            return await self._ingest("mails", operations, "plain")

        async def sealed() -> float:
            return await self._ingest("sealed mails", operations, "sealed")

        async def broker() -> float:
            return await self._broker("mails", sample)

        progress(f"{count} mails, {ROUNDS} rounds")
        found = await alternate({"broker": broker, "plain": plain, "sealed": sealed}, ROUNDS)
        limit, _ = found["broker"].rates(count)
        for side, name in (("plain", "mails"), ("sealed", "sealed mails")):
            self._add(f"{name} searchable", found[side], count, "mails/s", limit, name)
            rate, spread = found[side].rates(mails.bytes / 1e6)
            report.figures.append(Figure(f"{name}, text", rate, "MB/s", spread))
        first = report.figures[0]
        report.figures[0] = Figure(
            name=first.name,
            value=first.value,
            unit=first.unit,
            spread=first.spread,
            against=first.against,
            baseline=first.baseline,
            ratio=first.ratio,
            target=f">= {MAILS_PER_S} mails/s",
            met=first.value >= MAILS_PER_S,
            detail=first.detail,
        )

    async def vectors(self, vectors: Vectors) -> None:
        """Measure embeddings: adds, and changes of vectors that exist."""
        self._report.data.append(vectors.source)
        count = len(vectors.base)
        operations = vector_operations(vectors.base)
        progress(f"{count} vectors")
        added, index = Samples(), ""
        for turn in range(VECTOR_ROUNDS):
            index = await self._index(vectors.base.shape[1])
            added.seconds.append(await self._ingest("vectors", operations, "plain", index))
            progress(f"round {turn + 1}: {count / added.seconds[-1]:.0f} vectors/s")
        changed = operations[:CHANGED]
        deleted = [{"op": "delete", "id": one["id"]} for one in changed]
        updates, deletes = Samples(), Samples()
        peer = await asyncio.to_thread(self._peer, vectors) if available() else None
        peer_adds, peer_updates, peer_deletes = Samples(), Samples(), Samples()
        for turn in range(VECTOR_ROUNDS):
            updates.seconds.append(await self._change("vector updates", changed, index))
            deletes.seconds.append(await self._change("vector deletes", deleted, index))
            await self._change("restored", changed, index)
            if peer is None:
                continue
            first = _PEER_TRAINED + turn * PEER_STREAM
            stream = vectors.base[first : first + PEER_STREAM]
            part, ids = vectors.base[:BATCH], [str(number) for number in range(BATCH)]
            for samples, work in (
                (peer_adds, lambda stream=stream, first=first: peer.upsert(stream, first)),
                (peer_updates, lambda part=part: peer.upsert(part)),
                (peer_deletes, lambda ids=ids: peer.delete(ids)),
            ):
                samples.seconds.append(await timed(lambda work=work: asyncio.to_thread(work)))
            await asyncio.to_thread(peer.upsert, part)
        broker = Samples()
        sample = await Encoder(self._to, "bench/none", "plain").encode(operations)
        broker.seconds.append(await self._broker("vectors", sample))
        limit, _ = broker.rates(count)
        self._add("vectors searchable", added, count, "vectors/s", limit, "vectors")
        if peer is None:
            self._report.notes.append("cyborgdb_core is not installed: no comparison with it")
            return
        for name, ours, theirs, work, times in (
            ("vector adds", added, (peer_adds, PEER_STREAM), count, 2),
            ("vector updates", updates, (peer_updates, BATCH), CHANGED, 50),
            ("vector deletes", deletes, (peer_deletes, BATCH), CHANGED, 50),
        ):
            value, spread = ours.rates(work)
            baseline, _ = theirs[0].rates(theirs[1])
            self._report.figures.append(
                Figure(
                    name=name,
                    value=value,
                    unit="vectors/s",
                    spread=spread,
                    against="CyborgDB",
                    baseline=baseline,
                    ratio=value / baseline,
                    target=f">= {times}x CyborgDB",
                    met=value >= times * baseline,
                    detail={"cpu_us": self._per_item(name, work)},
                )
            )

    async def _ingest(
        self,
        name: str,
        operations: Sequence[dict[str, Any]],
        protection: Any,
        index: str | None = None,
    ) -> float:
        index = index or await self._index(None)
        messages = await Encoder(self._to, index, protection).encode(operations)
        before = self._usage.cpu_s()
        seconds = await through(
            self._to, self._events, index, messages, lambda e: e.documents >= len(operations)
        )
        self._note_cpu(name, before)
        heads = self._events.version(index)
        progress(f"{name}: {len(operations) / seconds:.0f}/s in {heads} heads")
        return seconds

    async def _change(self, name: str, operations: Sequence[dict[str, Any]], index: str) -> float:
        messages = await Encoder(self._to, index, "plain").encode(operations)
        before = self._usage.cpu_s()
        seconds = await change(self._to, self._events, index, messages)
        self._note_cpu(name, before)
        progress(f"{name}: {len(operations) / seconds:.0f}/s")
        return seconds

    async def _broker(self, name: str, messages: Sequence[Message]) -> float:
        seconds = await broker_alone(self._to, messages)
        progress(f"broker alone, {name}: {len(messages) / seconds:.0f}/s")
        return seconds

    async def _index(self, dimension: int | None) -> str:
        name = f"bench/{uuid4().hex[:12]}"
        config = {} if dimension is None else {"dimension": dimension}
        await self._client.create_index(name, **config)
        return name

    def _peer(self, vectors: Vectors) -> Cyborg:
        progress("CyborgDB: loading and training")
        peer = Cyborg(self._to.settings)
        peer.create(vectors.base.shape[1])
        peer.upsert(vectors.base[:_PEER_TRAINED])
        peer.train(_PEER_LISTS)
        peer.wait_trained()
        return peer

    async def idle(self) -> None:
        """Measure what the stack costs when nothing happens: the polls of its readers."""
        before = self._usage.cpu_s()
        await asyncio.sleep(IDLE_S)
        used = self._since(before)
        self._report.settings["idle CPU, % of a core"] = {
            kind: round(100 * seconds / IDLE_S, 1) for kind, seconds in grouped(used).items()
        }

    def _since(self, before: dict[str, float]) -> dict[str, float]:
        return {name: s - before.get(name, 0.0) for name, s in self._usage.cpu_s().items()}

    def _note_cpu(self, name: str, before: dict[str, float]) -> None:
        self._cpu.setdefault(name, []).append(grouped(self._since(before)))

    def _per_item(self, name: str, items: int) -> dict[str, float]:
        """Return the CPU microseconds per item of each kind of process, of the cheapest round."""
        rounds = self._cpu.get(name, [])
        if not rounds:
            return {}
        best = min(rounds, key=lambda one: sum(one.values()))
        return {kind: round(seconds / items * 1e6) for kind, seconds in sorted(best.items())}

    def _add(
        self, name: str, samples: Samples, work: int, unit: str, limit: float, cpu: str
    ) -> None:
        value, spread = samples.rates(work)
        per_item = self._per_item(cpu, work)
        self._report.figures.append(
            Figure(
                name=name,
                value=value,
                unit=unit,
                spread=spread,
                against="broker alone",
                baseline=limit,
                ratio=value / limit,
                detail={"cpu_us": per_item},
            )
        )
        self._report.notes.append(
            f"CPU us per item, {cpu}: {sum(per_item.values())} = "
            + ", ".join(f"{kind} {us}" for kind, us in per_item.items())
        )
