"""Read embeddings: .npy matrices and .parquet tables, a block of rows at a time.

A .npy row is a document with nothing but a vector. In a .parquet table `id` (or `_id`) is the id,
`vector` (or `embedding`, `emb`) the vector, `content` (or `text`, `body`) the content; every other
column of strings, numbers, booleans, times or lists of these is metadata.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from workers.cli.common import USAGE, fail
from workers.cli.items import Block, Item
from workers.cli.show import printable

_ROWS: Final = 256
_ID_COLUMNS: Final = ("id", "_id")
_VECTOR_COLUMNS: Final = ("vector", "embedding", "emb")
_CONTENT_COLUMNS: Final = ("content", "text", "body")


def check_array(path: Path, ids: Path | None) -> None:
    """Look at a file's shape, and whether there is an id for each row.

    Raises:
        Exit: it is no matrix or table of the described kind, `ids` has another number of lines,
            or the library for it is not installed.
    """
    rows = _check_parquet(path, ids) if path.suffix.lower() == ".parquet" else len(_load(path))
    if ids is not None:
        try:
            with ids.open("rb") as file:
                lines = sum(1 for _ in file)
        except OSError as error:
            fail(f"--ids {printable(str(ids))}: {error.strerror or 'cannot be read'}", USAGE)
        if lines != rows:
            shown = printable(str(path))
            fail(f"--ids has {lines} lines, {shown} has {rows} rows: one id a line", USAGE)


def read_array(path: Path, where: str, index: str, ids: Path | None) -> Iterator[Block]:
    """Yield the rows of a file that `check_array` has seen."""
    names = None if ids is None else _ids(ids)
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _npy_rows(path)
    for block in rows:
        items = []
        for number, fields in block:
            own = fields.pop("id", str(number))
            doc_id = own if names is None else next(names, "")
            items.append(Item(f"{where}:{number}", {"index": index, "id": doc_id, **fields}))
        yield items


Rows = Iterator[list[tuple[int, dict[str, Any]]]]


def _ids(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for line in file:
            yield line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def _load(path: Path) -> np.ndarray[Any, Any]:
    shown = printable(str(path))
    try:
        # Never unpickle: it runs what the file says.
        loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        fail(f"{shown}: not a .npy file of numbers", USAGE)
    except OSError as error:
        fail(f"{shown}: {error.strerror or 'cannot be read'}", USAGE)
    if not isinstance(loaded, np.ndarray) or loaded.ndim != 2 or loaded.dtype.kind not in "fiu":
        fail(f"{shown}: must be a matrix of numbers, one row a vector", USAGE)
    return loaded


def _npy_rows(path: Path) -> Rows:
    array = _load(path)
    for start in range(0, len(array), _ROWS):
        with np.errstate(over="ignore"):
            block = np.asarray(array[start : start + _ROWS], dtype=np.float32)
        yield [(start + number, {"vector": row}) for number, row in enumerate(block)]


def _check_parquet(path: Path, ids: Path | None) -> int:
    """Return the number of rows."""
    shown = printable(str(path))
    try:
        parquet = _parquet()
    except ImportError:
        fail(f"{shown}: reading .parquet needs pyarrow: pip install pyarrow", USAGE)
    try:
        with parquet.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, int(file.metadata.num_rows)
    except (OSError, ValueError):
        fail(f"{shown}: not a .parquet file", USAGE)
    if ids is None and not _column(names, _ID_COLUMNS):
        fail(f"{shown}: has no column id; give --ids FILE", USAGE)
    if not _column(names, _VECTOR_COLUMNS) and not _column(names, _CONTENT_COLUMNS):
        fail(f"{shown}: has neither a column vector nor a column content", USAGE)
    return rows


def _parquet() -> Any:
    return import_module("pyarrow.parquet")


def _parquet_rows(path: Path) -> Rows:
    with _parquet().ParquetFile(path) as file:
        names = file.schema_arrow.names
        chosen = {
            "id": _column(names, _ID_COLUMNS),
            "vector": _column(names, _VECTOR_COLUMNS),
            "content": _column(names, _CONTENT_COLUMNS),
        }
        number = 0
        for batch in file.iter_batches(batch_size=_ROWS):
            rows = [_parquet_row(row, chosen) for row in batch.to_pylist()]
            yield [(number + offset, fields) for offset, fields in enumerate(rows)]
            number += len(rows)


def _column(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _parquet_row(row: dict[str, Any], chosen: dict[str, str | None]) -> dict[str, Any]:
    fields = {
        field: row.pop(column)
        for field, column in chosen.items()
        if column is not None and row[column] is not None
    }
    if "id" in fields:
        fields["id"] = str(fields["id"])
    if "vector" in fields:
        fields["vector"] = np.asarray(fields["vector"], dtype=np.float32)
    metadata = {name: plain for name, value in row.items() if (plain := _plain(value)) is not None}
    return {**fields, "metadata": metadata} if metadata else fields


def _plain(value: Any) -> Any:
    """Return a value as metadata may have it, or None."""
    match value:
        case bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case list():
            plain = [_plain(item) for item in value]
            nested = any(item is None or isinstance(item, list) for item in plain)
            return None if nested else plain
        case _:
            return None
