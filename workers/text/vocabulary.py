"""Build, read and search the word lists that make `prefix*` possible.

Tokens are PRFs: they have no order, so a prefix must be completed to words before anything can be
looked up. The ingest worker builds one list for a micro-batch (the words as written, not the
stems: `running*` must find `runnings` though the term of both is `run`), and seals it to the
index's *query* key. The index worker carries it in the segment without being able to open it. The
query worker opens the lists of the live segments, completes the prefix and analyses the words.

A list before sealing, all integers varints:

    version   1    1
    n         1    words
    n times:       shared  bytes shared with the word before
                   size    bytes that follow
                   bytes   the rest of the word, UTF-8
    zeros          up to a multiple of `PAD_BYTES`: the size tells less about the words

Words are sorted by their UTF-8 bytes and distinct.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from workers.text.varint import MalformedPayloadError, read_varint, write_varint

_VERSION: Final = 1
PAD_BYTES: Final = 1024
MAX_VOCABULARY_BYTES: Final = 16 * 1024 * 1024
MAX_COMPLETIONS: Final = 256
"""Words that one prefix may stand for; a query with more is answered with the first ones."""


def build_vocabulary(words: Iterable[str]) -> bytes:
    """Return the word list for `words` (normalised, no stop words); b"" for none.

    Raises:
        ValueError: if the list exceeds `MAX_VOCABULARY_BYTES`.
    """
    encoded = sorted({word.encode() for word in words} - {b""})
    if not encoded:
        return b""
    out = bytearray((_VERSION,))
    write_varint(out, len(encoded))
    previous = b""
    for word in encoded:
        shared = _shared(previous, word)
        write_varint(out, shared)
        write_varint(out, len(word) - shared)
        out += word[shared:]
        previous = word
    if len(out) > MAX_VOCABULARY_BYTES:
        raise ValueError("the vocabulary of one batch is too large")
    out += bytes(-len(out) % PAD_BYTES)
    return bytes(out)


def read_vocabulary(data: bytes) -> list[str]:
    """Return the sorted words of a list.

    Raises:
        MalformedPayloadError: if it is not one.
    """
    if not data:
        return []
    if data[0] != _VERSION or len(data) > MAX_VOCABULARY_BYTES + PAD_BYTES:
        raise MalformedPayloadError("not a vocabulary of this version")
    count, at = read_varint(data, 1)
    words: list[str] = []
    word = b""
    for _ in range(count):
        shared, at = read_varint(data, at)
        size, at = read_varint(data, at)
        if shared > len(word) or at + size > len(data):
            raise MalformedPayloadError("a vocabulary is cut off")
        word = word[:shared] + data[at : at + size]
        at += size
        words.append(word.decode())
    return words


class Vocabulary:
    """The words of an index, for completing prefixes. Grows; never shared between indexes."""

    def __init__(self) -> None:
        self._words: list[bytes] = []
        self._fresh: set[bytes] = set()

    def add(self, words: Iterable[str]) -> None:
        """Add the words of one list."""
        self._fresh.update(word.encode() for word in words)

    def __len__(self) -> int:
        self._settle()
        return len(self._words)

    def complete(self, prefix: str, limit: int = MAX_COMPLETIONS) -> list[str]:
        """Return the words that begin with `prefix`, sorted, at most `limit`."""
        self._settle()
        start = prefix.encode()
        at = bisect_left(self._words, start)
        found: list[str] = []
        while at < len(self._words) and len(found) < limit:
            word = self._words[at]
            if not word.startswith(start):
                break
            found.append(word.decode())
            at += 1
        return found

    def _settle(self) -> None:
        if self._fresh:
            self._words = sorted(self._fresh.union(self._words))
            self._fresh = set()


def _shared(left: bytes, right: bytes) -> int:
    limit = min(len(left), len(right), 127)
    at = 0
    while at < limit and left[at] == right[at]:
        at += 1
    return at
