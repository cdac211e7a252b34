from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from workers.text.analyzer import Analyzer, get_analyzer
from workers.text.columns import MAX_TF, TextColumns, read_texts
from workers.text.lexicon import Lexicon
from workers.text.varint import decode_varints

# Words that are stop words, that share a stem, that need normalising, that are too long.
words = st.sampled_from(["the", "dog", "Dogs", "run", "RUNNING", "naïve", "x", "ﬁsh", "w" * 300])
texts = st.lists(st.lists(words, max_size=300).map(" ".join), max_size=6)


def terms_of(lexicon: Lexicon, columns: TextColumns, text: int) -> dict[str, list[int]]:
    begin, end = columns.starts[text : text + 2].tolist()
    data = columns.positions[slice(*columns.position_starts[text : text + 2].tolist())]
    deltas = decode_varints(data)[0].tolist()
    found: dict[str, list[int]] = {}
    for term, tf in zip(columns.terms[begin:end].tolist(), columns.tfs[begin:end], strict=True):
        places, deltas = deltas[:tf], deltas[tf:]
        found[lexicon.term(term)] = list(accumulate(places))
    assert not deltas
    assert (columns.texts[begin:end] == text).all()
    return found


def check(analyzer: Analyzer, several: list[str]) -> None:
    lexicon = Lexicon(analyzer)
    columns = read_texts(lexicon, several)
    for number, text in enumerate(several):
        alone: dict[str, list[int]] = {}
        for token in analyzer.positioned(text):
            alone.setdefault(token.term, []).append(token.position)
        counted = {term: places[:MAX_TF] for term, places in alone.items()}
        assert terms_of(lexicon, columns, number) == counted
        assert columns.lengths[number] == sum(map(len, alone.values()))
        spelled = [lexicon.word(n) for n in columns.words[columns.word_texts == number].tolist()]
        assert spelled == [word for word in analyzer.words(text) if analyzer.term(word)]


@given(texts)
def test_many_texts_at_once_give_what_each_gives_alone(several):
    check(get_analyzer("english"), several)


@given(st.lists(st.text(max_size=200), max_size=4))
def test_any_text(several):
    check(get_analyzer("simple"), several)


def test_a_term_counts_as_often_as_a_frequency_can_say():
    check(get_analyzer("english"), ["a dog", "dog " * (MAX_TF + 5) + "cat", "the cat"])


def test_a_lexicon_learns_a_word_once():
    lexicon = Lexicon(get_analyzer("english"))
    assert lexicon.read("the dogs and a dog").tolist() == [0, 1, 0, 0, 2]
    assert lexicon.read("Dog").tolist() == [2]
    assert lexicon.terms_of(lexicon.read("dog dogs the")).tolist() == [1, 1, 0]
    assert [lexicon.word(1), lexicon.word(2), lexicon.term(1)] == ["dogs", "dog", "dog"]
    assert len(lexicon) == 5
