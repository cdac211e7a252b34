from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import orjson
import pytest

from workers.local import access, control, ports, roles, servers, state
from workers.local.errors import AlreadyRunning, StackError
from workers.local.files import read_json, tail, write_private
from workers.local.process import start_ticks
from workers.local.rights import role_policy


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def own_state(**changes: object) -> state.StackState:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    values: dict[str, object] = {"pid": os.getpid(), "ticks": ticks, "phase": "ready", **changes}
    return state.StackState(**values)  # type: ignore[arg-type]


def test_private_files_replace_open_ones(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    path.parent.mkdir()
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_unreadable_json_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent") is None
    for text in ("", "{", "[1]"):
        (tmp_path / "file").write_text(text)
        assert read_json(tmp_path / "file") is None


def test_tail_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path) == ""
    path.write_text("".join(f"line {n}\n" for n in range(5000)))
    assert tail(path, 2) == "line 4998\nline 4999"
    assert tail(path, 10, start=path.stat().st_size - 5) == "4999"


def test_ports_are_kept_unless_taken() -> None:
    first = ports.choose(["a", "b", "c"], {})
    assert len(set(first.values())) == 3
    assert ports.choose(["a", "b", "c"], first) == first
    with socket.socket() as other:
        other.bind((ports.LOOPBACK, first["b"]))
        other.listen()
        second = ports.choose(["a", "b", "c"], first)
    assert second["a"] == first["a"]
    assert second["b"] not in first.values()


def test_doubled_ports_are_split() -> None:
    port = ports.choose(["a"], {})["a"]
    chosen = ports.choose(["a", "b"], {"a": port, "b": port})
    assert chosen["a"] == port
    assert chosen["b"] != port


def test_a_state_is_of_the_process_that_wrote_it(tmp_path: Path) -> None:
    assert state.running(tmp_path) is None
    process = state.ProcessState("tansu", pid=5, restarts=2)
    state.write_state(tmp_path, own_state(processes=[process]))
    found = state.running(tmp_path)
    assert found is not None
    assert found.processes == [process]
    assert mode(state.state_path(tmp_path)) == 0o600
    # The pid was given to another process meanwhile.
    state.write_state(tmp_path, own_state(ticks=1))
    assert state.running(tmp_path) is None
    state.state_path(tmp_path).write_text('{"processes": [], "other": 1}')
    assert state.running(tmp_path) is None


def test_the_lock_is_held_once(tmp_path: Path) -> None:
    with state.locked(tmp_path), pytest.raises(AlreadyRunning), state.locked(tmp_path):
        pass
    with state.locked(tmp_path):
        pass


def test_an_unusable_home_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="cannot use"), state.locked(tmp_path / "file"):
        pass


def test_remembered_survives_nonsense(tmp_path: Path) -> None:
    assert state.read_remembered(tmp_path) == state.Remembered()
    kept = state.Remembered({"s3": 20001}, "vault", "kafka.example.org:9093")
    state.write_remembered(tmp_path, kept)
    assert state.read_remembered(tmp_path) == kept
    (tmp_path / "stack.json").write_text('{"ports": {"s3": "x", "kafka": 3}}')
    assert state.read_remembered(tmp_path) == state.Remembered({"kafka": 3})


def test_down_of_nothing_removes_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    state.write_state(tmp_path, own_state(ticks=1))
    left = servers.weed_sockets(tmp_path, {})[0]
    left.parent.mkdir()
    left.touch()
    assert control.stop(tmp_path) is False
    assert not left.exists()
    assert not state.state_path(tmp_path).exists()


def test_describe_joins_the_workers_own_reports(tmp_path: Path) -> None:
    pid = os.getpid()
    processes = [state.ProcessState(name, pid=pid, state="ready") for name in ("a-1", "b-1")]
    state.write_state(tmp_path, own_state(processes=processes))
    (tmp_path / "run" / "a-1.json").write_bytes(orjson.dumps({"pid": pid, "time_ms": 0}))
    (tmp_path / "run" / "b-1.json").write_bytes(orjson.dumps({"pid": pid + 1, "time_ms": 0}))
    report = control.describe(tmp_path)
    assert report is not None
    first, second = report["processes"]
    assert first["stuck"] is True
    assert "health" not in second, "the report of an earlier process"
    assert control.describe(tmp_path / "other") is None


def test_identities_are_kept_and_private(tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    made = access.load_identities(path)
    assert mode(path) == 0o600
    assert access.load_identities(path) == made
    assert len({pair.secret for pair in made.values()}) == 6
    assert made["admin"].secret not in repr(made)
    path.write_text('{"identities": [{"name": "admin"}]}')
    again = access.load_identities(path)
    assert again.keys() == made.keys()


def test_only_the_owner_may_touch_everything(tmp_path: Path) -> None:
    path = tmp_path / "identities.json"
    access.load_identities(path)
    told = orjson.loads(path.read_bytes())
    rights = {one.pop("name"): one for one in told["identities"]}
    assert rights["admin"]["actions"] == ["Admin"]
    assert all(a.endswith(f":{access.BROKER_BUCKET}") for a in rights["broker"]["actions"])
    policies = {one["name"]: orjson.loads(one["content"]) for one in told["policies"]}
    for role in ("keys", "ingest", "index", "query"):
        assert rights[role]["policyNames"] == [role]
        assert "actions" not in rights[role]
        assert policies[role] == role_policy(role, access.BUCKET)


def test_variables_are_merged_into_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "stack.env"
    access.merge_env(path, {"A": "1", "B": "2"})
    access.merge_env(path, {"B": "3"})
    assert path.read_text() == "A=1\nB=3\n"
    assert mode(path) == 0o600


def test_counts_of_workers() -> None:
    assert roles.parse_counts("") == {"keys": 1, "ingest": 1, "index": 1, "query": 1}
    assert roles.parse_counts("ingest=2, index=3")["index"] == 3
    for wrong in ("other=1", "ingest", "ingest=0", "ingest=-1", "ingest=65", "ingest=x"):
        with pytest.raises(ValueError, match=r"ingest|no such"):
            roles.parse_counts(wrong)


def test_workers_get_no_setting_that_outranks_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEALSTREAM_S3_BUCKET", "production")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "production")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "production")
    monkeypatch.setenv("SEALSTREAM_TOKEN", "production")
    monkeypatch.setenv("VAULT_TOKEN", "production")
    monkeypatch.setenv("SEALSTREAM_LOG_LEVEL", "debug")
    pair = access.KeyPair("key", "secret")
    stack = access.stack_variables(dict.fromkeys(servers.PORTS, 1), pair)
    monkeypatch.setenv("SEALSTREAM_METRICS_PORT", "9100")
    env = roles.worker_env(stack, pair, {"EXTRA": "1"})
    assert env["SEALSTREAM_METRICS_PORT"] == "0"
    assert "production" not in env.values()
    assert (env["SEALSTREAM_LOG_LEVEL"], env["EXTRA"]) == ("debug", "1")
    assert env["AWS_ACCESS_KEY_ID"] == "key"


def test_socket_paths_fit_the_kernel(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    paths = servers.weed_sockets(deep, dict.fromkeys(servers.PORTS, 30000))
    assert len(set(paths)) == 6
    assert all(len(str(path)) < 108 for path in paths)


def test_a_missing_program_names_the_extra() -> None:
    with pytest.raises(StackError, match=r"sealstream\[local\]"):
        servers.find_binary("no-such-program-at-all")
