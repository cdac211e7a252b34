"""`keys`: what the key service grants in a second, and what asking it adds to a query.

The key service, its workers and their callers run in one process on one loop, on a broker, a store
and a KMS in memory: the figures are those of their own work (sealing, signatures, policy, audit) on
one core. A broker adds its round trip to every request: two records, the audit's between them.

The baseline of leases and decisions is their cryptography alone, both sides of it: the request
sealed, signed, opened and verified, the grant too.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import SecretStr

from bench.report import Figure, Report
from bench.timing import alternate
from schemas.auth import Auth, Credential
from schemas.ids import IndexName
from schemas.topics import ALL_TOPICS, PLAINTEXT_INGEST, QUERY_REQUEST
from schemas.values import encode_base64
from workers.client import Client
from workers.crypto.hpke import HpkePrivateKey, key_id
from workers.crypto.sign import SigningKey
from workers.kafka.memory import MemoryBroker
from workers.keys.realm import init_realm
from workers.keys.worker import serve
from workers.kms.local import LocalKms
from workers.leases.certificate import WorkerIdentity, issue_certificate
from workers.leases.credential import Proof, seal_credential, sign_message
from workers.leases.directory import KeyDirectory, KeyServiceEntry
from workers.leases.grant import GrantHeader, LeasePayload, open_grant, seal_grant, verify_grant
from workers.leases.grant import Pending as PendingGrant
from workers.leases.holder import SUITES, LeaseHolder
from workers.leases.lease import ROLE_PURPOSES, Decision, Lease, ObjectRequest
from workers.leases.request import VERSION, RequestBody, open_request, seal_request
from workers.objects.pack import Content, PackBuilder, object_request
from workers.settings import Settings
from workers.storage.memory import MemoryStore

INDEXES: Final = 24
CALLERS: Final = 48
OBJECTS: Final = 512
SHOWN: Final = 10
ROUNDS: Final = 7
_AT_ONCE: Final = 8


async def run(home: Path | None) -> Report:
    """Run it; it needs no stack."""
    del home
    # What workers log would stand among the figures.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    report = Report("keys", data=[f"{INDEXES} indexes, {CALLERS} credentials, {OBJECTS} objects"])
    for suite in ("mlkem768-x25519", "x25519"):
        async with _world(suite) as world:
            report.figures += await _figures(world, suite)
    report.settings = {"rounds": ROUNDS, "at once": _AT_ONCE, "kms": "local file"}
    report.notes.append("broker, store and KMS in memory: add their round trips")
    return report


@dataclass(slots=True)
class _World:
    broker: MemoryBroker
    store: MemoryStore
    settings: Settings
    directory: KeyDirectory
    session: SigningKey
    token: str
    names: list[str]

    @asynccontextmanager
    async def holder(self, worker_id: str) -> AsyncIterator[LeaseHolder]:
        identity = WorkerIdentity.load(self.settings.home / "workers" / worker_id)
        holder = LeaseHolder(self.broker, identity, self.directory, self.settings)
        await holder.start()
        try:
            yield holder
        finally:
            await holder.stop()

    def auth(self, index: str) -> Auth:
        """Return a credential that nobody has seen before."""
        credential = Credential(
            token=self.token,
            index=IndexName(index),
            scopes=[],
            exp=int(time.time()) + 3600,
            cnf=encode_base64(self.session.public.raw),
        )
        return seal_credential(self.directory.key_service.hpke_pub, credential)

    def proof(self, topic: str) -> Proof | None:
        return Proof.made(sign_message(self.session, topic, b"k", b"{}"), b"k", b"{}")


@asynccontextmanager
async def _world(suite: str) -> AsyncIterator[_World]:
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealstream-keys-")))
        broker = MemoryBroker({topic.name: topic.partitions for topic in ALL_TOPICS})
        store, kms = MemoryStore(), LocalKms(home / "kms.key", create=True)
        settings = Settings.model_validate({"home": home, "hpke_suite": suite})
        info = await init_realm(settings, store=store, kms=kms)
        settings = settings.model_copy(
            update={
                "key_service_fingerprint": info.fingerprint,
                "token": SecretStr(info.token),
            }
        )
        stop = asyncio.Event()
        task = asyncio.create_task(serve(settings, stop, broker=broker, store=store, kms=kms))

        async def end() -> None:
            stop.set()
            await task

        stack.push_async_callback(end)
        directory = KeyDirectory(broker, settings)
        stack.push_async_callback(directory.stop)
        await directory.start()
        await directory.wait_for("key-service", 1)
        names = [f"bench/{number}" for number in range(INDEXES)]
        async with Client(settings, broker=broker) as client:
            for name in names:
                await client.create_index(name)
        await directory.refresh()
        yield _World(broker, store, settings, directory, SigningKey.generate(), info.token, names)


async def _figures(world: _World, suite: str) -> list[Figure]:
    index = world.names[0]
    async with world.holder("query-1") as holder, world.holder("ingest-1") as writer:
        mine, proof = world.auth(index), world.proof(QUERY_REQUEST)
        lease = await holder.lease(index, auth=mine, proof=proof)
        made = await writer.lease(
            index, auth=world.auth(index), proof=world.proof(PLAINTEXT_INGEST)
        )
        groups = (await _decide(world, writer, index)).groups
        items = await asyncio.to_thread(_pack, made, groups)
        few = items[:SHOWN]

        async def leases() -> float:
            async with world.holder("index-1") as fresh:
                began_s = time.perf_counter()
                await _spread([fresh.lease(name) for name in world.names])
                return time.perf_counter() - began_s

        async def decisions() -> float:
            auths = [world.auth(index) for _ in range(CALLERS)]
            began_s = time.perf_counter()
            await _spread([_decide(world, writer, index, auth) for auth in auths])
            return time.perf_counter() - began_s

        async def objects() -> None:
            keys = await holder.open_objects(lease, mine, items, proof=proof)
            if any(key is None for key in keys):
                raise RuntimeError("an object was denied")

        async def cold() -> float:
            async with world.holder("query-1") as fresh:
                auth = world.auth(index)
                began_s = time.perf_counter()
                await _decide(world, fresh, index, auth, QUERY_REQUEST)
                leased = await fresh.lease(index, auth=auth, proof=proof)
                await fresh.open_objects(leased, auth, few, proof=proof)
                return time.perf_counter() - began_s

        async def warm() -> None:
            await holder.open_objects(lease, mine, few, proof=proof)

        found = await alternate(
            {
                "leases": leases,
                "decisions": decisions,
                "objects": objects,
                "cold": cold,
                "warm": warm,
                "bare": lambda: _bare(world),
            },
            ROUNDS,
        )
    bare, _ = found["bare"].rates(INDEXES)
    figures = []
    for name, count in (("leases", INDEXES), ("decisions", CALLERS)):
        value, spread = found[name].rates(count)
        figures.append(
            Figure(
                f"{name}, {suite}",
                value,
                "/s",
                spread,
                against="cryptography alone",
                baseline=bare,
                ratio=value / bare,
            )
        )
    value, spread = found["objects"].rates(OBJECTS)
    figures.append(Figure(f"object keys, {suite}", value, "/s", spread))
    for name, what in (
        ("cold", f"added to a caller's first query with {SHOWN} contents"),
        ("warm", f"added to a further query with {SHOWN} contents"),
    ):
        times = [1000 * one for one in found[name].seconds]
        figures.append(
            Figure(f"{what}, {suite}", 1000 * found[name].median, "ms", (min(times), max(times)))
        )
    return figures


async def _decide(
    world: _World,
    holder: LeaseHolder,
    index: str,
    auth: Auth | None = None,
    topic: str = PLAINTEXT_INGEST,
) -> Decision:
    return await holder.decide(
        index,
        auth or world.auth(index),
        signature=sign_message(world.session, topic, b"k", b"{}"),
        signed=(topic, b"k", b"{}"),
        message_id="00000000-0000-4000-8000-000000000000",
        issued_ms=int(time.time() * 1000),
    )


async def _spread(work: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Run coroutines, some at once."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(each: Coroutine[Any, Any, Any]) -> None:
        async with limit:
            await each

    await asyncio.gather(*(one(each) for each in work))


def _pack(lease: Lease, groups: tuple[str, ...]) -> list[ObjectRequest]:
    builder = PackBuilder(
        index_uid=lease.uid,
        generation=lease.generation,
        object_public=lease.object_public,
        created_ms=0,
    )
    pointers = [
        builder.add(
            hashlib.sha256(str(number).encode()).digest()[:16],
            Content(b"content", "text/plain", b""),
            groups,
            (0, 0),
        )
        for number in range(OBJECTS)
    ]
    _, wrapped = builder.finish()
    return [object_request(pointer, wrapped[0]) for pointer in pointers]


def _bare(world: _World) -> None:
    """Do the cryptography of as many leases as there are indexes, and nothing else."""
    identity = WorkerIdentity.load(world.settings.home / "workers" / "index-1")
    service_key = HpkePrivateKey.generate(SUITES[world.settings.hpke_suite])
    signer = SigningKey.generate()
    certificate = issue_certificate(
        signer,
        worker_id="index-1",
        role="index",
        indexes=["*"],
        sign_pub=identity.signing_key.public.raw,
    )
    mine = WorkerIdentity(certificate, identity.signing_key)
    entry = KeyServiceEntry(
        version=1,
        expires_ms=2**50,
        sign_pub=signer.public,
        hpke_pub=service_key.public,
        hpke_key_id=key_id(service_key.public),
        streams={},
    )
    payload = LeasePayload("i", bytes(16), b"{}", [0], [], [], b"", 1)
    for _ in range(INDEXES):
        ephemeral = HpkePrivateKey.generate(service_key.suite)
        now_ms = int(time.time() * 1000)
        body = RequestBody(
            v=VERSION,
            kind="lease",
            request_id=os.urandom(16),
            worker_id="index-1",
            certificate=certificate.encoded,
            reply_partition=0,
            index="i",
            uid=b"",
            generation=0,
            purposes=sorted(ROLE_PURPOSES["index"]),
            ephemeral=ephemeral.public.encode(),
            issued_ms=now_ms,
            expires_ms=now_ms + 30_000,
        )
        value = seal_request(body, mine, entry)
        opened = open_request(
            b"index-1",
            value,
            private_key=lambda _: service_key,
            issuer=signer.public,
            now_s=time.time(),
        )
        header = GrantHeader(
            body.request_id,
            opened.sha256,
            "index-1",
            "i",
            1,
            tuple(body.purposes),
            now_ms,
            now_ms + 300_000,
        )
        grant = seal_grant(header, "lease", payload, ephemeral.public, signer)
        pending = PendingGrant(body, hashlib.sha256(value).digest(), ephemeral)
        open_grant(verify_grant(grant, signer.public), pending, LeasePayload, now_s=time.time())
