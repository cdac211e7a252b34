from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from schemas.index import MAX_MESSAGE_BYTES
from workers.cli.common import Exit
from workers.cli.items import Item
from workers.cli.sources import Sources, file_id, read_lines


def lines(data: bytes, index: str = "i") -> list[Item]:
    return [item for block in read_lines(io.BytesIO(data), "f", index) for item in block]


def items(folder: Path, *paths: str, **options) -> list[Item]:
    sources = Sources("i", paths, **options)
    sources.check()
    return [item for block in sources.blocks() for item in block]


# --- JSON lines ----------------------------------------------------------------------------------


def test_a_line_is_an_operation_on_the_index_of_the_command():
    [first, second] = lines(b'{"id":"a","content":"x"}\r\n\n  \n{"v":1,"index":"i","id":"b"}')
    assert first == Item("f:1", {"id": "a", "content": "x", "index": "i"})
    assert second == Item("f:4", {"index": "i", "id": "b"})


def test_a_byte_order_mark_is_no_json_but_common():
    assert lines(b'\xef\xbb\xbf{"id":"a"}\n')[0].operation == {"id": "a", "index": "i"}


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (b"junk", None, "not valid UTF-8 JSON"),
        (b'["a"]', None, "JSON object"),
        (b'{"id":"a","id":"b"}', "id", "twice"),
        (b'{"id":"\xff"}', None, "UTF-8"),
        (b'{"id":"a","n":NaN}', None, "JSON"),
        (b'{"v":2,"id":"a"}', "v", "must be 1"),
        (b'{"v":true,"id":"a"}', "v", "must be 1"),
        (b'{"index":"j","id":"a"}', "index", "another index"),
        (b'{"id":"a","auth":{"token":"t"}}', "auth", "leave it out"),
        (b'{"id":"a","message_id":"m"}', "message_id", "leave it out"),
    ],
)
def test_a_bad_line_is_rejected_by_itself(line, field, words):
    [bad, good] = lines(line + b'\n{"id":"good"}\n')
    assert bad.operation is None
    assert bad.error.code == "INVALID_MESSAGE"
    assert bad.error.field == field
    assert words in bad.error.message
    assert good.operation["id"] == "good"
    assert good.where == "f:2"


def test_a_line_that_is_too_long_is_skipped_without_keeping_it():
    class Small(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= 65_536
            return super().read(size)

    data = b'{"id":"' + b"x" * (3 * MAX_MESSAGE_BYTES) + b'"}\n{"id":"b"}\n'
    found = [item for block in read_lines(Small(data), "f", "i") for item in block]
    assert [item.where for item in found] == ["f:1", "f:2"]
    assert found[0].error.code == "TOO_LARGE"
    assert found[1].operation["id"] == "b"


def test_a_last_line_that_is_too_long_is_rejected_too():
    [item] = lines(b"x" * (2 * MAX_MESSAGE_BYTES))
    assert item.error.code == "TOO_LARGE"


def test_lines_come_as_the_pipe_gives_them():
    read_end, write_end = os.pipe()
    with io.FileIO(read_end) as stream, io.FileIO(write_end, "w") as pipe:
        blocks = read_lines(stream, "f", "i")
        pipe.write(b'{"id":"a"}\n{"id":"b')
        assert [item.operation["id"] for item in next(blocks)] == ["a"]
        pipe.write(b'"}\n')
        assert [item.operation["id"] for item in next(blocks)] == ["b"]


# --- files and folders ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "doc_id"),
    [
        ("a.txt", "a.txt"),
        ("./mails//a.eml", "mails/a.eml"),
        ("/data/a.txt", "data/a.txt"),
        ("../../x/a.txt", "x/a.txt"),
        ("x/../a.txt", "a.txt"),
    ],
)
def test_the_id_of_a_file_is_its_path(path, doc_id):
    assert file_id(Path(path)) == doc_id


def test_a_folder_is_read_in_order_and_only_what_is_documents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box/sub").mkdir(parents=True)
    (tmp_path / "box/.git").mkdir()
    (tmp_path / "box/.git/config.txt").write_text("hidden")
    (tmp_path / "box/b.md").write_text("# B")
    (tmp_path / "box/a.TXT").write_text("A")
    (tmp_path / "box/.hidden.txt").write_text("hidden")
    (tmp_path / "box/x.bin").write_bytes(b"\0")
    (tmp_path / "box/sub/c.jsonl").write_text('{"id":"c"}\n')
    (tmp_path / "box/link.txt").symlink_to("/etc/passwd")
    (tmp_path / "box/loop").symlink_to(".")
    sources = Sources("i", ["box"])
    sources.check()
    found = [item.operation for block in sources.blocks() for item in block]
    assert found == [
        {"index": "i", "id": "box/a.TXT", "content": "A"},
        {"index": "i", "id": "box/b.md", "content": "# B", "content_type": "text/markdown"},
        {"id": "c", "index": "i"},
    ]
    assert sources.skipped == 3


def test_a_text_that_is_not_utf8_is_rejected_by_itself(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("b")
    bad, good = items(tmp_path, str(tmp_path))
    assert bad.error.field == "content"
    assert good.operation["content"] == "b"


def test_a_large_file_is_rejected_unread(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(10 * 2**40)
    [item] = items(tmp_path, str(path), max_content_bytes=1000)
    assert item.error.code == "TOO_LARGE"


def test_a_file_that_vanishes_is_rejected_by_itself(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    sources = Sources("i", [str(path)])
    sources.check()
    path.unlink()
    [[item]] = list(sources.blocks())
    assert "cannot be read" in item.error.message


@pytest.mark.parametrize("name", ["missing.txt", "file.pdf", "--idz"])
def test_a_wrong_path_is_told_before_anything_is_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pdf").write_bytes(b"")
    with pytest.raises(Exit) as info:
        Sources("i", [name]).check()
    assert info.value.code == 2


def test_a_pipe_with_a_name_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(Exit, match="not a file"):
        Sources("i", [str(tmp_path / "p.txt")]).check()


def test_no_path_and_two_standard_inputs_are_usage():
    for paths in ([], ["-", "-"]):
        with pytest.raises(Exit):
            Sources("i", paths).check()


# --- mail ----------------------------------------------------------------------------------------


def mail(tmp_path: Path, data: bytes) -> dict:
    path = tmp_path / "m.eml"
    path.write_bytes(data)
    [item] = items(tmp_path, str(path))
    assert item.operation is not None
    return item.operation


def test_a_mail_is_stored_whole_and_read_in_parts(tmp_path):
    data = (
        b"From: Alice <Alice@Example.org>\r\nTo: bob@example.org, Carol <carol@example.org>\r\n"
        b"Cc: bob@example.org\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
        b"Date: Mon, 01 Mar 1999 10:00:00 +0100\r\n\r\nHello.\r\n"
    )
    operation = mail(tmp_path, data)
    assert operation["content"].encode() == data
    assert operation["content_type"] == "message/rfc822"
    assert operation["text"] == {"subject": "Gr\u00fc\u00dfe", "body": "Hello.\r\n"}
    assert operation["metadata"] == {
        "from": "alice@example.org",
        "to": ["bob@example.org", "carol@example.org"],
        "date": "1999-03-01T09:00:00+00:00",
    }
    json.dumps(operation).encode()


def test_of_a_mail_with_parts_the_plain_one_is_read(tmp_path):
    operation = mail(
        tmp_path,
        b"MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary=b\n\n"
        b"--b\nContent-Type: text/html\n\n<p>html</p>\n--b\nContent-Type: text/plain\n\nplain\n"
        b"--b--\n",
    )
    assert operation["text"]["body"].strip() == "plain"


def test_of_a_mail_in_html_the_words_are_read(tmp_path):
    operation = mail(
        tmp_path,
        b"Content-Type: text/html\n\n"
        b"<style>p{}</style><p>one &amp; <b>two</b></p><script>x</script>",
    )
    assert operation["text"]["body"].split() == ["one", "&", "two"]


def test_a_mail_of_bytes_is_stored_byte_for_byte(tmp_path):
    data = b"Subject: caf\xe9\nContent-Type: text/plain; charset=x-unknown\n\ncaf\xe9\n"
    operation = mail(tmp_path, data)
    assert operation["content"] == data
    for text in operation["text"].values():
        text.encode()
    assert "caf" in operation["text"]["body"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"no headers at all",
        b'From: "<>@,;:\\ \x00\xff\nTo: =?utf-8?b?////?=\nDate: yesterday\n\nx',
        b"Date: Mon, 99 Mar 99999 99:99:99 +9999\nSubject: =?x?q?y?=\n\n",
        b"Content-Type: multipart/mixed; boundary=\n\n--\n--\n",
        b'Content-Type: text/plain; charset="\nContent-Transfer-Encoding: base64\n\n@@@@',
        b"From: " + b"a@b.c," * 3000 + b"\n\nx",
    ],
)
def test_no_mail_is_too_broken_to_store(tmp_path, data):
    operation = mail(tmp_path, data)
    content = operation["content"]
    assert (content.encode() if isinstance(content, str) else content) == data
    assert len(operation["metadata"].get("to", [])) <= 200
    json.dumps([operation["text"], operation["metadata"]], ensure_ascii=False).encode()


# --- embeddings ----------------------------------------------------------------------------------


def test_rows_of_a_matrix_are_vectors_with_their_number(tmp_path):
    array = np.arange(600 * 4, dtype=np.float64).reshape(600, 4)
    np.save(tmp_path / "v.npy", array)
    found = items(tmp_path, str(tmp_path / "v.npy"))
    assert len(found) == 600
    assert found[599].operation["id"] == "599"
    assert found[599].operation["vector"].dtype == np.float32
    np.testing.assert_array_equal(found[599].operation["vector"], array[599])
    assert found[599].where.endswith("v.npy:599")


def test_ids_of_rows_come_from_a_file(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "ids").write_text("a\r\n\nc c\n")
    found = items(tmp_path, str(tmp_path / "v.npy"), ids=tmp_path / "ids")
    # An empty line is no id: the row is refused later, not stored under another name.
    assert [item.operation["id"] for item in found] == ["a", "", "c c"]


def test_there_is_one_id_for_each_row(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "ids").write_text("a\nb\n")
    with pytest.raises(Exit, match="2 lines"):
        items(tmp_path, str(tmp_path / "v.npy"), ids=tmp_path / "ids")
    with pytest.raises(Exit, match="No such file"):
        items(tmp_path, str(tmp_path / "v.npy"), ids=tmp_path / "nowhere")


def test_ids_go_with_one_array(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((1, 2), np.float32))
    np.save(tmp_path / "w.npy", np.zeros((1, 2), np.float32))
    (tmp_path / "t.txt").write_text("t")
    (tmp_path / "ids").write_text("a\n")
    for names, options in (
        (["t.txt"], {"ids": tmp_path / "ids"}),
        (["v.npy", "t.txt"], {"ids": tmp_path / "ids"}),
        (["v.npy", "w.npy"], {}),
    ):
        with pytest.raises(Exit) as info:
            items(tmp_path, *(str(tmp_path / name) for name in names), **options)
        assert info.value.code == 2


@pytest.mark.parametrize(
    "array", [np.zeros(4), np.zeros((2, 2, 2)), np.array([["a"]]), np.zeros((1, 2), complex)]
)
def test_only_matrices_of_numbers_are_read(tmp_path, array):
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(Exit, match="matrix of numbers"):
        items(tmp_path, str(tmp_path / "v.npy"))


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "v.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(Exit, match=r"not a \.npy file of numbers"):
        items(tmp_path, str(tmp_path / "v.npy"))
    (tmp_path / "w.npy").write_bytes(b"junk")
    with pytest.raises(Exit, match=r"not a \.npy file of numbers"):
        items(tmp_path, str(tmp_path / "w.npy"))


def test_parquet_without_its_library_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(Exit, match="pip install pyarrow") as info:
        items(tmp_path, str(tmp_path / "t.parquet"))
    assert info.value.code == 2


def test_columns_of_a_parquet_table(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import datetime as dt

    table = arrow.table(
        {
            "_id": [7, 8],
            "text": ["one", None],
            "embedding": arrow.array([[1.0, 2.0], [3.0, 4.0]], arrow.list_(arrow.float32(), 2)),
            "lang": ["en", None],
            "year": [1999, 2000],
            "tags": [["a"], []],
            "seen": [dt.datetime(1999, 1, 2), None],
            "nested": [{"x": 1}, None],
            "ratio": [float("nan"), 0.5],
        }
    )
    __import__("pyarrow.parquet").parquet.write_table(table, tmp_path / "t.parquet")
    first, second = items(tmp_path, str(tmp_path / "t.parquet"))
    vector = first.operation.pop("vector")
    np.testing.assert_array_equal(vector, np.array([1, 2], np.float32))
    assert first.operation == {
        "index": "i",
        "id": "7",
        "content": "one",
        "metadata": {"lang": "en", "year": 1999, "tags": ["a"], "seen": "1999-01-02T00:00:00"},
    }
    assert "content" not in second.operation
    assert second.operation["metadata"] == {"year": 2000, "tags": [], "ratio": 0.5}
    (tmp_path / "ids").write_text("a\nb\n")
    named = items(tmp_path, str(tmp_path / "t.parquet"), ids=tmp_path / "ids")
    assert [item.operation["id"] for item in named] == ["a", "b"]


def test_a_parquet_table_needs_an_id_and_something_to_store(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    write = __import__("pyarrow.parquet").parquet.write_table
    write(arrow.table({"content": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(Exit, match="column id"):
        items(tmp_path, str(tmp_path / "t.parquet"))
    write(arrow.table({"id": ["a"]}), tmp_path / "u.parquet")
    with pytest.raises(Exit, match="neither"):
        items(tmp_path, str(tmp_path / "u.parquet"))
    (tmp_path / "v.parquet").write_bytes(b"junk")
    with pytest.raises(Exit, match=r"not a \.parquet file"):
        items(tmp_path, str(tmp_path / "v.parquet"))
