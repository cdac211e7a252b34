"""Number words, so that texts are arrays of integers from the first look-up on.

Looking a word up gives its number; terms (stems) are numbered too, and one array says which word
has which term. A word is analysed once, when it comes for the first time. Number 0 stands for all
words that have no term: stop words.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from workers.text.analyzer import MAX_WORD_CHARS, Analyzer
from workers.text.varint import Ints

Numbers = npt.NDArray[np.int32]
_FIRST_ROOM: Final = 1024


class Lexicon:
    """The words of one index. Only grows: its owner begins a new one when it is too large.

    Safe to use from several threads.
    """

    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer
        self._words: list[str] = [""]
        self._terms: list[str] = [""]
        self._term_numbers: dict[str, int] = {"": 0}
        self._term_of = np.zeros(_FIRST_ROOM, dtype=np.int32)
        self._number_of = _Numbers(self._learn)
        self._learning = threading.RLock()

    @property
    def analyzer(self) -> str:
        """The name of its analyzer."""
        return self._analyzer.name

    def __len__(self) -> int:
        """Return how many words are known, stop words among them."""
        return len(self._number_of)

    def read(self, text: str) -> Numbers:
        """Return the numbers of all words of `text`, in order; 0 for a stop word."""
        words = self._analyzer.split(text)
        return np.fromiter(map(self._number_of.__getitem__, words), np.int32, len(words))

    def terms_of(self, numbers: Numbers) -> Numbers:
        """Return the term number of each word number."""
        terms: Numbers = self._term_of[numbers]
        return terms

    def word(self, number: int) -> str:
        """Return a word by its number."""
        return self._words[number]

    def term(self, number: int) -> str:
        """Return a term by its number."""
        return self._terms[number]

    def _learn(self, word: str) -> int:
        if len(word) > MAX_WORD_CHARS:
            # Not remembered whole: it may be a blob of half a megabyte.
            return self._number_of[word[:MAX_WORD_CHARS]]
        with self._learning:
            known = self._number_of.get(word)
            if known is not None:
                return known
            term = self._analyzer.term(word)
            number = 0
            if term:
                number = len(self._words)
                self._words.append(word)
                self._assign(number, term)
            # Last: whoever finds the number finds all that belongs to it.
            self._number_of[word] = number
        return number

    def _assign(self, number: int, term: str) -> None:
        known = self._term_numbers.get(term)
        if known is None:
            known = self._term_numbers[term] = len(self._terms)
            self._terms.append(term)
        if number >= self._term_of.size:
            self._term_of = np.concatenate((self._term_of, np.zeros_like(self._term_of)))
        self._term_of[number] = known


class _Numbers(dict[str, int]):
    """Word -> number; what is missing is learned, without a call of Python for what is not."""

    def __init__(self, learn: Callable[[str], int]) -> None:
        super().__init__()
        self._learn = learn

    def __missing__(self, word: str) -> int:
        return self._learn(word)


class SentWords:
    """Which words of a lexicon were sent to a shard, so that vocabularies hold new words only.

    A word is remembered once the batch that carried it was acknowledged; forgetting one only costs
    sending it again.
    """

    def __init__(self) -> None:
        self._sent = np.zeros(_FIRST_ROOM, dtype=np.bool_)

    def unsent(self, numbers: Numbers) -> Ints:
        """Return the places in `numbers` of words that were not sent yet."""
        self._grow(numbers)
        return np.flatnonzero(~self._sent[numbers])

    def remember(self, numbers: Numbers) -> None:
        """Record words as sent."""
        self._grow(numbers)
        self._sent[numbers] = True

    def _grow(self, numbers: Numbers) -> None:
        largest = int(numbers.max(initial=0))
        if largest >= self._sent.size:
            more = np.zeros(largest + 1, dtype=np.bool_)
            self._sent = np.concatenate((self._sent, more))
