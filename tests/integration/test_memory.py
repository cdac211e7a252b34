"""What is left of leased keys in the memory of workers whose leases ended.

The keys are opened here as the key service opens them, from the bucket and the key file of the
local stack. Then the processes are searched: while the leases last, which shows that the search
finds keys, and when they have ended. `deploy/SECURITY.md` says what was found.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from memory_kit import Hit, Image, Owner, forms, readable
from stack_kit import QUERY_S, Stack, connect, eventually, ids, new_name

from workers.crypto.hpke import HpkeSuite
from workers.crypto.lp import lp
from workers.keys.catalog import Catalog
from workers.keys.hierarchy import Hierarchy
from workers.keys.policy import lease_payload
from workers.keys.realm import open_realm
from workers.kms.registry import open_kms
from workers.leases.certificate import ROLES, Role
from workers.leases.grant import KeyItem
from workers.leases.lease import ROLE_PURPOSES
from workers.settings import Settings
from workers.storage.open import open_store

pytestmark = pytest.mark.integration

LEASE_S = 10
# Far more than the life of a lease: to search all memory takes a while on a busy machine.
END_S = 300.0
DOCUMENTS = 150
EVERYTHING = ["score", "metadata", "content", "vector", "groups"]

Keys = Mapping[str, bytes]


@pytest.fixture(scope="module")
def short_leases(start_stack: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own: its leases end after seconds, and its key service will be stopped."""
    if not readable():
        why = "the memory of other processes can only be read with CAP_SYS_PTRACE"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    home = tmp_path_factory.mktemp("memory")
    environ = {"SEALSTREAM_LEASE_S": str(LEASE_S)}
    with start_stack(home, environ=environ) as running:  # type: ignore[operator]
        yield running


async def leased_keys(settings: Settings, index: str) -> dict[Role, Keys]:
    """Return what each role leases of an index, by purpose, as bytes that are as good as the key.

    Public halves are no secret. Of a seed, the private keys that are made of it count, too.
    """
    store = open_store(settings, read_only=True)
    kms = open_kms(settings.kms_spec, settings)
    try:
        realm = await open_realm(store, kms)
        record = await Catalog(store, realm).get(index)
        ring = await Hierarchy(store, kms, realm.signing_key).open(record, fresh=True)
        found: dict[Role, Keys] = {}
        for role in ROLES:
            payload = lease_payload(role, record, ring, ROLE_PURPOSES[role])
            found[role] = {
                f"{item.purpose} {form}": data
                for item in (*payload.keys, *payload.ingest)
                if item.form != "public"
                for form, data in secret_forms(item).items()
            }
        return found
    finally:
        await kms.aclose()
        await store.aclose()


def secret_forms(item: KeyItem) -> dict[str, bytes]:
    if item.form == "key":
        return forms(bytes(item.key))
    suite = HpkeSuite(item.suite)
    assert suite is HpkeSuite.MLKEM768_X25519
    about = b"sealstream/1 hpke seed" + lp(suite, "")
    private = HKDFExpand(SHA256(), 96, about).derive(item.key)
    halves = {"ML-KEM d": private[:32], "ML-KEM z": private[32:64], "X25519": private[64:]}
    return {"seed": bytes(item.key), **halves}


async def use(stack: Stack, index: str) -> None:
    """Have every worker use its keys in every way that there is, many times."""
    random = np.random.default_rng()
    async with connect(stack) as client:
        await client.create_index(index, dimension=16)
        done = await asyncio.gather(
            *(
                client.ingest(
                    index,
                    f"doc-{number}",
                    content=f"content {number} " * 40,
                    text={"body": f"some words {number}"},
                    keywords=["all", f"only {number}"],
                    vector=random.normal(size=16).astype(np.float32),
                    metadata={"number": number},
                )
                for number in range(DOCUMENTS)
            )
        )
        queries = [
            query
            for number in range(20)
            for query in (
                {"keyword": f"only {number}"},
                {"text": f"words {number}"},
                {"text": "wor*", "syntax": True},
                {"vector": random.normal(size=16).astype(np.float32)},
            )
        ]
        # One waits until all is applied; the others need not.
        await client.search(index, "words", after=done, timeout_s=QUERY_S)
        for result in await asyncio.gather(
            *(
                client.query(index, query, include=EVERYTHING, timeout_s=QUERY_S)
                for query in queries
            )
        ):
            assert result.hits


async def use_again(stack: Stack, index: str) -> None:
    """Have every worker lease its keys again if it has none."""
    async with connect(stack) as client:
        done = await client.ingest(index, "again", content="content", text={"body": "some words"})
        await client.search(index, "words", include=EVERYTHING, after=[done], timeout_s=QUERY_S)


def scan(stack: Stack, role: Role, keys: Keys) -> list[Hit]:
    pid = stack.pid(f"{role}-1")
    assert pid is not None
    return Image(pid).find(keys)


def purposes(hits: list[Hit]) -> set[str]:
    """Return the purposes of the keys that somebody holds."""
    return {hit.key.split()[0] for hit in held(hits)}


def held(hits: list[Hit]) -> list[Hit]:
    """Return the hits that somebody holds: an object of Python, or a key object of OpenSSL."""
    return [hit for hit in hits if hit.owner in (Owner.OURS, Owner.LIBRARY, Owner.STATIC)]


@contextmanager
def stopped(stack: Stack, name: str) -> Iterator[None]:
    pid = stack.pid(name)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_no_worker_holds_a_key_whose_lease_ended(short_leases: Stack) -> None:
    stack, index = short_leases, new_name("memory")
    await use(stack, index)
    keys = await leased_keys(stack.settings, index)

    for role in ROLES:
        # Update and object keys of the ingest worker are public halves.
        private = ROLE_PURPOSES[role] - ({"object", "update"} if role == "ingest" else set())
        end = time.monotonic() + END_S
        while purposes(hits := scan(stack, role, keys[role])) != private and time.monotonic() < end:
            # Its renewal was late by a few seconds, so the lease ended.
            await eventually(lambda: use_again(stack, index))
        assert purposes(hits) == private, f"{role}: the search does not find what must be there"
        report(role, "leased", hits)

    # Nobody renews a lease any more: it ends.
    with stopped(stack, "keys-1"):
        end = time.monotonic() + END_S
        left = {role: scan(stack, role, keys[role]) for role in ROLES}
        while any(map(held, left.values())) and time.monotonic() < end:
            await asyncio.sleep(1.0)
            left |= {role: scan(stack, role, keys[role]) for role in ROLES if held(left[role])}
    for role, hits in left.items():
        report(role, "ended", hits)
    assert [f"{role}: {hit}" for role, hits in left.items() for hit in held(hits)] == []
    # What we could overwrite, we did: freed objects of Python are empty.
    freed = (Owner.FREED_PYTHON,)
    assert [str(hit) for hits in left.values() for hit in hits if hit.owner in freed] == []

    async with connect(stack) as client:
        search = {"keyword": "only 7"}
        result = await eventually(lambda: client.query(index, search, timeout_s=QUERY_S))
        assert ids(result.hits) == ["doc-7"]


def report(role: Role, when: str, hits: list[Hit]) -> None:
    """Say all that was found: `pytest -rP` shows it."""
    counts = Counter(hit.owner.value for hit in hits)
    print(f"{role} worker, {when}: {len(hits)} hits {dict(counts)}")
    for hit in hits:
        print(f"  {hit}")
