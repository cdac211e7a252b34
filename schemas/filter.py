"""The filter language: conditions on metadata, parsed once into a tree.

    {"lang": "en"}                       equal (or, for a list, holds)
    {"year": {"$gte": 1990, "$lt": 2000}}   all of the operators
    {"$or": [{...}, {...}]}, {"$and": [...]}, {"$not": {...}}

Operators: `$eq $ne $gt $gte $lt $lte $in $nin $exists $prefix`. Several fields in one object
must all hold. In error paths a field that the sender named is written `*`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from schemas.errors import InvalidMessage
from schemas.ids import check_name
from schemas.index import MAX_FILTER_DEPTH, MAX_FILTER_NODES

Scalar: TypeAlias = str | int | float | bool
FilterValue: TypeAlias = Scalar | list[Scalar]


class FilterOp(StrEnum):
    """How a field is compared."""

    EQ = "$eq"
    NE = "$ne"
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"
    IN = "$in"
    NIN = "$nin"
    EXISTS = "$exists"
    PREFIX = "$prefix"


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition. `value`: a list for `$in` and `$nin`, a boolean for `$exists`."""

    field: str = dataclasses.field(repr=False)
    op: FilterOp
    value: FilterValue = dataclasses.field(repr=False)


@dataclass(frozen=True, slots=True)
class And:
    """All of `parts` hold; none at all holds for every document."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of `parts` holds."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """`part` does not hold."""

    part: Filter


Filter: TypeAlias = And | Or | Not | Compare


def parse_filter(value: Any, path: str = "filter") -> Filter:
    """Parse the JSON form of a filter.

    Args:
        value: a parsed JSON object; empty matches every document.
        path: where it stands in its message.

    Raises:
        InvalidMessage: an unknown operator, a value of the wrong type, nesting beyond 16, more
            than 256 conditions and connectives.
    """
    return _Parser().parse(value, path, MAX_FILTER_DEPTH)


class _Parser:
    """Counts nodes over one filter."""

    def __init__(self) -> None:
        self.nodes = 0

    def parse(self, value: Any, path: str, depth: int) -> Filter:
        if type(value) is not dict:
            raise InvalidMessage("must be an object", path)
        if not depth:
            raise InvalidMessage(f"nests deeper than {MAX_FILTER_DEPTH}", path)
        parts: list[Filter] = []
        for key, inner in value.items():
            self._count(path)
            if key in _CONNECTIVES:
                parts.append(self._connective(key, inner, f"{path}.{key}", depth - 1))
            elif key.startswith("$"):
                raise InvalidMessage(
                    "has an operator that is not known here; $and, $or and $not take filters, "
                    "others stand behind a field",
                    path,
                )
            else:
                parts.extend(self._conditions(check_name(key, path), inner, f"{path}.*"))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _connective(self, key: str, inner: Any, path: str, depth: int) -> Filter:
        if key == "$not":
            return Not(self.parse(inner, path, depth))
        if type(inner) is not list or not inner:
            raise InvalidMessage("must be a list of at least one filter", path)
        parts = tuple(self.parse(f, f"{path}[{i}]", depth) for i, f in enumerate(inner))
        return And(parts) if key == "$and" else Or(parts)

    def _conditions(self, name: str, inner: Any, path: str) -> list[Compare]:
        if type(inner) is not dict:
            return [Compare(name, FilterOp.EQ, _scalar(inner, path))]
        if not inner:
            raise InvalidMessage("must name an operator", path)
        found = []
        for key, value in inner.items():
            self._count(path)
            if key not in _OPERATORS:
                known = ", ".join(_OPERATORS)
                raise InvalidMessage(f"has an unknown operator; known: {known}", path)
            found.append(Compare(name, FilterOp(key), _OPERATORS[key](value, f"{path}.{key}")))
        return found

    def _count(self, path: str) -> None:
        self.nodes += 1
        if self.nodes > MAX_FILTER_NODES:
            raise InvalidMessage(f"has more than {MAX_FILTER_NODES} parts", path.split(".")[0])


def _scalar(value: Any, path: str) -> Scalar:
    if type(value) in (str, bool, float) or (type(value) is int and -(2**63) <= value < 2**63):
        scalar: Scalar = value
        return scalar
    raise InvalidMessage("must be a string, a number or a boolean", path)


def _ordered(value: Any, path: str) -> Scalar:
    if type(value) is bool:
        raise InvalidMessage("must be a string or a number", path)
    return _scalar(value, path)


def _several(value: Any, path: str) -> list[Scalar]:
    if type(value) is not list:
        raise InvalidMessage("must be a list", path)
    if len(value) > MAX_IN_VALUES:
        raise InvalidMessage(f"has more than {MAX_IN_VALUES} values", path)
    return [_scalar(item, f"{path}[{i}]") for i, item in enumerate(value)]


def _flag(value: Any, path: str) -> bool:
    if type(value) is not bool:
        raise InvalidMessage("must be true or false", path)
    return value


def _prefix(value: Any, path: str) -> str:
    if type(value) is not str or not value:
        raise InvalidMessage("must be a string that is not empty", path)
    return value


MAX_IN_VALUES: Final = 10_000
_CONNECTIVES: Final = frozenset({"$and", "$or", "$not"})
_OPERATORS: Final[dict[str, Callable[[Any, str], FilterValue]]] = {
    "$eq": _scalar,
    "$ne": _scalar,
    "$gt": _ordered,
    "$gte": _ordered,
    "$lt": _ordered,
    "$lte": _ordered,
    "$in": _several,
    "$nin": _several,
    "$exists": _flag,
    "$prefix": _prefix,
}
