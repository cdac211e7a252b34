from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from schemas.errors import ErrorCode
from workers.cli import verify
from workers.crypto.derive import Purpose
from workers.crypto.sign import SigningKey
from workers.errors import Reject, Retry
from workers.leases.certificate import issue_certificate, save_identity
from workers.search.verify import Problem, Report


@pytest.fixture
def reports(monkeypatch):
    """Let `_verify` answer; return what it was asked and what it says."""
    world = SimpleNamespace(report=Report(), asked=[], failure=None)

    async def answer(settings, index, worker_id, key, told):
        world.asked.append((index, worker_id, key))
        told(1, 2)
        if world.failure is not None:
            raise world.failure
        return world.report

    monkeypatch.setattr(verify, "_verify", answer)
    monkeypatch.setattr(verify, "quiet_logs", lambda: None)
    return world


def test_a_sound_index(run, reports, tmp_path):
    reports.report = Report(shards=2, segments=3, documents=1000, nodes=7, contents=5, bytes=12345)
    (tmp_path / "k").write_bytes(b"k" * 32)
    done = run("verify", "acme/docs", "--index-key", "k", "--worker-id", "query-2")
    assert done.code == 0
    assert "2 shards, 3 segments, 1,000 documents" in done.out
    assert "everything opens and fits together" in done.out
    assert reports.asked == [("acme/docs", "query-2", b"k" * 32)]


def test_damage_is_refused_and_listed(run, reports):
    reports.report.problems = [Problem(f"x/segments/{n}", "does not open") for n in range(60)]
    done = run("verify", "acme/docs")
    assert done.code == 1
    assert "DAMAGED x/segments/0: does not open" in done.err
    assert "and 10 more" in done.err
    told = run("verify", "acme/docs", "--json").json
    assert told["ok"] is False
    assert told["problems"][0] == {"where": "x/segments/0", "what": "does not open"}
    assert reports.asked[0] == ("acme/docs", "query-1", None)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Retry(ErrorCode.KEY_UNAVAILABLE, "no key service"), 3),
        (Reject(ErrorCode.FORBIDDEN, "not yours"), 1),
    ],
)
def test_without_keys_nothing_can_be_said(run, reports, failure, code):
    reports.failure = failure
    done = run("verify", "acme/docs")
    assert done.code == code
    assert failure.code.value in done.err


def test_only_the_identity_of_a_query_worker_will_do(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SEALSTREAM_TOKEN", "token")
    monkeypatch.setenv("SEALSTREAM_KEY_SERVICE_FINGERPRINT", "0" * 64)
    key = SigningKey.generate()
    certificate = issue_certificate(
        SigningKey.generate(),
        worker_id="index-1",
        role="index",
        indexes=["*"],
        sign_pub=key.public.raw,
    )
    with key.seed() as seed:
        save_identity(tmp_path / "home/workers/index-1", bytes(seed.view()), certificate)
    done = run("verify", "i", "--home", "home", "--worker-id", "index-1")
    assert (done.code, "role query" in done.err) == (3, True)
    done = run("verify", "i", "--home", "home")
    assert (done.code, "query-1" in done.err) == (3, True)


async def test_a_renewed_lease_is_taken_over(monkeypatch):
    monkeypatch.setattr(verify, "_FRESH_S", 0)
    leases = iter(range(1, 1000))
    third = asyncio.Event()

    class Holder:
        async def lease(self, index, *, auth, proof):
            number = next(leases)
            if number == 2:
                raise Retry(ErrorCode.KEY_UNAVAILABLE, "away")
            if number >= 3:
                third.set()
            return SimpleNamespace(keys=lambda generation, purpose: (number, generation, purpose))

    session = SimpleNamespace(auth=lambda index: index, proof=lambda topic: topic)
    async with verify._leased(Holder(), session, "i", "query-request") as keys:
        assert keys.segment(4) == (1, 4, Purpose.SEGMENT)
        await third.wait()
        while keys.vector(4)[0] == 1:
            await asyncio.sleep(0)
        assert keys.vector(4)[0] >= 3
