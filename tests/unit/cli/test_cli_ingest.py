from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from schemas.errors import ErrorCode, ErrorInfo
from workers.cli.embed import embedded
from workers.cli.ingest import in_thread
from workers.cli.items import Item
from workers.errors import Reject, Retry

REFUSAL = ErrorInfo(code=ErrorCode.FORBIDDEN, message="not yours", field="groups")


def write_lines(path, count):
    path.write_text("".join(f'{{"id":"d{n}","content":"c{n}"}}\n' for n in range(count)))


def test_everything_accepted_is_exit_code_0(run, client, tmp_path):
    write_lines(tmp_path / "a.jsonl", 1000)
    (tmp_path / "t.txt").write_text("text")
    done = run("ingest", "i", "a.jsonl", "t.txt")
    assert done.code == 0
    assert "accepted 1,001, rejected 0" in done.out
    assert [one["id"] for one in client.operations] == [f"d{n}" for n in range(1000)] + ["t.txt"]
    assert client.calls == [("ingest_many", {"wait": "accepted", "timeout_s": 300.0})]


def test_rejections_are_counted_and_shown_with_their_place(run, client, tmp_path):
    write_lines(tmp_path / "a.jsonl", 3)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("junk\n")
    client.refuse = {"d1": REFUSAL}
    done = run("ingest", "i", "a.jsonl", "--wait", "searchable", "--timeout", "9")
    assert done.code == 1
    assert "accepted 2, rejected 2" in done.out
    assert "rejected a.jsonl:2 (d1): FORBIDDEN: not yours (field groups)" in done.err
    assert "rejected a.jsonl:4: INVALID_MESSAGE: not valid UTF-8 JSON" in done.err
    assert client.calls == [("ingest_many", {"wait": "searchable", "timeout_s": 9.0})]


def test_the_summary_as_json(run, client, tmp_path):
    write_lines(tmp_path / "a.jsonl", 30)
    client.refuse = {f"d{n}": REFUSAL for n in range(25)}
    done = run("ingest", "i", "a.jsonl", "--json")
    assert done.code == 1
    report = done.json
    assert report["accepted"] == 5
    assert report["rejected"] == 25
    assert report["unanswered"] == report["skipped_files"] == 0
    assert len(report["rejections"]) == 20
    assert report["rejections"][0] == {
        "source": "a.jsonl:1",
        "id": "d0",
        "error": {"code": "FORBIDDEN", "message": "not yours", "field": "groups"},
    }


def test_only_the_first_rejections_are_shown(run, client, tmp_path):
    (tmp_path / "a.jsonl").write_text("junk\n" * 50)
    done = run("ingest", "i", "a.jsonl")
    assert done.err.count("rejected a.jsonl") == 20
    assert "and 30 more" in done.err


def test_an_outage_tells_how_far_it_came(run, client, tmp_path):
    write_lines(tmp_path / "a.jsonl", 10)
    client.failure, client.fail_after = Retry(ErrorCode.DEADLINE_EXCEEDED, "no result"), 4
    done = run("ingest", "i", "a.jsonl")
    assert done.code == 3
    assert "accepted 4" in done.out
    assert "without an answer: 1" in done.out
    assert "DEADLINE_EXCEEDED" in done.err


def test_an_unknown_index_is_refused(run, client, tmp_path):
    write_lines(tmp_path / "a.jsonl", 10)
    client.failure, client.fail_after = Reject(ErrorCode.UNKNOWN_INDEX, "no such index"), 0
    done = run("ingest", "i", "a.jsonl")
    assert (done.code, "UNKNOWN_INDEX" in done.err) == (1, True)


def test_bad_usage_sends_nothing(run, client, tmp_path):
    write_lines(tmp_path / "a.jsonl", 1)
    for arguments in ((), ("nowhere.txt",), ("a.jsonl", "nowhere.txt"), ("a.jsonl", "--oops")):
        assert run("ingest", "i", *arguments).code == 2
    assert not client.calls


def test_standard_input_is_read(run, client, monkeypatch):
    monkeypatch.setattr(
        "workers.cli.sources.open_stdin", lambda: io.BytesIO(b'{"id":"a"}\n{"id":"b"}\n')
    )
    done = run("ingest", "i", "-")
    assert done.code == 0
    assert [one["id"] for one in client.operations] == ["a", "b"]


def test_the_index_key_goes_to_the_client(run, client, tmp_path):
    write_lines(tmp_path / "a.jsonl", 1)
    (tmp_path / "k").write_bytes(b"k" * 32)
    assert run("ingest", "i", "a.jsonl", "--index-key", "k").code == 0
    assert client.keys == [b"k" * 32]


def test_hostile_names_do_not_reach_the_terminal(run, client, tmp_path):
    folder = tmp_path / "box"
    folder.mkdir()
    hostile = folder / os.fsdecode(b"\x1b]0;x\x07\xff.jsonl")
    hostile.write_bytes(b'{"id":"\\u001b[2Jd"}\n')
    client.refuse = {"\x1b[2Jd": REFUSAL}
    done = run("ingest", "i", "box")
    assert done.code == 1
    assert "\x1b" not in done.err + done.out
    assert run("ingest", "i", "box", "--json").json["rejected"] == 1


class Lengths:
    """A model whose vector says how long the text is."""

    dimension = 2

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts):
        self.texts += texts
        return np.array([[len(text), 1] for text in texts], np.float32).reshape(-1, 2)


def test_documents_without_a_vector_get_one():
    given = np.ones(2, np.float32)
    operations = [
        {"id": "a", "content": " words "},
        {"id": "b", "text": {"title": "t", "body": "b"}, "content": "not this"},
        {"id": "c", "content": "c", "vector": given},
        {"id": "d", "op": "delete"},
        {"id": "e", "content": b"bytes"},
        {"id": "f", "content": "  "},
        {"id": "g", "text": "wrong type"},
        {"id": "h", "op": "add_keywords", "keywords": ["k"]},
    ]
    model = Lengths()
    block = [Item("f", operation) for operation in operations]
    block.append(Item.wrong("f", "bad"))
    [out] = embedded(iter([block]), model)
    assert out is block
    assert model.texts == ["words", "t\nb"]
    vectors = {op["id"]: op["vector"] for op in operations if "vector" in op}
    assert set(vectors) == {"a", "b", "c"}
    assert vectors["a"].tolist() == [5, 1]
    assert vectors["c"] is given


def test_embed_uses_the_packaged_model(run, client, tmp_path, monkeypatch):
    monkeypatch.setattr("workers.cli.embed.open_embedder", Lengths)
    write_lines(tmp_path / "a.jsonl", 2)
    assert run("ingest", "i", "a.jsonl", "--embed").code == 0
    assert client.operations[0]["vector"].tolist() == [2, 1]


def test_embed_without_the_model_is_a_clear_error(run, client, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wordllama", None)
    write_lines(tmp_path / "a.jsonl", 1)
    done = run("ingest", "i", "a.jsonl", "--embed")
    assert done.code == 2
    assert "sealstream[embed]" in done.err


# --- the thread that reads -----------------------------------------------------------------------


async def test_values_come_in_order_and_end():
    assert [value async for value in in_thread(iter(range(100)))] == list(range(100))


async def test_the_thread_is_at_most_two_values_ahead():
    made = []

    def values() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    async for value in in_thread(values()):
        assert len(made) <= value + 4


async def test_what_the_source_raises_is_raised_here():
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    values = in_thread(broken())
    assert await anext(values) == 1
    with pytest.raises(OSError, match="gone"):
        await anext(values)


async def test_a_read_that_never_returns_holds_nothing_up():
    never = threading.Event()

    def stuck() -> Iterator[int]:
        yield 1
        never.wait()

    async def follow() -> None:
        async for _ in in_thread(stuck()):
            seen.set()

    seen = asyncio.Event()
    task = asyncio.create_task(follow())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    never.set()


def test_json_and_progress_do_not_mix(run, client, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    write_lines(tmp_path / "a.jsonl", 2)
    done = run("ingest", "i", "a.jsonl", "--json")
    assert json.loads(done.out)["accepted"] == 2
