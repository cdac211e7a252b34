"""From the texts of a micro-batch to postings, all at once: a few passes over arrays.

The result is cut by text: `schemas.update.TermField` carries the three columns of one text as bytes
(`terms` u32 LE indexes into the tokens of a batch, `tfs` u16 LE, `positions` varints, for each term
the first position and then the distances).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from workers.text.lexicon import Lexicon, Numbers
from workers.text.varint import Ints, bounds, encode_varints

MAX_TF: Final = 65_535
"""Occurrences of a term in a text that are counted."""


@dataclass(frozen=True, slots=True, repr=False)
class TextColumns:
    """The postings of `t` texts, one entry for each term of each text.

    Attributes:
        starts: int64 `(t + 1,)`: the postings of text i are `[starts[i], starts[i + 1])`.
        texts: int64 `(p,)`, which text a posting is of; increasing.
        terms: int64 `(p,)`, numbers of the lexicon, increasing within a text.
        tfs: int64 `(p,)`, in [1, 65535].
        lengths: int64 `(t,)`, words that are no stop words (the length that BM25 uses).
        positions: varints of all texts, one after the other.
        position_starts: int64 `(t + 1,)`, byte offsets of the texts in `positions`.
        words: numbers of all words in order, stop words left out.
        word_texts: int64, which text each of `words` is of.
    """

    starts: Ints
    texts: Ints
    terms: Ints
    tfs: Ints
    lengths: Ints
    positions: bytes
    position_starts: Ints
    words: Numbers
    word_texts: Ints


def read_texts(lexicon: Lexicon, texts: Sequence[str]) -> TextColumns:
    """Analyse texts.

    Args:
        lexicon: of their index; learns new words.
        texts: any number, also empty ones.
    """
    read = [lexicon.read(text) for text in texts]
    counts = np.array([one.size for one in read], dtype=np.int64)
    numbers: Numbers = np.concatenate([np.zeros(0, dtype=np.int32), *read])
    begin = bounds(counts)
    kept = np.flatnonzero(numbers)
    of_text = np.repeat(np.arange(len(read)), counts)[kept]
    places = kept - begin[of_text]
    words = numbers[kept]
    # One integer for each word of a text, ordered as (text, term, position): sorted in one pass.
    # Their widths fit: as many texts, terms and positions together have no room in memory.
    place_bits = int(counts.max(initial=0)).bit_length()
    terms = lexicon.terms_of(words).astype(np.int64)
    term_bits = int(terms.max(initial=0)).bit_length()
    keys = np.sort((((of_text << term_bits) | terms) << place_bits) | places)
    places, keys = keys & ((1 << place_bits) - 1), keys >> place_bits
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    tfs = np.diff(first, append=keys.size)
    keys = keys[first]
    if tfs.max(initial=0) > MAX_TF:
        counted = np.arange(places.size) - np.repeat(first, tfs) < MAX_TF
        places, tfs = places[counted], np.minimum(tfs, MAX_TF)
        first = np.cumsum(tfs) - tfs
    deltas = np.diff(places, prepend=0)
    deltas[first] = places[first]
    data, offsets = encode_varints(deltas)
    posting_texts = keys >> term_bits
    starts = np.searchsorted(posting_texts, np.arange(len(read) + 1))
    return TextColumns(
        starts=starts,
        texts=posting_texts,
        terms=keys & ((1 << term_bits) - 1),
        tfs=tfs,
        lengths=np.bincount(of_text, minlength=len(read)),
        positions=data.tobytes(),
        position_starts=offsets[np.append(first, deltas.size)][starts],
        words=words,
        word_texts=of_text,
    )
