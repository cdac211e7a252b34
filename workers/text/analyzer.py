r"""Turn text into terms: normalise, split into words, drop stop words, stem.

Ingest and query must agree on every byte of this, or a word is sealed under one token and looked
up under another. Each analyzer therefore has a `version` that stands in the shard heads; a change
that alters any term must raise it.

The steps of `english`: NFKC, casefold, words (`\w+`, Unicode), no words of one character, the
stop words of `stopwords`, Snowball English: the same terms as bm25s with its `en` list. `simple`
stops after the words and keeps all. Any other Snowball language is available by its name
(`german`, `french`, ...), with no stop words but those of one character.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

import snowballstemmer

from workers.text.stopwords import ENGLISH

ANALYZER_VERSION: Final = 1
MAX_WORD_CHARS: Final = 128
"""Longer words are cut: a blob of base64 is not a word, but its start still finds it."""
_CACHE_WORDS: Final = 262_144
_WORD: Final = re.compile(r"\w+")
# ASCII: lower case for letters, themselves for digits and "_", a space for everything else.
_ASCII_WORDS: Final = bytes(
    ord(char.lower()) if _WORD.match(char := chr(code)) else 32 for code in range(128)
).ljust(256)


class _Stemmer(Protocol):
    def stemWord(self, word: str) -> str: ...  # noqa: N802 - the name is snowballstemmer's


@dataclass(frozen=True, slots=True)
class Token:
    """One term of a text.

    Attributes:
        term: what is sealed and looked up.
        position: index of its word in the text, stop words counted.
    """

    term: str
    position: int


class Analyzer:
    """Analyse text in one language. Safe to share between threads."""

    def __init__(
        self,
        name: str,
        *,
        stop: Iterable[str] = (),
        stemmer: _Stemmer | None = None,
        min_chars: int = 1,
    ) -> None:
        self.name = name
        self._min_chars = min_chars
        self.version = ANALYZER_VERSION
        self._stemmer = stemmer
        self._stop: dict[str, str] = dict.fromkeys(stop, "")
        # word -> term; "" marks a stop word. A look-up is cheaper than the stemmer.
        self._cache: dict[str, str] = dict(self._stop)
        self._lock = threading.Lock()

    def normalize(self, text: str) -> str:
        """Return `text` in the form that words are split from."""
        if text.isascii():
            return text.lower()
        return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())

    def split(self, text: str) -> list[str]:
        """Return every word of `text` in order: normalised, not stemmed, of any length."""
        if text.isascii():
            # The same as below, three times as fast.
            return text.encode().translate(_ASCII_WORDS).decode().split()
        return _WORD.findall(self.normalize(text))

    def words(self, text: str) -> list[str]:
        """Return every word of `text` in order: normalised, stop words kept, not stemmed."""
        return [word[:MAX_WORD_CHARS] for word in self.split(text)]

    def term(self, word: str) -> str:
        """Return the term of one normalised word, or "" for a stop word."""
        known = self._cache.get(word)
        return self._stem(word) if known is None else known

    def tokens(self, text: str) -> list[str]:
        """Return the terms of `text` in order, stop words left out."""
        return [token.term for token in self.positioned(text)]

    def positioned(self, text: str) -> list[Token]:
        """Return the terms of `text` in order with their positions; stop words leave gaps."""
        return [
            Token(term, position)
            for position, word in enumerate(self.words(text))
            if (term := self.term(word))
        ]

    def _stem(self, word: str) -> str:
        # The stemmer keeps its state in itself, so one thread at a time.
        with self._lock:
            if len(word) < self._min_chars:
                term = ""
            else:
                term = self._stemmer.stemWord(word) if self._stemmer is not None else word
            if len(self._cache) >= _CACHE_WORDS:
                self._cache = dict(self._stop)
            self._cache[word] = term
        return term


def analyzer_names() -> tuple[str, ...]:
    """Return the names that `get_analyzer` knows, sorted."""
    algorithms: Callable[[], Iterable[str]] = snowballstemmer.algorithms
    return tuple(sorted({"simple", *algorithms()}))


@lru_cache(maxsize=64)
def get_analyzer(name: str) -> Analyzer:
    """Return the shared analyzer of that name.

    Raises:
        ValueError: if there is none.
    """
    if name == "simple":
        return Analyzer(name)
    if name not in analyzer_names():
        known = ", ".join(analyzer_names())
        raise ValueError(f"unknown analyzer; known are: {known}")
    stop = ENGLISH if name == "english" else ()
    return Analyzer(name, stop=stop, stemmer=snowballstemmer.stemmer(name), min_chars=2)
