"""`sealstream user|group|access|token|user-key`."""

from __future__ import annotations

import io
from uuid import NAMESPACE_URL, uuid5

import pytest

MADE = {"user_id": "u", "password": "p", "default_group": "g", "scopes": []}


def type_in(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_user_is_shown_with_its_password_once(run, client):
    client.answers["create_user"] = MADE
    done = run("user", "create", "--scope", "index", "--scope", "Decrypt")
    assert done.code == 0
    assert done.out == "user_id u\npassword p\ndefault_group g\n"
    assert client.calls == [("create_user", {"arguments": (["Index", "Decrypt"],)})]
    assert run("user", "create", "--all-scopes", "--json").json == MADE
    assert len(client.calls[-1][1]["arguments"][0]) == 9
    assert run("user", "create", "--scope", "Everything").code == 2


def test_passwords_are_read_never_arguments(run, client, monkeypatch, tmp_path):
    client.answers["log_in"] = {"token": "slid1_x", "expires_ms": 0}
    client.answers["change_password"] = "new"
    type_in(monkeypatch, b"secret\n")
    done = run("user", "login", "u")
    assert (done.code, done.out) == (0, "slid1_x\n")
    type_in(monkeypatch, b"secret\n")
    client.answers["log_in"] = {"token": "slid1_x", "expires_ms": 0}
    env = tmp_path / "env"
    done = run("user", "login", "u", "--env-file", str(env))
    assert done.out == ""
    assert env.read_text() == "SEALSTREAM_TOKEN=slid1_x\n"
    assert env.stat().st_mode & 0o777 == 0o600
    type_in(monkeypatch, b"secret\r\n")
    assert run("user", "password", "u").out == "new\n"
    assert [call[1]["arguments"] for call in client.calls] == [("u", "secret")] * 3
    assert client.anonymous == [True] * 3
    type_in(monkeypatch, b"")
    assert run("user", "login", "u").code == 2
    assert run("user", "login", "u", "secret").code == 2


@pytest.mark.parametrize(
    ("arguments", "answer", "call", "out"),
    [
        (("user", "delete", "u"), None, ("delete_user", ("u",)), "deleted u\n"),
        (
            ("group", "create", "--scope", "Decrypt"),
            "g",
            ("create_group", (["Decrypt"],)),
            "g\n",
        ),
        (
            ("group", "add", "g", "a", "b"),
            None,
            ("add_members", ("g", ("a", "b"))),
            "added 2 to g\n",
        ),
        (
            ("group", "remove", "g", "a"),
            None,
            ("remove_members", ("g", ("a",))),
            "removed 1 from g\n",
        ),
        (
            ("access", "get", "i", "d"),
            {"groups": ["x", "y"]},
            ("get_access", ("i", "d")),
            "x\ny\n",
        ),
        (
            ("access", "add", "i", "d", "y"),
            {"groups": ["x", "y"]},
            ("add_access", ("i", "d", ("y",))),
            "x\ny\n",
        ),
        (
            ("access", "remove", "i", "d", "y"),
            {"groups": ["x"]},
            ("remove_access", ("i", "d", ("y",))),
            "x\n",
        ),
        (("user-key", "delete", "i", "u"), None, ("delete_user_key", ("i", "u")), ""),
    ],
)
def test_what_is_asked_and_shown(run, client, arguments, answer, call, out):
    client.answers[call[0]] = answer
    done = run(*arguments)
    assert (done.code, done.out) == (0, out), done.err
    assert client.calls == [(call[0], {"arguments": call[1]})]


def test_the_id_of_a_group_of_another_provider(run, client):
    issuer = "https://id.example.org"
    found = [run("group", "id", source, "STAFF") for source in (issuer, f"saml:{issuer}")]
    assert [one.out.strip() for one in found] == [
        str(uuid5(uuid5(NAMESPACE_URL, source), "group/STAFF"))
        for source in (issuer, f"saml:{issuer}")
    ]
    assert run("group", "id", issuer, "STAFF", "--json").json["group_id"] in found[0].out
    assert client.calls == []


def test_tokens_go_through_files_and_pipes(run, client, monkeypatch, tmp_path):
    client.answers["create_token"] = {"token": "slap1_x", "expires_ms": 0}
    type_in(monkeypatch, b"\x00data")
    assert run("token", "create", "--ttl", "60").out == "slap1_x\n"
    assert client.calls[-1][1]["arguments"] == (b"\x00data", 60)
    token = tmp_path / "token"
    token.write_text("slap1_x\n")
    client.answers["open_token"] = b"\x00data"
    assert run("token", "open", str(token)).raw == b"\x00data"
    assert client.calls[-1][1]["arguments"] == ("slap1_x",)
    token.write_bytes(b"\xff")
    assert run("token", "open", str(token)).code == 2


def test_a_user_key_is_written_to_a_new_private_file(run, client, tmp_path):
    client.answers["create_user_key"] = bytes(range(32))
    out = tmp_path / "user.key"
    done = run("user-key", "create", "i", "u", "--read", "--out", str(out))
    assert done.code == 0
    assert out.read_bytes() == bytes(range(32))
    assert out.stat().st_mode & 0o777 == 0o600
    assert client.calls[-1][1]["arguments"] == ("i", "u", ["read"])
    assert run("user-key", "create", "i", "u", "--read", "--out", str(out)).code == 2
    other = str(tmp_path / "other")
    assert run("user-key", "create", "i", "u", "--out", other).code == 2
    client.answers["list_user_keys"] = [{"user_id": "u", "permissions": ["read"], "created_ms": 0}]
    assert "u     read" in run("user-key", "list", "i").out
