from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog

from schemas.errors import ErrorCode
from workers.cli import common, main
from workers.errors import Fatal, Reject, Retry
from workers.local.errors import StackError

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SEALSTREAM_HOME", "SEALSTREAM_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("verb", main.COMMANDS, ids=lambda verb: verb.name)
def test_every_command_has_help(verb: main.Verb, capsys: Captured) -> None:
    assert main.run([verb.name, "--help"]) == common.OK
    assert "Usage: sealstream" in capsys.readouterr().out
    assert verb.help.endswith(".")


def test_the_overview_names_every_command(capsys: Captured) -> None:
    assert main.run(["--help"]) == common.OK
    shown = capsys.readouterr().out
    assert all(verb.name in shown for verb in main.COMMANDS)
    assert main.run([]) == common.OK


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["worker", "nonsense"],
        ["status", "--nonsense"],
        ["search", "notes", "tide", "--timeout", "0"],
        ["ingest", "notes", "file", "--timeout", "-1"],
        ["up", "--workers", "ingest=0"],
        ["up", "--workers", "cook=1"],
        ["realm", "init", "--workers", "keys=1"],
        ["config", "check", "--config", "absent.toml"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: Captured) -> None:
    assert main.run(arguments) == common.USAGE
    captured = capsys.readouterr()
    assert captured.err
    assert "Traceback" not in captured.err


def test_status_of_nothing_is_3(capsys: Captured) -> None:
    assert main.run(["status"]) == common.UNAVAILABLE
    assert "nothing runs" in capsys.readouterr().out
    assert main.run(["status", "--json"]) == common.UNAVAILABLE
    report = orjson.loads(capsys.readouterr().out)
    assert (report["phase"], report["processes"]) == ("stopped", [])


def test_down_of_nothing_is_fine(capsys: Captured) -> None:
    assert main.run(["down"]) == common.OK
    assert "nothing runs" in capsys.readouterr().out


def test_config_check_shows_sources_not_secrets(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALSTREAM_TOKEN", "hunter2")
    monkeypatch.setenv("SEALSTREAM_BOGUS", "x")
    assert main.run(["config", "check", "--json"]) == common.OK
    report = orjson.loads(capsys.readouterr().out)
    token = next(row for row in report["settings"] if row["name"] == "token")
    assert (token["value"], token["source"]) == ("set (hidden)", "$SEALSTREAM_TOKEN")
    assert report["warnings"][0]["name"] == "SEALSTREAM_BOGUS"
    assert main.run(["config", "check"]) == common.OK
    captured = capsys.readouterr()
    assert "hunter2" not in captured.out + captured.err
    assert "SEALSTREAM_BOGUS" in captured.err


def test_config_check_opens_identity_providers(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALSTREAM_OIDC_ISSUER", "https://id.example.org")
    monkeypatch.setenv("SEALSTREAM_OIDC_AUDIENCE", "sealstream")
    assert main.run(["config", "check"]) == common.OK
    assert "key service" not in capsys.readouterr().err
    monkeypatch.setenv("SEALSTREAM_OIDC_ROLES", "reader=Everything")
    for name in ("ISSUER", "METADATA", "AUDIENCE", "RECIPIENT"):
        monkeypatch.setenv(f"SEALSTREAM_SAML_{name}", "absent")
    assert main.run(["config", "check", "--json"]) == common.OK
    told = [
        (one["name"], one["message"]) for one in orjson.loads(capsys.readouterr().out)["warnings"]
    ]
    [(_, oidc), (_, saml)] = told
    assert [name for name, _ in told] == ["oidc_issuer", "saml_issuer"]
    assert "would not start" in oidc
    assert "oidc_roles: scopes are" in oidc
    assert "saml_metadata cannot be used: No such file" in saml


def test_config_check_tells_what_is_wrong(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALSTREAM_LEASE_S", "soon")
    assert main.run(["config", "check"]) == common.USAGE
    assert "lease_s ($SEALSTREAM_LEASE_S)" in capsys.readouterr().err
    assert main.run(["config", "check", "--json"]) == common.USAGE
    assert orjson.loads(capsys.readouterr().out)["ok"] is False
    # Any other command says it, too.
    assert main.run(["status"]) == common.USAGE
    assert "config check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Reject(ErrorCode.FORBIDDEN, "no"), common.REFUSED),
        (Retry(ErrorCode.STORAGE_UNAVAILABLE, "later"), common.UNAVAILABLE),
        (Fatal(ErrorCode.KEY_UNAVAILABLE, "never"), common.UNAVAILABLE),
        (StackError("cannot"), common.UNAVAILABLE),
        (OSError(errno.ENOSPC, "No space left on device"), common.UNAVAILABLE),
        (ExceptionGroup("several", [PermissionError(errno.EACCES, "no")]), common.UNAVAILABLE),
        (common.Exit("bad", common.USAGE), common.USAGE),
        (KeyboardInterrupt(), common.UNAVAILABLE),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_home: Path) -> bool:
        raise error

    monkeypatch.setattr("workers.local.control.stop", fails)
    assert main.run(["down"]) == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "bug", [ZeroDivisionError(), ExceptionGroup("several", [OSError(), ZeroDivisionError()])]
)
def test_bugs_are_not_hidden(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_home: Path) -> bool:
        raise bug

    monkeypatch.setattr("workers.local.control.stop", fails)
    with pytest.raises(type(bug)):
        main.run(["down"])


@pytest.mark.parametrize("arguments", [["up"], ["up", "--detach"]])
def test_a_home_that_cannot_be_made_is_told(
    arguments: list[str], tmp_path: Path, capsys: Captured
) -> None:
    # Also for root: below something that is no folder in the end.
    (tmp_path / "home").mkdir()
    for name in ("run", "logs"):
        (tmp_path / "home" / name).write_bytes(b"")
    assert main.run([*arguments, "--home", "home"]) == common.UNAVAILABLE
    told = capsys.readouterr().err
    assert "as home" in told
    assert "Traceback" not in told


class FakeWorker:
    """Stands for `workers.<role>.worker`."""

    def __init__(self) -> None:
        self.started: list[str | None] = []
        self.ports: list[int | None] = []
        self.stopped = 0

    async def run(self, settings: Any, stop: asyncio.Event) -> None:
        self.started.append(settings.worker_id)
        self.ports.append(settings.metrics_port)
        if len(self.started) == 4:
            raise Fatal(ErrorCode.FORBIDDEN, "the wrong identity")
        await stop.wait()
        self.stopped += 1


def test_worker_all_ends_when_one_fails(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    fake = FakeWorker()
    monkeypatch.setattr("workers.cli.worker.import_module", lambda _name: fake)
    monkeypatch.setattr("workers.crypto.secret.harden_process", lambda: None)
    monkeypatch.setattr("workers.telemetry.logs.configure", lambda *_: None)
    monkeypatch.setenv("SEALSTREAM_METRICS_PORT", "9100")
    assert main.run(["worker", "all"]) == common.UNAVAILABLE
    assert fake.ports == [9100, None, None, None]
    assert fake.started == ["keys-1", "ingest-1", "index-1", "query-1"]
    assert "the wrong identity" in capsys.readouterr().err


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_restored")
def test_foreign_texts_stay_out_of_a_workers_log(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    class Broken:
        async def run(self, _settings: Any, _stop: asyncio.Event) -> None:
            raise ValueError("cannot parse 'the secret plan'")

    monkeypatch.setattr("workers.cli.worker.import_module", lambda _name: Broken())
    monkeypatch.setattr("workers.crypto.secret.harden_process", lambda: None)
    assert main.run(["worker", "ingest", "--id", "ingest-9"]) == common.UNAVAILABLE
    captured = capsys.readouterr()
    assert "the secret plan" not in captured.out + captured.err
    line = orjson.loads(captured.err.splitlines()[-1])
    assert (line["worker"], line["exception"]) == ("ingest-9", "ValueError")
