"""`sealstream key` and `index shred`: what is asked, what is written, what is printed."""

from __future__ import annotations

import pytest

from workers.crypto.sign import SigningKey
from workers.leases.certificate import WorkerIdentity, issue_certificate
from workers.leases.enrolment import Terms

TERMS = Terms("far-1", "index", ("acme/*", "other"))
ENROL = ("key", "enroll", "--role", "index", "--indexes", "acme/*,other", "--id", "far-1")


def certified(terms, key, *, invitation=None):
    return issue_certificate(
        SigningKey.generate(),
        worker_id=terms.worker_id,
        role=terms.role,
        indexes=terms.indexes,
        sign_pub=key.public.raw,
    )


def test_enroll_makes_a_key_and_keeps_it_here(run, client, tmp_path):
    client.answers["enroll_worker"] = certified
    done = run(*ENROL, "--folder", str(tmp_path / "far"))
    assert done.code == 0
    identity = WorkerIdentity.load(tmp_path / "far")
    [(_, asked)] = client.calls
    assert asked["arguments"][0] == TERMS
    assert asked["arguments"][1].public == identity.signing_key.public
    assert asked["invitation"] is None
    assert (tmp_path / "far" / "sign.key").stat().st_mode & 0o077 == 0
    # Once more, when the certificate has ended: the key stays.
    assert run(*ENROL, "--folder", str(tmp_path / "far"), "--json").json["worker_id"] == "far-1"
    again = WorkerIdentity.load(tmp_path / "far")
    assert again.signing_key.public == identity.signing_key.public
    with identity.signing_key.seed() as seed:
        assert bytes(seed.view()).hex() not in done.out + done.err


def test_an_invited_worker_needs_no_token(run, client, tmp_path):
    client.answers["enroll_worker"] = certified
    (tmp_path / "inv").write_text("slwi1_AAAA\n")
    done = run(*ENROL, "--folder", str(tmp_path / "far"), "--invitation", str(tmp_path / "inv"))
    assert done.code == 0
    assert client.anonymous == [True]
    assert client.calls[0][1]["invitation"] == "slwi1_AAAA"


@pytest.mark.parametrize("indexes", ["", " , "])
def test_a_worker_is_enrolled_for_some_indexes(run, client, indexes):
    done = run("key", "enroll", "--role", "index", "--indexes", indexes, "--id", "far-1")
    assert done.code == 2
    assert not client.calls


def test_invite_prints_or_writes_a_secret(run, client, tmp_path):
    client.answers["invite_worker"] = "slwi1_BBBB"
    what = ("key", "invite", "--role", "query", "--indexes", "*", "--id", "q", "--ttl", "60")
    assert run(*what).out == "slwi1_BBBB\n"
    assert client.calls[0][1] == {"arguments": ("q", "query", ("*",)), "ttl_s": 60}
    assert run(*what, "--file", str(tmp_path / "inv")).out == ""
    assert (tmp_path / "inv").read_text() == "slwi1_BBBB"
    assert (tmp_path / "inv").stat().st_mode & 0o077 == 0


def test_rotate_asks_for_a_level_and_waits_for_the_end(run, client, monkeypatch):
    monkeypatch.setattr("workers.cli.key._POLL_S", 0)
    going = {
        "index": "i",
        "generation": 1,
        "generations": [1, 2],
        "rotation": {
            "stage": "drain",
            "shards": [{"bytes_left": 5, "done": False}, {"bytes_left": 0, "done": True}],
        },
    }
    states = [going, {"index": "i", "generation": 2, "generations": [2], "rotation": None}]
    client.answers["rotate_key"] = going
    client.answers["key_status"] = lambda _index: states.pop(0)
    done = run("key", "rotate", "i")
    assert done.out == (
        "i: data key generation 1, changing to 2: drain, 1 of 2 shards, 5 bytes left\n"
    )
    assert run("key", "rotate", "i", "--wait").out == "i: data key generation 2\n"
    assert [name for name, _ in client.calls] == ["rotate_key", "rotate_key", *["key_status"] * 2]
    assert client.calls[0][1]["arguments"] == ("i", "dek")
    assert run("key", "rotate", "i", "--level", "kek", "--json").json["generation"] == 1
    assert run("key", "rotate", "i", "--level", "tag").code == 2


def test_status_and_revoke(run, client):
    client.answers["key_status"] = {
        "index": "i",
        "generation": 1,
        "generations": [1],
        "rotation": None,
    }
    assert run("key", "status", "i").out == "i: data key generation 1\n"
    client.answers["revoke"] = {"rotated": {"acme/docs": "begun"}}
    done = run("key", "revoke", "worker/far-1", "--indexes", "acme/*")
    assert "revoked worker/far-1" in done.out
    assert "acme/docs" in done.out
    assert client.calls[-1][1] == {"arguments": ("worker/far-1",), "indexes": ("acme/*",)}


def test_revoke_tells_of_names_that_match_nothing(run, client):
    client.answers["revoke"] = {"rotated": {"acme/docs": "begun"}, "unmatched": ["nosuch"]}
    for more in ((), ("--json",)):
        done = run("key", "revoke", "worker/far-1", "--indexes", "acme/*,nosuch", *more)
        assert done.code == 1
        assert "acme/docs" in done.out
        assert done.err == (
            "sealstream: NOT_FOUND: no index matches nosuch: no data key is changed\n"
        )


def test_revoke_takes_indexes_of_workers_alone(run, client):
    client.answers["revoke"] = {}
    assert run("key", "revoke", "user/alice", "--indexes", "acme/*").code == 2
    assert not client.calls
    assert run("key", "revoke", "user/alice").code == 0


@pytest.mark.parametrize(
    "command",
    [
        ("enroll", "--role", "index", "--indexes", "*", "--id", "../far"),
        ("invite", "--role", "index", "--indexes", "a" * 129, "--id", "far"),
        ("invite", "--role", "index", "--indexes", "*", "--id", "far", "--ttl", "1"),
        ("revoke", "far-1"),
        ("revoke", "worker/"),
    ],
    ids=" ".join,
)
def test_what_no_key_service_takes_is_told_where_nothing_runs(run, command):
    done = run("key", *command, "--home", "nowhere")
    assert done.code == 2
    # What is wrong, not that nothing runs.
    assert "stack" not in done.err


def test_shred_says_what_is_left(run, client):
    client.answers["shred_index"] = {"objects_left": 0}
    assert run("index", "shred", "i", "--yes").out == "shredded i: 0 objects left\n"
    client.answers["shred_index"] = {"objects_left": 2}
    assert run("index", "shred", "i", "--yes").code == 1
