"""Evaluate filters over the metadata of many rows at once.

Semantics, for a condition on one field of one document:

- A field has a *list of values*: a list value has its elements, any other value itself alone, a
  missing field none. A condition holds if **any** value satisfies it. Two conditions on one field
  may be satisfied by different elements.
- There are three classes of values: numbers, strings, booleans. Values of different classes are
  never equal and never ordered: `{"year": {"$gt": 1990}}` does not see the year "1991", and `true`
  is not 1. Integers and floats compare by value (1 equals 1.0), exactly, at any size.
- `$eq v`: some value equals v. `$in [...]`: some value equals one of them.
- `$ne` and `$nin` are the negations of `$eq` and `$in`: they hold for a missing field.
- `$gt $gte $lt $lte v`: some value of v's class compares so. Strings compare by code point.
- `$prefix s`: some string value begins with s.
- `$exists true`: the field is there, even as an empty list; `false`: it is not.
- `$and $or $not` are plain logic over whole documents. An empty `$and` holds, an empty `$or` does
  not.

A document without metadata has no fields; so has a keyword pair without a document.

Columns are built once for a segment: numbers in one array, strings as codes into a sorted list of
distinct strings, so that equality, ranges and prefixes are one comparison over integers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.errors import ErrorCode
from schemas.filter import And, Compare, Filter, FilterOp, Not, Or
from schemas.ingest import MetadataValue
from workers.errors import Damaged
from workers.text.varint import Ints

Mask = npt.NDArray[np.bool_]
_EXACT_FLOAT: Final = 2**53
MISSING: Final = 3
_metadata: Final = msgspec.msgpack.Decoder(dict[str, MetadataValue])
_NEGATIVE: Final = {FilterOp.NE: FilterOp.EQ, FilterOp.NIN: FilterOp.IN}


@dataclass(slots=True)
class _Building:
    rows: list[int] = field(default_factory=list)
    number_rows: list[int] = field(default_factory=list)
    numbers: list[int | float] = field(default_factory=list)
    string_rows: list[int] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    bool_rows: list[int] = field(default_factory=list)
    bools: list[bool] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FieldColumn:
    """All values of one field over n rows.

    Attributes:
        rows: int64, rows that have the field, increasing.
        number_rows: int64, row of each number.
        numbers: float64, or object where an integer does not fit a float64 exactly.
        string_rows: int64, row of each string.
        codes: int64, index of each string in `strings`.
        strings: distinct strings, sorted.
        bool_rows: int64, row of each boolean.
        bools: the booleans.
    """

    rows: Ints
    number_rows: Ints
    numbers: npt.NDArray[Any]
    string_rows: Ints
    codes: Ints
    strings: list[str]
    bool_rows: Ints
    bools: Mask


@dataclass(frozen=True, slots=True)
class MetadataColumns:
    """The metadata of n rows by field.

    Attributes:
        rows: n.
        fields: one column for each field that occurs.
        size_bytes: about what they hold in memory.
    """

    rows: int
    fields: dict[str, FieldColumn]
    size_bytes: int


def decode_metadata(value: bytes) -> dict[str, Any]:
    """Return the metadata of one row.

    Raises:
        Damaged: it is none that the contract knows. An ingest worker wrote it and nobody after it
            looked inside.
    """
    if not value:
        return {}
    try:
        return _metadata.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Damaged(ErrorCode.DAMAGED, "the metadata of a document does not decode") from error


def build_columns(metadata: Sequence[bytes]) -> MetadataColumns:
    """Build the columns of n rows from their metadata (msgpack).

    CPU: about 2 us a row and field; call it from a thread for many rows.
    """
    building: dict[str, _Building] = {}
    for row, packed in enumerate(metadata):
        for name, value in decode_metadata(packed).items():
            column = building.get(name)
            if column is None:
                column = building[name] = _Building()
            column.rows.append(row)
            for one in value if isinstance(value, list) else (value,):
                _add(column, row, one)
    fields = {name: _settle(column) for name, column in building.items()}
    return MetadataColumns(len(metadata), fields, 256 + sum(map(_size, fields.values())))


def evaluate(condition: Filter, columns: MetadataColumns) -> Mask:
    """Return bool `(n,)`: the rows for which `condition` holds."""
    if isinstance(condition, And):
        mask = np.ones(columns.rows, dtype=np.bool_)
        for part in condition.parts:
            mask &= evaluate(part, columns)
        return mask
    if isinstance(condition, Or):
        mask = np.zeros(columns.rows, dtype=np.bool_)
        for part in condition.parts:
            mask |= evaluate(part, columns)
        return mask
    if isinstance(condition, Not):
        return ~evaluate(condition.part, columns)
    return _compare(condition, columns)


def order_keys(columns: MetadataColumns, name: str, *, ascending: bool) -> list[tuple[int, Any]]:
    """Return the key of every row for ordering by one field: (class, value).

    Classes come in the order numbers (0), strings (1), booleans (2), missing (3), in either
    direction; values compare within their class. A list counts as its smallest value when
    ascending, else as its largest, of the first class that it has.
    """
    keys: list[tuple[int, Any]] = [(MISSING, 0)] * columns.rows
    column = columns.fields.get(name)
    if column is None:
        return keys
    better = min if ascending else max
    strings = [column.strings[code] for code in column.codes.tolist()]
    for rank, rows, values in (
        (2, column.bool_rows, column.bools.tolist()),
        (1, column.string_rows, strings),
        (0, column.number_rows, column.numbers.tolist()),
    ):
        for row, value in zip(rows.tolist(), values, strict=True):
            held, old = keys[row]
            keys[row] = (rank, better(old, value) if held == rank else value)
    return keys


def _add(column: _Building, row: int, value: Any) -> None:
    if isinstance(value, bool):
        column.bool_rows.append(row)
        column.bools.append(value)
    elif isinstance(value, int | float):
        column.number_rows.append(row)
        column.numbers.append(value)
    elif isinstance(value, str):
        column.string_rows.append(row)
        column.strings.append(value)


def _settle(column: _Building) -> FieldColumn:
    exact = all(isinstance(n, float) or abs(n) <= _EXACT_FLOAT for n in column.numbers)
    distinct = sorted(set(column.strings))
    code = {text: number for number, text in enumerate(distinct)}
    return FieldColumn(
        rows=np.array(column.rows, dtype=np.int64),
        number_rows=np.array(column.number_rows, dtype=np.int64),
        numbers=np.array(column.numbers, dtype=np.float64 if exact else object),
        string_rows=np.array(column.string_rows, dtype=np.int64),
        codes=np.array([code[text] for text in column.strings], dtype=np.int64),
        strings=distinct,
        bool_rows=np.array(column.bool_rows, dtype=np.int64),
        bools=np.array(column.bools, dtype=np.bool_),
    )


def _size(column: FieldColumn) -> int:
    arrays = (
        column.rows,
        column.number_rows,
        column.numbers,
        column.string_rows,
        column.codes,
        column.bool_rows,
        column.bools,
    )
    return sum(array.nbytes for array in arrays) + sum(64 + len(text) for text in column.strings)


def _compare(condition: Compare, columns: MetadataColumns) -> Mask:
    positive = _NEGATIVE.get(condition.op)
    if positive is not None:
        return ~_compare(Compare(condition.field, positive, condition.value), columns)
    mask = np.zeros(columns.rows, dtype=np.bool_)
    column = columns.fields.get(condition.field)
    value: Any = condition.value
    if condition.op is FilterOp.EXISTS:
        if column is not None:
            mask[column.rows] = True
        return mask if value else ~mask
    if column is None:
        return mask
    if condition.op is FilterOp.IN:
        for one in value:
            mask[_equal(column, one)] = True
    elif condition.op is FilterOp.EQ:
        mask[_equal(column, value)] = True
    elif condition.op is FilterOp.PREFIX:
        mask[_with_prefix(column, value)] = True
    else:
        mask[_ordered(column, condition.op, value)] = True
    return mask


def _equal(column: FieldColumn, value: Any) -> Ints:
    """Return the rows (maybe repeated) that have `value`."""
    if isinstance(value, bool):
        return np.asarray(column.bool_rows[column.bools == value])
    if isinstance(value, str):
        at = bisect_left(column.strings, value)
        if at == len(column.strings) or column.strings[at] != value:
            return column.rows[:0]
        return np.asarray(column.string_rows[column.codes == at])
    return np.asarray(column.number_rows[_numbers(column, "eq", value)])


def _with_prefix(column: FieldColumn, prefix: str) -> Ints:
    low = bisect_left(column.strings, prefix)
    high = bisect_right(column.strings, prefix, lo=low, key=lambda text: text[: len(prefix)])
    rows: Ints = column.string_rows[(column.codes >= low) & (column.codes < high)]
    return rows


def _ordered(column: FieldColumn, op: FilterOp, value: Any) -> Ints:
    if isinstance(value, str):
        low, high = bisect_left(column.strings, value), bisect_right(column.strings, value)
        chosen = {
            FilterOp.GT: column.codes >= high,
            FilterOp.GTE: column.codes >= low,
            FilterOp.LT: column.codes < low,
            FilterOp.LTE: column.codes < high,
        }[op]
        return np.asarray(column.string_rows[chosen])
    return np.asarray(column.number_rows[_numbers(column, op.value[1:], value)])


def _numbers(column: FieldColumn, op: str, value: float) -> Mask:
    numbers = column.numbers
    if isinstance(value, int) and abs(value) > _EXACT_FLOAT and numbers.dtype != object:
        # numpy would round the integer to a float64; Python compares exactly.
        numbers = numbers.astype(object)
    found = {
        "eq": np.equal,
        "gt": np.greater,
        "gte": np.greater_equal,
        "lt": np.less,
        "lte": np.less_equal,
    }[op](numbers, value)
    return np.asarray(found, dtype=np.bool_)
