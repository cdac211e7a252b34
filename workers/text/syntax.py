"""Parse the query syntax that `"syntax": true` turns on.

    query   := either
    either  := both ("OR" both)*
    both    := clause ("AND" clause)*
    clause  := "-"? ( "(" either ")" | '"' words '"' | word "*"? )

Clauses that stand side by side are joined by the query's operator (`or` by default): as by `OR`,
or as by `AND`. `AND` binds tighter. `-` leaves out what its clause matches; it counts only at the
start of a clause, so `x-ray` is one word. `*` counts only at the end of a word. In every group
something must be searched for, not only left out.

Errors name the position in characters and never quote the query.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Operator = Literal["or", "and"]

MAX_QUERY_CHARS: Final = 8192
MAX_CLAUSES: Final = 256
MAX_DEPTH: Final = 16
MIN_PREFIX_CHARS: Final = 2


class QuerySyntaxError(ValueError):
    """Raised for a query that does not parse; the text says why and where."""


@dataclass(frozen=True, slots=True)
class Words:
    """A bare word as written; analysis may make no, one or several terms of it."""

    text: str


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that must stand side by side in this order."""

    text: str


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a word."""

    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """Clauses joined by one operator, less what `excluded` matches."""

    operator: Operator
    parts: tuple[Clause, ...]
    excluded: tuple[Clause, ...] = ()


Clause: TypeAlias = Words | Phrase | Prefix | Group

_TOKEN: Final = re.compile(r'\s+|\(|\)|"[^"]*"|"|(?P<without>-(?=[^\s)-]))|[^\s()"]+')


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    at: int


def parse(text: str, operator: Operator = "or") -> Group:
    """Parse a query.

    Args:
        text: at most `MAX_QUERY_CHARS` characters.
        operator: what joins clauses that stand side by side.

    Raises:
        QuerySyntaxError: if it does not parse or exceeds a limit.
    """
    if len(text) > MAX_QUERY_CHARS:
        raise QuerySyntaxError(f"the query is longer than {MAX_QUERY_CHARS} characters")
    parser = _Parser(_tokens(text), len(text), operator)
    found = parser.either(0)
    parser.expect_end()
    return found


def _tokens(text: str) -> list[_Token]:
    """Split into words, phrases, parentheses and the `-` of a clause; a dash alone is nothing."""
    return [
        _Token(m.group(), m.start())
        for m in _TOKEN.finditer(text)
        if m.group().strip() and (m.group() != "-" or m["without"])
    ]


class _Parser:
    def __init__(self, tokens: list[_Token], end: int, operator: Operator) -> None:
        self._tokens = tokens
        self._end = end
        self._operator = operator
        self._at = 0
        self._clauses = 0

    def either(self, depth: int) -> Group:
        if depth > MAX_DEPTH:
            raise self._error(f"parentheses nest deeper than {MAX_DEPTH}")
        parts: list[Clause] = []
        excluded: list[Clause] = []
        while True:
            self._both(depth, parts, excluded)
            if self._peek() == "OR":
                self._at += 1
            elif self._peek() in ("", ")"):
                break
        if not parts:
            raise self._error("a group must search for something, not only leave out")
        if len(parts) == 1 and isinstance(parts[0], Group) and not excluded:
            return parts[0]
        return Group("or", tuple(parts), tuple(excluded))

    def expect_end(self) -> None:
        if self._peek():
            raise self._error("a closing parenthesis has no opening one")

    def _both(self, depth: int, parts: list[Clause], excluded: list[Clause]) -> None:
        """Read clauses joined by AND; what is left out goes to the group they form."""
        wanted: list[Clause] = []
        unwanted: list[Clause] = []
        while True:
            negated, clause = self._clause(depth)
            (unwanted if negated else wanted).append(clause)
            following = self._peek()
            if following == "AND":
                self._at += 1
            elif following in ("", ")", "OR") or self._operator == "or":
                break
        if len(wanted) == 1 and not unwanted:
            parts.append(wanted[0])
        elif wanted:
            parts.append(Group("and", tuple(wanted), tuple(unwanted)))
        else:
            excluded.extend(unwanted)

    def _clause(self, depth: int) -> tuple[bool, Clause]:
        self._clauses += 1
        if self._clauses > MAX_CLAUSES:
            raise self._error(f"the query has more than {MAX_CLAUSES} words and groups")
        negated = self._peek() == "-"
        if negated:
            self._at += 1
        following = self._peek()
        if following in ("", ")", "OR", "AND"):
            raise self._error("a word, a phrase or a group is missing")
        if following == "(":
            self._at += 1
            group = self.either(depth + 1)
            if self._peek() != ")":
                raise self._error("a parenthesis is not closed")
            self._at += 1
            return negated, group
        if following == '"':
            raise self._error("a quotation mark is not closed")
        if following.startswith('"'):
            self._at += 1
            return negated, Phrase(following[1:-1])
        return negated, self._word(following)

    def _word(self, token: str) -> Clause:
        stem, star, rest = token.partition("*")
        if star and rest:
            raise self._error("a * must end its word")
        if star and len(stem) < MIN_PREFIX_CHARS:
            raise self._error(f"a * needs {MIN_PREFIX_CHARS} letters before it")
        self._at += 1
        return Prefix(stem) if star else Words(token)

    def _peek(self) -> str:
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    def _error(self, why: str) -> QuerySyntaxError:
        at = self._tokens[self._at].at if self._at < len(self._tokens) else self._end
        return QuerySyntaxError(f"{why} (at character {at})")
