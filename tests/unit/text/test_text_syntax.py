from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.text.syntax import (
    MAX_CLAUSES,
    MAX_DEPTH,
    MAX_QUERY_CHARS,
    Group,
    Phrase,
    Prefix,
    QuerySyntaxError,
    Words,
    parse,
)


def shown(clause) -> str:
    """Write a tree back, fully parenthesised."""
    if isinstance(clause, Words):
        return clause.text
    if isinstance(clause, Phrase):
        return f"<{clause.text}>"
    if isinstance(clause, Prefix):
        return f"{clause.text}*"
    parts = f" {clause.operator} ".join(map(shown, clause.parts))
    without = "".join(f" - {shown(part)}" for part in clause.excluded)
    return f"({parts}{without})"


@pytest.mark.parametrize(
    ("query", "by_or", "by_and"),
    [
        ("a", "(a)", "(a)"),
        ("a b c", "(a or b or c)", "(a and b and c)"),
        ('"a b" c', "(<a b> or c)", "(<a b> and c)"),
        ("a -b", "(a - b)", "(a - b)"),
        ("-b a", "(a - b)", "(a - b)"),
        ("a AND b", "(a and b)", "(a and b)"),
        ("a OR b", "(a or b)", "(a or b)"),
        ("a b AND c", "(a or (b and c))", "(a and b and c)"),
        ("a b OR c d", "(a or b or c or d)", "((a and b) or (c and d))"),
        ("a OR b AND c", "(a or (b and c))", "(a or (b and c))"),
        ("(a OR b) AND c", "((a or b) and c)", "((a or b) and c)"),
        ("a AND -b c", "((a - b) or c)", "(a and c - b)"),
        ("pre* -(x y)", "(pre* - (x or y))", "(pre* - (x and y))"),
        ('-"a b" c', "(c - <a b>)", "(c - <a b>)"),
        ("x-ray", "(x-ray)", "(x-ray)"),
        ("a - b", "(a or b)", "(a and b)"),
        ("and or", "(and or or)", "(and and or)"),
        ("((a))", "(a)", "(a)"),
    ],
)
def test_trees(query, by_or, by_and):
    assert shown(parse(query, "or")) == by_or
    assert shown(parse(query, "and")) == by_and


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ('"open', "quotation"),
        ("(a", "not closed"),
        ("a)", "no opening"),
        ("()", "missing"),
        ("", "missing"),
        ("   ", "missing"),
        ("-a", "only leave out"),
        ("a (-b)", "only leave out"),
        ("a OR", "missing"),
        ("AND a", "missing"),
        ("a*b", "must end"),
        ("*", "letters before"),
        ("a*", "letters before"),
        ("a OR OR b", "missing"),
        ("x" * (MAX_QUERY_CHARS + 1), "longer"),
        ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), "deeper"),
        ("a " * (MAX_CLAUSES + 1), "more than"),
    ],
)
def test_errors_say_why_and_never_quote_the_query(query, why):
    with pytest.raises(QuerySyntaxError, match=why) as caught:
        parse("topsecret " + query if query.startswith("a (") else query)
    assert "topsecret" not in str(caught.value)


def test_errors_say_where():
    with pytest.raises(QuerySyntaxError, match=r"at character 6\)"):
        parse("abc (d")


def test_the_limits_themselves_are_allowed():
    parse("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH)
    assert len(parse("a " * MAX_CLAUSES).parts) == MAX_CLAUSES


@given(st.text(alphabet='ab "()-*ANDOR \t\u00e9', max_size=60), st.sampled_from(["or", "and"]))
def test_any_text_parses_or_is_refused(text, operator):
    try:
        tree = parse(text, operator)
    except QuerySyntaxError:
        return
    assert isinstance(tree, Group)
    assert tree.parts
