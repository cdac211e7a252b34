from __future__ import annotations

import importlib
import re
import threading

import pytest
import snowballstemmer
import Stemmer
from hypothesis import given
from hypothesis import strategies as st

from workers.cli.corpus import stdlib_docstrings
from workers.text.analyzer import MAX_WORD_CHARS, analyzer_names, get_analyzer
from workers.text.stopwords import ENGLISH

english = get_analyzer("english")


def test_english_drops_stop_words_and_stems():
    assert english.tokens("The runners were running in a race") == ["runner", "were", "run", "race"]


def test_positions_count_stop_words_and_words_of_one_character():
    found = english.positioned("war and peace, plan b and war")
    assert [(token.term, token.position) for token in found] == [
        ("war", 0),
        ("peac", 2),
        ("plan", 3),
        ("war", 6),
    ]


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_split_as_any_text(text):
    assert english.split(text) == re.findall(r"\w+", english.normalize(text))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Stra\u00dfe", "STRASSE"),
        ("\ufb01ne", "fine"),
        ("\uff26\uff55\uff4c\uff4c", "full"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("\u0130stanbul", "i\u0307stanbul"),
    ],
)
def test_spellings_of_one_word_meet(left, right):
    assert get_analyzer("simple").tokens(left) == get_analyzer("simple").tokens(right)


def test_words_of_other_scripts():
    words = "\u041c\u043e\u0441\u043a\u0432\u0430 \u6771\u4eac 42nd"
    assert get_analyzer("simple").tokens(words) == [
        "\u043c\u043e\u0441\u043a\u0432\u0430",
        "\u6771\u4eac",
        "42nd",
    ]


def test_simple_keeps_every_word_as_it_is():
    assert get_analyzer("simple").tokens("The a running") == ["the", "a", "running"]


def test_other_languages_by_name():
    assert get_analyzer("german").tokens("H\u00e4user") == get_analyzer("german").tokens("Haus")
    assert {"english", "simple", "french", "german"} <= set(analyzer_names())
    with pytest.raises(ValueError, match="unknown analyzer"):
        get_analyzer("klingon")


def test_long_words_are_cut_alike_on_both_sides():
    long = "x" * 10_000
    assert english.tokens(long) == english.tokens(long[:MAX_WORD_CHARS])


def test_nothing_to_analyse():
    assert english.tokens(" ... the \n") == []
    assert english.words(" ... the \n") == ["the"]


def test_threads_share_one_stemmer_without_mixing_words():
    words = [f"running{i}s relational{i}" for i in range(300)]
    alone = [english.tokens(word) for word in words]
    shared = type(english)("shared", stop=ENGLISH, stemmer=english._stemmer, min_chars=2)
    results: dict[int, list[list[str]]] = {}

    def work(number: int) -> None:
        results[number] = [shared.tokens(word) for word in words]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[n] == alone for n in range(4))


def test_the_cache_of_stems_is_bounded(monkeypatch):
    monkeypatch.setattr("workers.text.analyzer._CACHE_WORDS", 50)
    small = type(english)("small", stop=ENGLISH, stemmer=english._stemmer, min_chars=2)
    for i in range(500):
        small.tokens(f"word{i} the")
    assert len(small._cache) <= 50
    assert small.tokens("the word1") == ["word1"]


@pytest.fixture(scope="module")
def words_of_docstrings() -> list[str]:
    words = {word for doc in stdlib_docstrings(100) for word in doc.text.lower().split()}
    # The stemmer in Python is slow: some thousand words are enough to tell the two apart.
    return sorted(words)[:: 1 + len(words) // 2000]


@pytest.mark.parametrize("language", ["english", "german", "french", "russian", "turkish"])
def test_both_stemmers_agree(language: str, words_of_docstrings: list[str]) -> None:
    """An index must not depend on which of the two a worker has."""
    module = importlib.import_module(f"snowballstemmer.{language}_stemmer")
    in_python = getattr(module, f"{language.capitalize()}Stemmer")()
    in_c = snowballstemmer.stemmer(language)
    assert isinstance(in_c, Stemmer.Stemmer)
    assert [in_c.stemWord(word) for word in words_of_docstrings] == [
        in_python.stemWord(word) for word in words_of_docstrings
    ]
