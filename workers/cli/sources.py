"""Where `sealstream ingest` reads from: JSON lines, text, mail, folders, embeddings, stdin.

A source is an iterator of blocks, lists of `Item`, so that memory is bounded by one block and a
slow pipe hands on what it has. What is wrong with one item becomes that item's error; only what is
wrong with the arguments ends the command, and it does so before anything is read.

The id of a file is its path as it was given (or found in a folder that was given), with `/`,
without a leading `/`, `./` or `../`.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.codec import parse
from schemas.errors import ErrorCode, InvalidMessage
from schemas.index import MAX_MESSAGE_BYTES
from workers.cli.common import USAGE, complain, fail
from workers.cli.items import Block, Item
from workers.cli.show import printable

STDIN: Final = "-"
_BLOCK_BYTES: Final = 65_536
_ADDED: Final = ("auth", "reply", "message_id", "issued_ms")
_ARRAYS: Final = (".npy", ".parquet")
_DOCUMENTS: Final = (".txt", ".md", ".eml")


@dataclass(slots=True)
class Sources:
    """All that one command ingests.

    Attributes:
        index: where to.
        paths: files, folders or `-`.
        ids: file with one id a line for the rows of an array.
        max_content_bytes: larger files are refused unread.
        skipped: files of other kinds in the folders, counted while reading.
    """

    index: str
    paths: Sequence[str]
    ids: Path | None = None
    max_content_bytes: int = 512 * 1024
    skipped: int = 0

    def check(self) -> None:
        """Look at the arguments.

        Raises:
            Exit: a path is missing or of a kind that is not read; `--ids` does not fit.
        """
        if not self.paths:
            fail("give files, folders, or - for standard input", USAGE)
        if self.paths.count(STDIN) > 1:
            fail("standard input can be read once", USAGE)
        for name in self.paths:
            if name != STDIN:
                _check_path(name)
        arrays = [name for name in self.paths if Path(name).suffix.lower() in _ARRAYS]
        if self.ids is not None and (len(arrays) != 1 or len(self.paths) != 1):
            fail("--ids goes with exactly one .npy or .parquet file", USAGE)
        if sum(Path(name).suffix.lower() == ".npy" for name in arrays) > 1:
            fail("row numbers of several .npy files would collide: ingest them one by one", USAGE)
        if arrays:
            from workers.cli.arrays import check_array

            for name in arrays:
                check_array(Path(name), self.ids)

    def blocks(self) -> Iterator[Block]:
        """Read everything, in the order given; folders in the order of their names."""
        for name in self.paths:
            if name == STDIN:
                if sys.stdin.isatty():
                    complain("reading JSON lines from the terminal; Ctrl-D ends them")
                with open_stdin() as stream:
                    yield from read_lines(stream, "stdin", self.index)
            elif Path(name).is_dir():
                for path in self._walk(Path(name)):
                    yield from self._file(path)
            else:
                yield from self._file(Path(name))

    def _file(self, path: Path) -> Iterator[Block]:
        where = printable(str(path))
        kind = path.suffix.lower()
        try:
            if kind == ".jsonl":
                with path.open("rb", buffering=0) as stream:
                    yield from read_lines(stream, where, self.index)
            elif kind in _ARRAYS:
                from workers.cli.arrays import read_array

                yield from read_array(path, where, self.index, self.ids)
            else:
                yield [self._document(path, where)]
        except OSError as error:
            yield [Item.wrong(where, f"cannot be read: {error.strerror or type(error).__name__}")]

    def _document(self, path: Path, where: str) -> Item:
        with path.open("rb") as file:
            data = file.read(self.max_content_bytes + 1)
        if len(data) > self.max_content_bytes:
            message = f"the content has more than {self.max_content_bytes} bytes"
            return Item.wrong(where, message, field="content", code=ErrorCode.TOO_LARGE)
        operation: dict[str, Any] = {"index": self.index, "id": file_id(path)}
        if path.suffix.lower() == ".eml":
            from workers.cli.mail import read_mail

            return Item(where, operation | read_mail(data))
        try:
            operation["content"] = data.decode()
        except UnicodeDecodeError:
            return Item.wrong(where, "a text file must be UTF-8", field="content")
        if path.suffix.lower() == ".md":
            operation["content_type"] = "text/markdown"
        return Item(where, operation)

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Yield the readable kinds of files below `folder`; hidden ones and links are left out."""
        for root, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = Path(root, name)
                readable = path.suffix.lower() in (*_DOCUMENTS, ".jsonl")
                if not name.startswith(".") and readable and not path.is_symlink():
                    yield path
                else:
                    self.skipped += 1


def _check_path(name: str) -> None:
    shown = printable(name)
    try:
        mode = Path(name).stat().st_mode
    except OSError as error:
        fail(f"{shown}: {error.strerror or 'cannot be read'}", USAGE)
    if stat.S_ISDIR(mode):
        return
    if not stat.S_ISREG(mode):
        fail(f"{shown}: not a file or folder (pipe it in: - reads standard input)", USAGE)
    kind = Path(name).suffix.lower()
    if kind not in (".jsonl", *_DOCUMENTS, *_ARRAYS):
        known = " ".join((".jsonl", *_DOCUMENTS, *_ARRAYS))
        fail(f"{shown}: a kind of file that is not read; known are {known}", USAGE)


def file_id(path: Path) -> str:
    """Return the id of a file's document: its path, see the module."""
    parts = [part for part in Path(os.path.normpath(path)).parts if part != ".."]
    return "/".join(part for part in parts if part != path.anchor)


def open_stdin() -> io.FileIO:
    """Return standard input without a buffer.

    A read gives what is there, and holds no lock that a thread could keep when the interpreter
    ends.
    """
    return io.FileIO(sys.stdin.fileno(), closefd=False)


def read_lines(stream: io.RawIOBase, name: str, index: str) -> Iterator[Block]:
    """Yield the operations of a stream of JSON lines, as they arrive."""
    for lines in _split(stream.read):
        items = [_from_line(line, f"{name}:{number}", index) for number, line in lines]
        found = [item for item in items if item is not None]
        if found:
            yield found


def _split(read: Callable[[int], bytes | None]) -> Iterator[list[tuple[int, bytes | None]]]:
    """Yield numbered lines; None stands for one that is longer than any message may be."""
    rest, number, too_long = b"", 0, False
    while block := read(_BLOCK_BYTES):
        *ended, rest = (rest + block).split(b"\n")
        lines: list[tuple[int, bytes | None]] = []
        for line in ended:
            number += 1
            lines.append((number, None if too_long or len(line) > MAX_MESSAGE_BYTES else line))
            too_long = False
        if len(rest) > MAX_MESSAGE_BYTES:
            too_long, rest = True, b""
        yield lines
    if rest or too_long:
        yield [(number + 1, None if too_long else rest)]


def _from_line(line: bytes | None, where: str, index: str) -> Item | None:
    if line is None:
        message = f"a line is longer than {MAX_MESSAGE_BYTES} bytes"
        return Item.wrong(where, message, code=ErrorCode.TOO_LARGE)
    line = line.removeprefix(b"\xef\xbb\xbf").strip()
    if not line:
        return None
    try:
        body = parse(line)
        version = body.pop("v", 1)
        if type(version) is not int or version != 1:
            raise InvalidMessage("must be 1", "v")
        for name in _ADDED:
            if name in body:
                raise InvalidMessage("is added by the command: leave it out", name)
        if body.setdefault("index", index) != index:
            raise InvalidMessage("is another index than the command's", "index")
    except InvalidMessage as error:
        return Item(where, error=error.info())
    return Item(where, body)
