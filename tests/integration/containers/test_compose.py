"""`docker compose up` is a working system, and `down -v` leaves nothing of it. In this order."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import test_d1_example as d1
import test_readme as readme
from chaos_kit import DEADLINE_S, QUERY_S, all_committed, assert_whole, documents, eventually
from compose_kit import WORKERS, Composed, composed
from stack_kit import connect, new_name

from schemas.errors import ErrorCode
from workers.client import Client
from workers.client.session import Protection
from workers.errors import Reject, Retry

pytestmark = pytest.mark.timeout(1800)

SERVICES = (*WORKERS, "s3", "kms", "tansu", "tansu-proxy")
ONCE = ("secrets", "buckets", "topics", "realm")


@pytest.fixture(scope="module")
def system(docker_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with composed(tmp_path_factory.mktemp("compose")) as running:
        yield running


@pytest.fixture
async def client(system: Composed) -> AsyncIterator[Client]:
    async with connect(system) as one:
        yield one


async def test_first_query(system: Composed, record_property: Any) -> None:
    """Also how long it takes: from `up` until a document is found."""
    began = time.monotonic()
    index = new_name("first")
    async with connect(system) as client:
        await client.create_index(index)
        await client.ingest(index, "doc", content="the tide comes in at noon", wait="searchable")
        found = await client.search(index, "tide", include=["content"], timeout_s=QUERY_S)
    assert [hit.content for hit in found.hits] == ["the tide comes in at noon"]
    seconds = {"up_s": system.up_s, "first_answer_s": system.up_s + time.monotonic() - began}
    for name, value in seconds.items():
        record_property(name, round(value, 1))
    sys.stderr.write(f"\ncompose: {seconds}\n")


async def test_containers_come_to_be_healthy(system: Composed, docker_client: Any) -> None:
    async def healthy() -> bool:
        found = [system.container(docker_client, name) for name in (*WORKERS, "s3", "kms")]
        return all(one.attrs["State"]["Health"]["Status"] == "healthy" for one in found)

    await eventually(healthy, "all are healthy")
    for name in ONCE:
        state = system.container(docker_client, name).attrs["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0), name


# --- it works ------------------------------------------------------------------------------------


async def test_programs_of_the_readme(system: Composed, client: Client) -> None:
    await client.create_index("notes")
    for program in readme._programs():
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program],
            env={**os.environ, **system.env, "SEALSTREAM_HOME": str(system.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    assert "high water at noon" in done.stdout


@pytest.mark.parametrize("protection", ["sealed", "plain"])
async def test_d1_example(system: Any, protection: Protection) -> None:
    await d1.test_pairs_by_the_client(system, protection)
    await d1.test_documents_by_the_client(system, protection)


async def test_d1_example_by_any_kafka_client(system: Any) -> None:
    await d1.test_pairs_by_any_kafka_client(system)


async def test_a_wrong_key_is_refused(system: Composed) -> None:
    index = new_name("own-key")
    async with connect(system, index_key=os.urandom(32)) as owner:
        await owner.create_index(index, kms={"provider": "none"})
        await owner.ingest(index, "doc", content="the tide", wait="searchable")
        async with connect(system, index_key=os.urandom(32)) as stranger:
            for attempt in (
                stranger.search(index, "tide", timeout_s=QUERY_S),
                stranger.get(index, ["doc"], timeout_s=QUERY_S),
                stranger.ingest(index, "doc", content="x"),
            ):
                with pytest.raises(Reject) as refused:
                    await attempt
                assert refused.value.code is ErrorCode.WRONG_KEY
        assert [hit.id for hit in (await owner.search(index, "tide", timeout_s=QUERY_S)).hits] == [
            "doc"
        ]


async def test_the_command_line_inside(system: Composed, client: Client) -> None:
    index = new_name("inside")
    await client.create_index(index)
    await client.ingest(index, "doc", content="the tide", keywords=["sea"], wait="searchable")
    run, wait = ("run", "--rm", "-T", "cli"), ("--timeout", f"{QUERY_S:g}")
    told = await asyncio.to_thread(system.compose, *run, "search", index, "tide", *wait, "--json")
    assert [hit["id"] for hit in json.loads(told)["hits"]] == ["doc"]
    told = await asyncio.to_thread(system.compose, *run, "verify", index, "--json")
    assert json.loads(told)["ok"] is True
    await client.delete_index(index)
    with pytest.raises(Reject):
        await client.search(index, "tide", timeout_s=QUERY_S)


# --- who may do what -----------------------------------------------------------------------------


@pytest.mark.parametrize("service", [*SERVICES, *ONCE])
def test_containers_are_hardened(system: Composed, docker_client: Any, service: str) -> None:
    attributes = system.container(docker_client, service).attrs
    host, config = attributes["HostConfig"], attributes["Config"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert config["User"] == "10001:10001"
    published = {port for port, places in (host["PortBindings"] or {}).items() if places}
    assert published == ({"9092/tcp"} if service == "tansu-proxy" else set())


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_is_nobody_and_can_write_nowhere(system: Composed, service: str) -> None:
    program = """
import json, os, pathlib
status = dict(line.split(":\\t") for line in open("/proc/1/status").read().splitlines())
written = []
for place in ("/", "/opt/sealstream", "/usr/bin", "/etc", "/provision"):
    try:
        pathlib.Path(place, "x").write_text("x")
        written.append(place)
    except OSError:
        pass
print(json.dumps({
    "uid": os.getuid(), "caps": status["CapEff"], "bound": status["CapBnd"],
    "confined": status["NoNewPrivs"], "written": written,
    "homes": sorted(str(p) for p in pathlib.Path("/var/lib/sealstream").rglob("*.key")),
}))
"""
    found = json.loads(system.inside(service, "python3", "-c", program))
    assert found["uid"] == 10001
    assert int(found["caps"], 16) == int(found["bound"], 16) == 0
    assert found["confined"] == "1"
    assert found["written"] == []
    worker = f"{service}-1"
    own = [] if service == "keys" else [f"/var/lib/sealstream/workers/{worker}/sign.key"]
    assert found["homes"] == own


def test_no_secret_is_in_a_variable(system: Composed, docker_client: Any) -> None:
    token = system.env["SEALSTREAM_TOKEN"]
    for service in (*SERVICES, *ONCE):
        variables = system.container(docker_client, service).attrs["Config"]["Env"]
        named = {one.partition("=")[0] for one in variables}
        assert not any(token in one for one in variables)
        assert not {"VAULT_TOKEN", "SEALSTREAM_TOKEN"} & named
        if service in WORKERS:
            assert "AWS_SECRET_ACCESS_KEY" not in named


RIGHTS = """
import asyncio, json, os, sys
from workers.settings import load_settings
from workers.storage.errors import AccessDenied
from workers.storage.open import open_store

async def attempt(verb):
    try:
        await verb
        return "done"
    except AccessDenied:
        return "denied"
    except Exception as error:
        return type(error).__name__

async def listed(store):
    return [info async for info in store.list("realm")]

async def main():
    store = open_store(load_settings())
    uid = "00" * 16
    tried = {
        "read realm": store.get("realm/root"),
        "write realm": store.put("realm/root", b""),
        "write head": store.put(f"{uid}/shards/0/head", b""),
        "write pack": store.put(f"{uid}/packs/check", bytes(range(256))),
        "read pack": store.get(f"{uid}/packs/check"),
        "delete realm": store.delete(["realm/root"]),
        "list": listed(store),
    }
    print(json.dumps({name: await attempt(verb) for name, verb in tried.items()}))

asyncio.run(main())
sys.stdout.flush()
# As the command line ends, for the same reason.
os._exit(0)
"""


@pytest.mark.parametrize(
    ("service", "may"),
    [
        ("ingest", {"write pack"}),
        ("index", {"write head", "list"}),
        ("query", {"read pack", "list"}),
    ],
)
def test_rights_in_the_bucket_end_with_the_role(
    system: Composed, service: str, may: set[str]
) -> None:
    tried: dict[str, str] = json.loads(system.inside(service, "python3", "-c", RIGHTS))
    assert {name for name, outcome in tried.items() if outcome == "done"} == may
    assert set(tried.values()) == {"done", "denied"}


def test_only_the_key_service_reaches_the_kms(system: Composed) -> None:
    program = (
        "import socket\n"
        "try: socket.create_connection(('kms', 8200), 60); print('reached')\n"
        "except OSError: print('not there')"
    )
    told = {name: system.inside(name, "python3", "-c", program).strip() for name in WORKERS}
    assert told == {
        "keys": "reached",
        "ingest": "not there",
        "index": "not there",
        "query": "not there",
    }


# --- it survives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1200, pytest.param(None, marks=pytest.mark.long)])
async def test_kills_in_the_middle_of_an_ingest(
    system: Composed, client: Client, docker_client: Any, count: int | None
) -> None:
    """`docker kill`, `docker start`: every mail is there, once. None: all of the collection."""
    mails = documents(count)
    index = new_name("killed")
    await client.create_index(index)
    killed = ("ingest", "index", "keys", "query")
    part = len(mails) // (len(killed) + 1)
    kills = {part * (n + 1): service for n, service in enumerate(killed)}
    done = []
    operations = [mail.upsert(index) for mail in mails]
    async for result in client.ingest_many(operations, in_flight=200, timeout_s=DEADLINE_S):
        assert result.status == "accepted", result
        done.append(result)
        if service := kills.get(len(done)):
            container = system.container(docker_client, service)
            await asyncio.to_thread(container.kill)
            await asyncio.to_thread(container.start)
    assert len(done) == len(mails)
    await all_committed(system)

    async def answered() -> bool:
        try:
            await client.count(index, timeout_s=QUERY_S / 4)
        except Retry:
            return False
        return True

    await eventually(answered, "a query is answered")
    await assert_whole(client, index, mails, done)
    verify = ("run", "--rm", "-T", "cli", "verify", index, "--json")
    assert json.loads(await asyncio.to_thread(system.compose, *verify))["ok"] is True


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_that_is_told_to_stop_finishes(
    system: Composed, docker_client: Any, service: str
) -> None:
    """It is process 1, for which the kernel does nothing by itself."""
    container = system.container(docker_client, service)
    container.stop(timeout=60)
    container.reload()
    state = container.attrs["State"]
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False)
    container.start()


async def test_everything_stopped_and_started_again(system: Composed) -> None:
    index = new_name("kept")
    async with connect(system) as client:
        await client.create_index(index)
        await client.ingest(index, "doc", content="the tide", wait="searchable")
    await asyncio.to_thread(system.compose, "stop")
    await asyncio.to_thread(system.compose, "up", "--detach", "--wait", "--no-build")
    async with connect(system) as client:
        found = await client.search(index, "tide", include=["content"], timeout_s=DEADLINE_S)
        assert [hit.content for hit in found.hits] == ["the tide"]


def test_down_leaves_nothing(system: Composed, docker_client: Any) -> None:
    def left() -> list[Any]:
        mine = {"label": f"com.docker.compose.project={system.name}"}
        return [
            *docker_client.containers.list(all=True, filters=mine),
            *docker_client.volumes.list(filters=mine),
            *docker_client.networks.list(filters=mine),
        ]

    assert len(left()) > 10
    system.compose("down", "--volumes")
    assert left() == []
