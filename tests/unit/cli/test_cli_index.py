from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas.errors import ErrorCode, InvalidMessage
from workers.errors import Fatal, Reject, Retry


def key_file(folder: Path, data: bytes = b"k" * 32, mode: int = 0o600) -> str:
    path = folder / "index.key"
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_create_sends_only_what_was_given(run, client):
    done = run("index", "create", "acme/docs")
    assert (done.code, done.out) == (0, "created acme/docs\n")
    assert client.calls == [("create", {"index": "acme/docs"})]
    assert client.keys == [None]
    assert client.closed == 1


def test_create_sends_every_option(run, client):
    done = run(
        *("index", "create", "i", "--dimension", "8", "--metric", "dot", "--shards", "2"),
        *("--precision", "int8", "--analyzer", "german", "--field", "title=2", "--field", "a=b=.5"),
        *("--padding", "off", "--visibility", "index", "--overwrite", "scope"),
        *("--kms", "aws:arn:aws:kms:eu-west-1:1:key/2", "--json"),
    )
    assert done.code == 0
    assert done.json["index"] == "i"
    assert client.calls[0][1] == {
        "index": "i",
        "dimension": 8,
        "metric": "dot",
        "shards": 2,
        "storage_precision": "int8",
        "analyzer": "german",
        "fields": {"title": 2.0, "a=b": 0.5},
        "padding": "off",
        "visibility": "index",
        "overwrite": "scope",
        "kms": {"provider": "aws", "key_id": "arn:aws:kms:eu-west-1:1:key/2"},
    }


def test_a_kms_without_a_key_is_the_providers_default(run, client):
    assert run("index", "create", "i", "--kms", "local").code == 0
    assert client.calls[0][1]["kms"] == {"provider": "local"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--kms", "none"),
        ("--kms", "carrier-pigeon:k"),
        ("--field", "title"),
        ("--field", "=2"),
        ("--field", "title=much"),
        ("--metric", "manhattan"),
        ("--dimension", "many"),
        ("--unknown",),
        ("--dimension", "0"),
        ("--dimension", "70000"),
        ("--shards", "1025"),
        ("--field", "$title=2"),
        ("--field", "title=-1"),
        ("--field", "title=nan"),
        ("--analyzer", "klingon"),
    ],
)
def test_create_refuses_bad_usage(run, client, arguments):
    done = run("index", "create", "i", *arguments)
    assert done.code == 2
    assert not client.calls


@pytest.mark.parametrize(
    "command",
    [
        ("index", "create", "NAME"),
        ("index", "describe", "NAME"),
        ("index", "delete", "NAME"),
        ("index", "shred", "NAME"),
        ("key", "rotate", "NAME"),
        ("key", "status", "NAME"),
        ("user-key", "list", "NAME"),
        ("access", "get", "NAME", "d"),
        ("ingest", "NAME", "-"),
        ("search", "NAME", "words"),
        ("get", "NAME", "d"),
        ("delete", "NAME", "d"),
        ("count", "NAME"),
        ("ids", "NAME"),
        ("verify", "NAME"),
    ],
    ids=" ".join,
)
def test_a_bad_name_is_told_where_nothing_runs(run, command):
    done = run(*("BAD NAME" if part == "NAME" else part for part in command), "--home", "nowhere")
    assert done.code == 2
    assert '"BAD NAME": must be an index name: 1 to 128 characters' in done.err
    assert done.out == ""


@pytest.mark.parametrize("name", ["", ".a", "a" * 129, "a\n", "\x1b[2J"])
def test_a_bad_name_does_nothing_to_the_terminal(run, name):
    done = run("index", "create", name)
    assert done.code == 2
    assert "must be an index name" in done.err
    assert "\x1b" not in done.err


def test_an_index_key_means_that_the_caller_keeps_it(run, client, tmp_path):
    done = run("index", "create", "i", "--index-key", key_file(tmp_path, os.urandom(32)))
    assert done.code == 0
    assert client.calls[0][1]["kms"] == {"provider": "none"}
    assert len(client.keys[0]) == 32
    assert "keep" in done.err


def test_a_kms_and_an_index_key_exclude_each_other(run, client, tmp_path):
    done = run("index", "create", "i", "--kms", "local", "--index-key", key_file(tmp_path))
    assert done.code == 2


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "32 raw bytes, this file has 0"),
        (b"k" * 31, "has 31"),
        (b"k" * 33, "has 33"),
        (b"k" * 5000, "has more"),
        (b"k" * 32 + b"\n", "line end"),
        (b"0f" * 32 + b"\n", "hex"),
        (b"QUJD" * 10 + b"QUI=", "base64"),
    ],
)
def test_an_index_key_is_exactly_32_raw_bytes(run, client, tmp_path, data, word):
    done = run("index", "describe", "i", "--index-key", key_file(tmp_path, data))
    assert done.code == 2
    assert word in done.err
    assert not client.calls
    assert data.decode().strip() not in done.err or not data


def test_a_missing_index_key_is_usage(run, client):
    done = run("index", "describe", "i", "--index-key", "nowhere")
    assert (done.code, client.calls) == (2, [])
    assert "No such file" in done.err


def test_an_index_key_that_others_may_read_is_told(run, client, tmp_path):
    done = run("index", "describe", "i", "--index-key", key_file(tmp_path, mode=0o644))
    assert done.code == 0
    assert "chmod 600" in done.err
    assert client.keys == [b"k" * 32]


def test_list_and_describe_print_tables_and_json(run, client):
    listed = run("index", "list")
    assert listed.code == 0
    assert "acme/docs" in listed.out
    assert "1970-01-01" in listed.out
    assert run("index", "list", "--json").json[0]["index"] == "acme/docs"
    described = run("index", "describe", "acme/docs")
    assert "config.shards" in described.out
    assert "1970-01-01 00:00:01Z" in described.out
    assert run("index", "describe", "acme/docs", "--json").json["config"] == {"shards": 1}


def test_delete_asks_nobody_without_a_terminal(run, client):
    done = run("index", "delete", "acme/docs")
    assert (done.code, done.out) == (0, "deleted acme/docs\n")
    assert client.calls == [("delete", {"index": "acme/docs"})]


@pytest.mark.parametrize(("answer", "deleted"), [("acme/docs\n", True), ("yes\n", False)])
def test_delete_asks_on_a_terminal(run, client, monkeypatch, answer, deleted):
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    done = run("index", "delete", "acme/docs")
    assert done.code == (0 if deleted else 1)
    assert bool(client.calls) == deleted


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (Reject(ErrorCode.INDEX_EXISTS, "there is one", field="args.index"), 1, "INDEX_EXISTS"),
        (Reject(ErrorCode.FORBIDDEN, "the scope Index is missing"), 1, "FORBIDDEN"),
        (Retry(ErrorCode.KEY_UNAVAILABLE, "no key service"), 3, "KEY_UNAVAILABLE"),
        (Retry(ErrorCode.DEADLINE_EXCEEDED, "no answer"), 3, "DEADLINE_EXCEEDED"),
        (Fatal(ErrorCode.UNAUTHENTICATED, "pin the key service"), 3, "pin the key service"),
        (InvalidMessage("must be an index name", "index"), 1, "INVALID_MESSAGE"),
    ],
)
def test_errors_show_their_code_and_become_exit_codes(run, client, failure, code, text):
    client.failure = failure
    done = run("index", "create", "i")
    assert done.code == code
    assert text in done.err
    assert done.out == ""


def test_wrong_settings_are_usage(run, monkeypatch):
    monkeypatch.setenv("SEALSTREAM_LEASE_S", "soon")
    done = run("index", "list")
    assert done.code == 2
    assert "lease_s" in done.err


def test_no_credential_is_refused(run, monkeypatch):
    monkeypatch.setenv("SEALSTREAM_KEY_SERVICE_FINGERPRINT", "0" * 64)
    done = run("index", "list", "--home", "empty")
    assert done.code == 1
    assert "UNAUTHENTICATED" in done.err


def test_a_bug_is_not_hidden(run, client):
    client.failure = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        run("index", "list")
