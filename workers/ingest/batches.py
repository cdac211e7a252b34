"""Collect the operations of a shard into update batches, each of which fits one record.

A batch names its tokens once; operations refer to them by number. Terms are numbered as words, so a
word that came before in the batch costs one look-up and no token.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from typing import Final

import msgspec

from schemas.update import TermField, UpdateBatch, UpdateOp
from workers.crypto.derive import TokenKind
from workers.crypto.token_cache import TokenCache
from workers.ingest.incoming import Incoming
from workers.leases.lease import Decision
from workers.objects.envelope import ENVELOPE_OVERHEAD_BYTES
from workers.text.varint import write_varint
from workers.text.vocabulary import PAD_BYTES, SentWords

# In the encoded batch: a token with its kind; a wrapped pack key (uid, generation, hybrid HPKE).
_TOKEN_BYTES: Final = 35
_PACK_BYTES: Final = 1300
_KEYWORDS: Final = (TokenKind.KEYWORD, "")


@dataclass(frozen=True, slots=True, repr=False)
class Authorised:
    """A request whose caller is known and has the scopes."""

    incoming: Incoming
    decision: Decision


@dataclass(frozen=True, slots=True, repr=False)
class DraftField:
    """An analysed text field: distinct terms, their frequencies, encoded positions."""

    name: str
    length: int
    terms: list[str]
    tfs: list[int]
    positions: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Draft:
    """An operation whose tokens are not numbered yet.

    Attributes:
        op: complete but for `keywords` and `fields`.
        pack: uid of the pack its content lies in, b"" for none.
        keywords: distinct.
        words: distinct words per field, for the vocabulary.
        size: bytes it takes in the batch besides tokens, fields and words.
    """

    op: UpdateOp
    pack: bytes
    keywords: list[str]
    fields: list[DraftField]
    words: list[str]
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
    words: frozenset[str]
    members: tuple[Authorised, ...]


class ShardBatches:
    """The batches of one shard; a new one is begun before a record would be too large."""

    def __init__(self, record_bytes: int, now_ms: int, tokens: TokenCache, sent: SentWords) -> None:
        """Begin.

        Args:
            record_bytes: largest record.
            now_ms: milliseconds since 1970.
            tokens: of the index.
            sent: words that were sent to the shard before.
        """
        # Padding and seal of the vocabulary come on top of its words.
        self._limit = record_bytes - ENVELOPE_OVERHEAD_BYTES - PAD_BYTES
        self._now_ms = now_ms
        self._tokens = tokens
        self._sent = sent
        self._done: list[_Open] = []
        self._open = _Open(tokens)

    def add(self, item: Authorised, draft: Draft) -> None:
        """Append an operation. One that is too large for any record makes a batch of its own."""
        words = self._sent.new(draft.words)
        cost = self._open.cost(draft, words)
        if self._open.members and self._open.size + cost > self._limit:
            self._done.append(self._open)
            self._open = _Open(self._tokens)
            cost = self._open.cost(draft, words)
        self._open.append(item, draft, words, cost)

    def finish(
        self, shard: int, partition: int, packs: dict[bytes, bytes]
    ) -> Iterable[PreparedUpdate]:
        """Yield the batches in order; `packs` are the wrapped pack keys by uid."""
        for one in (*self._done, self._open):
            batch = UpdateBatch(
                tokens=one.tokens,
                token_kinds=bytes(one.kinds),
                ops=one.ops,
                packs=[packs[uid] for uid in one.packs],
                created_ms=self._now_ms,
            )
            yield PreparedUpdate(shard, partition, batch, frozenset(one.words), tuple(one.members))


class _Open:
    """A batch that is being filled."""

    def __init__(self, cache: TokenCache) -> None:
        self.tokens: list[bytes] = []
        self.kinds = bytearray()
        self.ops: list[UpdateOp] = []
        self.packs: dict[bytes, None] = {}
        self.words: set[str] = set()
        self.members: list[Authorised] = []
        self.size = 0
        self._cache = cache
        # Per kind and field: word -> number of its token.
        self._numbers: dict[tuple[TokenKind, str], dict[str, int]] = {}

    def cost(self, draft: Draft, words: set[str]) -> int:
        """Return how many bytes `draft` would add: an upper bound."""
        size = draft.size + 5 * len(draft.keywords)
        new = self._new(_KEYWORDS, draft.keywords)
        for one in draft.fields:
            size += 4 * len(one.name) + 24 + 6 * len(one.terms) + len(one.positions)
            new += self._new((TokenKind.TERM, one.name), one.terms)
        size += new * _TOKEN_BYTES
        size += sum(4 * len(word) + 4 for word in words - self.words)
        return size + (_PACK_BYTES if draft.pack and draft.pack not in self.packs else 0)

    def append(self, item: Authorised, draft: Draft, words: set[str], cost: int) -> None:
        """Number the tokens of `draft` and take it in."""
        fields = []
        for one in draft.fields:
            numbers = self._number((TokenKind.TERM, one.name), one.terms)
            count = len(numbers)
            fields.append(
                TermField(
                    name=one.name,
                    length=one.length,
                    terms=struct.pack(f"<{count}I", *numbers),
                    tfs=struct.pack(f"<{count}H", *one.tfs),
                    positions=one.positions,
                )
            )
        keywords = self._number(_KEYWORDS, draft.keywords)
        self.ops.append(msgspec.structs.replace(draft.op, keywords=keywords, fields=fields))
        if draft.pack:
            self.packs[draft.pack] = None
        self.words |= words
        self.members.append(item)
        self.size += cost

    def _new(self, chain: tuple[TokenKind, str], words: Sequence[str]) -> int:
        known = self._numbers.get(chain)
        if known is None:
            return len(words)
        return sum(1 for _ in filterfalse(known.__contains__, words))

    def _number(self, chain: tuple[TokenKind, str], words: Sequence[str]) -> list[int]:
        known = self._numbers.setdefault(chain, {})
        kind, field = chain
        for word in filterfalse(known.__contains__, words):
            known[word] = len(self.tokens)
            self.tokens.append(self._cache.token(kind, field, word))
            self.kinds.append(kind)
        return [known[word] for word in words]


def delta_positions(positions: Iterable[Sequence[int]]) -> bytes:
    """Encode per term the first position and the distances that follow, as varints.

    A plain loop: for the hundred or so positions of a document it is faster than arrays.
    """
    out = bytearray()
    append = out.append
    for places in positions:
        before = 0
        for at in places:
            distance = at - before
            before = at
            if distance < 0x80:
                append(distance)
            else:
                write_varint(out, distance)
    return bytes(out)
