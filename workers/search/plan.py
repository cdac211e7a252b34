"""Turn a text query into leaves and a tree, and name every chain it needs before any is read.

A leaf is a term, a set of terms that count as one (a completed prefix) or a phrase. The tree says
how the leaves combine. `requests` lists all chains of all leaves in all fields, so that one round
trip fetches everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from schemas.errors import ErrorCode
from workers.chain.kinds import NodeKind
from workers.crypto.derive import TokenKind
from workers.errors import Reject
from workers.search.context import Tokens
from workers.search.snapshot import Request
from workers.text.analyzer import Analyzer
from workers.text.syntax import (
    Clause,
    Group,
    Operator,
    Phrase,
    Prefix,
    QuerySyntaxError,
    Words,
    parse,
)

MAX_TERMS: Final = 1024
"""Distinct terms of one query, completions counted."""

Complete = Callable[[str], list[str]]
"""Returns the words of the index that begin with a normalised prefix."""


@dataclass(frozen=True, slots=True)
class Term:
    """One term; `boost` counts how often the query says it."""

    term: str
    boost: int = 1


@dataclass(frozen=True, slots=True)
class Synonyms:
    """Terms that count as one: what a prefix stands for."""

    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sequence:
    """A phrase: term i must stand `offsets[i]` words behind the first."""

    terms: tuple[str, ...]
    offsets: tuple[int, ...]


Leaf: TypeAlias = Term | Synonyms | Sequence


@dataclass(frozen=True, slots=True)
class At:
    """A leaf, by its index in `TextPlan.leaves`."""

    leaf: int


@dataclass(frozen=True, slots=True)
class Combined:
    """Nodes joined by an operator, less what `excluded` matches."""

    operator: Operator
    parts: tuple[Node, ...]
    excluded: tuple[Node, ...] = ()


Node: TypeAlias = At | Combined


@dataclass(frozen=True, slots=True)
class TextPlan:
    """A text query, ready to run.

    Attributes:
        leaves: what is looked up.
        root: how the leaves combine; None for a query of stop words only, which finds nothing.
        weights: weight of each searched field, > 0.
    """

    leaves: tuple[Leaf, ...]
    root: Node | None
    weights: Mapping[str, float]

    def requests(self, tokens: Tokens) -> dict[tuple[str, str], Request]:
        """Return the chain of each (field, term)."""
        return {
            (field, term): (NodeKind.TERM, tokens.token(TokenKind.TERM, field, term))
            for leaf in self.leaves
            for term in terms_of(leaf)
            for field in self.weights
        }


def terms_of(leaf: Leaf) -> tuple[str, ...]:
    """Return the terms that a leaf looks up."""
    return (leaf.term,) if isinstance(leaf, Term) else leaf.terms


def plan_words(text: str, analyzer: Analyzer) -> list[Leaf]:
    """Return the leaves of plain words: each distinct term once, with its count."""
    counts: dict[str, int] = {}
    for term in analyzer.tokens(text):
        counts[term] = counts.get(term, 0) + 1
    return [Term(term, count) for term, count in counts.items()]


def prefixes(text: str, operator: Operator, analyzer: Analyzer) -> list[str]:
    """Return the normalised prefixes that a query in syntax form asks to complete."""
    found: list[str] = []

    def walk(clause: Clause) -> None:
        if isinstance(clause, Prefix):
            found.append(analyzer.normalize(clause.text))
        elif isinstance(clause, Group):
            for part in (*clause.parts, *clause.excluded):
                walk(part)

    walk(_parse(text, operator))
    return found


def plan_text(
    text: str,
    *,
    analyzer: Analyzer,
    operator: Operator,
    syntax: bool,
    weights: Mapping[str, float],
    complete: Complete,
) -> TextPlan:
    """Plan a text query.

    Args:
        text: as the caller wrote it.
        analyzer: of the index.
        operator: what joins words that stand side by side.
        syntax: whether quotes, `-`, `*` and parentheses mean something.
        weights: weight of each field; fields of weight 0 are not searched.
        complete: completes a prefix.

    Raises:
        Reject: INVALID_MESSAGE, the query does not parse or is too large.
    """
    planner = _Planner(analyzer, complete)
    if syntax:
        root = planner.node(_parse(text, operator))
    else:
        leaves = [planner.add(leaf) for leaf in plan_words(text, analyzer)]
        root = Combined(operator, tuple(leaves)) if leaves else None
    if sum(len(terms_of(leaf)) for leaf in planner.leaves) > MAX_TERMS:
        raise Reject(
            ErrorCode.INVALID_MESSAGE,
            f"the query has more than {MAX_TERMS} distinct words",
            field="query.text",
        )
    searched = {name: weight for name, weight in weights.items() if weight > 0}
    return TextPlan(tuple(planner.leaves), root, searched)


def _parse(text: str, operator: Operator) -> Group:
    try:
        return parse(text, operator)
    except QuerySyntaxError as error:
        raise Reject(ErrorCode.INVALID_MESSAGE, str(error), field="query.text") from None


class _Planner:
    def __init__(self, analyzer: Analyzer, complete: Complete) -> None:
        self.leaves: list[Leaf] = []
        self._analyzer = analyzer
        self._complete = complete

    def add(self, leaf: Leaf) -> At:
        self.leaves.append(leaf)
        return At(len(self.leaves) - 1)

    def node(self, clause: Clause) -> Node | None:
        """Return the node of a clause; None where analysis leaves nothing of it."""
        if isinstance(clause, Group):
            parts = tuple(node for part in clause.parts if (node := self.node(part)) is not None)
            excluded = tuple(
                node for part in clause.excluded if (node := self.node(part)) is not None
            )
            return Combined(clause.operator, parts, excluded) if parts else None
        if isinstance(clause, Words):
            words = [self.add(leaf) for leaf in self._words(clause.text)]
            if len(words) < 2:
                return words[0] if words else None
            # `x-ray` was written as one word: both of its terms are wanted.
            return Combined("and", tuple(words))
        if isinstance(clause, Phrase):
            return self._phrase(clause.text)
        return self._prefix(clause.text)

    def _words(self, text: str) -> list[Leaf]:
        return plan_words(text, self._analyzer)

    def _phrase(self, text: str) -> Node | None:
        tokens = self._analyzer.positioned(text)
        if not tokens:
            return None
        if len(tokens) == 1:
            return self.add(Term(tokens[0].term))
        first = tokens[0].position
        return self.add(
            Sequence(
                tuple(token.term for token in tokens),
                tuple(token.position - first for token in tokens),
            )
        )

    def _prefix(self, text: str) -> Node | None:
        words = self._complete(self._analyzer.normalize(text))
        terms = tuple(dict.fromkeys(term for word in words if (term := self._analyzer.term(word))))
        # Without completions the leaf stays, so that under `and` the query finds nothing.
        return self.add(Synonyms(terms))
