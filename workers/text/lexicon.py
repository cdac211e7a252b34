"""Number words, so that texts are arrays of integers from the first look-up on.

Looking a word up gives its number; terms (stems) are numbered too, and one array says which word
has which term. A word is analysed once, when it comes for the first time. Number 0 stands for all
words that have no term: stop words.
"""

from __future__ import annotations

import threading
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
        self._numbers = _Numbers(analyzer)

    @property
    def analyzer(self) -> str:
        """The name of its analyzer."""
        return self._analyzer.name

    def __len__(self) -> int:
        """Return how many words are known, stop words among them."""
        return len(self._numbers)

    def read(self, text: str) -> Numbers:
        """Return the numbers of all words of `text`, in order; 0 for a stop word."""
        words = self._analyzer.split(text)
        return np.fromiter(map(self._numbers.__getitem__, words), np.int32, len(words))

    def terms_of(self, numbers: Numbers) -> Numbers:
        """Return the term number of each word number."""
        terms: Numbers = self._numbers.term_of[numbers]
        return terms

    def word(self, number: int) -> str:
        """Return a word by its number."""
        return self._numbers.words[number]

    def term(self, number: int) -> str:
        """Return a term by its number."""
        return self._numbers.terms[number]


class _Numbers(dict[str, int]):
    """Word -> number; what is missing is learned, without a step of Python for what is not.

    Attributes:
        words: by their numbers.
        terms: by theirs.
        term_of: int32, number of the term of each word; longer than `words`.
    """

    def __init__(self, analyzer: Analyzer) -> None:
        super().__init__()
        self._analyzer = analyzer
        self.words: list[str] = [""]
        self.terms: list[str] = [""]
        self.term_of = np.zeros(_FIRST_ROOM, dtype=np.int32)
        self._term_numbers: dict[str, int] = {"": 0}
        self._learning = threading.Lock()

    def __missing__(self, word: str) -> int:
        if len(word) > MAX_WORD_CHARS:
            # Not remembered whole: it may be a blob of half a megabyte.
            return self[word[:MAX_WORD_CHARS]]
        term = self._analyzer.term(word)
        if not term:
            self[word] = 0
            return 0
        with self._learning:
            if word in self:
                return self[word]
            number = len(self.words)
            self.words.append(word)
            known = self._term_numbers.get(term)
            if known is None:
                known = self._term_numbers[term] = len(self.terms)
                self.terms.append(term)
            if number == self.term_of.size:
                self.term_of = np.concatenate((self.term_of, np.zeros_like(self.term_of)))
            self.term_of[number] = known
            # Last: whoever finds the number finds all that belongs to it.
            self[word] = number
        return number


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
