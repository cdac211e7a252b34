from __future__ import annotations

import json

import numpy as np
import pytest

from schemas.errors import ErrorCode, ErrorInfo
from schemas.query import Hit, QueryResult
from schemas.values import Binary, Vector
from workers.cli.show import cell, for_terminal, moment, printable
from workers.client.query import QUERY_S
from workers.errors import Reject

UUID = "00000000-0000-4000-8000-000000000000"


def result(*hits: Hit, **fields) -> QueryResult:
    return QueryResult(request_id=UUID, status="ok", hits=list(hits), **fields)


def query_of(client) -> dict:
    return client.calls[0][1]["query"]


def test_words(run, client):
    client.result = result(Hit(id="a", score=1.5), Hit(id="b", denied=True))
    done = run("search", "i", "quick fox")
    assert done.code == 0
    assert query_of(client) == {"text": "quick fox"}
    options = client.calls[0][1]
    assert options["include"] == ["score"]
    assert options["filter"] is None
    assert options["top_k"] is None
    assert options["timeout_s"] == QUERY_S
    [titles, first, second] = done.out.splitlines()
    assert titles.split() == ["id", "score", "denied"]
    assert first.split() == ["1", "a", "1.5"]
    assert second.split() == ["2", "b", "yes"]


def test_every_option(run, client):
    client.result = result()
    done = run(
        *("search", "i", "fox", "--filter", '{"year": {"$gte": 1990}}', "--top-k", "3"),
        *("--include", "score,metadata", "--include", "content", "--syntax", "--timeout", "2"),
    )
    assert (done.code, done.out) == (0, "nothing found\n")
    assert query_of(client) == {"text": "fox", "syntax": True}
    options = client.calls[0][1]
    assert options["filter"] == {"year": {"$gte": 1990}}
    assert options["top_k"] == 3
    assert options["include"] == ["score", "metadata", "content"]
    assert options["timeout_s"] == 2.0


def test_a_keyword(run, client):
    client.result = result(Hit(id="a"))
    assert run("search", "i", "--keyword", "k 1").code == 0
    assert query_of(client) == {"keyword": "k 1"}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("v.npy", lambda path: np.save(path, np.array([1, 2], np.float64))),
        ("v2.npy", lambda path: np.save(path, np.array([[1, 2]], np.int32))),
        ("v.json", lambda path: path.write_text("[1, 2.0]")),
        ("w.json", lambda path: path.write_text('{"f32": "AACAPwAAAEA="}')),
    ],
)
def test_a_vector_from_a_file(run, client, tmp_path, name, write):
    write(tmp_path / name)
    client.result = result()
    assert run("search", "i", "--vector", name).code == 0
    assert Vector.from_json(query_of(client)["vector"]).array.tolist() == [1, 2]


def test_words_and_a_vector_are_hybrid(run, client, tmp_path):
    (tmp_path / "v.json").write_text("[1]")
    client.result = result()
    assert run("search", "i", "fox", "--vector", "v.json", "--alpha", "0.25").code == 0
    hybrid = query_of(client)["hybrid"]
    assert hybrid["text"] == "fox"
    assert hybrid["alpha"] == 0.25
    assert "f32" in hybrid["vector"]


def test_words_and_their_embedding(run, client, monkeypatch):
    class Model:
        def embed(self, texts):
            return np.ones((len(texts), 2), np.float32)

    monkeypatch.setattr("workers.cli.embed.open_embedder", Model)
    client.result = result()
    assert run("search", "i", "fox", "--embed").code == 0
    assert "hybrid" in query_of(client)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fox", "--keyword", "k"),
        ("--keyword", "k", "--vector", "v.json"),
        ("--embed",),
        ("fox", "--embed", "--vector", "v.json"),
        ("fox", "--alpha", "0.5"),
        ("--vector", "v.json", "--alpha", "0.5"),
        ("--vector", "v.json", "--syntax"),
        ("--vector", "nowhere.npy"),
        ("--vector", "bad.json"),
        ("--vector", "bad.npy"),
        ("--vector", "matrix.npy"),
        ("fox", "--filter", "{"),
        ("fox", "--filter", "[]"),
        ("fox", "--filter", '{"a": {"$like": "x"}}'),
        ("fox", "--filter", '{"a": 1, "a": 2}'),
        ("fox", "--include", "everything"),
        ("fox", "--top-k", "some"),
    ],
)
def test_bad_usage_sends_nothing(run, client, tmp_path, arguments):
    (tmp_path / "v.json").write_text("[1]")
    (tmp_path / "bad.json").write_text('{"f32": 1}')
    (tmp_path / "bad.npy").write_text("x")
    np.save(tmp_path / "matrix.npy", np.ones((2, 2)))
    done = run("search", "i", *arguments)
    assert done.code == 2
    assert done.err
    assert not client.calls


def test_json_is_the_result_of_the_contract(run, client):
    client.result = result(
        Hit(id="a\x1b", score=1.0, content=Binary.of(b"\0"), vector=Vector.of([1.0])), took_ms=2.0
    )
    found = run("search", "i", "fox", "--json").json
    assert found["status"] == "ok"
    assert found["hits"] == [
        {"id": "a\x1b", "score": 1.0, "content": {"base64": "AA=="}, "vector": {"f32": "AACAPw=="}}
    ]


def test_explain_goes_to_standard_error(run, client):
    client.result = result(
        Hit(id="a"), explain={"gets": 3, "storage_learns": ["the time", "sizes\x1b[2J"]}
    )
    done = run("search", "i", "fox", "--explain")
    assert client.calls[0][1]["explain"] is True
    assert "gets: 3" in done.err
    assert "storage_learns: the time; sizes\ufffd[2J" in done.err


def test_documents_cannot_act_on_the_terminal(run, client):
    evil = "\x1b]0;owned\x07\u202etxt\nsecond line"
    client.result = result(
        Hit(id=evil, content=evil, metadata={evil: evil}, score=float("inf")),
        Hit(id="[bold]markup[/bold]"),
    )
    done = run("search", "i", "fox")
    assert not {"\x1b", "\x07", "\u202e"} & set(done.out)
    assert "[bold]markup[/bold]" in done.out
    assert len(done.out.splitlines()) == 3


def test_get_prints_documents_in_the_order_asked(run, client):
    client.documents = {
        "a": Hit(id="a", content="first\nsecond\x1b", content_type="text/plain", version=3),
        "b": Hit(id="b", content=Binary.of(b"From: x\n\nmail"), metadata={"n": 1}),
        "c": Hit(id="c", content=Binary.of(b"\xff\x00")),
    }
    done = run("get", "i", "c", "a", "b", "a")
    assert done.code == 0
    assert client.calls[0][1]["ids"] == ["c", "a", "b"]
    assert client.calls[0][1]["include"] == ["metadata", "content"]
    lines = done.out.splitlines()
    assert lines[:2] == ["c", "  content: 2 bytes"]
    assert "first" in lines
    assert "second\ufffd" in lines
    assert "  version: 3" in lines
    assert '  metadata: {"n":1}' in lines
    assert lines[-1] == "mail"


def test_get_tells_what_is_missing_or_denied(run, client):
    client.documents = {"a": Hit(id="a"), "b": Hit(id="b", denied=True)}
    done = run("get", "i", "a", "b", "\x1bc", "--json")
    assert done.code == 1
    assert [hit["id"] for hit in done.json] == ["a", "b"]
    assert "NOT_FOUND: b" in done.err
    assert "NOT_FOUND: \ufffdc" in done.err


def test_get_asks_in_parts_and_smaller_ones_if_too_large(run, client, monkeypatch):
    client.documents = {str(n): Hit(id=str(n)) for n in range(250)}
    sizes = []
    answer = type(client).get

    async def limited(self, index, ids, **options):
        sizes.append(len(ids))
        if len(ids) > 30:
            raise Reject(ErrorCode.TOO_LARGE, "ask for less")
        return await answer(self, index, ids, **options)

    monkeypatch.setattr(type(client), "get", limited)
    done = run("get", "i", *client.documents, "--json")
    assert done.code == 0
    assert [hit["id"] for hit in done.json] == list(client.documents)
    assert max(sizes) == 100


def test_one_document_that_is_too_large_is_refused(run, client):
    client.failure = Reject(ErrorCode.TOO_LARGE, "ask for less")
    assert run("get", "i", "a").code == 1


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ("text \u00e4\x1b\r\n", "text \u00e4\x1b\r\n".encode()),
        (Binary.of(b"\xff\x00"), b"\xff\x00"),
    ],
)
def test_raw_writes_the_content_and_nothing_else(run, client, content, written):
    client.documents = {"a": Hit(id="a", content=content, metadata={"n": 1})}
    done = run("get", "i", "a", "--raw")
    assert (done.code, done.raw) == (0, written)
    assert client.calls[0][1]["include"] == ["content"]


def test_raw_is_for_one_document_with_a_content(run, client):
    client.documents = {"a": Hit(id="a")}
    assert run("get", "i", "a", "b", "--raw").code == 2
    assert run("get", "i", "a", "--raw", "--json").code == 2
    assert run("get", "i", "--raw").code == 2
    assert run("get", "i", "a", "--raw").code == 1
    assert run("get", "i", "z", "--raw").code == 1


def test_delete_counts_and_tells_refusals(run, client):
    client.refuse = {"b": ErrorInfo(code=ErrorCode.CONFLICT, message="changed")}
    done = run("delete", "i", "a", "b", "--wait", "searchable")
    assert done.code == 1
    assert done.out == "deleted 1, refused 1\n"
    assert "CONFLICT: changed: b" in done.err
    assert client.operations[0] == {"op": "delete", "index": "i", "id": "a"}
    assert client.calls[0][1]["wait"] == "searchable"
    assert run("delete", "i", "a", "b", "--json").json == {
        "deleted": ["a"],
        "refused": [{"id": "b", "error": {"code": "CONFLICT", "message": "changed"}}],
    }
    assert run("delete", "i", "a").code == 0
    assert run("delete", "i").code == 2


def test_count(run, client):
    done = run("count", "i", "--filter", '{"lang": "en"}')
    assert (done.code, done.out) == (0, "42\n")
    assert client.calls[0][1]["filter"] == {"lang": "en"}
    assert run("count", "i", "--json").json == {"index": "i", "count": 42}
    assert run("count", "i", "--filter", "x").code == 2


def test_ids(run, client):
    client.documents = {one: Hit(id=one) for one in ("a", 'b"\n', "c")}
    assert run("ids", "i").out == 'a\nb"\n\nc\n'
    assert run("ids", "i", "--json").json == ["a", 'b"\n', "c"]
    client.documents = {}
    assert run("ids", "i", "--json").json == []
    assert run("ids", "i").out == ""


def test_printable_text():
    assert printable("a\x1b\x7f\x9b\u202e\ud800\u00e4\u4e2d") == "a" + "\ufffd" * 5 + "\u00e4\u4e2d"
    assert printable("a\r\nb\tc") == "a b c"
    assert printable("a\r\nb\tc", lines=True) == "a\nb\tc"
    assert cell("x" * 100) == "x" * 57 + "..."
    assert cell(" a\n\n b ") == "a b"
    assert json.dumps(for_terminal("\x1b")) == json.dumps("\x1b")


def test_moments():
    assert moment(0) == "1970-01-01 00:00:00Z"
    assert moment(-1) == moment(None) == moment(2**63) == moment("x") == ""
