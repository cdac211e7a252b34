"""Collect the operations of a shard into update batches, each of which fits one record.

A batch names its tokens once; operations refer to them by number. The texts of all operations are
analysed together: what a batch costs, which tokens it needs and how they are numbered comes out of
arrays (`workers.text.columns`), so that a posting takes no step of Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from schemas.update import TermField, UpdateBatch, UpdateOp
from workers.crypto.derive import TokenKind
from workers.crypto.token_cache import TokenCache
from workers.ingest.incoming import Incoming
from workers.ingest.words import IndexWords, NewWords
from workers.leases.lease import Decision
from workers.objects.envelope import ENVELOPE_OVERHEAD_BYTES
from workers.text.columns import read_texts
from workers.text.lexicon import Numbers
from workers.text.varint import Ints
from workers.text.vocabulary import PAD_BYTES

# In the encoded batch: a token with its kind; a wrapped pack key (uid, generation, hybrid HPKE).
_TOKEN_BYTES: Final = 35
_PACK_BYTES: Final = 1300
# A posting's number and frequency; a text field besides its name and columns.
_POSTING_BYTES: Final = 6
_FIELD_BYTES: Final = 24


@dataclass(frozen=True, slots=True, repr=False)
class Authorised:
    """A request whose caller is known and has the scopes."""

    incoming: Incoming
    decision: Decision


@dataclass(frozen=True, slots=True, repr=False)
class Draft:
    """An operation whose texts are not analysed and whose tokens are not numbered yet.

    Attributes:
        item: what it came from.
        op: complete but for `keywords` and `fields`.
        pack: uid of the pack its content lies in, b"" for none.
        keywords: distinct.
        texts: to be analysed, by field.
        size: bytes it takes in the batch besides tokens, fields and words.
    """

    item: Authorised
    op: UpdateOp
    pack: bytes
    keywords: list[str]
    texts: dict[str, str]
    size: int


@dataclass(frozen=True, slots=True, repr=False)
class PreparedUpdate:
    """One record of index-update before it is sealed.

    Attributes:
        shard, partition: where it goes.
        batch: its operations; without vocabulary.
        words: new words of the batch, for the vocabulary.
        members: what each operation came from, in order.
    """

    shard: int
    partition: int
    batch: UpdateBatch
    words: NewWords
    members: tuple[Authorised, ...]


class ShardBatches:
    """The batches of one shard's drafts; a new one is begun before a record would be too large."""

    def __init__(
        self,
        shard: int,
        drafts: Sequence[Draft],
        *,
        record_bytes: int,
        keywords: TokenCache,
        words: IndexWords,
    ) -> None:
        """Analyse the texts of all drafts.

        Args:
            shard: of the index.
            drafts: in the order of their records.
            record_bytes: largest record.
            keywords: tokens of the index's keywords.
            words: of the index.
        """
        self._shard = shard
        self._drafts = drafts
        # Padding and seal of the vocabulary come on top of its words.
        self._limit = record_bytes - ENVELOPE_OVERHEAD_BYTES - PAD_BYTES
        self._keywords = keywords
        self._words = words
        texts = [
            (i, name, text) for i, one in enumerate(drafts) for name, text in one.texts.items()
        ]
        self._names = [name for _, name, _ in texts]
        self._fields = list(dict.fromkeys(self._names))
        # The texts of draft i are [bounds[i], bounds[i + 1]).
        self._text_ops = np.array([i for i, _, _ in texts], dtype=np.int64)
        self._text_bounds = np.searchsorted(self._text_ops, np.arange(len(drafts) + 1))
        self._columns = columns = read_texts(words.lexicon, [text for _, _, text in texts])
        field_of = {name: i for i, name in enumerate(self._fields)}
        fields = np.array([field_of[name] for name in self._names], dtype=np.int64)
        # The chains, (field, term), that occur, and which of them each posting is of.
        self._chains, self._chain_of = np.unique(
            (fields[columns.texts] << 32) | columns.terms, return_inverse=True
        )
        new = words.sent(shard).unsent(columns.words)
        self._new_words = columns.words[new]
        self._new_word_ops = self._text_ops[columns.word_texts[new]]

    def batches(
        self, partition: int, packs: dict[bytes, bytes], now_ms: int
    ) -> Iterator[PreparedUpdate]:
        """Yield the batches in order.

        Args:
            partition: of index-update.
            packs: the wrapped pack keys by uid.
            now_ms: milliseconds since 1970.
        """
        first = 0
        while first < len(self._drafts):
            last = self._end(first)
            drafts = self._drafts[first:last]
            tokens, kinds, ops = self._number(first, last)
            batch = UpdateBatch(
                tokens=tokens,
                token_kinds=kinds,
                ops=ops,
                packs=[packs[uid] for uid in dict.fromkeys(one.pack for one in drafts) if uid],
                created_ms=now_ms,
            )
            words = NewWords(np.unique(self._words_of(first, last)), self._words, self._shard)
            members = tuple(one.item for one in drafts)
            yield PreparedUpdate(self._shard, partition, batch, words, members)
            first = last

    def _end(self, first: int) -> int:
        """Return where the batch that begins at `first` ends. One draft fits any batch."""
        size = 0
        keywords: set[str] = set()
        packs: set[bytes] = {b""}
        for number, cost in enumerate(self._text_costs(first), first):
            draft = self._drafts[number]
            size += cost + draft.size + 5 * len(draft.keywords)
            if draft.keywords:
                new = keywords.union(draft.keywords)
                size += _TOKEN_BYTES * (len(new) - len(keywords))
                keywords = new
            if draft.pack not in packs:
                packs.add(draft.pack)
                size += _PACK_BYTES
            if size > self._limit and number > first:
                return number
        return len(self._drafts)

    def _text_costs(self, first: int) -> list[int]:
        """Return how many bytes the texts of each draft from `first` on add: upper bounds."""
        columns, count = self._columns, len(self._drafts)
        sizes = _POSTING_BYTES * np.diff(columns.starts) + np.diff(columns.position_starts)
        sizes += np.array([_FIELD_BYTES + 4 * len(name) for name in self._names], dtype=np.int64)
        costs = np.bincount(self._text_ops, sizes, count)
        posting = columns.starts[self._text_bounds[first]]
        # Backwards, so that what stays is where each chain comes for the first time.
        places = np.full(self._chains.size, -1)
        places[self._chain_of[posting:][::-1]] = np.arange(columns.texts.size - 1, posting - 1, -1)
        new = columns.texts[places[places >= 0]]
        costs += _TOKEN_BYTES * np.bincount(self._text_ops[new], minlength=count)
        words, new = np.unique(self._words_of(first, count), return_index=True)
        spell = self._words.lexicon.word
        sizes = np.array([4 * len(spell(word)) + 4 for word in words.tolist()], dtype=np.int64)
        new += np.searchsorted(self._new_word_ops, first)
        costs += np.bincount(self._new_word_ops[new], sizes, count)
        found: list[int] = costs[first:].astype(np.int64).tolist()
        return found

    def _words_of(self, first: int, last: int) -> Numbers:
        low, high = np.searchsorted(self._new_word_ops, (first, last))
        return self._new_words[low:high]

    def _number(self, first: int, last: int) -> tuple[list[bytes], bytes, list[UpdateOp]]:
        """Return the tokens of a batch, their kinds, and its operations with their numbers."""
        texts = range(*self._text_bounds[[first, last]].tolist())
        low, high = self._columns.starts[[texts.start, texts.stop]].tolist()
        used = np.zeros(self._chains.size, dtype=np.bool_)
        used[self._chain_of[low:high]] = True
        chains, numbers = self._chains[used], (np.cumsum(used) - 1)[self._chain_of[low:high]]
        tokens: list[bytes] = []
        cuts = np.searchsorted(chains >> 32, np.arange(len(self._fields) + 1)).tolist()
        for field, begin, end in zip(self._fields, cuts, cuts[1:], strict=False):
            tokens += self._words.tokens(field, (chains[begin:end] & 0xFFFFFFFF).tolist())
        terms = len(tokens)
        known: dict[str, int] = {}
        fields = self._term_fields(texts, numbers)
        ops = []
        for draft in self._drafts[first:last]:
            for word in draft.keywords:
                if word not in known:
                    known[word] = len(tokens)
                    tokens.append(self._keywords.token(TokenKind.KEYWORD, "", word))
            ops.append(
                msgspec.structs.replace(
                    draft.op,
                    keywords=[known[word] for word in draft.keywords],
                    fields=[one for _, one in zip(draft.texts, fields, strict=False) if one.length],
                )
            )
        kinds = bytes([TokenKind.TERM]) * terms + bytes([TokenKind.KEYWORD]) * len(known)
        return tokens, kinds, ops

    def _term_fields(self, texts: range, numbers: Ints) -> Iterator[TermField]:
        """Yield the postings of texts, cut from the columns of the batch."""
        columns = self._columns
        starts = columns.starts[texts.start : texts.stop + 1]
        places = columns.position_starts[texts.start : texts.stop + 1].tolist()
        tfs = columns.tfs[starts[0] : starts[-1]].astype("<u2").tobytes()
        terms = numbers.astype("<u4").tobytes()
        lengths = columns.lengths[texts.start : texts.stop].tolist()
        cuts = (starts - starts[0]).tolist()
        for i, text in enumerate(texts):
            begin, end = cuts[i], cuts[i + 1]
            yield TermField(
                name=self._names[text],
                length=lengths[i],
                terms=terms[4 * begin : 4 * end],
                tfs=tfs[2 * begin : 2 * end],
                positions=columns.positions[places[i] : places[i + 1]],
            )
